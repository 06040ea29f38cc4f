"""What Keras's traced training step does that a measurement does not see, and warnings about it.

Keras traces `train_step` when a batch of a new shape comes, and keeps the graph until `compile` is called. What a user
changes later has no effect on that graph.
"""

import warnings
from typing import NamedTuple

import keras

WEIGHTED = (
    "fit weighs the examples (class_weight, sample_weight, or weights in the data), and S_rel is of the step on each "
    "example with weight 1, which differs from the step that training takes; train without weights to measure that step"
)


class Traced(NamedTuple):
    """What the traces of a model's `train_step` have seen.

    train_function: Keras's function that the traces belong to. variables: {id: weight} of the weights that a trace
    trains. common: ids of the weights that each trace trains. rate: the optimizer's learning rate, a variable or a
    schedule. weighted: whether a trace was given weights of examples.
    """

    train_function: object
    variables: dict
    common: set
    rate: object
    weighted: bool


def note_trace(model, data=None):
    """Note what `train_step(data)` of a model trains. Called in each trace of it, or at each step without a trace."""
    variables = {id(v): v for v in model.trainable_variables}
    weighted = data is not None and keras.utils.unpack_x_y_sample_weight(data)[2] is not None
    traced = Traced(model.train_function, variables, {*variables}, _rate(model), weighted)
    former = _traced(model)
    if former is not None and not model.run_eagerly:
        traced = Traced(
            traced.train_function,
            {**former.variables, **variables},
            former.common & traced.common,
            former.rate,
            former.weighted or traced.weighted,
        )
    object.__setattr__(model, "_srel_traced", traced)  # Past Keras's tracking of attributes.


def is_traced(model):
    """Whether Keras keeps a trace of the training step, so that later changes of the model have no effect on it."""
    return not model.run_eagerly and _traced(model) is not None


def note_weights(model, given):
    """Note whether `fit` is given weights of classes or examples."""
    object.__setattr__(model, "_srel_weights_given", given)


def weighs_examples(model):
    """Whether `fit` is known to weigh the examples."""
    traced = _traced(model)
    return getattr(model, "_srel_weights_given", False) or (traced is not None and traced.weighted)


def warn_of_stale_trace(model):
    """Say so if a layer was frozen, or a schedule was set, too late to have an effect on the training."""
    if not is_traced(model):
        return
    traced = _traced(model)
    now = {id(v): v for v in model.trainable_variables}
    common = traced.common & {*now}
    changed = sorted({v.path.rpartition("/")[0] for i, v in {**traced.variables, **now}.items() if i not in common})
    if changed:
        warn_once(
            model,
            f"`trainable` of layers {', '.join(changed)} was changed after Keras had traced the training step: Keras "
            "goes on with the traced step until compile is called or a batch of another shape comes, and S_rel may be "
            "of other weights than training moves; call model.compile(...) after a change of `trainable`",
        )
    if traced.rate is not _rate(model):
        warn_once(
            model,
            "learning_rate was set to another schedule after Keras had traced the training step: Keras goes on with "
            "the rate that it had, and S_rel is measured with the new one; call model.compile(...) with the schedule",
        )


def warn_once(model, text):
    """Warn of something that concerns a model, unless it has been said."""
    said = getattr(model, "_srel_said", frozenset())
    if text not in said:
        object.__setattr__(model, "_srel_said", said | {text})
        warnings.warn(text, stacklevel=3)


def _traced(model):
    """The `Traced` of Keras's present training step; None if no trace of it was noted."""
    traced = getattr(model, "_srel_traced", None)
    return traced if traced is not None and traced.train_function is model.train_function else None


def _rate(model):
    """The optimizer's learning rate itself: the variable that keeps it, or a schedule."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return getattr(optimizer, "_learning_rate", None)
