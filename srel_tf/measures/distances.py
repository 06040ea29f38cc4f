"""How far a prediction moved: the D of Definitions 1 and 2.

Every measure takes a `Change`, the predictions before and after an update in float64, and returns one number per
prediction. Tensors in, tensors out; the last axis holds the C outputs and is reduced.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Change:
    """Predictions of shape [..., C] before and after an update.

    before, after: what D acts on: probabilities, or raw outputs. float64.
    log_before, log_ratio: log g and d = log g⁺ − log g where the predictions are probabilities, else None.
    """

    before: tf.Tensor
    after: tf.Tensor
    difference: tf.Tensor
    log_before: tf.Tensor | None = None
    log_ratio: tf.Tensor | None = None


def raw_change(before, after):
    """The change of the outputs as they are (Definition 1 on f)."""
    before, after = _as_doubles(before, after)
    return Change(before, after, after - before)


def _as_doubles(before, after):
    """Both as float64 of their common shape."""
    shape = tf.broadcast_dynamic_shape(tf.shape(before), tf.shape(after))
    return [tf.broadcast_to(tf.cast(t, tf.float64), shape) for t in (before, after)]


def probability_change(log_before, log_after):
    """The change of a probability vector, from float64 log-probabilities (see `log_probabilities`).

    g⁺ − g is formed as g·(e^d − 1): subtracting the probabilities would cancel the digits of a small update.
    """
    log_before, log_after = _as_doubles(log_before, log_after)
    before, after = tf.exp(log_before), tf.exp(log_after)
    # A class that has probability zero before and after has not moved, though −∞ − (−∞) is not a number.
    both_zero = tf.math.is_inf(log_before) & tf.math.is_inf(log_after)
    d = tf.where(both_zero, tf.zeros_like(before), log_after - log_before)
    small = tf.abs(d) < 1.0
    difference = tf.where(small, before * tf.math.expm1(tf.where(small, d, 0.0)), after - before)
    return Change(before, after, difference, log_before, d)


def log_probabilities(outputs, are_probabilities):
    """float64 log g of shape [..., C] from a net's outputs, be they logits or probabilities.

    The largest is taken from the others, −log(1 + Σ e^(f_k − f_max)): where it is close to one, log g is small, and
    its change smaller still; a difference of numbers of the size of the logits, or of one, would round it away.
    """
    outputs = tf.cast(outputs, tf.float64)
    f = tf.math.log(outputs) if are_probabilities else outputs
    f -= tf.reduce_max(f, axis=-1, keepdims=True)
    largest = tf.one_hot(tf.argmax(f, axis=-1), tf.shape(f)[-1], on_value=True, off_value=False)
    others = tf.reduce_sum(tf.where(largest, tf.zeros_like(f), tf.exp(f)), axis=-1, keepdims=True)
    return f - tf.math.log1p(others)


# φ(d) = e^d d − e^d + 1 = Σ_{n≥2} (n−1)/n! dⁿ: the coefficients of d², d³, …
_SERIES = [(n - 1) / math.factorial(n) for n in range(2, 18)]
_SERIES_RADIUS = 0.25


def kl(change):
    """KL(g⁺, g) = Σ_c g⁺_c log(g⁺_c / g_c) of Definition 2, in nats, as Σ g φ(d) with φ(d) = e^d d − e^d + 1 ≥ 0.

    The two sums differ by Σ g⁺ − Σ g = 0; in the second each term is non-negative and is evaluated by its series where
    d is small, so that nothing cancels.
    """
    g, g_plus, d = change.before, change.after, change.log_ratio
    small = tf.abs(d) < _SERIES_RADIUS
    s = tf.where(small, d, 0.0)
    series = tf.zeros_like(s)
    for coefficient in reversed(_SERIES):
        series = series * s + coefficient
    # g⁺ = 0 contributes its limit, −g⁺ + g.
    direct = tf.math.multiply_no_nan(tf.where(small, 0.0, d), g_plus) - g_plus + g
    return tf.reduce_sum(tf.where(small, g * series * s * s, direct), axis=-1)


def l1(change):
    """‖f⁺ − f‖₁: Definition 1 as the paper reports it for classifiers (|f⁺ − f| for a scalar output)."""
    return tf.reduce_sum(tf.abs(change.difference), axis=-1)


def l2(change):
    """‖f⁺ − f‖₂: Definition 1 with the other norm (|f⁺ − f| for a scalar output)."""
    # Scaled by the largest entry: squares of changes below 1e-154 would underflow.
    largest = tf.reduce_max(tf.abs(change.difference), axis=-1, keepdims=True)
    scaled = tf.math.divide_no_nan(change.difference, largest)
    return tf.squeeze(largest, -1) * tf.sqrt(tf.reduce_sum(scaled * scaled, axis=-1))


def kl_first_order(change):
    """½ Σ_c g_c d_c²: what KL(g⁺, g) is to leading order, ½ δᵀ (diag g − g gᵀ) δ of the change δ of the logits.

    d = δ − Σ_c g_c δ_c is the change of log g.
    """
    return 0.5 * tf.reduce_sum(change.before * change.log_ratio**2, axis=-1)


@dataclass(frozen=True)
class Measure:
    """One S_rel: numerator(change at x') / denominator(change at x).

    first_order: D of a first-order change, for its limit η → 0; None where there is no such limit.
    probabilities: whether it is defined for probability vectors only.
    raw: whether it acts on what the model returns (logits, say), whatever its predictions are read as.
    degree: the measure of a small change grows as its size to this power (how rounding errors propagate to it).
    tolerance: the largest error of a valid entry is tolerance · (1 + S).
    """

    numerator: Callable[[Change], tf.Tensor]
    denominator: Callable[[Change], tf.Tensor]
    probabilities: bool
    first_order: Callable[[Change], tf.Tensor] | None = None
    raw: bool = False
    degree: int = 1
    tolerance: float = 1e-3


def _definition(distance, first_order, **kwargs):
    return Measure(numerator=distance, denominator=distance, first_order=first_order, **kwargs)


DEFINITIONS = {
    "kl": _definition(kl, kl_first_order, probabilities=True, degree=2, tolerance=2e-3),
    "l1": _definition(l1, l1, probabilities=False),
    "l2": _definition(l2, l2, probabilities=False),
}

# Definition 1 with f the net without its softmax, which the paper tried as well (Section 2).
RAW = {
    "raw_l1": _definition(l1, l1, probabilities=False, raw=True),
    "raw_l2": _definition(l2, l2, probabilities=False, raw=True),
}
