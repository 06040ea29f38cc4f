"""How S_rel is computed: the finite step as defined, or its limit η → 0.

An estimator is made once for a model and a probe, and called at each measurement:
`estimator(learning_rate) -> {measure: Matrices}`.
"""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from srel_tf import evaluation, resolution
from srel_tf import predictions as reading
from srel_tf.errors import OptionError
from srel_tf.exact import FiniteStep
from srel_tf.layer_rules import rule_of
from srel_tf.limit import Limit
from srel_tf.passes import LossPasses, NotSeparable
from srel_tf.tangents import Tangents
from srel_tf.updates import RULES


class Task(NamedTuple):
    """What is to be measured: the network, x and y of the sources, x of the targets as tensors, probe, options."""

    network: object
    data: tuple
    probe: object
    measures: dict
    settings: object

    def kind(self, outputs, passes):
        """How to read outputs [n_t, C] of an engine (`predictions.kind_of_predictions`)."""
        if passes is not None and passes.head == "log":
            return "logits"
        return reading.kind_of_predictions(self.settings.predictions, self.probe, self.network.model, outputs.numpy())

    def kinds(self, outputs, passes):
        """`kind` by whether a measure is of raw outputs: those of a model that ends in a softmax are probabilities."""
        kind = self.kind(outputs, passes)
        as_they_are = kind == "probabilities" or (passes is not None and passes.head == "log")
        return {False: kind, True: kind if as_they_are else "raw"}

    def loss_rounding(self, kind, own_before, passes):
        """Relative error [n_s] of ∂ℓ/∂f of a loss that computes in Keras's floatx; none in float64."""
        if passes is not None and passes.loss.in_float64:
            return 0.0
        p = reading.change(kind, own_before, own_before).before.numpy()  # f itself for raw outputs.
        targets = reading.loss_targets(self.probe, kind, p.shape[-1])
        epsilon = max(resolution.precision(self.network.dtype), np.finfo(keras.config.floatx()).eps)
        error = resolution.signal_error(None if targets is None else p, targets, epsilon)
        if passes is None and kind == "probabilities":
            # ∇ℓ may come back through the softmax itself, whose derivative loses 1 − p as p − y does.
            with np.errstate(divide="ignore"):
                error = np.maximum(error, epsilon / (1 - p.max(axis=-1)))
        return error


class Exact:
    """The finite step (Definitions 1 and 2)."""

    def __init__(self, task, passes=None):
        self._task = task
        self._passes = passes or find_passes(task)[0]
        rule = RULES[task.settings.update](task.network)
        own, batch_size = task.probe.own_columns, task.settings.batch_size
        self._engine = FiniteStep(task.network, rule, own, batch_size, self._passes)

    def __call__(self, learning_rate):
        return self.matrices(self.outputs(learning_rate))

    def outputs(self, learning_rate):
        """`exact.Outputs` for one η, or for one of each source [n_s], NaN for those to leave out."""
        steps = np.broadcast_to(learning_rate, [len(self._task.probe.sources)])
        return self._engine(*self._task.data, tf.constant(steps, self._task.network.dtype))

    def matrices(self, outputs):
        """{measure: Matrices} of `exact.Outputs`."""
        task = self._task
        kinds = task.kinds(outputs.before, self._passes)
        gradient = outputs.gradient_error.numpy() + task.loss_rounding(kinds[False], outputs.own_before, self._passes)
        return evaluation.of_finite_steps(outputs, kinds, task.measures, task.probe.own_columns, gradient)


class FirstOrderLimit:
    """The limit η → 0 (Section 5). Numerators and denominators are per unit of η (`kl`: of η²)."""

    def __init__(self, task, passes=None, reason=None, zeros_are_kinks=False):
        check_limit(task)
        self._task = task
        self._passes, reason = (passes, reason) if passes or reason else find_passes(task)
        own, batch_size = task.probe.own_columns, task.settings.batch_size
        if self._passes is None:
            warnings.warn(
                f"model {task.network.model.name!r}: {reason}; the limit is taken source by source by forward-mode "
                "differentiation, which costs a few forward passes of all targets for each",
                stacklevel=5,
            )
            self._engine = Tangents(task.network, task.data[0][:1], own, batch_size, zeros_are_kinks)
            return
        slow = sorted({type(v).__name__ for v in self._passes.capture.layers if rule_of(v) is None})
        if slow:
            warnings.warn(
                f"no rule in srel_tf.layer_rules for layers of type {', '.join(slow)}: their gradients are formed "
                "example by example, which is right, and slower",
                stacklevel=5,
            )
        self._engine = Limit(self._passes, own, batch_size, self._differences_suffice())

    def __call__(self, learning_rate):
        return self.matrices(self.changes())

    def changes(self):
        """`limit.FirstOrder` as the model is now."""
        return self._engine(*self._task.data)

    def matrices(self, changes):
        """{measure: Matrices} of `limit.FirstOrder`."""
        task = self._task
        kinds = task.kinds(changes.before, self._passes)
        gradient = task.loss_rounding(kinds[False], changes.own_before, self._passes)
        if changes.head == "log":  # u are the logits of a softmax, whose outputs D acts on as they are.
            kinds = dict.fromkeys(kinds, "probabilities")
        return evaluation.of_first_order(changes, kinds, task.measures, task.probe.own_columns, gradient)

    def _differences_suffice(self):
        """Whether neither D nor ℓ sees a shift that all outputs have in common."""
        num_outputs = self._passes.network.outputs(self._task.data[0][:1]).shape[-1]
        classifier = reading.is_classifier(self._task.settings.predictions, self._task.probe, num_outputs)
        raw = any(measure.raw for measure in self._task.measures.values())
        return classifier and not raw and self._passes.loss.ignores_shifts_of(self._passes.head)


def find_passes(task):
    """(the network's `LossPasses`, or None where its layers do not tell gradients of examples apart; the reason)."""
    x, y, _ = task.data
    try:
        return LossPasses(task.network, x[:2], y[:2]), None
    except NotSeparable as reason:
        return None, reason


def check_limit(task):
    """`OptionError` for what has no limit η → 0."""
    settings = task.settings
    if settings.update != "sgd":
        raise OptionError(
            f"update={settings.update!r} with estimator={settings.estimator!r}: the limit is that of the plain step "
            "w − η∇ℓ; use update='sgd', or estimator='exact'"
        )
    without = [name for name, measure in task.measures.items() if measure.first_order is None]
    if without:
        raise OptionError(
            f"measures {without} are not zero where nothing moves, so that they have no limit: use estimator='exact'"
        )
