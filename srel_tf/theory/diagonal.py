"""Theorem 5.2: the flow on diagonal, orthogonal quadratic features (eqs. 13, 14 and 36)."""

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_positive, as_tensor, as_times, check_last_axis, check_option, ratio_or_nan


class DiagonalQuadratic:
    """f(w, x) = α(x) + Σ_r β_rr(x) w_r² under Definition 7, with moments a and b (Theorem 5.2).

    dw_r/dt = 2θ (a_r − b_r w_r²) w_r. Time is in units where the flow moves at speed θ: one step of the SGD of
    eq. 15 with step η advances t by η/θ.

    Args:
        a: E[(y − α(x)) β_rr(x)], [n], each > 0.
        b: E[β_rr(x)²], [n], each > 0; E[β_rr β_pp] = 0 for r ≠ p is assumed.
        theta: θ > 0.
        initial: which w(0) is let in. "theorem": w_r(0)² in (0, a_r/b_r), as Theorem 5.2 assumes. "any": every
            w(0), for which the solution (eq. 36) holds just as well; the theorem's condition is sufficient only.

    Raises:
        AssumptionError: a, b or θ not positive, or later a w(0) outside the range.
        ShapeError: a and b that do not fit, or are empty. OptionError: another `initial`.
        The methods raise ShapeError for vectors that do not fit and AssumptionError for negative times.
    """

    def __init__(self, a, b, theta, initial="theorem"):
        self.a, self.b = as_tensor(a, "a", 1), as_tensor(b, "b", 1)
        if self.a.shape != self.b.shape:
            raise ShapeError(f"a and b must agree, but have shapes {tuple(self.a.shape)} and {tuple(self.b.shape)}.")
        if not self.a.shape[0]:
            raise ShapeError("a and b must hold at least one feature; given a = b = [].")
        for value, name in ((self.a, "a"), (self.b, "b")):
            smallest = value.numpy().min()
            if smallest <= 0:
                raise AssumptionError(f"Theorem 5.2 assumes {name}_r > 0; the smallest given is {smallest:g}.")
        self.theta = as_positive(theta, "theta", "Definition 7")
        self.initial = check_option(initial, ("theorem", "any"), "initial")

    @property
    def rates(self):
        """Relaxation rates 4θa_r of w_r², [n], per unit of time."""
        return 4 * self.theta * self.a

    def squares(self, w0, t):
        """Eq. 36: w_r(t)² = a_r / (b_r + (a_r/w_r(0)² − b_r) e^{−4θa_r t}), [T, n]; 0 at all times for w_r(0) = 0."""
        return self._magnitudes(self._initial(w0), as_times(t))[0] ** 2

    def weights(self, w0, t):
        """Eq. 36 with the sign of w(0), which the flow keeps.

        Args:
            w0: [n]. t: [T], times >= 0 (or a scalar, T = 1).

        Returns:
            [T, n].

        Raises:
            AssumptionError: w(0) outside the range, negative times. ShapeError: w0 that does not fit.
        """
        w0 = self._initial(w0)
        return tf.sign(w0) * self._magnitudes(w0, as_times(t))[0]

    def srel(self, w0, t, beta_target, beta_source, absolute=True):
        """Eq. 13: S_rel as the fictitious step goes to zero.

        lim S_rel = |Σ_r β_rr(x') β_rr(x) w_r²| / |Σ_r β_rr(x)² w_r²|.

        Args:
            w0: [n]. t: [T], times >= 0.
            beta_target, beta_source: β_rr at x' and at x, [n] each, or [P, n] each.
            absolute: True, eq. 13. False, eq. 14 as printed, without absolute values: it can be negative.

        Returns:
            [T], or [T, P]; NaN where the denominator is zero.
        """
        target, source = self._feature_pair(beta_target, beta_source)
        squares = scaled(self.weights(w0, t)) ** 2
        above = tf.matmul(squares, tf.reshape(target * source, [-1, target.shape[-1]]), transpose_b=True)
        below = tf.matmul(squares, tf.reshape(source**2, [-1, source.shape[-1]]), transpose_b=True)
        srel = ratio_or_nan(tf.abs(above) if absolute else above, below)
        return srel if target.shape.rank == 2 else srel[:, 0]

    def residual(self, w0, t, beta):
        """y − f = Σ_r β_rr (a_r/b_r − w_r²) along the flow for realisable labels y = α + Σ_r β_rr a_r/b_r.

        No two nearby numbers are subtracted: a/b − w² = (a/b − w₀²) e^{−4θat} w²/w₀².

        Args:
            w0: [n]. t: [T]. beta: [n], or [P, n].

        Returns:
            [T], or [T, P].
        """
        beta = as_tensor(beta, "beta", (1, 2))
        check_last_axis(beta, self.a.shape[0], "beta", "as many as a")
        w0 = self._initial(w0)
        gap = (self.a - self.b * w0**2) / self.b * self._magnitudes(w0, as_times(t))[1] ** 2
        residual = tf.matmul(gap, tf.reshape(beta, [-1, beta.shape[-1]]), transpose_b=True)
        return residual if beta.shape.rank == 2 else residual[:, 0]

    def srel_finite(self, w0, t, beta_target, beta_source, learning_rate):
        """Eqs. 26 and 28 with d = 2 along the flow: S_rel of a finite step η on a realisable label.

        Arguments and shapes as in `srel`, learning_rate η > 0; the change is divided by 2η(y − f), which cancels.
        """
        target, source = self._feature_pair(beta_target, beta_source)
        step = 2 * as_positive(learning_rate, "learning_rate", "Definition 1") * self.residual(w0, t, source)  # g
        srel = quadratic_srel(self.weights(w0, t), target, source, step)
        # Whether there is a residual is asked of w(0), not of a residual that may have underflowed.
        sampled = tf.reduce_any(source * (self.a - self.b * self._initial(w0) ** 2) != 0, -1)
        return tf.where(sampled, srel, tf.constant(np.nan, tf.float64))

    def _magnitudes(self, w0, times):
        """|w_r(t)| and e^{−2θa_r t} |w_r(t)|/|w_r(0)|, [T, n] each.

        From eq. 36 as 1/w² = e^{−4θat}/w₀² + (b/a) (1 − e^{−4θat}): a sum of squares, neither of which is a difference.
        """
        exponent = -times[:, None] * self.rates
        at_rest, one = w0 == 0, tf.ones_like(w0)  # A weight of 0 is a fixed point; it has no 1/w₀.
        start = tf.exp(exponent / 2) / tf.where(at_rest, one, tf.abs(w0))
        end = tf.sqrt(-self.b / self.a * tf.math.expm1(exponent))
        # 1/|w| is the root of start² + end². The larger one is taken out, so that no square overflows.
        larger, smaller = tf.maximum(start, end), tf.minimum(start, end)
        inverse = larger * tf.sqrt(1 + (smaller / larger) ** 2)
        return tf.where(at_rest, 0 * one, 1 / inverse), tf.where(at_rest, one, start / inverse)

    def _initial(self, w0):
        w0 = as_tensor(w0, "w0", 1)
        check_last_axis(w0, self.a.shape[0], "w0", "as many as a")
        if self.initial == "any" or not tf.executing_eagerly():
            return w0
        limit, squares = self.a.numpy() / self.b.numpy(), w0.numpy() ** 2
        outside = (w0.numpy() == 0) | (squares >= limit)  # A square may be 0 because it underflows.
        if outside.any():
            r = int(np.flatnonzero(outside)[0])
            raise AssumptionError(
                f"Theorem 5.2 assumes w_r(0)² in (0, a_r/b_r): w_{r}(0)² = {squares[r]:g} is outside "
                f"(0, {limit[r]:g}). The solution holds beyond that range too: use it with initial='any'."
            )
        return w0

    def _feature_pair(self, beta_target, beta_source):
        target = as_tensor(beta_target, "beta_target", (1, 2))
        source = as_tensor(beta_source, "beta_source", (1, 2))
        if target.shape != source.shape:
            raise ShapeError(f"beta_target {tuple(target.shape)} and beta_source {tuple(source.shape)} must agree.")
        check_last_axis(source, self.a.shape[0], "beta_source", "as many as a")
        return target, source


def scaled(weights):
    """Divide each row of weights [..., n] by its largest magnitude, which cancels in S_rel. Rows of zeros stay zero."""
    return tf.math.divide_no_nan(weights, tf.reduce_max(tf.abs(weights), -1, keepdims=True))


def quadratic_srel(weights, beta_target, beta_source, step):
    """Eqs. 26 and 28 for diagonal quadratic features: S_rel of the update w⁺ = w + g β(x) ⊙ w.

    The change at x' is g Σ_r β_r' β_r w_r² (2 + g β_r), where g = 2η (y − f): the leading g is left out, so that
    g = 0 gives the limit of eq. 31.

    Args:
        weights: [..., n]. beta_target, beta_source: [n], or [P, n].
        step: g, [...], or [..., P].

    Returns:
        S_rel of the shape of `step`; NaN where the change at the source is zero for every small g.

    Raises:
        ShapeError: features or weights that do not fit.
    """
    weights, step = as_tensor(weights, "weights"), as_tensor(step, "step")[..., None]
    beta_target, beta_source = as_tensor(beta_target, "beta_target", (1, 2)), as_tensor(beta_source, "beta_source")
    if beta_target.shape != beta_source.shape:
        given = f"{tuple(beta_target.shape)} and beta_source {tuple(beta_source.shape)}"
        raise ShapeError(f"beta_target {given} must agree.")
    check_last_axis(beta_source, weights.shape[-1], "beta_source", "one feature a weight")
    weights = scaled(weights)
    if beta_source.shape.rank == 2:
        weights = weights[..., None, :]
    moved = weights**2 * (2 + step * beta_source) * beta_source
    above = tf.abs(tf.reduce_sum(beta_target * moved, -1))
    return ratio_or_nan(above, tf.abs(tf.reduce_sum(beta_source * moved, -1)))
