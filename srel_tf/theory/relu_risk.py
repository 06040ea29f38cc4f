"""S_rel of a ReLU gate on its ℓ2 risk, computed by simple differences of predictions (Figure 10)."""

import numpy as np
import tensorflow as tf

from srel_tf.theory.checks import (
    ArrayLike,
    as_learning_rate,
    as_tensor,
    check_last_axis,
    inner,
    ratio_or_nan,
)


def relu_risk_srel(
    weights: ArrayLike,
    w_star: ArrayLike,
    x_target: ArrayLike,
    x_source: ArrayLike,
    learning_rate: float,
    tolerance: float = 1e-3,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute S_rel of Definition 1 for a ReLU gate trained on its ℓ2 risk, by differences of predictions.

    The loss is ℓ(w, x) = ½(max(0, ⟨w*, x⟩) − max(0, ⟨w, x⟩))², and the step is w⁺ = w − η∇ℓ, not the update of
    Algorithm 1. As w converges, differences of predictions become inaccurate. An entry counts as resolved if the
    relative rounding error of both differences is at most `tolerance`.

    Args:
        weights: w, [..., n], for example the iterates of `relu_sgd`.
        w_star: w*, [n].
        x_target: x', [n].
        x_source: x, [n].
        learning_rate: η > 0.
        tolerance: Largest relative error of a resolved difference.

    Returns:
        srel, the ratio of the differences, [...]; NaN where the difference at the source is zero.
        resolved, bool [...].

    Raises:
        ShapeError: Vectors have the wrong shape.
        AssumptionError: η is not positive.

    Example:
        >>> from srel_tf import theory
        >>> srel, resolved = theory.relu_risk_srel([[0.5, 0.5]], [1.0, 1.0], [2.0, 1.0], [1.0, 1.0], 0.01)
        >>> print(srel.numpy().round(3), resolved.numpy())
        [1.5] [ True]
    """
    weights = as_tensor(weights, "weights")
    w_star = as_tensor(w_star, "w_star", 1)
    x_target = as_tensor(x_target, "x_target", 1)
    x_source = as_tensor(x_source, "x_source", 1)
    vectors = {"weights": weights, "x_target": x_target, "x_source": x_source}
    for name, vector in vectors.items():
        check_last_axis(vector, w_star.shape[0], name, "as many as w_star")
    step = as_learning_rate(learning_rate)

    is_active = tf.cast(inner(weights, x_source) > 0, tf.float64)[..., None]
    error = _predict(weights, x_source) - _predict(w_star, x_source)
    update = step * error[..., None] * is_active * x_source
    stepped = weights - update
    change_target, rounding_target = _change_and_rounding(weights, stepped, x_target)
    change_source, rounding_source = _change_and_rounding(weights, stepped, x_source)
    is_target_resolved = rounding_target <= tolerance * change_target
    is_source_resolved = rounding_source <= tolerance * change_source
    srel = ratio_or_nan(change_target, change_source)
    return srel, is_target_resolved & is_source_resolved


def _predict(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Compute max(0, ⟨w, x⟩), [...], from weights [..., n] and x [n]."""
    return tf.nn.relu(inner(weights, x))


def _change_and_rounding(
    weights: tf.Tensor,
    stepped: tf.Tensor,
    x: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute the size of the change of the prediction at x, and a bound on its rounding error, [...] each.

    The bound allows for one rounding of the weights and one rounding of ⟨w, x⟩. If the gate is shut before and after
    the step, both predictions are exactly zero, and so is the bound.
    """
    before = _predict(weights, x)
    after = _predict(stepped, x)
    is_open = (after > 0) | (before > 0)
    is_rounded = tf.cast(is_open, tf.float64)
    unit = np.finfo(np.float64).eps
    size_of_terms = tf.reduce_sum(tf.abs(weights * x), -1)
    rounding = is_rounded * 2 * unit * size_of_terms
    change = tf.abs(after - before)
    return change, rounding
