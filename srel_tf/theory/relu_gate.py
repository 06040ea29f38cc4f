"""Section 4: the flow of Algorithm 1 on a ReLU gate with realisable labels (Definition 5, Theorems 4.1 and 4.3)."""

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import (
    as_positive,
    as_tensor,
    as_times,
    check_last_axis,
    check_positive_definite,
    ratio_or_nan,
)
from srel_tf.theory.exponentials import at_the_start, exponential_sum


class ReLUGate:
    """The ODE of Algorithm 1 for f(w, x) = max(0, ⟨w, x⟩) with labels max(0, ⟨w*, x⟩) (Definition 5, eq. 5).

    dw/dt = β M (w* − w),  M = E[1{⟨w*, x⟩ > 0} x xᵀ]. Time is in units of 1/β of the flow: one step of
    Algorithm 1 with step η advances t by η/β on average.

    Args:
        w_star: [n], the ground truth w*.
        second_moment: M, [n, n], symmetric positive definite; None means x ~ N(0, I), where M = I/2
            whatever w* is.
        beta: β > 0.

    Raises:
        AssumptionError: M not symmetric or not positive definite (Theorem 4.1 needs it), β not positive.
        ShapeError: w_star or M that do not fit.
        The methods raise ShapeError for vectors that do not fit and AssumptionError for negative times.
    """

    def __init__(self, w_star, second_moment=None, beta=1.0):
        self.w_star = as_tensor(w_star, "w_star", 1)
        self.dimension = self.w_star.shape[0]
        if not self.dimension:
            raise ShapeError("w_star must hold at least one weight; given w_star = [].")
        self.beta = as_positive(beta, "beta", "Definition 5")
        if second_moment is None:
            second_moment = tf.eye(self.dimension, dtype=tf.float64) / 2
        self.second_moment = as_tensor(second_moment, "second_moment", 2)
        check_last_axis(self.second_moment, self.dimension, "second_moment", "as many as w_star")
        self._eigenvalues, self._eigenvectors = check_positive_definite(self.second_moment, "second_moment")

    @property
    def rates(self):
        """Relaxation rates β m of the modes, [n], ascending, per unit of time."""
        return self.beta * self._eigenvalues

    def weights(self, w0, t):
        """Theorem 4.1: w(t) = e^{−βMt} w(0) − expm1(−βMt) w*, since M⁻¹z = w* (eqs. 6 and 7).

        Args:
            w0: [n]. t: [T], times >= 0 (or a scalar, T = 1).

        Returns:
            [T, n].

        Raises:
            AssumptionError: negative times. ShapeError: w0 that does not fit.
        """
        exponent = -as_times(t)[:, None] * self.rates  # [T, n]
        start, end = self._in_modes(self._vector(w0, "w0")), self._in_modes(self.w_star)
        modes = tf.exp(exponent) * start - tf.math.expm1(exponent) * end
        return tf.matmul(modes, self._eigenvectors, transpose_b=True)

    def srel(self, w0, t, x_target, x_source, learning_rate):
        """The exact S_rel of Algorithm 1's update (eq. 9) for a finite step, from eqs. 19 and 20.

        With α₁ = ⟨w(t), x'⟩ and α₂ = η β ⟨w* − w(t), x⟩ ⟨x, x'⟩ the prediction at x' changes by
        max(0, α₁ + α₂) − max(0, α₁) = φ α₂, where φ ∈ [0, 1] is the share that the ReLU lets through. The factor
        ηβ⟨w* − w(t), x⟩, which vanishes as training ends, is common to x' and x and is left out:
        S_rel = φ' |⟨x, x'⟩| / (φ ‖x‖²).

        Args:
            w0: [n]. t: [T], times >= 0.
            x_target, x_source: x' and x, [n] each, or [P, n] each.
            learning_rate: η > 0, the length of the fictitious step.

        Returns:
            [T], or [T, P]. NaN where the prediction at the source does not change: ⟨w*, x⟩ <= 0, or
            ⟨w* − w(t), x⟩ = 0, or a source at which the gate is shut before and after the step.

        Raises:
            AssumptionError: negative times, η not positive. ShapeError: vectors that do not fit.
        """
        w0, x_target, x_source, single = self._arguments(w0, x_target, x_source)
        step, times = self.beta * as_positive(learning_rate, "learning_rate", "Definition 1"), as_times(t)
        residual, residual_log = self._residual(w0, times, x_source)

        def share(x, overlap):
            """φ: the part of the change α₂ that passes max(0, ·) at x; a function of α₁/|α₂| and the sign of α₂."""
            before, before_log = self._preactivation(w0, times, x)
            change = step * residual * overlap
            relative = before / tf.where(change == 0, tf.ones_like(change), tf.abs(change))
            relative *= tf.exp(tf.clip_by_value(before_log - residual_log, -700.0, 700.0))
            return tf.where(change > 0, tf.clip_by_value(1 + relative, 0, 1), tf.clip_by_value(relative, 0, 1))

        overlap, square = tf.reduce_sum(x_target * x_source, -1), tf.reduce_sum(x_source**2, -1)
        sampled = (self._margin(x_source) > 0) & (residual != 0)
        below = tf.where(sampled, share(x_source, square) * square, tf.zeros_like(residual))
        srel = ratio_or_nan(share(x_target, overlap) * tf.abs(overlap), below)
        return srel[:, 0] if single else srel

    def change_bound(self, w0, t, x_target, x_source, learning_rate):
        """Lemma 4.2 (eq. 18): a bound on the change of the prediction at x' by the update on x.

        |max(0, ⟨w⁺, x'⟩) − max(0, ⟨w, x'⟩)| <= ηβ 1{⟨w*, x⟩ > 0} |⟨x, x'⟩| |⟨e^{−βMt}(w(0) − w*), x⟩|.
        Arguments and shapes as in `srel`; returns [T], or [T, P], in units of the prediction.
        """
        w0, x_target, x_source, single = self._arguments(w0, x_target, x_source)
        step, times = self.beta * as_positive(learning_rate, "learning_rate", "Definition 1"), as_times(t)
        residual, residual_log = self._residual(w0, times, x_source)
        sampled = tf.cast(self._margin(x_source) > 0, tf.float64)
        overlap = tf.abs(tf.reduce_sum(x_target * x_source, -1))
        bound = step * sampled * overlap * tf.abs(residual) * tf.exp(residual_log)
        return bound[:, 0] if single else bound

    @staticmethod
    def late_lower_bound(x_target, x_source):
        """Theorem 4.3 (eq. 23): |⟨x, x'⟩| / ‖x‖², the lower bound of S_rel at late times if ⟨w*, x⟩, ⟨w*, x'⟩ > 0.

        It is attained: S_rel equals it once no ReLU clips. x' and x are [n], or [P, n]; returns a scalar, or [P].
        """
        x_target, x_source = as_tensor(x_target, "x_target", (1, 2)), as_tensor(x_source, "x_source", (1, 2))
        if x_target.shape != x_source.shape:
            raise ShapeError(f"x_target {tuple(x_target.shape)} and x_source {tuple(x_source.shape)} must agree.")
        overlap = tf.abs(tf.reduce_sum(x_target * x_source, -1))
        return ratio_or_nan(overlap, tf.reduce_sum(x_source**2, -1))

    def late_time(self, w0, x_target, x_source, learning_rate):
        """A t* that Theorem 4.3 asserts to exist: after it neither ReLU clips, so that S_rel is the bound itself.

        From |⟨w(t) − w*, v⟩| <= e^{−βm₁t} ‖w(0) − w*‖ ‖v‖ with m₁ the smallest eigenvalue of M.

        Returns:
            A scalar, or [P], in units of time.

        Raises:
            AssumptionError: ⟨w*, x⟩ or ⟨w*, x'⟩ not positive, where Theorem 4.3 says nothing.
        """
        w0, x_target, x_source, single = self._arguments(w0, x_target, x_source)
        step = self.beta * as_positive(learning_rate, "learning_rate", "Definition 1")
        distance = tf.norm(w0 - self.w_star)
        latest = tf.zeros([x_source.shape[0]], tf.float64)
        for x, name in ((x_target, "x'"), (x_source, "x")):
            margin = self._margin(x)
            if (margin.numpy() <= 0).any():
                raise AssumptionError(
                    f"Theorem 4.3 assumes ⟨w*, {name}⟩ > 0; the smallest given is {margin.numpy().min():g}."
                )
            overlap = tf.abs(tf.reduce_sum(x * x_source, -1))
            swing = distance * (tf.norm(x, axis=-1) + step * tf.norm(x_source, axis=-1) * overlap)
            latest = tf.maximum(latest, tf.math.log(swing / margin) / self.rates[0])
        return latest[0] if single else latest

    def _arguments(self, w0, x_target, x_source):
        """w(0) [n], x' and x as [P, n], and whether they were single vectors."""
        x_target, x_source = as_tensor(x_target, "x_target", (1, 2)), as_tensor(x_source, "x_source", (1, 2))
        if x_target.shape != x_source.shape:
            raise ShapeError(f"x_target {tuple(x_target.shape)} and x_source {tuple(x_source.shape)} must agree.")
        check_last_axis(x_source, self.dimension, "x_source", "as many as w_star")
        pairs = [tf.reshape(x, [-1, self.dimension]) for x in (x_target, x_source)]
        return self._vector(w0, "w0"), *pairs, x_source.shape.rank == 1

    def _vector(self, value, name):
        vector = as_tensor(value, name, 1)
        check_last_axis(vector, self.dimension, name, "as many as w_star")
        return vector

    def _in_modes(self, vector):
        return tf.linalg.matvec(self._eigenvectors, vector, transpose_a=True)

    def _margin(self, x):
        """⟨w*, x⟩, [P]."""
        return tf.reduce_sum(x * self.w_star, -1)

    def _overlaps_in_modes(self, w0, x):
        """The coefficients of e^{−βmt} in ⟨e^{−βMt}(w* − w(0)), x⟩, [P, n]."""
        return self._in_modes(self.w_star - w0) * tf.matmul(x, self._eigenvectors)

    def _residual(self, w0, times, x):
        """⟨e^{−βMt}(w* − w(0)), x⟩ = ⟨w* − w(t), x⟩ as mantissa and logarithm, [T, P] each."""
        decayed = exponential_sum(self._overlaps_in_modes(w0, x), self.rates, times)
        return at_the_start(times, tf.reduce_sum(x * (self.w_star - w0), -1), *decayed)

    def _preactivation(self, w0, times, x):
        """α₁ = ⟨w(t), x⟩ (eq. 20) as mantissa and logarithm, [T, P] each.

        Late: ⟨w*, x⟩, a mode that does not decay, less what does. Early, with a w(0) small beside w*, that is a
        difference of nearly equal numbers: there the form of Theorem 4.1, e^{−βMt} w(0) − expm1(−βMt) w*, has the
        smaller terms. Each entry takes the form whose terms are smaller.
        """
        coefficients = tf.concat([self._margin(x)[:, None], -self._overlaps_in_modes(w0, x)], -1)
        rates = tf.concat([[0.0], self.rates], 0)
        late, late_log = exponential_sum(coefficients, rates, times)
        size, size_log = exponential_sum(tf.abs(coefficients), rates, times)
        exponent = -times[:, None, None] * self.rates  # [T, 1, n]
        inputs = tf.matmul(x, self._eigenvectors)
        start, end = self._in_modes(w0) * inputs, self._in_modes(self.w_star) * inputs  # [P, n]
        early = tf.concat([tf.exp(exponent) * start, -tf.math.expm1(exponent) * end], -1)
        is_early = tf.reduce_sum(tf.abs(early), -1) < size * tf.exp(size_log)
        early = tf.reduce_sum(early, -1)
        values = tf.where(is_early, early, late), tf.where(is_early, tf.zeros_like(late_log), late_log)
        return at_the_start(times, tf.reduce_sum(x * w0, -1), *values)


def relu_risk_srel(weights, w_star, x_target, x_source, learning_rate, tolerance=1e-3):
    """S_rel of Definition 1 for the ReLU gate on its ℓ2 risk, by differencing predictions as a script would.

    ℓ(w, x) = ½(max(0, ⟨w*, x⟩) − max(0, ⟨w, x⟩))², w⁺ = w − η∇ℓ (not Algorithm 1). Differences of predictions
    lose their digits as w converges: an entry is resolved while the rounding of both differences is below
    `tolerance` of them.

    Args:
        weights: [..., n], for example the steps of `relu_sgd`. w_star, x_target, x_source: [n].
        learning_rate: η > 0. tolerance: the relative error of a difference that counts as resolved.

    Returns:
        srel [...], whatever the differences give, NaN where 0/0; and resolved [...], bool.
    """
    weights, w_star = as_tensor(weights, "weights"), as_tensor(w_star, "w_star", 1)
    x_target, x_source = as_tensor(x_target, "x_target", 1), as_tensor(x_source, "x_source", 1)
    for vector, name in ((weights, "weights"), (x_target, "x_target"), (x_source, "x_source")):
        check_last_axis(vector, w_star.shape[0], name, "as many as w_star")
    step = as_positive(learning_rate, "learning_rate", "Definition 1")

    def predict(w, x):
        return tf.nn.relu(tf.reduce_sum(w * x, -1))

    active = tf.cast(tf.reduce_sum(weights * x_source, -1, keepdims=True) > 0, tf.float64)
    error = (predict(weights, x_source) - predict(w_star, x_source))[..., None]
    stepped = weights - step * error * active * x_source
    changes, rounding = [], []
    for x in (x_target, x_source):
        changes.append(tf.abs(predict(stepped, x) - predict(weights, x)))
        # The stored weights and the product with x round once each; where the gate stays shut zero is exact.
        rounds = tf.cast((predict(stepped, x) > 0) | (predict(weights, x) > 0), tf.float64)
        rounding.append(rounds * 2 * np.finfo(np.float64).eps * tf.reduce_sum(tf.abs(weights * x), -1))
    resolved = tf.reduce_all([r <= tolerance * c for r, c in zip(rounding, changes, strict=True)], 0)
    return ratio_or_nan(*changes), resolved
