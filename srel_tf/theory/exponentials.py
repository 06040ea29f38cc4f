"""Sums of decaying exponentials, stored as mantissa and logarithm so that they do not underflow late in training."""

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
    """Compute Σ_i c_i e^{−r_i t} for every time, without underflow or overflow.

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
    # Factor out the decay of the slowest mode first. Otherwise a large r t would be added to log c, which would lose
    # the last digits of log c.
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

    Infinities occur in rows whose coefficients are all zero, because these rows have no slowest mode and no largest
    term.
    """
    return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))


def with_start(
    times: tf.Tensor,
    start: tf.Tensor,
    values: ScaledValues,
) -> ScaledValues:
    """Replace the values at t = 0 by `start`, which was computed directly.

    If the exact value at t = 0 is zero, rounding may make the sum over modes a small number that is not zero.

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
