"""Fictitious update rules: the weights w⁺ that one step on one example would give. The model keeps its own.

A rule is called inside the engine's graph: `rule.updated(weights, gradients, learning_rate) -> list of tensors`, with
gradients that have been multiplied by `rule.gradient_factor(learning_rate)`. It computes in the dtype of the weights.
An `elementwise` rule may be given a part of the weights. The others look at all weights together, and hold variables,
so that one source is served at a time; their gradients go through `rule.as_in_training(x, y, weights, gradients)`
first. A rule `is_gradient` if its update is −the gradient that it is given.
"""

import contextlib
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

    The optimizer's own code runs, on copies of its variables and of the weights that are reset before each source. It
    sees the model's Keras variables as in training: path, name, shape, constraint, exclusion from weight decay. Two
    options of training say how a gradient is collected, and not what is done with it:

    - gradient_accumulation_steps: the gradient is taken for the mean gradient of a complete accumulation.
    - A loss scale (loss_scale_factor, LossScaleOptimizer): the gradient is taken for the one after its division.

    An optimizer that is not built yet is measured as a new one of the same configuration.
    """

    is_gradient = False
    elementwise = False  # Clipping by the global norm needs all gradients; and all sources share the copies.

    def __init__(self, network):
        self._network = network
        self._weights = list(network.variables)
        self._live = _own_optimizer(network.model)
        _check_alone(self._live)
        self._learning_rate = keras.Variable(0.0, name="learning_rate", trainable=False)
        self._optimizer = _twin(self._live, self._weights, self._learning_rate)
        _check_weights_are_known(self._optimizer, self._weights)
        variables = [*self._weights, self._learning_rate, *_held(self._optimizer, keras.Variable)]
        self._variables = list({id(v): v for v in variables}.values())
        self._copies = {}

    def gradient_factor(self, learning_rate):
        return tf.ones_like(learning_rate)

    def updated(self, weights, gradients, learning_rate):
        dtype = weights[0].dtype
        if dtype not in self._copies:
            self._copies[dtype] = [_copy(v, dtype) for v in self._variables]
        copies = self._copies[dtype]
        self._reset(copies, weights, learning_rate)
        with _in_precision_of(copies, self._variables), _OnCopies(copies, self._variables) as scope:
            self._apply([None if g is None else tf.cast(g, dtype) for g in gradients])
            return [tf.identity(scope.get_current_value(v)) for v in self._weights]

    def as_in_training(self, x, y, weights, gradients):
        """The gradients of an example [1, …] in the form that the optimizer gets from a tape in training.

        It gets None if the loss does not depend on a weight, which it then leaves alone, weight decay included; and
        `tf.IndexedSlices` for rows of a table. If a row occurs twice, most optimizers make another step of these
        than of their sum. Other gradients are those given.
        """
        weights = [tf.convert_to_tensor(w) for w in weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            _, loss = self._network.predictions_and_loss(x, y, weights)
        taped = tape.gradient(loss, weights)
        return [ours if isinstance(g, tf.Tensor) else g for ours, g in zip(gradients, taped, strict=True)]

    def _reset(self, copies, weights, learning_rate):
        """Give the copies the weights, the learning rate, and the optimizer's present state."""
        values = {id(v): w for v, w in zip(self._weights, weights, strict=True)}
        values[id(self._learning_rate)] = learning_rate
        # With gradient accumulation the variable counts gradients, and the property counts updates.
        values[id(self._optimizer._iterations)] = self._live.iterations
        for copy, v in zip(copies, self._variables, strict=True):
            copy.assign(tf.cast(values.get(id(v), v.value), copy.dtype))

    def _apply(self, gradients):
        """Do what `fit` does with gradients."""
        pairs = zip(gradients, self._weights, strict=True)
        try:
            # Keras would leave weights without a gradient alone, too, and warn of them.
            self._optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"update='optimizer' cannot run {_named(self._optimizer)} on copies of its variables "
                f"({type(error).__name__}: {error}): use update='sgd'"
            ) from error


class _OnCopies(keras.StatelessScope):
    """Within it Keras variables are read from and written to their copies, and no other variable is written to.

    The copies are TensorFlow variables, as Keras's TensorFlow backend hands them to `update_step`.
    """

    def __init__(self, copies, variables):
        super().__init__()
        self._copies = {id(v): copy for v, copy in zip(variables, copies, strict=True)}

    def get_current_value(self, variable):
        if id(variable) in self._copies:
            return self._copies[id(variable)]
        value = super().get_current_value(variable)
        if value is None:
            with keras.StatelessScope():  # In it the variable has its own value.
                value = tf.convert_to_tensor(variable.value)  # A tensor cannot be assigned to.
        return value

    def add_update(self, update):
        variable, value = update
        if id(variable) in self._copies:
            self._copies[id(variable)].assign(value)
        else:
            super().add_update(update)  # Dropped when the scope ends.


@contextlib.contextmanager
def _in_precision_of(copies, variables):
    """Within it variables have the dtype of their copies, to which Keras rounds what is assigned to them, and Keras
    makes tensors of Python's numbers in it.
    """
    changed = [(v, v._dtype, copy.dtype.name) for v, copy in zip(variables, copies, strict=True)]
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
    """A schedule that returns a given variable at every step. Optimizers may ask whether η is from a schedule."""

    def __init__(self, learning_rate):
        self._learning_rate = learning_rate

    def __call__(self, step=None):
        return self._learning_rate


def _own_optimizer(model):
    """The optimizer that makes the model's updates, without a `LossScaleOptimizer` around it."""
    optimizer = model.optimizer
    if optimizer is None:
        raise ModelError("update='optimizer' needs an optimizer: call model.compile(optimizer=...)")
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _twin(live, weights, learning_rate):
    """An optimizer that has all that the live one has, variables included, but for its η, which is a given variable.

    If the live one is not built, the twin is built, with variables of its own.
    """
    twin = object.__new__(type(live))
    if live.built:
        vars(twin).update(vars(live))
    else:
        # Attributes are set, not copied, because lists of the live one would note variables that the twin adds to them.
        keras.optimizers.Optimizer.__init__(twin, learning_rate=1.0, name=live.name)
        of_base_class = set(vars(twin))
        for name, value in vars(live).items():
            if not (name in of_base_class and name.startswith("_")):
                setattr(twin, name, value)
    from_variable = isinstance(live._learning_rate, keras.Variable)
    rate = learning_rate if from_variable else _Given(learning_rate)
    vars(twin).update(_learning_rate=rate, gradient_accumulation_steps=None, loss_scale_factor=None)
    if not twin.built:
        twin.build(weights)
    if twin.learning_rate is not learning_rate:
        raise ModelError(
            f"update='optimizer' cannot set the learning rate of {_named(live)}, whose class defines the property "
            "`learning_rate` anew: use update='sgd'"
        )
    return twin


def _check_alone(optimizer):
    """`ModelError` for what a copy could not keep from being written to: other optimizers, TensorFlow variables."""
    if not hasattr(optimizer, "learning_rate") or _held(optimizer, keras.optimizers.Optimizer):
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


def _held(optimizer, kind):
    """The objects of a class among an optimizer's attributes, and in their lists and dictionaries."""
    return [part for part in keras.tree.flatten(list(vars(optimizer).values())) if isinstance(part, kind)]


def _check_weights_are_known(optimizer, weights):
    known = {id(v) for v in optimizer._trainable_variables}
    unknown = [v.path for v in weights if id(v) not in known]
    if unknown:
        raise ModelError(
            f"{_named(optimizer)} was built before {', '.join(unknown[:3])} became trainable, and cannot update "
            f"{len(unknown)} of {len(weights)} weights: call model.compile(...) again"
        )


def _copy(variable, dtype):
    """A new TensorFlow variable in place of a Keras variable's own: of its name and identity, in `dtype` if real."""
    original = variable.value
    dtype = dtype if original.dtype.is_floating else original.dtype
    with tf.init_scope(), tf.name_scope(""):
        name = original.name.removesuffix(":0")
        copy = tf.Variable(tf.zeros(original.shape, dtype), trainable=original.trainable, name=name)
    copy._unique_id = original._unique_id  # By it an optimizer finds the slots of a weight.
    return copy


def _named(optimizer):
    return f"optimizer {optimizer.name!r} ({type(optimizer).__name__})"


RULES: dict[str, Callable] = {"sgd": Sgd, "fresh_adam": FreshAdam, "optimizer": OptimizerStep}


def learning_rate_now(model, fixed=None):
    """η: `fixed`, or the learning rate that the model's optimizer has at this moment. `ModelError` without either."""
    if fixed is not None:
        return float(fixed)
    if model.optimizer is None:
        raise ModelError("the model has no optimizer to take η from: pass learning_rate=...")
    try:
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"{_named(model.optimizer)} has no single learning rate to take η from ({error}): pass learning_rate=..."
        ) from error
