"""Theorem 5.3 and Lemma C.1: a lower bound of S_rel that rises with time, for two quadratic features."""

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import (
    ArrayLike,
    as_number,
    as_positive,
    as_tensor,
    as_times,
    nan_unless,
)

# Relative difference up to which the ratios of the two features count as equal.
_RELATIVE_TOLERANCE = 1e-9


def lemma_c1_bound(
    t: ArrayLike,
    alpha_squared: float,
    beta_squared: float,
    b1: float,
    b2: float,
    p_squared: float,
    q_squared: float,
    t2_star: float | None = None,
) -> tf.Tensor:
    """Lemma C.1: a lower bound of f(t) that rises with t. The bound holds for t >= max(t₁*, t₂*).

    f(t) = |α² + b₁e^{−p²t} + (β² − b₁)e^{−q²t}| / |α² + b₂e^{−p²t} + (β² − b₂)e^{−q²t}|
    bound(t) = (α² − b₁e^{−q²t₂*}) / (α² + b₂e^{−p²t} + β²e^{−q²t})

    Args:
        t: Times >= 0, [T].
        alpha_squared: α² > 0.
        beta_squared: β² >= 0.
        b1: b₁ >= 0.
        b2: b₂ >= 0.
        p_squared: p² > 0.
        q_squared: q² > 0.
        t2_star: t₂* of the lemma, any time at which α² − b₁e^{−q²t₂*} > 0. The default is the first time at which
            this difference is at least α²/2.

    Returns:
        The bound, [T]; NaN before max(t₁*, t₂*), because the lemma makes no claim there.

    Raises:
        AssumptionError: An argument is outside its range, or `t2_star` is so early that α² − b₁e^{−q²t₂*} <= 0.
        ShapeError: `t` has more than one axis, or another argument is not a single number.

    Example:
        >>> from srel_tf import theory
        >>> bound = theory.lemma_c1_bound([0.0, 1.0, 50.0], 1.0, 1.0, b1=1.0, b2=0.5, p_squared=1.0, q_squared=2.0)
        >>> print(bound.numpy().round(3).tolist())
        [nan, 0.379, 0.5]
    """
    times = as_times(t)
    alpha_squared = as_positive(alpha_squared, "alpha_squared", "Lemma C.1")
    p_squared = as_positive(p_squared, "p²", "Lemma C.1")
    q_squared = as_positive(q_squared, "q²", "Lemma C.1")
    beta_squared = _as_non_negative(beta_squared, "beta_squared")
    b1 = _as_non_negative(b1, "b1")
    b2 = _as_non_negative(b2, "b2")
    t2_star = (
        _default_t2_star(alpha_squared, b1, q_squared)
        if t2_star is None
        else as_number(t2_star, "t2_star")
    )

    numerator = _bound_numerator(alpha_squared, b1, q_squared, t2_star)
    decay_p = tf.exp(-p_squared * times)
    decay_q = tf.exp(-q_squared * times)
    denominator = alpha_squared + b2 * decay_p + beta_squared * decay_q
    bound = numerator / denominator
    t1_star = _t1_star(alpha_squared, beta_squared, b2, q_squared)
    return nan_unless(times >= max(t1_star, t2_star), bound)


def _as_non_negative(value: float, name: str) -> float:
    """Convert `value` to a float; raise `AssumptionError` if it is negative."""
    number = as_number(value, name)
    if number < 0:
        raise AssumptionError(f"Lemma C.1 assumes {name} >= 0; given {number:g}.")
    return number


def _default_t2_star(
    alpha_squared: float,
    b1: float,
    q_squared: float,
) -> float:
    """Compute the first positive time at which α² − b₁e^{−q²t} is at least α²/2."""
    earliest = max(0.0, np.log(2 * b1 / alpha_squared) / q_squared) if b1 > 0 else 0.0
    # The lemma requires t₂* > 0. TensorFlow flushes denormal numbers to 0, so the result is at least the smallest
    # normal number.
    return float(max(np.nextafter(earliest, np.inf), np.finfo(np.float64).tiny))


def _bound_numerator(
    alpha_squared: float,
    b1: float,
    q_squared: float,
    t2_star: float,
) -> float:
    """Compute α² − b₁e^{−q²t₂*}; raise `AssumptionError` unless it is positive."""
    # If the exponential overflows, the numerator is −∞ and the check below raises.
    with np.errstate(over="ignore"):
        numerator = alpha_squared - (b1 * np.exp(-q_squared * t2_star) if b1 else 0.0)
    if numerator <= 0:
        raise AssumptionError(
            f"Lemma C.1 needs α² − b₁e^(−q²t₂*) > 0; at t2_star={t2_star:g} it is {numerator:g}. "
            "Give a later t2_star, or leave it out."
        )
    return numerator


def _t1_star(
    alpha_squared: float,
    beta_squared: float,
    b2: float,
    q_squared: float,
) -> float:
    """Compute t₁*, the time after which the denominator of f is positive; 0 if b₂ <= β²."""
    if b2 <= beta_squared:
        return 0.0
    return max(0.0, np.log((b2 - beta_squared) / alpha_squared) / q_squared)


def theorem_5_3_bound(
    a: ArrayLike,
    b: ArrayLike,
    w0: ArrayLike,
    theta: float,
    t: ArrayLike,
    beta_target: ArrayLike,
    beta_source: ArrayLike,
    t2_star: float | None = None,
) -> tf.Tensor:
    """Theorem 5.3 (eq. 39): a lower bound of lim S_rel for two quadratic features with equal ratios b_r/a_r.

    The theorem assumes:

    - b₁/a₁ = b₂/a₂ = α²;
    - 1/w₁(0)² − b₁/a₁ = 1/w₂(0)² − b₂/a₂ = β² > 0;
    - ⟨β(x'), β(x)⟩ ≠ 0;
    - E[β₁₁β₂₂] = 0. The theorem does not state this assumption, but eq. 37 uses it.

    The bound is |⟨β(x'), β(x)⟩| / ‖β(x)‖² times the bound of Lemma C.1 for b₁ = β² k₁ and b₂ = β² k₂. Here
    k₁ = β₁₁(x') β₁₁(x) / ⟨β(x'), β(x)⟩ and k₂ = β₁₁(x)² / ‖β(x)‖². If k₁ < 0, the proof replaces k₁ and
    k₂ by 1 − k₁ and 1 − k₂.

    As in eq. 37, ‖β(x)‖² contains β₂₂(x)². The paper prints β₂₂(x')² instead, in Theorem 5.3 and in eqs. 38 and 39 (see
    `train.errata`).

    Args:
        a: Moments a of Theorem 5.2, [2].
        b: Moments b of Theorem 5.2, [2].
        w0: Initial weights, [2].
        theta: θ > 0.
        t: Times >= 0, [T].
        beta_target: (β₁₁, β₂₂) at x', [2].
        beta_source: (β₁₁, β₂₂) at x, [2].
        t2_star: As in `lemma_c1_bound`.

    Returns:
        The bound, [T]; NaN before max(t₁*, t₂*). The bound rises with t.

    Raises:
        AssumptionError: One of the first three assumptions does not hold, or an argument is outside its range.
        ShapeError: A vector does not have shape [2].

    Example:
        With α² = β² = 1 and β(x') = β(x), the bound tends to 1/2. S_rel is 1 in this case.

        >>> from srel_tf import theory
        >>> w0 = [0.5**0.5, 0.5**0.5]
        >>> bound = theory.theorem_5_3_bound([1, 2], [1, 2], w0, 0.1, [2.0, 100.0], [1, 1], [1, 1])
        >>> print(bound.numpy().round(3))
        [0.323 0.5  ]
    """
    a, b, w0 = _as_pair(a, "a"), _as_pair(b, "b"), _as_pair(w0, "w0")
    target = _as_pair(beta_target, "beta_target")
    source = _as_pair(beta_source, "beta_source")
    theta = as_positive(theta, "theta", "Definition 7")
    alpha_squared, beta_squared = _equal_ratios(a, b, w0)

    overlap = target @ source
    square = source @ source
    if overlap == 0 or square == 0:
        raise AssumptionError(
            "Theorem 5.3 assumes ⟨β(x'), β(x)⟩ ≠ 0 and β(x) ≠ 0, because S_rel is 0 or undefined otherwise; "
            f"given beta_target = {target}, beta_source = {source}."
        )
    k1 = target[0] * source[0] / overlap
    k2 = source[0] ** 2 / square
    # In eq. 38, k₁ and k₂ multiply e^{−p²t}, and 1 − k₁ and 1 − k₂ multiply e^{−q²t}.
    p_squared = 4 * theta * a[1]
    q_squared = 4 * theta * a[0]
    if k1 < 0:
        # The proof then uses 1 − k₁ >= 0 and 1 − k₂ instead of k₁ and k₂. This exchanges the two exponents.
        k1, k2 = 1 - k1, 1 - k2
        p_squared, q_squared = q_squared, p_squared
    bound = lemma_c1_bound(
        t,
        alpha_squared,
        beta_squared,
        b1=beta_squared * k1,
        b2=beta_squared * k2,
        p_squared=p_squared,
        q_squared=q_squared,
        t2_star=t2_star,
    )
    return abs(overlap) / square * bound


def _equal_ratios(
    a: np.ndarray,
    b: np.ndarray,
    w0: np.ndarray,
) -> tuple[float, float]:
    """Compute α² and β² of Theorem 5.3; raise `AssumptionError` if a, b or w(0), [2] each, violate its assumptions."""
    if (a <= 0).any() or (b <= 0).any():
        raise AssumptionError(
            f"Theorem 5.3 assumes a_r > 0 and b_r > 0; given a = {a}, b = {b}."
        )
    alpha_squared = _common_value(b / a, "b_r/a_r")
    if (w0 == 0).any():
        raise AssumptionError(f"Theorem 5.3 assumes w_r(0) ≠ 0; given w0 = {w0}.")
    beta_squared = _common_value(1 / w0**2 - b / a, "1/w_r(0)² − b_r/a_r")
    if beta_squared <= 0:
        raise AssumptionError(
            f"Theorem 5.3 assumes 1/w_r(0)² − b_r/a_r = β² > 0; it is {beta_squared:g}."
        )
    return alpha_squared, beta_squared


def _as_pair(value: ArrayLike, name: str) -> np.ndarray:
    """Convert `value` to a float64 array [2]."""
    vector = as_tensor(value, name, 1).numpy()
    if vector.shape != (2,):
        raise ShapeError(
            f"{name} must have shape (2,): Theorem 5.3 has two features; given {vector.shape}."
        )
    return vector


def _common_value(values: np.ndarray, name: str) -> float:
    """Compute the mean of two values, [2]; raise `AssumptionError` unless they are equal up to rounding."""
    if abs(values[0] - values[1]) > _RELATIVE_TOLERANCE * np.abs(values).max():
        given = f"{values[0]:g} and {values[1]:g}"
        raise AssumptionError(
            f"Theorem 5.3 assumes that {name} is equal for both features; given {given}."
        )
    return float(values.mean())
