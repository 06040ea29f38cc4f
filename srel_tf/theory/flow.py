"""Definition 7: the gradient flow of a weight-homogeneous predictor, integrated numerically (eq. 12)."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import ArrayLike, as_degree, as_positive, as_tensor, as_times

# Tolerated asymmetry and tolerated size of a negative eigenvalue of a matrix of second moments, both relative to its
# largest entry.
_SYMMETRY_TOLERANCE = 1e-12
_NEGATIVE_TOLERANCE = 1e-9


def moment_flow(
    a: ArrayLike,
    b: ArrayLike,
    w0: ArrayLike,
    t: ArrayLike,
    theta: float,
    degree: int,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> tf.Tensor:
    """Integrate eq. 12 in terms of the moments of the data: dw/dt = θ d (a − b·w^d) ⊙ w^{d−1}.

    Powers are taken entry by entry.

    Args:
        a: E[(y − α(x)) β(x)], [...], of the same shape as the weights.
        b: E[β(x) ⊗ β(x)], of shape a.shape + a.shape. It includes the moments of pairs of different features.
        w0: Weights at t = 0, of the shape of `a`.
        t: Ascending times >= 0, [T]. One step of gradient descent with step η advances t by η/θ.
        theta: θ > 0.
        degree: d >= 1.
        rtol: Relative tolerance of SciPy's DOP853.
        atol: Absolute tolerance of SciPy's DOP853.

    Returns:
        Weights, float64 [T, ...].

    Raises:
        AssumptionError: If times are negative or do not ascend; if θ is not positive; if the degree is not an
            integer >= 1; if `b` is not symmetric and positive semidefinite; or if the integration fails, because for
            d > 2 the flow may diverge in finite time.
        ShapeError: Moments or weights have the wrong shape.

    Example:
        For d = 1 the flow is w(t) = a/b + (w(0) − a/b) e^{−θbt}.

        >>> from srel_tf import theory
        >>> weights = theory.moment_flow([1.0], [[2.0]], [0.0], [0.0, 1.0], theta=1.0, degree=1)
        >>> print(weights.numpy().round(4))
        [[0.    ]
         [0.4323]]
    """
    a = _as_array(a, "a")
    b = _as_array(b, "b")
    w0 = _as_array(w0, "w0")
    if w0.shape != a.shape or b.shape != a.shape + a.shape:
        raise ShapeError(
            f"w0 must have the shape of a, and b must have shape a.shape + a.shape; given w0 {w0.shape}, "
            f"a {a.shape} and b {b.shape}."
        )
    matrix = b.reshape(a.size, a.size)
    _check_second_moments(matrix)
    return _integrate(a, lambda power: matrix @ power, w0, t, theta, degree, rtol, atol)


def _as_array(
    value: ArrayLike,
    name: str,
    rank: int | None = None,
) -> np.ndarray:
    """Convert `value` to a finite float64 array."""
    return as_tensor(value, name, rank).numpy()


def _check_second_moments(matrix: np.ndarray) -> None:
    """Raise `AssumptionError` unless the matrix [n, n] is symmetric and positive semidefinite, up to rounding."""
    scale = np.abs(matrix).max(initial=0)
    asymmetry = np.abs(matrix - matrix.T).max(initial=0)
    if asymmetry > _SYMMETRY_TOLERANCE * scale:
        raise AssumptionError(
            "b must be symmetric, because it holds the second moments E[β ⊗ β]; "
            f"entries of b and of its transpose differ by up to {asymmetry:g}."
        )
    smallest = np.linalg.eigvalsh(matrix).min(initial=0)
    if smallest < -_NEGATIVE_TOLERANCE * scale:
        raise AssumptionError(
            f"b must be positive semidefinite, because it holds second moments; an eigenvalue is {smallest:g}."
        )


def feature_flow(
    features: ArrayLike,
    labels: ArrayLike,
    w0: ArrayLike,
    t: ArrayLike,
    theta: float,
    degree: int,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> tf.Tensor:
    """Integrate eq. 12 for the mean loss over B examples, without forming second moments.

    This is cheaper than `moment_flow` for many weights and few examples.

    Args:
        features: β, [B, ...].
        labels: y − α, [B].
        w0: Weights at t = 0, [...].
        t: Ascending times >= 0, [T].
        theta: θ > 0.
        degree: d >= 1.
        rtol: Relative tolerance of SciPy's DOP853.
        atol: Absolute tolerance of SciPy's DOP853.

    Returns:
        Weights, float64 [T, ...].

    Raises:
        AssumptionError: As in `moment_flow`.
        ShapeError: Features, labels or weights have the wrong shape.
    """
    features = _as_array(features, "features")
    labels = _as_array(labels, "labels", 1)
    w0 = _as_array(w0, "w0")
    if w0.shape != features.shape[1:] or len(labels) != len(features):
        raise ShapeError(
            f"Features of shape {features.shape} need weights of shape {features.shape[1:]} and {len(features)} "
            f"labels; given weights of shape {w0.shape} and {len(labels)} labels."
        )
    rows = features.reshape(len(features), -1)
    a = labels @ rows / len(rows)

    def second_moment(power: np.ndarray) -> np.ndarray:
        return (rows @ power) @ rows / len(rows)

    return _integrate(a, second_moment, w0, t, theta, degree, rtol, atol)


def _integrate(
    a: np.ndarray,
    second_moment: Callable[[np.ndarray], np.ndarray],
    w0: np.ndarray,
    t: ArrayLike,
    theta: float,
    degree: int,
    rtol: float,
    atol: float,
) -> tf.Tensor:
    """Integrate eq. 12 with DOP853.

    Args:
        a: First moments, of the shape of `w0` or flat.
        second_moment: Function that computes b·v, [n], for a flat vector v, [n].
        w0: Weights at t = 0, [...].
        t: Ascending times >= 0, [T].
        theta: θ > 0.
        degree: d >= 1.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Returns:
        Weights, [T, ...].
    """
    times = as_times(t).numpy()
    theta = as_positive(theta, "theta", "Definition 7")
    # With a fractional degree, powers of negative weights would be NaN, and the integrator would never stop.
    degree = as_degree(degree)
    if (np.diff(times) < 0).any():
        raise AssumptionError("Times must ascend; sort them first.")
    a = a.ravel()

    def velocity(_: float, w: np.ndarray) -> np.ndarray:
        return theta * degree * (a - second_moment(w**degree)) * w ** (degree - 1)

    end = times[-1] if len(times) else 0.0
    shape = (len(times), *w0.shape)
    if end == 0:
        return tf.constant(np.broadcast_to(w0, shape).copy())
    solution = solve_ivp(
        velocity,
        t_span=(0.0, end),
        y0=w0.ravel(),
        method="DOP853",
        t_eval=times,
        rtol=rtol,
        atol=atol,
    )
    if not solution.success:
        raise AssumptionError(
            f"The flow could not be integrated up to t = {end:g}: {solution.message} Give earlier times."
        )
    return tf.constant(solution.y.T.reshape(shape))
