"""The flow of Section 4 in the eigenbasis of M.

⟨w(t), x⟩ and ⟨w* − w(t), x⟩ are computed without cancellation, underflow or overflow.
"""

import tensorflow as tf

from srel_tf.theory.checks import inner
from srel_tf.theory.exponentials import ScaledValues, exponential_sum, with_start

# Logarithms of ratios are clipped to ±700. e^700 is finite in float64. A larger ratio would give the same share φ in
# `passed_share`.
_LARGEST_EXPONENT = 700.0


class GateModes:
    """The flow dw/dt = β M (w* − w) in the basis of the eigenvectors of M.

    Args:
        w_star: w*, [n].
        rates: β m, [n], where m are the eigenvalues of M.
        eigenvectors: [n, n], one per column.
    """

    def __init__(
        self, w_star: tf.Tensor, rates: tf.Tensor, eigenvectors: tf.Tensor
    ) -> None:
        self._w_star = w_star
        self._rates = rates
        self._eigenvectors = eigenvectors

    def weights(self, w0: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
        """Theorem 4.1: e^{−βMt} w(0) − expm1(−βMt) w*, [T, n], from w(0) [n] and times [T]."""
        exponent = -times[:, None] * self._rates  # [T, n]
        start = self._in_modes(w0)
        end = self._in_modes(self._w_star)
        modes = tf.exp(exponent) * start - tf.math.expm1(exponent) * end
        return tf.matmul(modes, self._eigenvectors, transpose_b=True)

    def residual(
        self,
        w0: tf.Tensor,
        times: tf.Tensor,
        x: tf.Tensor,
    ) -> ScaledValues:
        """Compute ⟨w* − w(t), x⟩ = ⟨e^{−βMt}(w* − w(0)), x⟩, [T, P]."""
        at_start = inner(x, self._w_star - w0)
        later = exponential_sum(self._overlaps_in_modes(w0, x), self._rates, times)
        return with_start(times, at_start, later)

    def preactivation(
        self,
        w0: tf.Tensor,
        times: tf.Tensor,
        x: tf.Tensor,
    ) -> ScaledValues:
        """Compute α₁ = ⟨w(t), x⟩ (eq. 20), [T, P], from one of two forms: the form with the smaller terms.

        The late form is ⟨w*, x⟩ − ⟨w* − w(t), x⟩, where the second term is a sum of decaying modes. If w(0) is much
        smaller than w*, the late form subtracts nearly equal numbers at early times. The early form is
        ⟨e^{−βMt} w(0) − expm1(−βMt) w*, x⟩ (Theorem 4.1). In this case, the early form has the smaller terms.

        Args:
            w0: w(0), [n].
            times: [T].
            x: [P, n].

        Returns:
            [T, P].
        """
        margin = inner(x, self._w_star)[:, None]
        coefficients = tf.concat([margin, -self._overlaps_in_modes(w0, x)], -1)
        rates = tf.concat([[0.0], self._rates], 0)
        late = exponential_sum(coefficients, rates, times)
        early_terms = self._early_terms(w0, times, x)

        size_late = exponential_sum(tf.abs(coefficients), rates, times)
        size_early = tf.reduce_sum(tf.abs(early_terms), -1)
        is_early = size_early < size_late.mantissa * tf.exp(size_late.logarithm)
        early = tf.reduce_sum(early_terms, -1)
        chosen = ScaledValues(
            mantissa=tf.where(is_early, early, late.mantissa),
            logarithm=tf.where(is_early, tf.zeros_like(late.logarithm), late.logarithm),
        )
        at_start = inner(x, w0)
        return with_start(times, at_start, chosen)

    def _early_terms(
        self,
        w0: tf.Tensor,
        times: tf.Tensor,
        x: tf.Tensor,
    ) -> tf.Tensor:
        """Compute the terms of ⟨e^{−βMt} w(0) − expm1(−βMt) w*, x⟩, [T, P, 2n]."""
        exponent = -times[:, None, None] * self._rates  # [T, 1, n]
        x_in_modes = tf.matmul(x, self._eigenvectors)  # [P, n]
        start = self._in_modes(w0) * x_in_modes
        end = self._in_modes(self._w_star) * x_in_modes
        decaying = tf.exp(exponent) * start
        growing = -tf.math.expm1(exponent) * end
        return tf.concat([decaying, growing], -1)

    def _overlaps_in_modes(self, w0: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Compute the coefficients of e^{−βmt} in ⟨e^{−βMt}(w* − w(0)), x⟩, [P, n]."""
        return self._in_modes(self._w_star - w0) * tf.matmul(x, self._eigenvectors)

    def _in_modes(self, vector: tf.Tensor) -> tf.Tensor:
        """Compute the coefficients, [n], of a vector [n] in the basis of the eigenvectors of M."""
        return tf.linalg.matvec(self._eigenvectors, vector, transpose_a=True)


def passed_share(
    before: ScaledValues,
    residual: ScaledValues,
    change: tf.Tensor,
) -> tf.Tensor:
    """Compute φ, the share of the change α₂ that passes max(0, ·), from α₁/|α₂| and the sign of α₂.

    Args:
        before: α₁, [T, P].
        residual: ⟨w* − w(t), x⟩, which has the same logarithm as α₂, [T, P].
        change: Mantissa of α₂, [T, P].

    Returns:
        φ in [0, 1], [T, P].
    """
    log_ratio = before.logarithm - residual.logarithm
    log_ratio = tf.clip_by_value(log_ratio, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    is_zero = change == 0
    size_of_change = tf.where(is_zero, tf.ones_like(change), tf.abs(change))
    relative = before.mantissa / size_of_change
    relative *= tf.exp(log_ratio)  # α₁/|α₂|
    if_rising = tf.clip_by_value(1 + relative, 0, 1)
    if_falling = tf.clip_by_value(relative, 0, 1)
    return tf.where(change > 0, if_rising, if_falling)
