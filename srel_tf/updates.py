"""Fictitious update rules: the weights w⁺ after one step on one example. The weights of the model do not change.

A rule runs inside the engine's graph and computes in the dtype of the weights.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from srel_tf.errors import ModelError
from srel_tf.gradients.network import Network

ADAM_EPSILON = 1e-8


class UpdateRule(Protocol):
    """A fictitious update rule for a network.

    Attributes:
        elementwise: whether the rule can update some of the weights alone. Other rules need all weights together and
            hold variables, so that they serve one source at a time.
        is_gradient: whether the update is minus the gradient argument of the rule.
    """

    elementwise: bool
    is_gradient: bool

    def gradient_factor(self, learning_rate: tf.Tensor) -> tf.Tensor:
        """Return the factor, in the shape of η, that multiplies the gradients before `updated` receives them."""

    def updated(
        self, weights: Sequence, gradients: Sequence, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        """Return w⁺ for weights w and gradients of the same shapes; learning_rate is η, []."""

    def as_in_training(
        self, x: tf.Tensor, y: tf.Tensor, weights: list, gradients: list
    ) -> list:
        """Return the gradients of an example [1, ...] as returned by a tape; for rules that are not elementwise."""


class _Elementwise:
    elementwise = True

    def as_in_training(
        self, x: tf.Tensor, y: tf.Tensor, weights: list, gradients: list
    ) -> list:
        return gradients


class Sgd(_Elementwise):
    """w⁺ = w − η ∇ℓ: the update of Definitions 1 and 2."""

    is_gradient = True

    def __init__(self, network: Network) -> None:
        del network

    def gradient_factor(self, learning_rate: tf.Tensor) -> tf.Tensor:
        return (
            learning_rate  # η multiplies the loss, which saves a pass over the weights.
        )

    def updated(
        self, weights: Sequence, gradients: Sequence, learning_rate: tf.Tensor
    ) -> list[tf.Tensor]:
        return [w - g for w, g in zip(weights, gradients, strict=True)]


class FreshAdam(_Elementwise):
    """The first step of a new Adam (Kingma & Ba, Algorithm 1, ε = 1e-8), as in the published code.

    With both moments at zero the bias corrections give m̂ = g and v̂ = g², so that w⁺ = w − η g / (|g| + ε).
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

    The optimizer's own code runs on copies of its variables and of the weights, which are reset before each source. The
    code sees the model's Keras variables as in training: path, name, shape, constraint, exclusion from weight decay.
    Two training options affect how a gradient is collected:

    - gradient_accumulation_steps: the gradient counts as the mean gradient of a complete accumulation.
    - A loss scale (loss_scale_factor, LossScaleOptimizer): the gradient counts as the one after unscaling.

    An optimizer that is not built yet is measured like a new optimizer with the same configuration.

    Raises:
        ModelError: if the model has no optimizer, or one that cannot run on copies.
    """

    is_gradient = False
    elementwise = False  # Clipping by the global norm needs all gradients, and all sources share the copies.

    def __init__(self, network: Network) -> None:
        self._network = network
        self._weights = list(network.variables)
        self._live = _own_optimizer(network.model)
        _check_alone(self._live)
        self._learning_rate = keras.Variable(0.0, name="learning_rate", trainable=False)
        self._optimizer = _twin(self._live, self._weights, self._learning_rate)
        _check_weights_are_known(self._optimizer, self._weights)
        variables = [
            *self._weights,
            self._learning_rate,
            *_held(self._optimizer, keras.Variable),
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
            self._copies[dtype] = [_copy(v, dtype) for v in self._variables]
        copies = self._copies[dtype]
        self._reset(copies, weights, learning_rate)
        with (
            _in_precision_of(copies, self._variables),
            _OnCopies(copies, self._variables) as scope,
        ):
            self._apply([None if g is None else tf.cast(g, dtype) for g in gradients])
            return [tf.identity(scope.get_current_value(v)) for v in self._weights]

    def as_in_training(
        self, x: tf.Tensor, y: tf.Tensor, weights: list, gradients: list
    ) -> list:
        """Return the gradients of an example [1, ...] in the form that the optimizer gets from a tape in training.

        A tape returns None for a weight that does not affect the loss. The optimizer does not change such a weight,
        even by decay. A tape returns `tf.IndexedSlices` for rows of a table. If a row occurs twice, most optimizers
        make a step for the slices that differs from the step for their sum. Other gradients are returned as given.
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
        # With gradient accumulation the variable counts gradients, while the property counts updates.
        values[id(self._optimizer._iterations)] = self._live.iterations
        for copy, v in zip(copies, self._variables, strict=True):
            copy.assign(tf.cast(values.get(id(v), v.value), copy.dtype))

    def _apply(self, gradients: list) -> None:
        """Apply gradients as `fit` does."""
        pairs = zip(gradients, self._weights, strict=True)
        try:
            # Keras, too, does not change weights without a gradient, but it warns about them.
            self._optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"update='optimizer' cannot run {_named(self._optimizer)} on copies of its variables "
                f"({type(error).__name__}: {error}): use update='sgd'"
            ) from error


class _OnCopies(keras.StatelessScope):
    """Read and write copies instead of Keras variables, and write no other variable.

    The copies are TensorFlow variables, which Keras's TensorFlow backend passes to `update_step`.
    """

    def __init__(self, copies: list, variables: list) -> None:
        super().__init__()
        self._copies = {id(v): copy for v, copy in zip(variables, copies, strict=True)}

    def get_current_value(self, variable: keras.Variable) -> Any:
        if id(variable) in self._copies:
            return self._copies[id(variable)]
        value = super().get_current_value(variable)
        if value is None:
            with (
                keras.StatelessScope()
            ):  # Within the scope the variable has a separate value.
                value = tf.convert_to_tensor(
                    variable.value
                )  # The value must be a variable, because a tensor cannot be assigned to.
        return value

    def add_update(self, update: tuple) -> None:
        variable, value = update
        if id(variable) in self._copies:
            self._copies[id(variable)].assign(value)
        else:
            super().add_update(update)  # The update is dropped when the scope ends.


@contextlib.contextmanager
def _in_precision_of(copies: list, variables: list) -> Iterator[None]:
    """Give variables, and Keras's floatx, the dtype of the copies within the context.

    Keras rounds assigned values to the variable's dtype, and Python numbers to floatx.
    """
    changed = [
        (v, v._dtype, copy.dtype.name)
        for v, copy in zip(variables, copies, strict=True)
    ]
    changed = [(v, own, dtype) for v, own, dtype in changed if own != dtype]
    floatx = keras.config.floatx()
    try:
        for v, _, dtype in changed:
            v._dtype = dtype
            keras.config.set_floatx(dtype)
        yield
    finally:
        keras.config.set_floatx(floatx)
        for v, own, _ in changed:
            v._dtype = own


class _Given(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that returns a given variable at every step.

    It is needed because optimizers may treat schedules specially.
    """

    def __init__(self, learning_rate: keras.Variable) -> None:
        self._learning_rate = learning_rate

    def __call__(self, step: Any = None) -> keras.Variable:
        return self._learning_rate


def _own_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the optimizer that makes the model's updates, without a `LossScaleOptimizer` around it."""
    optimizer = model.optimizer
    if optimizer is None:
        raise ModelError(
            "update='optimizer' needs an optimizer: call model.compile(optimizer=...)"
        )
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _twin(
    live: keras.optimizers.Optimizer, weights: list, learning_rate: keras.Variable
) -> keras.optimizers.Optimizer:
    """Return a twin of the live optimizer, with the same attributes except for η, which is a given variable.

    If the live optimizer is not built, the twin is built with its own variables.
    """
    twin = object.__new__(type(live))
    if live.built:
        vars(twin).update(vars(live))
    else:
        # Attributes are not copied but set, because the live optimizer's lists would record variables that the twin
        # adds.
        keras.optimizers.Optimizer.__init__(twin, learning_rate=1.0, name=live.name)
        of_base_class = set(vars(twin))
        for name, value in vars(live).items():
            if not (name in of_base_class and name.startswith("_")):
                setattr(twin, name, value)
    from_variable = isinstance(live._learning_rate, keras.Variable)
    rate = learning_rate if from_variable else _Given(learning_rate)
    vars(twin).update(
        _learning_rate=rate, gradient_accumulation_steps=None, loss_scale_factor=None
    )
    if not twin.built:
        twin.build(weights)
    if twin.learning_rate is not learning_rate:
        raise ModelError(
            f"update='optimizer' cannot set the learning rate of {_named(live)}, whose class redefines the property "
            "`learning_rate`: use update='sgd'"
        )
    return twin


def _check_alone(optimizer: keras.optimizers.Optimizer) -> None:
    """Raise `ModelError` for state that is not copied: other optimizers, TensorFlow variables."""
    if not hasattr(optimizer, "learning_rate") or _held(
        optimizer, keras.optimizers.Optimizer
    ):
        raise ModelError(
            f"update='optimizer' does not support {_named(optimizer)}, which passes updates on to other optimizers: "
            "compile the model with one of them, or use update='sgd' with learning_rate=..."
        )
    variables = _held(optimizer, tf.Variable)
    if variables:
        raise ModelError(
            f"update='optimizer' does not support {_named(optimizer)}, which holds the TensorFlow variable "
            f"{variables[0].name!r}: make its state with add_variable(...), or use update='sgd'"
        )


def _held(optimizer: keras.optimizers.Optimizer, kind: type) -> list:
    """Return the objects of a class among an optimizer's attributes, including lists and dictionaries."""
    return [
        part
        for part in keras.tree.flatten(list(vars(optimizer).values()))
        if isinstance(part, kind)
    ]


def _check_weights_are_known(
    optimizer: keras.optimizers.Optimizer, weights: list
) -> None:
    known = {id(v) for v in optimizer._trainable_variables}
    unknown = [v.path for v in weights if id(v) not in known]
    if unknown:
        raise ModelError(
            f"{_named(optimizer)} was built before {', '.join(unknown[:3])} became trainable, and cannot update "
            f"{len(unknown)} of {len(weights)} weights: call model.compile(...) again"
        )


def _copy(variable: keras.Variable, dtype: tf.DType) -> tf.Variable:
    """Return a TensorFlow variable that replaces a Keras variable's own: same name and identity, in `dtype` if real."""
    original = variable.value
    dtype = dtype if original.dtype.is_floating else original.dtype
    with tf.init_scope(), tf.name_scope(""):
        name = original.name.removesuffix(":0")
        copy = tf.Variable(
            tf.zeros(original.shape, dtype), trainable=original.trainable, name=name
        )
    copy._unique_id = (
        original._unique_id
    )  # An optimizer finds the slots of a weight by this identity.
    return copy


def _named(optimizer: keras.optimizers.Optimizer) -> str:
    return f"optimizer {optimizer.name!r} ({type(optimizer).__name__})"


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
            "the model has no optimizer that could supply η: pass learning_rate=..."
        )
    try:
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"{_named(model.optimizer)} has no single learning rate that could serve as η ({error}): pass "
            f"learning_rate=..."
        ) from error
