"""Definition 7: the gradient flow of a weight-homogeneous predictor, integrated numerically (eq. 12)."""

import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_positive, as_tensor, as_times


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
        AssumptionError: times that are negative or do not ascend, θ not positive, or a flow that cannot be followed
        (for d > 2 it may blow up). ShapeError: moments or weights that do not fit.
    """
    a, b, w0 = as_tensor(a, "a").numpy(), as_tensor(b, "b").numpy(), as_tensor(w0, "w0").numpy()
    times, theta = as_times(t).numpy(), as_positive(theta, "theta", "Definition 7")
    if w0.shape != a.shape or b.shape != a.shape + a.shape:
        raise ShapeError(f"w0, a and b must have shapes S, S and S + S; given {w0.shape}, {a.shape} and {b.shape}.")
    if (np.diff(times) < 0).any():
        raise AssumptionError("Times must ascend; sort them first.")
    shape, a, b = a.shape, a.ravel(), b.reshape(a.size, a.size)

    def velocity(_, w):
        return theta * degree * (a - b @ w**degree) * w ** (degree - 1)

    end = times[-1] if len(times) else 0.0
    if end == 0:
        return tf.constant(np.broadcast_to(w0, (len(times), *shape)).copy())
    solution = solve_ivp(velocity, (0.0, end), w0.ravel(), method="DOP853", t_eval=times, rtol=rtol, atol=atol)
    if not solution.success:
        raise AssumptionError(f"The flow could not be followed up to t = {end:g}: {solution.message}")
    return tf.constant(solution.y.T.reshape(len(times), *shape))
