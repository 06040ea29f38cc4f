"""Warnings if Keras's traced training step differs from the step that is measured.

Keras traces `train_step` when a batch of a new shape comes, and keeps the graph until `compile` is called. Changes of
the model after the trace (`trainable`, the learning rate schedule) have no effect on that graph.
"""

import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError

WEIGHTED = (
    "fit weighs the examples (class_weight, sample_weight, or weights in the data), but S_rel measures a step on one "
    "example with weight 1, which differs from the step of the training; to make the two steps agree, train without "
    "weights"
)


class Traced(NamedTuple):
    """Properties of the traces of a model's `train_step`.

    Attributes:
        train_function: Keras's function that the traces belong to.
        variables: {id: weight} for the weights that at least one trace trains.
        common: Ids of the weights that all traces train.
        rate: The optimizer's learning rate at the first trace: a variable or a schedule.
        weighted: Whether at least one trace received example weights.
    """

    train_function: Any
    variables: dict[int, keras.Variable]
    common: set[int]
    rate: Any
    weighted: bool

    def joined(self, other: "Traced") -> "Traced":
        """Merge the properties of these traces with those of a later trace."""
        return Traced(
            train_function=other.train_function,
            variables={**self.variables, **other.variables},
            common=self.common & other.common,
            rate=self.rate,
            weighted=self.weighted or other.weighted,
        )


def note_trace(model: keras.Model, data: Any = None) -> None:
    """Record which weights `train_step(data)` trains, with which learning rate, and whether it weighs the examples.

    Called once per trace, or at each step if Keras does not trace.
    """
    variables = {id(v): v for v in model.trainable_variables}
    weights = None if data is None else keras.utils.unpack_x_y_sample_weight(data)[2]
    traced = Traced(
        train_function=model.train_function,
        variables=variables,
        common=set(variables),
        rate=_rate(model),
        weighted=weights is not None,
    )
    former = _traced(model)
    if former is not None and not model.run_eagerly:
        traced = former.joined(traced)
    object.__setattr__(
        model, "_srel_traced", traced
    )  # Bypass Keras's attribute tracking.


def is_traced(model: keras.Model) -> bool:
    """Return whether Keras keeps a trace of the training step, on which later changes of the model have no effect."""
    return not model.run_eagerly and _traced(model) is not None


def note_weights(model: keras.Model, given: bool) -> None:
    """Record whether `fit` was given class weights or example weights."""
    object.__setattr__(model, "_srel_weights_given", given)


def weighs_examples(model: keras.Model) -> bool:
    """Return whether `fit` is known to weigh the examples."""
    traced = _traced(model)
    return getattr(model, "_srel_weights_given", False) or (
        traced is not None and traced.weighted
    )


def warn_of_stale_trace(model: keras.Model) -> None:
    """Warn if `trainable` of a layer or the learning rate schedule was changed too late to affect the training."""
    traced = _traced(model)
    if traced is None or model.run_eagerly:
        return
    changed = _changed_layers(model, traced)
    if changed:
        warn_once(
            model,
            f"`trainable` of layers {', '.join(changed)} was changed after Keras had traced the training step: Keras "
            "continues with the traced step until compile is called or a batch of another shape comes, and S_rel may "
            "be measured on other weights than those that are trained; call model.compile(...) after a change of "
            "`trainable`",
        )
    if traced.rate is not _rate(model):
        warn_once(
            model,
            "learning_rate was set to another schedule after Keras had traced the training step: Keras continues with "
            "the previous rate, but S_rel is measured with the new one; call model.compile(...) after the change",
        )


class OptimizerCheck:
    """Checks that the compiled optimizer trains the model. The check ends at the first update of this optimizer."""

    def __init__(self) -> None:
        self._counting: Any = None  # The optimizer whose count was observed to grow.
        self._optimizer: Any = None
        self._num_batches = 0
        self._norms: np.ndarray | None = None

    def begin_batch(self, model: keras.Model, num_batches: int) -> None:
        """Record the optimizer, its count `num_batches`, and the norms of the weights before a batch."""
        self._optimizer, self._num_batches = model.optimizer, num_batches
        is_counting = self._optimizer is self._counting
        self._norms = None if is_counting else _norms(model)

    def end_batch(self, model: keras.Model, num_batches: int) -> None:
        """Check the optimizer's count after the batch.

        Raises:
            ModelError: If the weights have changed without an update of the compiled optimizer.
        """
        if self._norms is None or model.optimizer is not self._optimizer:
            return
        updates = num_batches - self._num_batches
        if updates > 1:
            warn_once(
                model,
                f"the optimizer of model {model.name!r} made {updates} updates in one batch: S_rel is measured between "
                f"batches, so that steps within a batch are not measured; set `every` to a multiple of {updates}",
            )
        if updates:
            self._counting = self._optimizer
        elif not np.array_equal(self._norms, _norms(model), equal_nan=True):
            raise ModelError(
                f"the weights of model {model.name!r} have changed, but its compiled optimizer "
                f"({type(model.optimizer).__name__}) has made no update: train_step uses another optimizer, whose "
                "steps and η are unknown; compile the model with the optimizer that trains it, or measure in your own "
                "loop with srel_tf.Instrument(model, probe, srel_tf.Settings(learning_rate=...))"
            )


def _norms(model: keras.Model) -> np.ndarray:
    """Compute the norm of each trainable weight, float64 [n_weights]."""
    return np.array(
        [float(tf.norm(tf.cast(v.value, "float64"))) for v in model.trainable_variables]
    )


def _changed_layers(model: keras.Model, traced: Traced) -> list[str]:
    """List the paths of layers with a weight that is trained in some trace or now, but not in all traces and now."""
    trained_now = {id(v): v for v in model.trainable_variables}
    variables = {**traced.variables, **trained_now}
    unchanged = traced.common & trained_now.keys()
    return sorted(
        {v.path.rpartition("/")[0] for i, v in variables.items() if i not in unchanged}
    )


def warn_once(model: keras.Model, text: str) -> None:
    """Warn about a model, unless the same warning was already given for this model."""
    given: frozenset[str] = getattr(model, "_srel_warnings", frozenset())
    if text not in given:
        object.__setattr__(model, "_srel_warnings", given | {text})
        warnings.warn(text, stacklevel=3)


def _traced(model: keras.Model) -> Traced | None:
    """Return the `Traced` of Keras's current training step; None if no trace of it was recorded."""
    traced = getattr(model, "_srel_traced", None)
    return (
        traced
        if traced is not None and traced.train_function is model.train_function
        else None
    )


def _rate(model: keras.Model) -> Any:
    """Return the optimizer's learning rate itself: the variable that holds it, or a schedule."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return getattr(optimizer, "_learning_rate", None)
