"""What is to be measured: the model, the data and the options of one instrument."""

import functools
from dataclasses import dataclass, replace

import tensorflow as tf

from srel_tf.errors import ModelError
from srel_tf.gradients.backprop import LossPasses, NotSeparable
from srel_tf.measures import outputs as reading


@dataclass(frozen=True)
class Task:
    """What is to be measured: the network, x and y of the sources, x of the targets as tensors, probe, options.

    loss: the `CompiledLoss`. read_as: how to read outputs (`predictions.read_as`).
    """

    network: object
    data: tuple
    probe: object
    measures: dict
    settings: object
    loss: object
    read_as: str

    def in_precision(self, dtype):
        """The same in another precision. `ModelError` where the model has a part that computes in less."""
        network = self.network.in_precision(dtype)
        x, y, x_targets = self.data
        network.inspect(network.cast(x[:1]), network.cast(y[:1]))
        try:
            network.outputs(network.cast(x[:1]))
        except tf.errors.OpError as error:
            what = f"model {network.model.name!r} does not run in {dtype} ({error.message.splitlines()[0]})"
            raise ModelError(what) from error
        return replace(self, network=network, data=(network.cast(x), network.cast(y), network.cast(x_targets)))

    def kind(self, outputs, passes):
        """How to read outputs [n_t, C] of an engine (`predictions.kind_of_predictions`)."""
        if passes is not None and passes.head == "log":
            return "logits"
        return reading.kind_of_predictions(self.read_as, self.loss, self.network.model, outputs.numpy())

    def kinds(self, outputs, passes):
        """`kind` by whether a measure is of raw outputs: those of a model that ends in a softmax are probabilities."""
        kind = self.kind(outputs, passes)
        as_they_are = kind == "probabilities" or (passes is not None and passes.head == "log")
        return {False: kind, True: kind if as_they_are else "raw"}

    @functools.cached_property
    def passes(self):
        """(`LossPasses`, None), or (None, why the layers do not tell gradients of examples apart)."""
        x, y, _ = self.data
        try:
            return LossPasses(self.network, x[:2], y[:2]), None
        except NotSeparable as reason:
            return None, reason


def suffix(task):
    return "_float64" if task.network.dtype == tf.float64 else ""
