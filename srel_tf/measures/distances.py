"""Distances D between predictions before and after an update (Definitions 1 and 2).

Each distance takes a `Change` in float64 and returns one number per prediction. In a `Change`, the last axis holds the
C outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import tensorflow as tf


@dataclass(frozen=True)
class Change:
    """Predictions of shape [..., C] before and after an update, float64.

    Attributes:
        before, after: the predictions that D acts on, which are probabilities (g and g⁺) or raw outputs.
        difference: after − before. For probabilities this difference is computed without cancellation.
        log_before, log_ratio: log g and d = log g⁺ − log g. None for raw outputs.
    """

    before: tf.Tensor
    after: tf.Tensor
    difference: tf.Tensor
    log_before: tf.Tensor | None = None
    log_ratio: tf.Tensor | None = None


def raw_change(before: tf.Tensor, after: tf.Tensor) -> Change:
    """Return the change of raw outputs [..., C], for Definition 1 on f. The shapes are broadcast."""
    before, after = _as_doubles(before, after)
    return Change(before, after, after - before)


def _as_doubles(before: tf.Tensor, after: tf.Tensor) -> list[tf.Tensor]:
    """Return both arguments as float64, broadcast to their common shape."""
    shape = tf.broadcast_dynamic_shape(tf.shape(before), tf.shape(after))
    return [tf.broadcast_to(tf.cast(t, tf.float64), shape) for t in (before, after)]


def probability_change(log_before: tf.Tensor, log_after: tf.Tensor) -> Change:
    """Return the change of probability vectors from float64 log-probabilities [..., C] (see `log_probabilities`).

    g⁺ − g is computed as g·(e^d − 1) with d = log g⁺ − log g, because a difference of probabilities would lose the
    digits of a small change.
    """
    log_before, log_after = _as_doubles(log_before, log_after)
    before, after = tf.exp(log_before), tf.exp(log_after)
    # A class with probability zero before and after has not changed, although −∞ − (−∞) is NaN.
    both_zero = tf.math.is_inf(log_before) & tf.math.is_inf(log_after)
    d = tf.where(both_zero, tf.zeros_like(before), log_after - log_before)
    small = tf.abs(d) < 1.0
    difference = tf.where(
        small, before * tf.math.expm1(tf.where(small, d, 0.0)), after - before
    )
    return Change(before, after, difference, log_before, d)


def log_probabilities(outputs: tf.Tensor, are_probabilities: bool) -> tf.Tensor:
    """Return log g [..., C], float64, of outputs that are logits or probabilities.

    log g_c = f_c − f_max − log(1 + Σ e^(f_k − f_max)), where the sum leaves out the largest logit, and `log1p` computes
    the logarithm. If the largest probability is close to one, its logarithm is close to zero. The usual formula
    f_c − log Σ e^(f_k) would then lose small changes to rounding.
    """
    outputs = tf.cast(outputs, tf.float64)
    f = tf.math.log(outputs) if are_probabilities else outputs
    f -= tf.reduce_max(f, axis=-1, keepdims=True)
    largest = tf.one_hot(
        tf.argmax(f, axis=-1), tf.shape(f)[-1], on_value=True, off_value=False
    )
    others = tf.reduce_sum(
        tf.where(largest, tf.zeros_like(f), tf.exp(f)), axis=-1, keepdims=True
    )
    return f - tf.math.log1p(others)


# The coefficients of d², d³, … in φ(d) = e^d d − e^d + 1 = Σ_{n≥2} (n−1)/n! dⁿ.
_SERIES = [(n - 1) / math.factorial(n) for n in range(2, 18)]
_SERIES_RADIUS = 0.25


def kl(change: Change) -> tf.Tensor:
    """Return KL(g⁺, g) = Σ_c g⁺_c log(g⁺_c / g_c) of Definition 2, in nats.

    The divergence is computed as Σ g φ(d) with φ(d) = e^d d − e^d + 1 ≥ 0, which is equal because Σ g⁺ = Σ g. The terms
    do not cancel each other, because all are non-negative. For small d, φ(d) is evaluated by its series, so that
    nothing cancels within a term.
    """
    g, g_plus, d = change.before, change.after, change.log_ratio
    small = tf.abs(d) < _SERIES_RADIUS
    s = tf.where(small, d, 0.0)
    series = tf.zeros_like(s)
    for coefficient in reversed(_SERIES):
        series = series * s + coefficient
    # A class with g⁺ = 0 contributes g, the limit of its term.
    direct = tf.math.multiply_no_nan(tf.where(small, 0.0, d), g_plus) - g_plus + g
    return tf.reduce_sum(tf.where(small, g * series * s * s, direct), axis=-1)


def l1(change: Change) -> tf.Tensor:
    """Return ‖f⁺ − f‖₁, the norm that the paper reports for classifiers. For a scalar output this is |f⁺ − f|."""
    return tf.reduce_sum(tf.abs(change.difference), axis=-1)


def l2(change: Change) -> tf.Tensor:
    """Return ‖f⁺ − f‖₂, for Definition 1 with the ℓ2 norm. For a scalar output this is |f⁺ − f|."""
    # Scale by the largest entry first, because squares of changes below 1e-154 would underflow.
    largest = tf.reduce_max(tf.abs(change.difference), axis=-1, keepdims=True)
    scaled = tf.math.divide_no_nan(change.difference, largest)
    return tf.squeeze(largest, -1) * tf.sqrt(tf.reduce_sum(scaled * scaled, axis=-1))


def kl_first_order(change: Change) -> tf.Tensor:
    """Return ½ Σ_c g_c d_c² = ½ δᵀ (diag g − g gᵀ) δ, the leading order of KL(g⁺, g) for a change δ of the logits.

    Here d_c = δ_c − Σ_k g_k δ_k is the change of log g_c to first order.
    """
    assert change.log_ratio is not None
    return 0.5 * tf.reduce_sum(change.before * change.log_ratio**2, axis=-1)


Distance: TypeAlias = Callable[[Change], tf.Tensor]


@dataclass(frozen=True)
class Measure:
    """Definition of one measure: S_rel = numerator(change at x') / denominator(change at x).

    Attributes:
        numerator, denominator: functions that compute D of a `Change` [..., C], one number per prediction [...].
        probabilities: whether D is defined for probability vectors only.
        first_order: a function that computes D of a first-order change, for the limit η → 0; None if the measure has no
            limit.
        raw: whether D always acts on the model's raw outputs, whatever `predictions` is set to.
        degree: the power p in D ∝ ‖change‖^p for small changes: 1 for norms, 2 for squares of norms.
        tolerance: the rounding error of a valid entry is at most tolerance · (1 + S).
    """

    numerator: Distance
    denominator: Distance
    probabilities: bool
    first_order: Distance | None = None
    raw: bool = False
    degree: int = 1
    tolerance: float = 1e-3


def _definition(distance: Distance, first_order: Distance, **options: Any) -> Measure:
    return Measure(
        numerator=distance, denominator=distance, first_order=first_order, **options
    )


DEFINITIONS = {
    "kl": _definition(kl, kl_first_order, probabilities=True, degree=2, tolerance=2e-3),
    "l1": _definition(l1, l1, probabilities=False),
    "l2": _definition(l2, l2, probabilities=False),
}

# Definition 1, applied to the outputs before the softmax. The paper tried this, too (Section 2).
RAW = {
    "raw_l1": _definition(l1, l1, probabilities=False, raw=True),
    "raw_l2": _definition(l2, l2, probabilities=False, raw=True),
}
