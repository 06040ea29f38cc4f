"""The model, the data and the options of one instrument."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, SRelError, reason_of
from srel_tf.gradients.backprop import LossBackprop, NotSeparable
from srel_tf.gradients.compiled_loss import CompiledLoss
from srel_tf.gradients.network import Network
from srel_tf.measures.distances import Measure
from srel_tf.measures.outputs import kind_of_predictions
from srel_tf.probe import ProbeSet


@dataclass(frozen=True)
class MeasurementPlan:
    """The model, the data and the options of a measurement.

    Attributes:
        network: the model.
        data: tensors: x of the sources, y of the sources, and x of the targets.
        probe: the probe set.
        measures: measures by name.
        settings: the user's `Settings`.
        loss: the compiled loss.
        kind: how the outputs are interpreted: "raw", "logits", "probabilities" or "softmax" (see `outputs.read_as`).
    """

    network: Network
    data: tuple[tf.Tensor, tf.Tensor, tf.Tensor]
    probe: ProbeSet
    measures: dict[str, Measure]
    settings: Any
    loss: CompiledLoss
    kind: str

    @property
    def in_float64(self) -> bool:
        return self.network.dtype == tf.float64

    def method(self, name: str) -> str:
        """Return the entry for the frame's column `method`: `name`, with the ending "_float64" if run in float64.

        Args:
            name: "finite_step" or "limit".
        """
        return f"{name}_float64" if self.in_float64 else name

    def in_precision(self, dtype: str) -> "MeasurementPlan":
        """Return the same plan in another precision.

        Raises:
            ModelError: if the model or its loss does not run in this precision, or if an operation in them computes in
                a lower precision.
        """
        network = self.network.in_precision(dtype)
        x, y, x_targets = (network.cast(tensor) for tensor in self.data)
        try:
            network.inspect(x[:1], y[:1])
            network.outputs(x[:1])
        except SRelError:
            raise
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {network.model.name!r} or its loss does not run in {dtype} ({reason_of(error)}): in your own "
                "layers and losses, give constants the dtype of the tensors with which they are combined"
            ) from error
        return replace(self, network=network, data=(x, y, x_targets))

    def kinds(
        self, outputs: tf.Tensor, backprop: LossBackprop | None
    ) -> dict[bool, str]:
        """Return how the outputs [n_t, C] of an engine are interpreted: {whether the measure is of raw outputs: kind}.

        A kind is "raw", "logits" or "probabilities". The raw outputs of a model that ends in a softmax are its
        probabilities.
        """
        has_softmax_link = backprop is not None and backprop.link == "softmax"
        if has_softmax_link:
            kind = "logits"  # The engines return the logits behind the softmax.
        else:
            kind = kind_of_predictions(
                self.kind, self.loss, self.network.model.name, np.asarray(outputs)
            )
        ends_in_softmax = has_softmax_link or kind == "probabilities"
        return {False: kind, True: kind if ends_in_softmax else "raw"}

    @functools.cached_property
    def backprop(self) -> tuple[LossBackprop | None, NotSeparable | None]:
        """Return (`LossBackprop` of the network, None), or (None, the reason why it cannot be made)."""
        x, y, _ = self.data
        try:
            return LossBackprop(self.network, x[:2], y[:2]), None
        except NotSeparable as reason:
            return None, reason
