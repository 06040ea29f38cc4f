"""Section 4: the flow of Algorithm 1 on a ReLU gate with realisable labels (Definition 5, Theorems 4.1 and 4.3)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import (
    ArrayLike,
    as_learning_rate,
    as_positive,
    as_tensor,
    as_times,
    check_last_axis,
    check_positive_definite,
    check_same_shape,
    ratio_or_nan,
)
from srel_tf.theory.exponentials import ScaledValues, exponential_sum, with_start

_LARGEST_EXPONENT = 700.0  # e^700 is finite in float64, and beyond every ratio that matters to the clipping at 0 and 1.


class _Arguments(NamedTuple):
    """Checked arguments of the S_rel of a gate.

    Attributes:
        w0: w(0), [n].
        target: x', [P, n].
        source: x, [P, n].
        single: Whether one pair of vectors [n] was given.
    """

    w0: tf.Tensor
    target: tf.Tensor
    source: tf.Tensor
    single: bool


class ReLUGate:
    """The ODE of Algorithm 1 for f(w, x) = max(0, ⟨w, x⟩) with labels max(0, ⟨w*, x⟩) (Definition 5, eq. 5).

    dw/dt = β M (w* − w),  M = E[1{⟨w*, x⟩ > 0} x xᵀ]. One step of Algorithm 1 with step η advances t by η/β on
    average.

    The methods raise `ShapeError` for vectors that do not fit, and `AssumptionError` for negative times.

    Args:
        w_star: The ground truth w*, [n].
        second_moment: M, [n, n], symmetric positive definite. None means x ~ N(0, I), where M = I/2 for every w*.
        beta: β > 0.

    Raises:
        AssumptionError: M is not symmetric or not positive definite (Theorem 4.1 needs it), or β is not positive.
        ShapeError: `w_star` or M do not fit.

    Example:
        >>> from srel_tf import theory
        >>> gate = theory.ReLUGate(w_star=[1.0, 1.0])
        >>> print(gate.weights([0.0, 0.0], [0.0, 2.0]).numpy().round(4))
        [[0.     0.    ]
         [0.6321 0.6321]]
        >>> srel = gate.srel([0.5, 0.5], [0.0, 2.0], x_target=[2.0, 1.0], x_source=[1.0, 1.0], learning_rate=0.01)
        >>> print(srel.numpy().round(3))
        [1.5 1.5]
    """

    def __init__(
        self,
        w_star: ArrayLike,
        second_moment: ArrayLike | None = None,
        beta: float = 1.0,
    ) -> None:
        self.w_star = as_tensor(w_star, "w_star", 1)
        self.dimension = self.w_star.shape[0]
        if not self.dimension:
            raise ShapeError("w_star must hold at least one weight; given w_star = [].")
        self.beta = as_positive(beta, "beta", "Definition 5")
        if second_moment is None:
            second_moment = tf.eye(self.dimension, dtype=tf.float64) / 2
        self.second_moment = as_tensor(second_moment, "second_moment", 2)
        check_last_axis(
            self.second_moment, self.dimension, "second_moment", "as many as w_star"
        )
        self._eigenvalues, self._eigenvectors = check_positive_definite(
            self.second_moment, "second_moment"
        )

    @property
    def rates(self) -> tf.Tensor:
        """Relaxation rates β m of the modes, [n], ascending, per unit of time."""
        return self.beta * self._eigenvalues

    def weights(self, w0: ArrayLike, t: ArrayLike) -> tf.Tensor:
        """Theorem 4.1: w(t) = e^{−βMt} w(0) − expm1(−βMt) w*, since M⁻¹z = w* (eqs. 6 and 7).

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T] (or a scalar, T = 1).

        Returns:
            [T, n].

        Raises:
            AssumptionError: A time is negative.
            ShapeError: `w0` does not fit.
        """
        exponent = -as_times(t)[:, None] * self.rates  # [T, n]
        start = self._in_modes(self._vector(w0, "w0"))
        end = self._in_modes(self.w_star)
        modes = tf.exp(exponent) * start - tf.math.expm1(exponent) * end
        return tf.matmul(modes, self._eigenvectors, transpose_b=True)

    def srel(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """Exact S_rel of Algorithm 1's update (eq. 9) for a finite step, from eqs. 19 and 20.

        With α₁ = ⟨w(t), x'⟩ and α₂ = η β ⟨w* − w(t), x⟩ ⟨x, x'⟩ the prediction at x' changes by
        max(0, α₁ + α₂) − max(0, α₁) = φ α₂, where φ ∈ [0, 1] is the share that the ReLU passes. The factor
        ηβ⟨w* − w(t), x⟩ is common to x' and x. It vanishes as training ends and is left out:
        S_rel = φ' |⟨x, x'⟩| / (φ ‖x‖²).

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.
            learning_rate: Length η > 0 of the fictitious step.

        Returns:
            [T], or [T, P]. NaN where the prediction at the source does not change: ⟨w*, x⟩ <= 0, or
            ⟨w* − w(t), x⟩ = 0, or a source at which the gate is shut before and after the step.

        Raises:
            AssumptionError: A time is negative, or η is not positive.
            ShapeError: Vectors do not fit.
        """
        checked = self._arguments(w0, x_target, x_source)
        step = self.beta * as_learning_rate(learning_rate)
        times = as_times(t)
        residual = self._residual(checked.w0, times, checked.source)

        overlap = _inner(checked.target, checked.source)  # ⟨x, x'⟩, [P]
        square = tf.reduce_sum(checked.source**2, -1)  # ‖x‖², [P]
        common_factor = step * residual.mantissa
        before_target = self._preactivation(checked.w0, times, checked.target)
        before_source = self._preactivation(checked.w0, times, checked.source)
        share_target = _passed_share(before_target, residual, common_factor * overlap)
        share_source = _passed_share(before_source, residual, common_factor * square)

        is_positive = self._margin(checked.source) > 0
        is_updated = is_positive & (residual.mantissa != 0)
        change_target = share_target * tf.abs(overlap)
        change_source = tf.where(
            is_updated, share_source * square, tf.zeros_like(share_source)
        )
        srel = ratio_or_nan(change_target, change_source)
        return srel[:, 0] if checked.single else srel

    def change_bound(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """Lemma 4.2 (eq. 18): a bound on the change of the prediction at x' by the update on x.

        |max(0, ⟨w⁺, x'⟩) − max(0, ⟨w, x'⟩)| <= ηβ 1{⟨w*, x⟩ > 0} |⟨x, x'⟩| |⟨e^{−βMt}(w(0) − w*), x⟩|.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.
            learning_rate: Length η > 0 of the fictitious step.

        Returns:
            [T], or [T, P], in units of the prediction.
        """
        checked = self._arguments(w0, x_target, x_source)
        step = self.beta * as_learning_rate(learning_rate)
        times = as_times(t)
        residual = self._residual(checked.w0, times, checked.source)
        is_positive = self._margin(checked.source) > 0
        is_updated = tf.cast(is_positive, tf.float64)
        overlap = tf.abs(_inner(checked.target, checked.source))
        size_of_residual = tf.abs(residual.mantissa)
        bound = (
            step * is_updated * overlap * size_of_residual * tf.exp(residual.logarithm)
        )
        return bound[:, 0] if checked.single else bound

    @staticmethod
    def late_lower_bound(x_target: ArrayLike, x_source: ArrayLike) -> tf.Tensor:
        """Theorem 4.3 (eq. 23): |⟨x, x'⟩| / ‖x‖², the lower bound of S_rel at late times if ⟨w*, x⟩, ⟨w*, x'⟩ > 0.

        The bound is attained: S_rel equals it as soon as no ReLU clips.

        Args:
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.

        Returns:
            A scalar, or [P].
        """
        target, source = _vector_pair(x_target, x_source)
        overlap = tf.abs(_inner(target, source))
        return ratio_or_nan(overlap, tf.reduce_sum(source**2, -1))

    def late_time(
        self,
        w0: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """A t* as in Theorem 4.3: after it neither ReLU clips, so that S_rel is the bound itself.

        It follows from |⟨w(t) − w*, v⟩| <= e^{−βm₁t} ‖w(0) − w*‖ ‖v‖ with m₁ the smallest eigenvalue of M.

        Args:
            w0: w(0), [n].
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.
            learning_rate: Length η > 0 of the fictitious step.

        Returns:
            A scalar, or [P], in units of time.

        Raises:
            AssumptionError: ⟨w*, x⟩ or ⟨w*, x'⟩ is not positive; Theorem 4.3 makes no claim there.
        """
        checked = self._arguments(w0, x_target, x_source)
        step = self.beta * as_learning_rate(learning_rate)
        distance = tf.norm(checked.w0 - self.w_star)
        source_norm = tf.norm(checked.source, axis=-1)
        latest = tf.zeros([checked.source.shape[0]], tf.float64)
        for x, name in ((checked.target, "x'"), (checked.source, "x")):
            margin = self._positive_margin(x, name)
            overlap = tf.abs(_inner(x, checked.source))
            reach = tf.norm(x, axis=-1) + step * source_norm * overlap
            largest_swing = distance * reach
            unclipped_after = tf.math.log(largest_swing / margin) / self.rates[0]
            latest = tf.maximum(latest, unclipped_after)
        return latest[0] if checked.single else latest

    def _arguments(
        self,
        w0: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
    ) -> _Arguments:
        """Check w(0) [n], and x' and x, [n] or [P, n]."""
        target, source = _vector_pair(x_target, x_source)
        check_last_axis(source, self.dimension, "x_source", "as many as w_star")
        return _Arguments(
            w0=self._vector(w0, "w0"),
            target=tf.reshape(target, [-1, self.dimension]),
            source=tf.reshape(source, [-1, self.dimension]),
            single=source.shape.rank == 1,
        )

    def _vector(self, value: ArrayLike, name: str) -> tf.Tensor:
        """Check a vector [n]."""
        vector = as_tensor(value, name, 1)
        check_last_axis(vector, self.dimension, name, "as many as w_star")
        return vector

    def _in_modes(self, vector: tf.Tensor) -> tf.Tensor:
        """Coefficients of a vector [n] in the eigenvectors of M, [n]."""
        return tf.linalg.matvec(self._eigenvectors, vector, transpose_a=True)

    def _margin(self, x: tf.Tensor) -> tf.Tensor:
        """⟨w*, x⟩, [P], from x [P, n]."""
        return _inner(x, self.w_star)

    def _positive_margin(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """⟨w*, x⟩, [P]; raise `AssumptionError` unless each is positive."""
        margin = self._margin(x)
        smallest = margin.numpy().min(initial=np.inf)
        if smallest <= 0:
            raise AssumptionError(
                f"Theorem 4.3 assumes ⟨w*, {name}⟩ > 0; the smallest given is {smallest:g}."
            )
        return margin

    def _overlaps_in_modes(self, w0: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Coefficients of e^{−βmt} in ⟨e^{−βMt}(w* − w(0)), x⟩, [P, n]."""
        return self._in_modes(self.w_star - w0) * tf.matmul(x, self._eigenvectors)

    def _residual(
        self,
        w0: tf.Tensor,
        times: tf.Tensor,
        x: tf.Tensor,
    ) -> ScaledValues:
        """⟨e^{−βMt}(w* − w(0)), x⟩ = ⟨w* − w(t), x⟩, [T, P]."""
        at_start = _inner(x, self.w_star - w0)
        later = exponential_sum(self._overlaps_in_modes(w0, x), self.rates, times)
        return with_start(times, at_start, later)

    def _preactivation(
        self,
        w0: tf.Tensor,
        times: tf.Tensor,
        x: tf.Tensor,
    ) -> ScaledValues:
        """α₁ = ⟨w(t), x⟩ (eq. 20), [T, P], by the one of two forms whose terms are smaller.

        The late form is ⟨w*, x⟩, a mode that does not decay, minus the decaying modes. If w(0) is small beside w*,
        it is at early times a difference of nearly equal numbers. The form of Theorem 4.1,
        e^{−βMt} w(0) − expm1(−βMt) w*, then has the smaller terms.

        Args:
            w0: w(0), [n].
            times: [T].
            x: [P, n].

        Returns:
            [T, P].
        """
        margin = self._margin(x)[:, None]
        coefficients = tf.concat([margin, -self._overlaps_in_modes(w0, x)], -1)
        rates = tf.concat([[0.0], self.rates], 0)
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
        at_start = _inner(x, w0)
        return with_start(times, at_start, chosen)

    def _early_terms(
        self,
        w0: tf.Tensor,
        times: tf.Tensor,
        x: tf.Tensor,
    ) -> tf.Tensor:
        """Terms of ⟨e^{−βMt} w(0) − expm1(−βMt) w*, x⟩, [T, P, 2n]."""
        exponent = -times[:, None, None] * self.rates  # [T, 1, n]
        x_in_modes = tf.matmul(x, self._eigenvectors)  # [P, n]
        start = self._in_modes(w0) * x_in_modes
        end = self._in_modes(self.w_star) * x_in_modes
        decaying = tf.exp(exponent) * start
        growing = -tf.math.expm1(exponent) * end
        return tf.concat([decaying, growing], -1)


def _inner(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Inner products over the last axis."""
    return tf.reduce_sum(first * second, -1)


def _vector_pair(
    x_target: ArrayLike, x_source: ArrayLike
) -> tuple[tf.Tensor, tf.Tensor]:
    """Check that x' and x have one shape, [n] or [P, n]."""
    target = as_tensor(x_target, "x_target", (1, 2))
    source = as_tensor(x_source, "x_source", (1, 2))
    check_same_shape(target, source, "x_target", "x_source")
    return target, source


def _passed_share(
    before: ScaledValues,
    residual: ScaledValues,
    change: tf.Tensor,
) -> tf.Tensor:
    """φ: the share of the change α₂ that max(0, ·) passes, a function of α₁/|α₂| and of the sign of α₂.

    Args:
        before: α₁, [T, P].
        residual: ⟨w* − w(t), x⟩, whose logarithm is also that of α₂, [T, P].
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


def relu_risk_srel(
    weights: ArrayLike,
    w_star: ArrayLike,
    x_target: ArrayLike,
    x_source: ArrayLike,
    learning_rate: float,
    tolerance: float = 1e-3,
) -> tuple[tf.Tensor, tf.Tensor]:
    """S_rel of Definition 1 for the ReLU gate on its ℓ2 risk, from differences of predictions, as a script would do.

    ℓ(w, x) = ½(max(0, ⟨w*, x⟩) − max(0, ⟨w, x⟩))², w⁺ = w − η∇ℓ (not Algorithm 1). Differences of predictions
    lose their digits as w converges. An entry counts as resolved while the rounding error of both differences is below
    `tolerance` of them.

    Args:
        weights: w, [..., n], for example the steps of `relu_sgd`.
        w_star: w*, [n].
        x_target: x', [n].
        x_source: x, [n].
        learning_rate: η > 0.
        tolerance: Relative error of a difference up to which it counts as resolved.

    Returns:
        srel, [...], the ratio of the differences, NaN for 0/0 or if the difference at the source is zero; and
        resolved, bool [...].

    Raises:
        ShapeError: Vectors do not fit.
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

    is_active = tf.cast(_inner(weights, x_source) > 0, tf.float64)[..., None]
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
    """max(0, ⟨w, x⟩), [...], from weights [..., n] and x [n]."""
    return tf.nn.relu(_inner(weights, x))


def _change_and_rounding(
    weights: tf.Tensor,
    stepped: tf.Tensor,
    x: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Size of the change of the prediction at x, and a bound of its rounding error, [...] each.

    The stored weights and their product with x are rounded once each. If the gate is shut before and after the step,
    both predictions are exactly zero.
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
