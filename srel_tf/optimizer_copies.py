"""Copies of a model's optimizer and its variables, on which `updates.OptimizerStep` runs the optimizer's own code."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from srel_tf.errors import ModelError


class OnCopies(keras.StatelessScope):
    """A scope in which Keras reads and writes copies of the given variables, and writes no other variable.

    The copies are TensorFlow variables, because Keras's TensorFlow backend passes such variables to `update_step`.
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
            ):  # In a new scope, `variable.value` is the variable's own value.
                # Return a tensor, because nothing can be assigned to a tensor.
                value = tf.convert_to_tensor(variable.value)
        return value

    def add_update(self, update: tuple) -> None:
        variable, value = update
        if id(variable) in self._copies:
            self._copies[id(variable)].assign(value)
        else:
            super().add_update(update)  # This update is dropped when the scope ends.


@contextlib.contextmanager
def in_precision_of(copies: list, variables: list) -> Iterator[None]:
    """Within the context, give the variables and Keras's floatx the dtype of the copies.

    Without this change, Keras would round assigned values to the variable's dtype, and Python numbers to floatx.
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

    If an optimizer has a schedule, its copy gets this one, because the optimizer's code may require a schedule.
    """

    def __init__(self, learning_rate: keras.Variable) -> None:
        self._learning_rate = learning_rate

    def __call__(self, step: Any = None) -> keras.Variable:
        return self._learning_rate


def own_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the model's optimizer. If this is a `LossScaleOptimizer`, return the optimizer that it wraps."""
    optimizer = model.optimizer
    if optimizer is None:
        raise ModelError(
            "update='optimizer' needs an optimizer: call model.compile(optimizer=...)"
        )
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def copy_of_optimizer(
    live: keras.optimizers.Optimizer, weights: list, learning_rate: keras.Variable
) -> keras.optimizers.Optimizer:
    """Return a copy that shares the attributes of the `live` optimizer, but takes η from `learning_rate`.

    If the live optimizer is not built, the copy is built and gets variables of its own.
    """
    copied = object.__new__(type(live))
    if live.built:
        vars(copied).update(vars(live))
    else:
        # The private lists of the base class are not shared. Otherwise the variables that the copy adds would also
        # appear in the live optimizer.
        keras.optimizers.Optimizer.__init__(copied, learning_rate=1.0, name=live.name)
        of_base_class = set(vars(copied))
        for name, value in vars(live).items():
            if not (name in of_base_class and name.startswith("_")):
                setattr(copied, name, value)
    from_variable = isinstance(live._learning_rate, keras.Variable)
    rate = learning_rate if from_variable else _Given(learning_rate)
    vars(copied).update(
        _learning_rate=rate, gradient_accumulation_steps=None, loss_scale_factor=None
    )
    if not copied.built:
        copied.build(weights)
    if copied.learning_rate is not learning_rate:
        raise ModelError(
            f"update='optimizer' cannot set the learning rate of {label_of(live)}, whose class overrides the property "
            "`learning_rate`: use update='sgd'"
        )
    return copied


def check_alone(optimizer: keras.optimizers.Optimizer) -> None:
    """Raise `ModelError` if the optimizer has state that the copies do not protect.

    Such state is held by other optimizers inside the optimizer, or by TensorFlow variables.
    """
    if not hasattr(optimizer, "learning_rate") or objects_held(
        optimizer, keras.optimizers.Optimizer
    ):
        raise ModelError(
            f"update='optimizer' does not support {label_of(optimizer)}, which passes updates on to other optimizers: "
            "compile the model with one of them, or use update='sgd' with learning_rate=..."
        )
    variables = objects_held(optimizer, tf.Variable)
    if variables:
        raise ModelError(
            f"update='optimizer' does not support {label_of(optimizer)}, which holds the TensorFlow variable "
            f"{variables[0].name!r}: make its state with add_variable(...), or use update='sgd'"
        )


def objects_held(optimizer: keras.optimizers.Optimizer, kind: type) -> list:
    """Return the objects of a class among an optimizer's attributes, also within lists and dictionaries."""
    return [
        part
        for part in keras.tree.flatten(list(vars(optimizer).values()))
        if isinstance(part, kind)
    ]


def check_weights_are_known(
    optimizer: keras.optimizers.Optimizer, weights: list
) -> None:
    """Raise `ModelError` if the optimizer was built without some of these weights."""
    known = {id(v) for v in optimizer._trainable_variables}
    unknown = [v.path for v in weights if id(v) not in known]
    if unknown:
        raise ModelError(
            f"{label_of(optimizer)} was built before {', '.join(unknown[:3])} became trainable, and cannot update "
            f"{len(unknown)} of {len(weights)} weights: call model.compile(...) again"
        )


def copy_of_variable(variable: keras.Variable, dtype: tf.DType) -> tf.Variable:
    """Return a TensorFlow variable that can replace the one inside a Keras variable.

    The copy has the same name and identity. If the original is floating-point, the copy has the dtype `dtype`, else the
    dtype of the original.
    """
    original = variable.value
    dtype = dtype if original.dtype.is_floating else original.dtype
    with tf.init_scope(), tf.name_scope(""):
        name = original.name.removesuffix(":0")
        copy = tf.Variable(
            tf.zeros(original.shape, dtype), trainable=original.trainable, name=name
        )
    # An optimizer finds the state of a weight by this identity.
    copy._unique_id = original._unique_id
    return copy


def label_of(optimizer: keras.optimizers.Optimizer) -> str:
    """Return an optimizer's name and class for a message."""
    return f"optimizer {optimizer.name!r} ({type(optimizer).__name__})"
