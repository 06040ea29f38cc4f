"""Definition 7: the gradient flow of a weight-homogeneous predictor, integrated numerically (eq. 12)."""

import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_degree, as_positive, as_tensor, as_times


def moment_flow(a, b, w0, t, theta, degree, rtol=1e-10, atol=1e-12):
    """Eq. 12 written with the moments of the data: dw/dt = θ d (a − b·w^d) ⊙ w^{d−1}, powers entry by entry.

    Args:
        a: E[(y − α(x)) β(x)], [...]: any shape, that of the weights.
        b: E[β(x) ⊗ β(x)], [..., ...]: that shape twice over (off-diagonal moments included).
        w0: the weights at t = 0, of the shape of `a`.
        t: [T], ascending times >= 0, in units where the flow moves at speed θ.
        theta: θ > 0. degree: d >= 1. rtol, atol: tolerances of SciPy's DOP853.

    Returns:
        [T, ...] float64 tensor.

    Raises:
        AssumptionError: times that are negative or do not ascend, θ not positive, a degree that is no integer >= 1,
        a `b` that is no matrix of second moments (symmetric, positive semidefinite), or a flow that cannot be
        followed (for d > 2 it may blow up). ShapeError: moments or weights that do not fit.
    """
    a, b, w0 = as_tensor(a, "a").numpy(), as_tensor(b, "b").numpy(), as_tensor(w0, "w0").numpy()
    if w0.shape != a.shape or b.shape != a.shape + a.shape:
        raise ShapeError(f"w0, a and b must have shapes S, S and S + S; given {w0.shape}, {a.shape} and {b.shape}.")
    matrix = b.reshape(a.size, a.size)
    scale = np.abs(matrix).max(initial=0)
    if np.abs(matrix - matrix.T).max(initial=0) > 1e-12 * scale:
        raise AssumptionError("b must be symmetric: it holds the second moments E[β ⊗ β].")
    smallest = np.linalg.eigvalsh(matrix).min(initial=0)
    if smallest < -1e-9 * scale:
        raise AssumptionError(f"b must be positive semidefinite (second moments); an eigenvalue is {smallest:g}.")
    return follow(a, lambda power: matrix @ power, w0, t, theta, degree, rtol, atol)


def feature_flow(features, labels, w0, t, theta, degree, rtol=1e-10, atol=1e-12):
    """`moment_flow` for the mean over B examples, without the second moments: for many weights and few examples.

    Args:
        features: β, [B, ...]. labels: y − α, [B]. The rest, what it returns and raises: as in `moment_flow`.
    """
    features, labels = as_tensor(features, "features").numpy(), as_tensor(labels, "labels", 1).numpy()
    w0 = as_tensor(w0, "w0").numpy()
    if w0.shape != features.shape[1:] or len(labels) != len(features):
        raise ShapeError(f"Features {features.shape} need weights of shape {features.shape[1:]}, not {w0.shape}.")
    rows = features.reshape(len(features), -1)
    a = labels @ rows / len(rows)
    return follow(a, lambda power: (rows @ power) @ rows / len(rows), w0, t, theta, degree, rtol, atol)


def follow(a, second_moment, w0, t, theta, degree, rtol, atol):
    """The integration itself; second_moment(v) is b·v for a flat vector v."""
    times, theta = as_times(t).numpy(), as_positive(theta, "theta", "Definition 7")
    degree = as_degree(degree)  # a fractional power of a negative weight is NaN, at which the integrator never ends
    if (np.diff(times) < 0).any():
        raise AssumptionError("Times must ascend; sort them first.")
    a, shape = a.ravel(), w0.shape

    def velocity(_, w):
        return theta * degree * (a - second_moment(w**degree)) * w ** (degree - 1)

    end = times[-1] if len(times) else 0.0
    if end == 0:
        return tf.constant(np.broadcast_to(w0, (len(times), *shape)).copy())
    solution = solve_ivp(velocity, (0.0, end), w0.ravel(), method="DOP853", t_eval=times, rtol=rtol, atol=atol)
    if not solution.success:
        raise AssumptionError(f"The flow could not be followed up to t = {end:g}: {solution.message}")
    return tf.constant(solution.y.T.reshape(len(times), *shape))
