"""Sums of decaying exponentials as mantissa and logarithm, for quantities that vanish as training ends."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class ScaledValues(NamedTuple):
    """Numbers stored as mantissa · e^logarithm, which prevents underflow and overflow.

    Attributes:
        mantissa: [T, P].
        logarithm: [T, P].
    """

    mantissa: tf.Tensor
    logarithm: tf.Tensor


def exponential_sum(
    coefficients: tf.Tensor,
    rates: tf.Tensor,
    times: tf.Tensor,
) -> ScaledValues:
    """Compute Σ_m c_m e^{−r_m t} for every time, without under- or overflow.

    Args:
        coefficients: c, [P, m].
        rates: r, [m].
        times: t, [T].

    Returns:
        The sums [T, P], with |mantissa| <= m.
    """
    magnitude = tf.abs(coefficients)
    is_present = magnitude > 0
    infinity = tf.constant(np.inf, tf.float64)
    # The decay of the slowest mode is factored out first, because log c would lose its digits in a sum with a large r
    # t.
    present_rates = tf.where(is_present, rates, infinity)
    slowest = _finite_or_zero(tf.reduce_min(present_rates, -1))  # [P]
    relative_rates = rates - slowest[:, None]
    log_magnitude = tf.math.log(
        tf.where(is_present, magnitude, tf.ones_like(magnitude))
    )
    log_terms = log_magnitude - times[:, None, None] * relative_rates  # [T, P, m]
    log_terms = tf.where(is_present, log_terms, -infinity)
    largest = _finite_or_zero(tf.reduce_max(log_terms, -1))
    terms = tf.sign(coefficients) * tf.exp(log_terms - largest[..., None])
    return ScaledValues(tf.reduce_sum(terms, -1), largest - times[:, None] * slowest)


def _finite_or_zero(values: tf.Tensor) -> tf.Tensor:
    """Replace infinities by zero.

    They come from rows without terms, which have neither a slowest mode nor a largest term.
    """
    return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))


def with_start(
    times: tf.Tensor,
    start: tf.Tensor,
    values: ScaledValues,
) -> ScaledValues:
    """Replace the values at t = 0 by the directly computed `start`, because rounding of the modes can hide a zero.

    Args:
        times: [T].
        start: Values at t = 0, [P].
        values: [T, P].

    Returns:
        [T, P].
    """
    is_start = times[:, None] == 0
    mantissa = tf.where(is_start, start, values.mantissa)
    return ScaledValues(
        mantissa, tf.where(is_start, tf.zeros_like(values.logarithm), values.logarithm)
    )
