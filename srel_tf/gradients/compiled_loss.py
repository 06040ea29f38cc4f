"""The compiled loss of a model: which of Keras's losses it is, and what it takes."""

import functools
from typing import NamedTuple

import keras

# Keras's functions behind its losses for labels. A function of another name is "other".
KINDS = {
    "sparse_categorical_crossentropy": "sparse",
    "categorical_generalized_cross_entropy": "sparse",
    "categorical_crossentropy": "categorical",
    "categorical_focal_crossentropy": "categorical",
    "binary_crossentropy": "binary",
    "binary_focal_crossentropy": "binary",
}
FunctionLoss = keras.losses.MeanSquaredError.__base__  # Keras's class around a function, which has no public name.


class CompiledLoss(NamedTuple):
    """What is known of a model's loss.

    kind: "sparse" and "categorical" are losses of one class among several, given as an index or as a row; "binary" is
        a loss of each output by itself; "other" is any other loss of Keras's; "own" is a loss that Keras does not
        know: the user's function or class, `add_loss` or `compute_loss` without a compiled loss, or several losses.
    name: what to call it in messages.
    from_logits: whether the loss takes logits; None if it has no such option.
    ignore_class: the label that has no loss; None if there is none.
    """

    kind: str
    name: str
    from_logits: bool | None = None
    ignore_class: int | None = None


def compiled_loss(model, y_shape, num_outputs):
    """The `CompiledLoss` of a model of `num_outputs` outputs for targets of shape `y_shape`."""
    loss = single_loss(model, y_shape, num_outputs)
    if loss is None:
        return CompiledLoss("own", "of your own")
    function, options = function_and_options(loss)
    name = getattr(function, "__name__", type(function).__name__)
    if not (getattr(function, "__module__", None) or "").startswith("keras."):
        return CompiledLoss("own", name)
    kind = KINDS.get(name, "other")
    from_logits = options.get("from_logits", False) if kind in ("sparse", "categorical", "binary") else None
    return CompiledLoss(kind, name, from_logits, options.get("ignore_class"))


def single_loss(model, y_shape=None, num_outputs=None):
    """The one loss that a model is compiled with, as a `keras.losses.Loss` or a function; None if there is no such one.

    "crossentropy" and "ce" stand for a loss that Keras chooses by the shapes of targets and outputs. Without these
    shapes such a name gives None.
    """
    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1 or losses[0] is None:
        return None
    loss = losses[0]
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return None if y_shape is None else _crossentropy(y_shape, num_outputs)
    return keras.losses.get(loss)


def _crossentropy(y_shape, num_outputs):
    """Keras's choice for the loss "crossentropy" of outputs [n, C]."""
    if num_outputs == 1:
        return keras.losses.binary_crossentropy
    if len(y_shape) < 2 or y_shape[-1] == 1:
        return keras.losses.sparse_categorical_crossentropy
    return keras.losses.categorical_crossentropy


def function_and_options(loss):
    """The function behind a loss (a class of its own is its own function), and the options that the loss was given."""
    if isinstance(loss, FunctionLoss):
        # Keras keeps all options for the function here, but not all of them in `get_config`.
        options = vars(loss).get("_fn_kwargs", {})
        function, more = function_and_options(loss.fn)
        return function, {**more, **options}
    if isinstance(loss, functools.partial):
        function, more = function_and_options(loss.func)
        return function, {**more, **loss.keywords}
    return (type(loss) if isinstance(loss, keras.losses.Loss) else loss), {}
