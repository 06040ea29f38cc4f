"""Theorem 5.2: the flow on diagonal, orthogonal quadratic features (eqs. 13, 14 and 36)."""

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
    as_vector_pair,
    check_last_axis,
    check_option,
    inner,
    nan_unless,
    ratio_or_nan,
)


class _Magnitudes(NamedTuple):
    """Size of the weights along the flow.

    Attributes:
        values: |w_r(t)|, [T, n].
        decayed: e^{−2θa_r t} |w_r(t)|/|w_r(0)|, [T, n].
    """

    values: tf.Tensor
    decayed: tf.Tensor


class DiagonalQuadratic:
    """Gradient flow of f(w, x) = α(x) + Σ_r β_rr(x) w_r² under Definition 7, with moments a and b (Theorem 5.2).

    dw_r/dt = 2θ (a_r − b_r w_r²) w_r. The flow moves at speed θ: one step of the SGD of eq. 15 with step η advances
    t by η/θ.

    The methods raise `ShapeError` for vectors of the wrong shape, and `AssumptionError` for negative times and for a
    w(0) that `initial` does not allow.

    Args:
        a: E[(y − α(x)) β_rr(x)], [n], each > 0.
        b: E[β_rr(x)²], [n], each > 0. E[β_rr β_pp] = 0 for r ≠ p is assumed.
        theta: θ > 0.
        initial: Accepted values of w(0). "theorem": w_r(0)² in (0, a_r/b_r), as Theorem 5.2 assumes. "any": every
            w(0). The solution (eq. 36) holds for every w(0): the condition of the theorem is sufficient, but not
            necessary.

    Raises:
        AssumptionError: An entry of a or b, or θ, is not positive.
        ShapeError: a and b have different shapes, or are empty.
        OptionError: `initial` is neither "theorem" nor "any".

    Example:
        The squares of the weights tend to a_r/b_r.

        >>> from srel_tf import theory
        >>> model = theory.DiagonalQuadratic(a=[1.0, 2.0], b=[1.0, 1.0], theta=0.5)
        >>> print(model.squares([0.5, 0.5], [0.0, 50.0]).numpy().round(3))
        [[0.25 0.25]
         [1.   2.  ]]
        >>> print(model.srel([0.5, 0.5], [0.0, 50.0], beta_target=[1.0, 3.0], beta_source=[1.0, 1.0]).numpy().round(3))
        [2.    2.333]
    """

    def __init__(
        self,
        a: ArrayLike,
        b: ArrayLike,
        theta: float,
        initial: str = "theorem",
    ) -> None:
        self.a = as_tensor(a, "a", 1)
        self.b = as_tensor(b, "b", 1)
        if self.a.shape != self.b.shape:
            raise ShapeError(
                "a and b must have the same shape, but have shapes "
                f"{tuple(self.a.shape)} and {tuple(self.b.shape)}."
            )
        if not self.a.shape[0]:
            raise ShapeError(
                "a and b must hold at least one feature; given a = b = []."
            )
        _check_positive(self.a, "a")
        _check_positive(self.b, "b")
        self.theta = as_positive(theta, "theta", "Definition 7")
        self.initial = check_option(initial, ("theorem", "any"), "initial")

    @property
    def rates(self) -> tf.Tensor:
        """Relaxation rates 4θa_r of w_r², [n], per unit of time."""
        return 4 * self.theta * self.a

    def squares(self, w0: ArrayLike, t: ArrayLike) -> tf.Tensor:
        """Eq. 36: w_r(t)² = a_r / (b_r + (a_r/w_r(0)² − b_r) e^{−4θa_r t}).

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].

        Returns:
            [T, n]; 0 at all times if w_r(0) = 0.
        """
        return self._magnitudes(self._initial(w0), as_times(t)).values ** 2

    def weights(self, w0: ArrayLike, t: ArrayLike) -> tf.Tensor:
        """The weights w(t): the square root of eq. 36, with the sign of w(0), because the flow keeps the sign.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T] (or a scalar, T = 1).

        Returns:
            [T, n].

        Raises:
            AssumptionError: `initial` does not allow w(0), or a time is negative.
            ShapeError: `w0` has the wrong shape.
        """
        w0 = self._initial(w0)
        return tf.sign(w0) * self._magnitudes(w0, as_times(t)).values

    def srel(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        beta_target: ArrayLike,
        beta_source: ArrayLike,
    ) -> tf.Tensor:
        """Eq. 13: S_rel in the limit of a small fictitious step.

        lim S_rel = |Σ_r β_rr(x') β_rr(x) w_r²| / |Σ_r β_rr(x)² w_r²|.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            beta_target: β_rr at x', [n] or [P, n].
            beta_source: β_rr at x, of the same shape.

        Returns:
            [T], or [T, P]; NaN where the denominator is zero.
        """
        target, source = self._feature_pair(beta_target, beta_source)
        weights = self.weights(w0, t)  # [T, n]
        pairs = target.shape[:-1]  # [P], or [] for one pair
        no_step = tf.zeros([weights.shape[0], *pairs], weights.dtype)
        return quadratic_srel(weights, target, source, no_step)

    def residual(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        beta: ArrayLike,
    ) -> tf.Tensor:
        """Compute y − f = Σ_r β_rr (a_r/b_r − w_r²) along the flow, for realisable labels y = α + Σ_r β_rr a_r/b_r.

        The form a/b − w² = (a/b − w₀²) e^{−4θat} w²/w₀² avoids subtracting nearly equal numbers.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            beta: β_rr, [n] or [P, n].

        Returns:
            [T], or [T, P].
        """
        beta = as_tensor(beta, "beta", (1, 2))
        check_last_axis(beta, self.a.shape[0], "beta", "as many as a")
        initial = self._initial(w0)
        magnitudes = self._magnitudes(initial, as_times(t))
        initial_gap = (self.a - self.b * initial**2) / self.b
        gap = initial_gap * magnitudes.decayed**2  # a/b − w², [T, n]
        residual = _sum_over_features(gap, beta)
        return residual if beta.shape.rank == 2 else residual[:, 0]

    def srel_finite(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        beta_target: ArrayLike,
        beta_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """S_rel of a finite step η along the flow, for realisable labels (eqs. 26 and 28 with d = 2).

        The changes at x' and x have the common factor 2η(y − f). It cancels in S_rel and is left out.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            beta_target: β_rr at x', [n] or [P, n].
            beta_source: β_rr at x, of the same shape.
            learning_rate: η > 0.

        Returns:
            [T], or [T, P]; NaN where the prediction at the source does not change.
        """
        target, source = self._feature_pair(beta_target, beta_source)
        step_length = as_learning_rate(learning_rate)
        residual = self.residual(w0, t, source)
        step = 2 * step_length * residual
        srel = quadratic_srel(self.weights(w0, t), target, source, step)
        # A zero residual is detected from w(0), because late in training the residual itself may underflow to zero.
        initial_gap = self.a - self.b * self._initial(w0) ** 2
        has_residual = tf.reduce_any(source * initial_gap != 0, -1)
        return nan_unless(has_residual, srel)

    def _magnitudes(self, w0: tf.Tensor, times: tf.Tensor) -> _Magnitudes:
        """Solve eq. 36 as 1/w² = e^{−4θat}/w₀² + (b/a) (1 − e^{−4θat}), a sum of two squares.

        Args:
            w0: w(0), [n].
            times: [T].

        Returns:
            Magnitudes, [T, n].
        """
        exponent = -times[:, None] * self.rates
        is_zero = w0 == 0  # A weight of 0 stays 0, and 1/w₀ does not exist.
        one = tf.ones_like(w0)
        start = tf.exp(exponent / 2) / tf.where(is_zero, one, tf.abs(w0))
        end = tf.sqrt(-self.b / self.a * tf.math.expm1(exponent))
        # 1/|w| = √(start² + end²). The larger term is factored out, so that no square overflows.
        larger = tf.maximum(start, end)
        smaller = tf.minimum(start, end)
        inverse = larger * tf.sqrt(1 + (smaller / larger) ** 2)
        return _Magnitudes(
            values=tf.where(is_zero, 0 * one, 1 / inverse),
            decayed=tf.where(is_zero, one, start / inverse),
        )

    def _initial(self, w0: ArrayLike) -> tf.Tensor:
        """Check w(0), [n], against the shape of `a` and the values that `initial` allows."""
        w0 = as_tensor(w0, "w0", 1)
        check_last_axis(w0, self.a.shape[0], "w0", "as many as a")
        if self.initial == "theorem" and tf.executing_eagerly():
            self._check_range(w0.numpy())
        return w0

    def _check_range(self, w0: np.ndarray) -> None:
        """Raise `AssumptionError` unless w_r(0)² is in (0, a_r/b_r) for each r."""
        a = self.a.numpy()
        limit = a / self.b.numpy()
        squares = w0**2
        # w0 itself is compared with zero, because its square may underflow.
        is_outside = (w0 == 0) | (squares >= limit)
        if is_outside.any():
            r = int(np.flatnonzero(is_outside)[0])
            raise AssumptionError(
                f"Theorem 5.2 assumes w_r(0)² in (0, a_r/b_r): w_{r}(0)² = {squares[r]:g} is outside "
                f"(0, {limit[r]:g}). The solution also holds outside this range: pass initial='any' to use it there."
            )

    def _feature_pair(
        self, beta_target: ArrayLike, beta_source: ArrayLike
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Check that the features at x' and at x have the same shape, [n] or [P, n]."""
        names = ("beta_target", "beta_source")
        target, source = as_vector_pair(beta_target, beta_source, names)
        check_last_axis(source, self.a.shape[0], "beta_source", "as many as a")
        return target, source


def _check_positive(moments: tf.Tensor, name: str) -> None:
    """Raise `AssumptionError` unless each moment, [n], is positive."""
    smallest = moments.numpy().min()
    if smallest <= 0:
        raise AssumptionError(
            f"Theorem 5.2 assumes {name}_r > 0; the smallest given is {smallest:g}."
        )


def _sum_over_features(per_time: tf.Tensor, per_pair: tf.Tensor) -> tf.Tensor:
    """Sum the products of `per_time`, [T, n], and `per_pair`, [n] or [P, n], over r: [T, 1] or [T, P]."""
    rows = tf.reshape(per_pair, [-1, per_pair.shape[-1]])
    return tf.matmul(per_time, rows, transpose_b=True)


def quadratic_srel(
    weights: ArrayLike,
    beta_target: ArrayLike,
    beta_source: ArrayLike,
    step: ArrayLike,
) -> tf.Tensor:
    """Eqs. 26 and 28 for diagonal quadratic features: S_rel of the update w⁺ = w + g β(x) ⊙ w.

    The change at x' is g Σ_r β_r' β_r w_r² (2 + g β_r), where g = 2η (y − f). The first factor g cancels in S_rel and
    is left out, so that g = 0 gives the limit of eq. 31.

    Args:
        weights: w, [..., n].
        beta_target: Features at x', [n] or [P, n].
        beta_source: Features at x, of the same shape.
        step: g, [...] or [..., P].

    Returns:
        S_rel, of the shape of `step`; NaN where Σ_r β_r² w_r² (2 + g β_r) = 0 at the source.

    Raises:
        ShapeError: Features or weights have the wrong shape.

    Example:
        >>> from srel_tf import theory
        >>> srel = theory.quadratic_srel([1.0, 1.0], beta_target=[1.0, 3.0], beta_source=[1.0, 1.0], step=0.0)
        >>> print(srel.numpy())
        2.0
    """
    weights = as_tensor(weights, "weights")
    step = as_tensor(step, "step")[..., None]
    names = ("beta_target", "beta_source")
    beta_target, beta_source = as_vector_pair(beta_target, beta_source, names)
    check_last_axis(
        beta_source, weights.shape[-1], "beta_source", "one feature per weight"
    )

    if beta_source.shape.rank == 2:
        weights = weights[..., None, :]
    # A weight whose feature at x is zero contributes to neither change. The other weights are scaled, so that no
    # square underflows.
    weights = tf.where(beta_source != 0, weights, 0.0)
    largest = tf.reduce_max(tf.abs(beta_source * weights), -1, keepdims=True)
    weights = tf.math.divide_no_nan(weights, largest)
    moved = weights * (beta_source * weights) * (2 + step * beta_source)
    change_target = inner(beta_target, moved)
    change_source = inner(beta_source, moved)
    return ratio_or_nan(tf.abs(change_target), tf.abs(change_source))
