"""Time that srel_tf needs for eq. 4, compared with the procedure of the published scripts in NumPy and SciPy."""

import os

import numpy as np
from scipy.linalg import expm

from srel_tf import theory
from train.benchmark.procedures import seconds
from train.benchmark.report import processor

TIMES, PAIRS, STARTS, WIDTH, SAMPLED = 8001, 20, 10, 100, 8


def published_srel(
    features: np.ndarray,
    labels: np.ndarray,
    coefficient: float,
    theta: float,
    w0: np.ndarray,
    t: float,
    source: int,
    target: int,
) -> float:
    """Compute one value of eq. 4 as the published procedure does.

    The matrix M, its inverse and its exponential are computed again for each value.
    """
    size, width = features.shape
    second = coefficient * np.eye(width) + features.T @ features / size
    inverse, decay = np.linalg.inv(second), expm(-(theta**2) * second * t)
    means = [features[labels == q].sum(0) / size for q in range(len(w0))]
    rows = [
        decay @ (start - inverse @ mean) + inverse @ mean
        for start, mean in zip(w0, means, strict=True)
    ]
    w, h, h_target, k = (
        np.array(rows),
        features[source],
        features[target],
        labels[source],
    )
    transfer = coefficient * np.eye(width) + np.outer(h, h)
    h_tilde = coefficient + h @ h
    moved = transfer @ h_target
    above = (
        (h_target @ h) ** 2
        - 2 * (h @ h_target) * (moved @ w[k])
        + sum((w @ moved) ** 2)
    )
    below = (
        (h @ h) ** 2
        - 2 * h_tilde * (h @ h) * (h @ w[k])
        + h_tilde**2 * sum((w @ h) ** 2)
    )
    return np.sqrt(above / below)


def run(seed: int = 0) -> None:
    """Time srel_tf and the published procedure on the set-up of Figure 7; print seconds and ratios."""
    features, labels = theory.random_relu_features(WIDTH, seed=seed)
    source, target = theory.sample_pairs(labels, "inter", PAIRS, seed=seed + 1)
    w0 = np.random.default_rng(seed + 2).normal(size=(STARTS, 2, WIDTH))
    times = np.arange(float(TIMES))

    def model() -> theory.PenalizedRegression:
        return theory.PenalizedRegression(features, labels, 2, 1.0, 0.001)

    ours = model().srel(w0, times, source, target).numpy()
    best = min(
        seconds(lambda: model().srel(w0, times, source, target)) for _ in range(3)
    )

    generator, spent = np.random.default_rng(seed), []
    for _ in range(SAMPLED):
        i, t, p = (int(generator.integers(n)) for n in (STARTS, TIMES, PAIRS))
        data = features, labels, model().coefficient, 0.001
        pair = int(source[p]), int(target[p])
        value = published_srel(*data, w0[i], times[t], *pair)
        spent.append(seconds(lambda: published_srel(*data, w0[i], times[t], *pair)))  # noqa: B023
        np.testing.assert_allclose(ours[i, t, p], value, rtol=1e-6)
    one, total = float(np.median(spent)), TIMES * PAIRS * STARTS
    print(f"machine: {processor()}, {os.cpu_count()} logical cores")
    print(
        f"eq. 4 for {TIMES} times x {PAIRS} pairs x {STARTS} initial W, p = {WIDTH}: {total} values"
    )
    print(f"  srel_tf (set-up included): {best:.2f} s, the best of 3")
    print(
        f"  published procedure: {one * 1e3:.1f} ms a value (median of {SAMPLED}); scaled up to all values (not run): "
        f"{one * total:.0f} s = {one * total / 3600:.1f} h, ratio {one * total / best:,.0f}"
    )
    print(
        f"  estimate if all pairs and starts shared one inverse and one exponential per time: {one * TIMES:.0f} s, "
        f"ratio {one * TIMES / best:,.0f}"
    )
