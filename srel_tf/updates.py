"""Fictitious update rules: the weights w⁺ that one step on one example would give. The model keeps its own.

A rule is called inside the engine's graph: `rule.updated(weights, gradients, learning_rate) -> list of tensors`, with
gradients that have been multiplied by `rule.gradient_factor(learning_rate)`. An `elementwise` rule may be given a part
of the weights; the others look at all of them together, and hold variables, so that one source is served at a time.
A rule `is_gradient` whose update is −the gradient that it is given.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from srel_tf.errors import ModelError

ADAM_EPSILON = 1e-8


class Sgd:
    """w⁺ = w − η ∇ℓ: the update of Definitions 1 and 2."""

    elementwise, is_gradient = True, True

    def __init__(self, network):
        del network

    def gradient_factor(self, learning_rate):
        return learning_rate  # η enters where back-propagation starts: that saves a pass over the weights.

    def updated(self, weights, gradients, learning_rate):
        return [w - g for w, g in zip(weights, gradients, strict=True)]


class FreshAdam:
    """The first step of a new Adam (Kingma & Ba, Algorithm 1, ε = 1e-8), as in the published code.

    With both moments at zero the bias corrections leave m̂ = g and v̂ = g², so that w⁺ = w − η g / (|g| + ε).
    """

    elementwise, is_gradient = True, False

    def __init__(self, network):
        del network

    def gradient_factor(self, learning_rate):
        return tf.ones_like(learning_rate)

    def updated(self, weights, gradients, learning_rate):
        return [
            w - tf.cast(learning_rate, g.dtype) * (g / (tf.abs(g) + ADAM_EPSILON))
            for w, g in zip(weights, gradients, strict=True)
        ]


class OptimizerStep:
    """What the model's own optimizer would do next with that gradient, from its present state, which stays as it is.

    A shadow optimizer of the same configuration works on shadow weights; weights and slots are copied into both before
    each source. Clipping, weight decay, momentum, moments and weight constraints act as in training.
    """

    is_gradient = False
    elementwise = False  # Clipping by the global norm; and the shadows are variables.

    def __init__(self, network):
        live = network.model.optimizer
        if live is None:
            raise ModelError("update='optimizer' needs an optimizer: call model.compile(optimizer=...)")
        if live.loss_scale_factor is not None or isinstance(live, keras.optimizers.LossScaleOptimizer):
            raise ModelError("update='optimizer' does not support loss scaling: compile with the inner optimizer")
        self._live = live
        # A copy through NumPy: keras.Variable(v.value) would share the model's own tf.Variable.
        self._weights = [keras.Variable(v.numpy(), dtype=v.dtype, name=v.name) for v in network.variables]
        for shadow, v in zip(self._weights, network.variables, strict=True):
            shadow.constraint = v.constraint
        # η comes with each call, evaluated already where the live learning rate is a schedule.
        self._optimizer = type(live).from_config({**live.get_config(), "learning_rate": 1.0})
        self._optimizer.build(self._weights)
        self._exclude_from_weight_decay(network.variables)
        self._slots = _slots(self._optimizer)
        # An optimizer that has not been built yet is in the state of a new one.
        self._state = _slots(live) if live.built else [tf.constant(v.numpy()) for v in self._slots]

    def _exclude_from_weight_decay(self, variables):
        """Carry `exclude_from_weight_decay` over, which the configuration leaves out and no public method reads."""
        if self._live.weight_decay is not None:
            pairs = zip(self._weights, variables, strict=True)
            excluded = [shadow for shadow, v in pairs if not self._live._use_weight_decay(v)]
            if excluded:
                self._optimizer.exclude_from_weight_decay(var_list=excluded)

    def gradient_factor(self, learning_rate):
        return tf.ones_like(learning_rate)

    def updated(self, weights, gradients, learning_rate):
        for shadow, w in zip(self._weights, weights, strict=True):
            shadow.assign(w)
        for shadow, value in zip(self._slots, self._state, strict=True):
            shadow.assign(value)
        self._optimizer.learning_rate.assign(tf.cast(learning_rate, self._optimizer.learning_rate.dtype))
        self._optimizer.apply(gradients, self._weights)
        return [tf.identity(shadow.value) for shadow in self._weights]


def _slots(optimizer):
    """The optimizer's state but for its learning rate."""
    return [v for v in optimizer.variables if v is not optimizer.learning_rate]


RULES: dict[str, Callable] = {"sgd": Sgd, "fresh_adam": FreshAdam, "optimizer": OptimizerStep}


def learning_rate_now(model, fixed=None):
    """η: `fixed`, or the learning rate that the model's optimizer has at this moment. `ModelError` without either."""
    if fixed is not None:
        return float(fixed)
    if model.optimizer is None:
        raise ModelError("the model has no optimizer to take η from: pass learning_rate=...")
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
