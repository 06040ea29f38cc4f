"""The compiled loss of a model: its kind and its options."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

# The kinds of Keras's loss functions for class labels. All other loss functions of Keras are "other".
KINDS = {
    "sparse_categorical_crossentropy": "sparse",
    "categorical_generalized_cross_entropy": "sparse",
    "categorical_crossentropy": "categorical",
    "categorical_focal_crossentropy": "categorical",
    "binary_crossentropy": "binary",
    "binary_focal_crossentropy": "binary",
}
FunctionLoss = (
    keras.losses.MeanSquaredError.__base__
)  # The class in which Keras wraps a loss function. This class has no public name.


class CompiledLoss(NamedTuple):
    """A model's loss.

    Attributes:
        kind: the kind of the loss:

            - "sparse": a loss for one class among several, where y holds class indices.
            - "categorical": a loss for one class among several, where y holds a row of C numbers for each example.
            - "binary": a loss that treats each output separately.
            - "other": any other loss of Keras.
            - "own": the user's function or class, or several losses. A model without a compiled loss, which uses
              `add_loss` or its own `compute_loss`, also has this kind.
        name: the name of the loss in messages.
        from_logits: whether the loss takes logits; None if it has no such option.
        ignore_class: the label whose loss is ignored; None if every label counts.
    """

    kind: str
    name: str
    from_logits: bool | None = None
    ignore_class: int | None = None


def compiled_loss(model: keras.Model, y_shape: tuple, num_outputs: int) -> CompiledLoss:
    """Return the `CompiledLoss` of a model with `num_outputs` outputs, for targets of shape `y_shape`."""
    loss = single_loss(model, y_shape, num_outputs)
    if loss is None:
        return CompiledLoss("own", "of your own")
    function, options = function_and_options(loss)
    name = getattr(function, "__name__", type(function).__name__)
    if not (getattr(function, "__module__", None) or "").startswith("keras."):
        return CompiledLoss("own", name)
    kind = KINDS.get(name, "other")
    from_logits = (
        options.get("from_logits", False)
        if kind in ("sparse", "categorical", "binary")
        else None
    )
    return CompiledLoss(kind, name, from_logits, options.get("ignore_class"))


def single_loss(
    model: keras.Model, y_shape: tuple | None = None, num_outputs: int | None = None
) -> keras.losses.Loss | Callable | None:
    """Return the compiled loss, a `keras.losses.Loss` or a function. None if the model has no loss or several losses.

    For the names "crossentropy" and "ce", Keras chooses the loss by the shapes of targets and outputs. Without these
    shapes the result is None.
    """
    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1 or losses[0] is None:
        return None
    loss = losses[0]
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return None if y_shape is None else _crossentropy(y_shape, num_outputs)
    return keras.losses.get(loss)


def _crossentropy(y_shape: tuple, num_outputs: int | None) -> Callable:
    """Return Keras's choice for the loss "crossentropy" of outputs [n, C]."""
    if num_outputs == 1:
        return keras.losses.binary_crossentropy
    if len(y_shape) < 2 or y_shape[-1] == 1:
        return keras.losses.sparse_categorical_crossentropy
    return keras.losses.categorical_crossentropy


def function_and_options(loss: Any) -> tuple[Any, dict]:
    """Return the function behind a loss, or the loss's class if there is no function; and the loss's options."""
    if isinstance(loss, FunctionLoss):
        # Keras keeps all options for the function here, but not all of them in `get_config`.
        options = vars(loss).get("_fn_kwargs", {})
        function, more = function_and_options(loss.fn)
        return function, {**more, **options}
    if isinstance(loss, functools.partial):
        function, more = function_and_options(loss.func)
        return function, {**more, **loss.keywords}
    return (type(loss) if isinstance(loss, keras.losses.Loss) else loss), {}
