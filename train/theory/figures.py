"""Frames of Figures 6–13, from the closed forms and from SGD. Each figure has a function that returns a tidy frame."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from srel_tf import theory
from train.errata import variants

# Figures 6–9 as Section 3.1 states them; λ₁ = 1, θ = 0.001, K = 2, dim = 100.
PENALIZED = {6: ("inter", 10), 7: ("inter", 100), 8: ("intra", 10), 9: ("intra", 100)}
LAST_TIME, LAMBDA, THETA = 8000, 1.0, 0.001
# Figure 10: the text gives w*, x and "mini-batch SGD in 10 dimensions". We chose the learning rate, the batch size, the
# initial w and the targets. Both targets have the stated bound 1.4. The first target is parallel to x, so its S_rel is
# constant.
GATE: dict[str, Any] = {
    "dimension": 10,
    "learning_rate": 0.01,
    "batch_size": 32,
    "steps": 9000,
    "runs": 10,
}
GATE_SOURCE = np.full(10, 10.0)
GATE_TARGETS = {
    "x' = (14, 14, …, 14)": np.full(10, 14.0),
    "x' = (30, −2, …, 30, −2)": np.tile([30.0, -2.0], 5),
}
# Figures 11–13: eq. 14. The paper's pairs of Figures 12 and 13 are lost. Our pair (c) is a counterexample to the text's
# statement that S_rel is non-decreasing at late times.
MOMENTS = ([1.0, 4.0, 9.0], [1.0, 1.0, 1.0])
START, W_STAR = np.sqrt([0.5, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])
PAIRS = {
    "(a) x = (−2, 1, 3), x' = (−4, −3, 3)": ([-2.0, 1.0, 3.0], [-4.0, -3.0, 3.0]),
    "(b) x = (3, −1, 0), x' = (4, 1, 3)": ([3.0, -1.0, 0.0], [4.0, 1.0, 3.0]),
    "(c) x = (1, 0, 1), x' = (0, 0, 1): falls at late times": (
        [1.0, 0.0, 1.0],
        [0.0, 0.0, 1.0],
    ),
}
SGD_STEP, SGD_STEPS, SGD_RUNS = 0.001, 2000, 100


def log_spaced(last: float, count: int = 160) -> np.ndarray:
    """Return 0 and at most `count` integers from 1 to `last`, about evenly spaced on a logarithmic axis."""
    return np.unique(
        np.concatenate([[0], np.round(np.geomspace(1, last, count))])
    ).astype(float)


def penalized(
    number: int,
    variant: str = "text",
    seed: int = 0,
    starts: int = 10,
    pairs: int = 20,
    per_class: int = 1000,
) -> pd.DataFrame:
    """Figures 6–9: the loss of eq. 3 and S_rel of eq. 4.

    The frame has the mean and the 10–90% range over `starts` initial W with entries from N(0, 1).

    Args:
        number: Number of the figure.
        variant: "text" for the definitions of the text, with both ridge coefficients. "published" for the computation
            of the published scripts, which differs from the text in the data, the pairs, the numerator of S_rel, the
            average and the loss.
        seed: Seed of the features. seed + 1 is the seed of the pairs, and seed + 2 is the seed of the initial W.
        starts: Number of initial W.
        pairs: Number of pairs.
        per_class: Number of examples of each class.
    """
    kind, width = PENALIZED[number]
    is_published = variant == "published"
    if is_published:
        features, labels = variants.published_features(
            width, per_class=per_class, seed=seed
        )
        chosen = variants.published_pairs(labels, pairs, seed=seed + 1)
    else:
        features, labels = theory.random_relu_features(
            width, per_class=per_class, seed=seed
        )
        chosen = theory.sample_pairs(labels, kind, pairs, seed=seed + 1)
    w0 = np.random.default_rng(seed + 2).normal(size=(starts, 2, width))
    parts = []
    for ridge in ("paper",) if is_published else ("paper", "loss"):
        model = theory.PenalizedRegression(features, labels, 2, LAMBDA, THETA, ridge)
        srel_times, loss_times = (
            log_spaced(LAST_TIME),
            np.arange(0.0, LAST_TIME + 1, 100),
        )
        weights = model.weights(w0, loss_times)
        if is_published:
            of_pairs = variants.published_srel(model, w0, srel_times, *chosen)
            srel = variants.published_average(of_pairs)
            loss = variants.published_loss(model, weights)
        else:
            srel = theory.average_pairs(model.srel(w0, srel_times, *chosen))
            loss = model.loss(weights).numpy()
        parts.append(_over_starts(srel, srel_times, ridge=ridge, quantity="srel"))
        parts.append(_over_starts(loss, loss_times, ridge=ridge, quantity="loss"))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(
        figure=number, variant=variant, pairs=kind, width=width, starts=starts
    )


def _over_starts(values: np.ndarray, times: np.ndarray, **columns: str) -> pd.DataFrame:
    low, high = np.quantile(values, [0.1, 0.9], axis=0)
    return pd.DataFrame(
        {"time": times, "mean": values.mean(0), "low": low, "high": high, **columns}
    )


def rise(seeds: Iterable[int] = range(10), **options: int) -> pd.DataFrame:
    """Compare late with early S_rel in Figures 6–9 over several seeds. Each seed has new data, pairs and initial W.

    Returns:
        One row per figure, variant, ridge and seed. For S_rel averaged over pairs and initial W, the columns are the
        value at t = 0 (start), the median over t <= 1000 (early) and the value at t = 8000 (late).
    """
    rows = []
    for variant in ("text", "published"):
        for number in PENALIZED:
            for seed in seeds:
                frame = penalized(number, variant, seed, **options)
                for ridge, part in frame[frame["quantity"] == "srel"].groupby("ridge"):
                    mean = part.set_index("time")["mean"]
                    values = {
                        "start": mean.iloc[0],
                        "early": mean[mean.index <= 1000].median(),
                        "late": mean.iloc[-1],
                    }
                    rows.append(
                        {
                            "figure": number,
                            "variant": variant,
                            "ridge": ridge,
                            "seed": seed,
                            **values,
                        }
                    )
    return pd.DataFrame(rows)


def relu_gate(seed: int = 0) -> pd.DataFrame:
    """Figure 10: S_rel of Definition 1 along SGD on the ℓ2 risk, by finite differences.

    For comparison, the frame has the exact S_rel of the gradient flow.
    """
    n, step, runs = GATE["dimension"], GATE["learning_rate"], GATE["runs"]
    w_star, w0 = np.ones(n), np.random.default_rng(seed).normal(size=(runs, n))
    steps = np.union1d(
        log_spaced(GATE["steps"])[1:], np.arange(100, GATE["steps"], 100)
    ).astype(int)
    path = theory.relu_sgd(
        w_star, w0, step, GATE["steps"], batch_size=GATE["batch_size"], seed=seed
    ).numpy()[steps]
    gate = theory.ReLUGate(w_star)
    gaps = np.stack(
        [
            np.linalg.norm(gate.weights(w, steps * step).numpy() - w_star, axis=1)
            for w in w0
        ],
        1,
    )
    parts = []
    for pair, target in GATE_TARGETS.items():
        srel, resolved = (
            v.numpy()
            for v in theory.relu_risk_srel(path, w_star, target, GATE_SOURCE, step)
        )
        flow = np.stack(
            [gate.srel(w, steps * step, target, GATE_SOURCE, step).numpy() for w in w0],
            1,
        )
        columns = {
            "step": np.repeat(steps, runs), "run": np.tile(np.arange(runs), len(steps)),
            "srel_sgd": srel.ravel(), "resolved": resolved.ravel(), "srel_flow": flow.ravel(),
            "distance_sgd": np.linalg.norm(path - w_star, axis=-1).ravel(), "distance_flow": gaps.ravel(),
        }  # fmt: skip
        bound = float(theory.ReLUGate.late_lower_bound(target, GATE_SOURCE))
        parts.append(pd.DataFrame(columns).assign(pair=pair, bound=bound, figure=10))
    return pd.concat(parts, ignore_index=True)


def distance(times: Sequence[float] = (0.0, 100.0, 500.0, 5000.0)) -> pd.DataFrame:
    """Figure 11: S_rel of eq. 14 along x(z) = x' + √z (1, 1, 1), z = 1, …, 100; the paper shows t = 500."""
    model, target = (
        theory.DiagonalQuadratic(*MOMENTS, THETA),
        np.array([-1.0, -11.0, 1.0]),
    )
    sources = target + np.sqrt(np.arange(1, 101))[:, None]
    srel = model.srel(START, times, np.tile(target, (100, 1)), sources).numpy()
    far = np.linalg.norm(sources - target, axis=1)
    frame = pd.DataFrame(
        {"time": np.repeat(times, 100), "z": np.tile(np.arange(1, 101), len(times))}
    )
    return frame.assign(distance=np.tile(far, len(times)), srel=srel.ravel(), figure=11)


def flow_pairs() -> pd.DataFrame:
    """Figure 12: S_rel of eq. 14 for the three pairs at t = 1, …, 1000."""
    model, times = theory.DiagonalQuadratic(*MOMENTS, THETA), np.arange(1.0, 1001.0)
    parts = []
    for name, (source, target) in PAIRS.items():
        srel = model.srel(START, times, target, source).numpy()
        parts.append(pd.DataFrame({"pair": name, "time": times, "srel": srel}))
    return pd.concat(parts, ignore_index=True).assign(figure=12)


def sgd_pairs(seed: int = 0, every: int = 10) -> pd.DataFrame:
    """Figure 13: S_rel along the SGD of eq. 15 (mean and standard deviation over runs) and along the gradient flow."""
    path = theory.diagonal_sgd(
        W_STAR, START, SGD_STEP, SGD_STEPS, runs=SGD_RUNS, seed=seed
    )[::every]
    model, steps = (
        theory.DiagonalQuadratic(*MOMENTS, SGD_STEP),
        np.arange(0.0, SGD_STEPS + 1, every),
    )
    parts = []
    for name, (source, target) in PAIRS.items():
        srel = theory.diagonal_sgd_srel(path, W_STAR, target, source, SGD_STEP).numpy()
        columns = {
            "pair": name, "step": steps, "mean": srel.mean(1), "sd": srel.std(1, ddof=1), "runs": SGD_RUNS,
            "limit": model.srel(START, steps, target, source).numpy(),
            "finite": model.srel_finite(START, steps, target, source, SGD_STEP).numpy(),
        }  # fmt: skip
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).assign(figure=13)
