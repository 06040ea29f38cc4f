"""Sums of decaying exponentials as mantissa and logarithm, for quantities that vanish as training ends."""

import numpy as np
import tensorflow as tf


def exponential_sum(coefficients, rates, times):
    """Σ_m c_m e^{−r_m t} as (mantissa, logarithm), so that it neither under- nor overflows at any time.

    Args:
        coefficients: [P, m]. rates: [m]. times: [T].

    Returns:
        mantissa and logarithm, [T, P] each: the sum is mantissa·e^logarithm, |mantissa| <= m.
    """
    magnitude = tf.abs(coefficients)
    present = magnitude > 0
    infinity = tf.constant(np.inf, tf.float64)
    # The decay of the slowest mode is taken out first: beside a large r t, a logarithm of c would lose its digits.
    slowest = _finite_or_zero(tf.reduce_min(tf.where(present, rates, infinity), -1))  # [P]
    beside = rates - slowest[:, None]
    logs = tf.math.log(tf.where(present, magnitude, tf.ones_like(magnitude))) - times[:, None, None] * beside
    logs = tf.where(present, logs, -infinity)
    largest = _finite_or_zero(tf.reduce_max(logs, -1))
    mantissa = tf.reduce_sum(tf.sign(coefficients) * tf.exp(logs - largest[..., None]), -1)
    return mantissa, largest - times[:, None] * slowest


def _finite_or_zero(values):
    return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))


def at_the_start(times, start, mantissa, logarithm):
    """Mantissa and logarithm [T, P] with `start` [P] at t = 0: not through the modes, whose rounding hides a zero."""
    is_start = times[:, None] == 0
    return tf.where(is_start, start, mantissa), tf.where(is_start, tf.zeros_like(logarithm), logarithm)
