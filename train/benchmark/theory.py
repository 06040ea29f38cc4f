"""Speed of eq. 4 against the procedure of the published scripts, written out in NumPy and SciPy."""

import os
import platform
import time

import numpy as np
from scipy.linalg import expm

from srel_tf import theory

TIMES, PAIRS, STARTS, WIDTH, SAMPLED = 8001, 20, 10, 100, 8


def published_srel(features, labels, coefficient, theta, w0, t, source, target):
    """One value of eq. 4 as the published procedure gets it: M, its inverse and its exponential anew each time."""
    size, width = features.shape
    second = coefficient * np.eye(width) + features.T @ features / size
    inverse, decay = np.linalg.inv(second), expm(-(theta**2) * second * t)
    rows = []
    for q, start in enumerate(w0):
        mean = features[labels == q].sum(0) / size
        rows.append(decay @ (start - inverse @ mean) + inverse @ mean)
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


def processor():
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                line.split(":", 1)[1].strip()
                for line in lines
                if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def run(seed=0):
    """Time both on Figure 7's set-up; prints the figures and the ratio."""
    features, labels = theory.random_relu_features(WIDTH, seed=seed)
    source, target = theory.sample_pairs(labels, "inter", PAIRS, seed=seed + 1)
    w0, times = (
        np.random.default_rng(seed + 2).normal(size=(STARTS, 2, WIDTH)),
        np.arange(float(TIMES)),
    )

    durations = []
    for _ in range(4):
        start = time.perf_counter()
        model = theory.PenalizedRegression(features, labels, 2, 1.0, 0.001)
        ours = model.srel(w0, times, source, target).numpy()
        durations.append(time.perf_counter() - start)
    first, best = durations[0], min(durations[1:])

    generator, spent = np.random.default_rng(seed), []
    for _ in range(SAMPLED):
        i, t, p = (
            generator.integers(STARTS),
            generator.integers(TIMES),
            generator.integers(PAIRS),
        )
        start = time.perf_counter()
        value = published_srel(
            features,
            labels,
            model.coefficient,
            0.001,
            w0[i],
            times[t],
            source[p],
            target[p],
        )
        spent.append(time.perf_counter() - start)
        np.testing.assert_allclose(ours[i, t, p], value, rtol=1e-6)
    total = TIMES * PAIRS * STARTS
    scaled = np.median(spent) * total
    print(f"machine: {processor()}, {os.cpu_count()} logical cores")
    print(
        f"eq. 4 for {TIMES} times x {PAIRS} pairs x {STARTS} initial W, p = {WIDTH}: {total} values"
    )
    print(
        f"  srel_tf (set-up included): {first:.2f} s the first time, {best:.2f} s at best of 3 more"
    )
    print(
        f"  published procedure: {np.median(spent) * 1e3:.1f} ms a value, the median of {SAMPLED} sampled values;"
    )
    print(
        f"  scaled up to all {total} values (not run): {scaled:.0f} s = {scaled / 3600:.1f} h"
    )
    print(f"  ratio: {scaled / first:,.0f} (first call) to {scaled / best:,.0f} (best)")
    shared = np.median(spent) * TIMES
    print(
        f"  were inverse and exponential computed once a time for all pairs and starts: {shared:.0f} s,"
    )
    print(f"  ratio {shared / first:,.0f} to {shared / best:,.0f}")
