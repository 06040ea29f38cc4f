"""Theorem 5.3 and Lemma C.1: a lower bound of S_rel that rises with time, for two quadratic features."""

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_number, as_positive, as_tensor, as_times, check_option

_RELATIVE_TOLERANCE = 1e-9


def lemma_c1_bound(t, alpha_squared, beta_squared, b1, b2, p_squared, q_squared, t2_star=None):
    """Lemma C.1: (α² − b₁e^{−q²t₂*}) / (α² + b₂e^{−p²t} + β²e^{−q²t}), a lower bound of f(t) for t >= max(t₁*, t₂*).

    f(t) = |α² + b₁e^{−p²t} + (β² − b₁)e^{−q²t}| / |α² + b₂e^{−p²t} + (β² − b₂)e^{−q²t}|.

    Args:
        t: [T], times >= 0.
        alpha_squared > 0, beta_squared >= 0, b1 >= 0, b2 >= 0, p_squared > 0, q_squared > 0: numbers.
        t2_star: the lemma's t₂*, any time with α² − b₁e^{−q²t₂*} > 0; by default the first at which that is at
            least α²/2.

    Returns:
        [T]; NaN before max(t₁*, t₂*), where the lemma claims nothing. It rises with t.

    Raises:
        AssumptionError: a number outside its range, or a t2_star that is too early. ShapeError: what is no number.
    """
    times = as_times(t)
    alpha_squared = as_positive(alpha_squared, "alpha_squared", "Lemma C.1")
    p_squared, q_squared = (as_positive(v, n, "Lemma C.1") for v, n in ((p_squared, "p²"), (q_squared, "q²")))
    beta_squared, b1, b2 = (as_number(v, n) for v, n in ((beta_squared, "beta_squared"), (b1, "b1"), (b2, "b2")))
    for value, name in ((beta_squared, "beta_squared"), (b1, "b1"), (b2, "b2")):
        if value < 0:
            raise AssumptionError(f"Lemma C.1 assumes {name} >= 0; given {value:g}.")
    if t2_star is not None:
        t2_star = as_number(t2_star, "t2_star")
    else:
        t2_star = max(0.0, np.log(2 * b1 / alpha_squared) / q_squared) if b1 > 0 else 0.0
        t2_star = np.nextafter(t2_star, np.inf)  # the lemma's t₂* is positive
    with np.errstate(over="ignore"):  # The check below raises if the exponential overflows.
        numerator = alpha_squared - (b1 * np.exp(-q_squared * t2_star) if b1 else 0.0)
    if numerator <= 0:
        raise AssumptionError(f"Lemma C.1 needs α² − b₁e^(−q²t₂*) > 0; at t2_star={t2_star:g} it is {numerator:g}.")
    # t₁*: from here on the denominator of f is positive, even where β² − b₂ < 0.
    t1_star = max(0.0, np.log((b2 - beta_squared) / alpha_squared) / q_squared) if b2 > beta_squared else 0.0
    bound = numerator / (alpha_squared + b2 * tf.exp(-p_squared * times) + beta_squared * tf.exp(-q_squared * times))
    return tf.where(times >= max(t1_star, t2_star), bound, tf.constant(np.nan, tf.float64))


def theorem_5_3_bound(a, b, w0, theta, t, beta_target, beta_source, variant="corrected", t2_star=None):
    """Theorem 5.3 (eq. 39): a lower bound of lim S_rel for two quadratic features of equal ratios.

    It assumes b₁/a₁ = b₂/a₂ = α², 1/w₁(0)² − b₁/a₁ = 1/w₂(0)² − b₂/a₂ = β² > 0, E[β₁₁β₂₂] = 0 (which the
    theorem does not say, but eq. 37 needs) and ⟨β(x'), β(x)⟩ ≠ 0.

    Args:
        a, b: [2], the moments of Theorem 5.2. w0: [2]. theta: θ > 0. t: [T], times >= 0.
        beta_target, beta_source: (β₁₁, β₂₂) at x' and at x, [2] each.
        variant: "corrected" takes β₂₂(x)² in k₂ and in the first factor, as eq. 37 gives; "printed" takes
            β₂₂(x')² there, as Theorem 5.3 and eqs. 38 and 39 are printed (then it is no bound).
        t2_star: as in `lemma_c1_bound`.

    Returns:
        [T]; NaN before max(t₁*, t₂*). It rises with t.

    Raises:
        AssumptionError: an assumption of the theorem that fails. ShapeError: vectors that are not [2].
        OptionError: another `variant`.
    """
    check_option(variant, ("corrected", "printed"), "variant")
    a, b, w0 = _pair(a, "a"), _pair(b, "b"), _pair(w0, "w0")
    target, source = _pair(beta_target, "beta_target"), _pair(beta_source, "beta_source")
    theta = as_positive(theta, "theta", "Definition 7")
    if (a <= 0).any() or (b <= 0).any():
        raise AssumptionError(f"Theorem 5.3 assumes a_r > 0 and b_r > 0; given a = {a}, b = {b}.")
    alpha_squared = _common(b / a, "b_r/a_r")
    if (w0 == 0).any():
        raise AssumptionError(f"Theorem 5.3 assumes w_r(0) ≠ 0; given w0 = {w0}.")
    beta_squared = _common(1 / w0**2 - b / a, "1/w_r(0)² − b_r/a_r")
    if beta_squared <= 0:
        raise AssumptionError(f"Theorem 5.3 assumes 1/w_r(0)² − b_r/a_r = β² > 0; it is {beta_squared:g}.")

    overlap = target @ source
    square = source @ source if variant == "corrected" else source[0] ** 2 + target[1] ** 2
    if overlap == 0 or square == 0:
        raise AssumptionError("Theorem 5.3 assumes ⟨β(x'), β(x)⟩ ≠ 0 and β(x) ≠ 0: S_rel is 0 or undefined there.")
    k1, k2 = target[0] * source[0] / overlap, source[0] ** 2 / square
    p_squared, q_squared = 4 * theta * a[1], 4 * theta * a[0]  # go with k and 1 − k in eq. 38
    if k1 < 0:  # The proof then works with 1 − k₁ >= 0, which exchanges the two exponents.
        k1, k2, p_squared, q_squared = 1 - k1, 1 - k2, q_squared, p_squared
    bound = lemma_c1_bound(
        t, alpha_squared, beta_squared, beta_squared * k1, beta_squared * k2, p_squared, q_squared, t2_star
    )
    return abs(overlap) / square * bound


def _pair(value, name):
    vector = as_tensor(value, name, 1).numpy()
    if vector.shape != (2,):
        raise ShapeError(f"{name} must have shape (2,): Theorem 5.3 has two features; given {vector.shape}.")
    return vector


def _common(values, name):
    if abs(values[0] - values[1]) > _RELATIVE_TOLERANCE * np.abs(values).max():
        given = f"{values[0]:g} and {values[1]:g}"
        raise AssumptionError(f"Theorem 5.3 assumes {name} equal for both features; given {given}.")
    return float(values.mean())
