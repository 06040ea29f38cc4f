"""Checks of the inputs, weights, labels and residuals of a `HomogeneousPredictor`."""

import numpy as np
import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory.checks import ArrayLike, as_tensor


def as_batch(x: ArrayLike, name: str) -> tuple[tf.Tensor, bool]:
    """Return the inputs as a batch [B, ...], and whether they were a single input [n]."""
    x = as_tensor(x, name)
    if x.shape.rank == 0:
        raise ShapeError(
            f"{name} must be one input [n] or a batch [B, ...], not a scalar."
        )
    return (x[None], True) if x.shape.rank == 1 else (x, False)


def as_rows(
    value: ArrayLike,
    batch: tf.Tensor,
    name: str,
    wanted: str,
    rank: int,
) -> tf.Tensor:
    """Check that a function of a batch of B inputs has returned an array whose first axis is B."""
    rows = as_tensor(value, name, rank)
    if rows.shape[0] != batch.shape[0]:
        raise ShapeError(
            f"{name} must be {wanted} with B = {batch.shape[0]}, but has shape {tuple(rows.shape)}."
        )
    return rows


def unbatch(values: tf.Tensor, single: bool) -> tf.Tensor:
    """Remove the last axis, B, if a single input was given."""
    return values[..., 0] if single else values


def as_weights(weights: ArrayLike, features: tf.Tensor) -> tf.Tensor:
    """Check that the shapes of weights [..., r, n] and features [B, r, n] agree."""
    weights = as_tensor(weights, "weights")
    if weights.shape.rank < 2 or weights.shape[-2:] != features.shape[-2:]:
        wanted = f"[..., {features.shape[1]}, {features.shape[2]}]"
        raise ShapeError(f"weights must be {wanted}, not {tuple(weights.shape)}.")
    return weights


def as_labels(label: ArrayLike, count: int) -> tf.Tensor:
    """Check that `label` is one label for all sources, or one label for each of `count` sources."""
    labels = as_tensor(label, "label", (0, 1))
    if labels.shape.rank == 1 and labels.shape[0] != count:
        raise ShapeError(
            f"label must hold {count} labels, one per source, not {labels.shape[0]}."
        )
    return labels


def as_residual(
    residual: ArrayLike,
    full_shape: tuple[int, ...],
    single: bool,
) -> tf.Tensor:
    """Check that the residual broadcasts to `full_shape`; for a single source, append an axis B of length 1."""
    checked = as_tensor(residual, "residual")
    if single:
        checked = checked[..., None]
    try:
        broadcasts = np.broadcast_shapes(checked.shape, full_shape) == full_shape
    except ValueError:
        broadcasts = False
    if not broadcasts:
        raise ShapeError(
            f"residual has shape {tuple(checked.shape)}, which does not broadcast to {full_shape}: give one residual "
            "per source."
        )
    return checked
