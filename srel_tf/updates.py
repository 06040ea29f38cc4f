"""Fictitious update rules: the weights w⁺ after one step on one example. The weights of the model do not change.

A rule runs inside the engine's graph and computes in the dtype of the weights.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import keras
import tensorflow as tf

from srel_tf.errors import ModelError
from srel_tf.gradients.network import Network
from srel_tf.optimizer_copies import (
    OnCopies,
    check_alone,
    check_weights_are_known,
    copy_of_optimizer,
    copy_of_variable,
    in_precision_of,
    label_of,
    objects_held,
    own_optimizer,
)

ADAM_EPSILON = 1e-8


class UpdateRule(Protocol):
    """A fictitious update rule for a network.

    Attributes:
        elementwise: whether the rule can update one weight without the others. A rule that is not elementwise needs
            all weights at once. Such a rule also holds variables, so that it can process only one source at a time.
        is_gradient: whether w⁺ = w − g for the `gradients` g that `updated` receives.
    """

    elementwise: bool
    is_gradient: bool

    def gradient_factor(self, learning_rate: tf.Tensor) -> tf.Tensor:
        """Return the factor, in the shape of η, that multiplies the gradients before `updated` receives them."""

    def updated(
        self, weights: Sequence, gradients: Sequence, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        """Return w⁺ for weights w and gradients of the same shapes. `learning_rate` is η, a scalar."""

    def as_in_training(
        self, x: tf.Tensor, y: tf.Tensor, weights: list, gradients: list
    ) -> list:
        """Return the gradients of an example [1, ...] in the form that the optimizer gets in training.

        Elementwise rules return `gradients` unchanged.
        """


class _Elementwise:
    elementwise = True

    def as_in_training(
        self, x: tf.Tensor, y: tf.Tensor, weights: list, gradients: list
    ) -> list:
        return gradients


class Sgd(_Elementwise):
    """The update of Definitions 1 and 2, w⁺ = w − η ∇ℓ."""

    is_gradient = True

    def __init__(self, network: Network) -> None:
        del network

    def gradient_factor(self, learning_rate: tf.Tensor) -> tf.Tensor:
        # Multiplying the loss by η saves a pass over the weights.
        return learning_rate

    def updated(
        self, weights: Sequence, gradients: Sequence, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        return [w - g for w, g in zip(weights, gradients, strict=True)]


class FreshAdam(_Elementwise):
    """The first step of a new Adam (Kingma & Ba, Algorithm 1, ε = 1e-8), as in the published code.

    Before the first step both moments are zero. The bias-corrected moments are then m̂ = g and v̂ = g², so that
    w⁺ = w − η g / (|g| + ε).
    """

    is_gradient = False

    def __init__(self, network: Network) -> None:
        del network

    def gradient_factor(self, learning_rate: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(learning_rate)

    def updated(
        self, weights: Sequence, gradients: Sequence, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        return [
            w - tf.cast(learning_rate, g.dtype) * (g / (tf.abs(g) + ADAM_EPSILON))
            for w, g in zip(weights, gradients, strict=True)
        ]


class OptimizerStep:
    """The next step of the model's own optimizer from its current state, which does not change.

    The optimizer's own code runs on copies of its variables and of the weights. The copies are reset before each
    source. The optimizer's code sees the model's Keras variables as in training: path, name, shape, constraint,
    exclusion from weight decay. Two training options affect how a gradient is collected:

    - gradient_accumulation_steps: the source's gradient is taken as the mean gradient of a complete accumulation.
    - A loss scale (loss_scale_factor, LossScaleOptimizer): the source's gradient is taken as the unscaled gradient.

    An optimizer that is not built yet is measured like a new optimizer with the same configuration.

    Raises:
        ModelError: if the model has no optimizer, or one that cannot run on copies.
    """

    is_gradient = False
    elementwise = False  # Clipping by the global norm needs all gradients, and all sources share the copies.

    def __init__(self, network: Network) -> None:
        self._network = network
        self._weights = list(network.variables)
        self._live = own_optimizer(network.model)
        check_alone(self._live)
        self._learning_rate = keras.Variable(0.0, name="learning_rate", trainable=False)
        self._optimizer = copy_of_optimizer(
            self._live, self._weights, self._learning_rate
        )
        check_weights_are_known(self._optimizer, self._weights)
        variables = [
            *self._weights,
            self._learning_rate,
            *objects_held(self._optimizer, keras.Variable),
        ]
        self._variables = list({id(v): v for v in variables}.values())
        self._copies: dict[tf.DType, list[tf.Variable]] = {}

    def gradient_factor(self, learning_rate: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(learning_rate)

    def updated(
        self, weights: Sequence, gradients: Sequence, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        dtype = weights[0].dtype
        if dtype not in self._copies:
            self._copies[dtype] = [copy_of_variable(v, dtype) for v in self._variables]
        copies = self._copies[dtype]
        self._reset(copies, weights, learning_rate)
        with (
            in_precision_of(copies, self._variables),
            OnCopies(copies, self._variables) as scope,
        ):
            self._apply([None if g is None else tf.cast(g, dtype) for g in gradients])
            return [tf.identity(scope.get_current_value(v)) for v in self._weights]

    def as_in_training(
        self, x: tf.Tensor, y: tf.Tensor, weights: list, gradients: list
    ) -> list:
        """Return the gradients of an example [1, ...] in the form that the optimizer gets from a tape in training.

        - A tape returns None for a weight that does not affect the loss. The optimizer does not change such a weight,
          not even by decay.
        - A tape returns `tf.IndexedSlices` for rows of a table. If a row occurs twice, most optimizers treat the
          slices differently from their sum.
        - Other gradients are returned as given.
        """
        weights = [tf.convert_to_tensor(w) for w in weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            _, loss = self._network.predictions_and_loss(x, y, weights)
        taped = tape.gradient(loss, weights)
        return [
            ours if isinstance(g, tf.Tensor) else g
            for ours, g in zip(gradients, taped, strict=True)
        ]

    def _reset(self, copies: list, weights: Sequence, learning_rate: tf.Tensor) -> None:
        """Set the copies to the weights, the learning rate, and the optimizer's current state."""
        values = {id(v): w for v, w in zip(self._weights, weights, strict=True)}
        values[id(self._learning_rate)] = learning_rate
        # With gradient accumulation `_iterations` counts gradients, while the property `iterations` counts updates.
        values[id(self._optimizer._iterations)] = self._live.iterations
        for copy, v in zip(copies, self._variables, strict=True):
            copy.assign(tf.cast(values.get(id(v), v.value), copy.dtype))

    def _apply(self, gradients: list) -> None:
        """Apply gradients as `fit` does."""
        pairs = zip(gradients, self._weights, strict=True)
        try:
            # Keras itself would skip weights without a gradient, but with a warning.
            self._optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"update='optimizer' cannot run {label_of(self._optimizer)} on copies of its variables "
                f"({type(error).__name__}: {error}): use update='sgd'"
            ) from error


RULES: dict[str, Callable[[Network], UpdateRule]] = {
    "sgd": Sgd,
    "fresh_adam": FreshAdam,
    "optimizer": OptimizerStep,
}


def learning_rate_now(model: keras.Model, fixed: float | None = None) -> float:
    """Return η: `fixed`, or the current learning rate of the model's optimizer.

    Raises `ModelError` if both are missing.
    """
    if fixed is not None:
        return float(fixed)
    if model.optimizer is None:
        raise ModelError(
            "the model has no optimizer from which η could be taken: pass learning_rate=..."
        )
    try:
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"{label_of(model.optimizer)} has no single learning rate to use as η ({error}): pass learning_rate=..."
        ) from error
