"""Naive reference computations with NumPy loops and mpmath, which import nothing from srel_tf."""

import mpmath as mp
import numpy as np

mp.mp.dps = 120


def exact(array):
    """Convert a NumPy array to nested lists of mpmath numbers with exactly the same values."""
    array = np.asarray(array, dtype=np.float64)
    return mp.mpf(float(array)) if array.ndim == 0 else [exact(row) for row in array]


def dot(u, v):
    return mp.fsum(a * b for a, b in zip(u, v, strict=True))


def mp_norm(u):
    return mp.sqrt(mp.fsum(a * a for a in u))


def definition_1(predict, weights, stepped, x_target, x_source, norm=abs):
    """Compute Definition 1 by differences of predictions, which need arithmetic with many digits."""
    below = norm(predict(stepped, x_source) - predict(weights, x_source))
    return norm(predict(stepped, x_target) - predict(weights, x_target)) / below


def ridge_gradient(features, labels, num_classes, c, weights):
    """Compute ∂/∂w_q of (1/2N) Σ ‖e − W h‖² + (c/2) ‖W‖², [K, p], one example at a time."""
    gradient = c * weights
    for h, label in zip(features, labels, strict=True):
        for q in range(num_classes):
            gradient[q] = gradient[q] + (weights[q] @ h - (label == q)) * h / len(
                features
            )
    return gradient


def ridge_flow_mp(features, labels, num_classes, c, theta, w0, t):
    """Theorem 3.1 with 120 digits: w_q(t) = e^{−θ²Mt}(w_q(0) − M⁻¹u_q) + M⁻¹u_q."""
    h, (size, width) = mp.matrix(exact(features)), np.shape(features)
    second = h.T * h / size + mp.mpf(c) * mp.eye(width)
    decay = mp.expm(-(mp.mpf(theta) ** 2) * mp.mpf(t) * second, method="taylor")
    rows = []
    for q in range(num_classes):
        own = [i for i in range(size) if labels[i] == q]
        u = mp.matrix([mp.fsum(h[i, j] for i in own) / size for j in range(width)])
        fixed = mp.lu_solve(second, u)
        moved = decay * (mp.matrix(exact(w0[q])) - fixed) + fixed
        rows.append([moved[j] for j in range(width)])
    return rows


def ridge_srel_mp(features, labels, c, weights, source, target):
    """Theorem 3.2 before simplification: the norms of Σ_q ⟨∇_q ℓ(W; source), h⟩, with 120 digits."""
    h = exact(features)
    changes = []
    for row in (target, source):
        change = []
        for q, w in enumerate(weights):
            error = dot(w, h[source]) - int(labels[source] == q)
            change.append(error * dot(h[source], h[row]) + mp.mpf(c) * dot(w, h[row]))
        changes.append(mp_norm(change))
    return changes[0] / changes[1]


def expm_mp(matrix, time):
    """e^{−matrix·time} by mpmath's eigendecomposition of a symmetric matrix."""
    values, vectors = mp.eigsy(mp.matrix(exact(matrix)))
    return (
        vectors
        * mp.diag([mp.exp(-v * mp.mpf(float(time))) for v in values])
        * vectors.T
    )


def relu_gate_srel_mp(w_star, moment, beta, w0, t, x_target, x_source, eta):
    """Definition 1 for Algorithm 1's update at the flow's w(t), with 120 digits; NaN where undefined."""
    star, start, xt, xs = exact(w_star), exact(w0), exact(x_target), exact(x_source)
    gap = expm_mp(np.asarray(moment) * beta, t) * mp.matrix(
        [a - b for a, b in zip(start, star, strict=True)]
    )
    w = [s + g for s, g in zip(star, gap, strict=True)]
    if dot(star, xs) <= 0:
        return mp.nan
    push = (
        mp.mpf(float(eta))
        * mp.mpf(float(beta))
        * (max(mp.mpf(0), dot(star, xs)) - dot(w, xs))
    )
    stepped = [a + push * b for a, b in zip(w, xs, strict=True)]

    def change(x):
        return abs(max(mp.mpf(0), dot(stepped, x)) - max(mp.mpf(0), dot(w, x)))

    return change(xt) / change(xs) if change(xs) else mp.nan
