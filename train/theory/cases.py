"""S_rel frames of the exactly solvable models for `srel_tf.hypotheses`. The column seed numbers the initial values.

The frames of Figures 6–12 hold means over initial values, or a single initial value. The hypotheses need the curves of
several initial values. Therefore this module computes S_rel again, from the closed forms and with the settings of
`train.theory`.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf

from srel_tf import theory
from train.theory import figures

STARTS = 10


class Case(NamedTuple):
    """Input of the checks of one model.

    Attributes:
        frame: S_rel frame.
        distances: Distances of x and x', or None.
        proximity: P(x, x'), or None.
        risks: Risks over time, or None.
        in_time: Whether the frame is for Hypothesis 1.2 alone, so that Hypothesis 1.1 is not checked.
    """

    frame: pd.DataFrame
    distances: pd.DataFrame | None = None
    proximity: pd.DataFrame | None = None
    risks: pd.DataFrame | None = None
    in_time: bool = False


def cases(seed: int = 0) -> dict[str, Case]:
    """Compute {name of the model: `Case`} for Figures 6–12, and for pairs drawn from N(0, I)."""
    found = {}
    for number in figures.PENALIZED:
        for ridge in ("paper", "loss"):
            found[f"figure 6–9: penalised, {_describe(number)}, ridge={ridge}"] = (
                penalized(number, ridge, seed)
            )
    found["figure 10: ReLU gate"] = relu_gate(seed)
    found["figure 11: eq. 14 along one path"] = path(seed)
    found["figure 12: eq. 14, its three pairs"] = three_pairs(seed)
    found["eq. 14, x and x' of N(0, I)"] = random_pairs(seed)
    return found


def _describe(number: int) -> str:
    kind, width = figures.PENALIZED[number]
    return f"{kind}-class, p={width}"


def penalized(
    number: int, ridge: str, seed: int = 0, pairs: int = 20, per_class: int = 1000
) -> Case:
    """Figures 6–9: S_rel of eq. 4 (ℓ2 norm of the K outputs), and the empirical loss (eq. 3) as risk."""
    kind, width = figures.PENALIZED[number]
    features, labels = theory.random_relu_features(
        width, per_class=per_class, seed=seed
    )
    source, target = theory.sample_pairs(labels, kind, pairs, seed=seed + 1)
    w0 = np.random.default_rng(seed + 2).normal(size=(STARTS, 2, width))
    model, times = (
        theory.PenalizedRegression(
            features, labels, 2, figures.LAMBDA, figures.THETA, ridge
        ),
        _logarithmic(),
    )
    srel = model.srel(w0, times, source, target).numpy()  # [start, time, pair]
    loss = model.loss(model.weights(w0, times)).numpy()
    starts = np.repeat(np.arange(STARTS), len(times))
    risks = pd.DataFrame(
        {
            "seed": starts,
            "step": np.tile(times, STARTS),
            "loss": loss.ravel(),
            "split": "empirical",
        }
    )
    risks["run"] = [f"start-{s}" for s in starts]
    return Case(tidy(srel, times, source, target, "l2", "exact"), risks=risks)


def relu_gate(seed: int = 0) -> Case:
    """Figure 10: S_rel of the figure's two pairs along the flow of a ReLU gate (eqs. 9, 19, 20), from 10 initial w."""
    n, step, last = (
        figures.GATE[name] for name in ("dimension", "learning_rate", "steps")
    )
    gate, steps = theory.ReLUGate(np.ones(n)), figures.log_spaced(last)
    starts = np.random.default_rng(seed).normal(size=(STARTS, n))
    srel = [
        [
            gate.srel(w, steps * step, target, figures.GATE_SOURCE, step).numpy()
            for target in figures.GATE_TARGETS.values()
        ]
        for w in starts
    ]
    targets = np.arange(1, 1 + len(figures.GATE_TARGETS))
    return Case(
        tidy(
            np.swapaxes(np.array(srel), 1, 2),
            steps,
            np.zeros(len(targets), int),
            targets,
            "l1",
            "exact",
        )
    )


def path(seed: int = 0) -> Case:
    """Figure 11: S_rel along x(z) = x' + √z (1, 1, 1) at the four times of the figure, with distances."""
    target = np.array([[-1.0, -11.0, 1.0]])
    sources = target + np.sqrt(np.arange(1, 101))[:, None]
    return _diagonal(target, sources, np.array([0.0, 100.0, 500.0, 5000.0]), seed)


def random_pairs(seed: int = 0, targets: int = 5, sources: int = 40) -> Case:
    """S_rel of eq. 14 for x' and x drawn from N(0, I), as in Section 5."""
    x = np.random.default_rng(seed + 1).normal(size=(targets + sources, 3))
    return _diagonal(x[:targets], x[targets:], np.linspace(0, 2000, 41), seed)


def three_pairs(seed: int = 0) -> Case:
    """Figure 12: S_rel of the three pairs at every tenth time t = 1, 11, …, 991."""
    sources, targets = (
        np.array(points) for points in zip(*figures.PAIRS.values(), strict=True)
    )
    ids, times = np.arange(len(sources)), np.arange(1.0, 1001.0, 10)
    srel = _eq_14(sources, targets, times, seed)
    return Case(tidy(srel, times, ids, len(ids) + ids, "l1", "limit"))


def _eq_14(
    sources: np.ndarray, targets: np.ndarray, times: np.ndarray, seed: int
) -> np.ndarray:
    """Compute eq. 13 with the moments of eq. 14, [start, time, pair].

    w(0)² is uniform between 5% and 95% of its limit a/b.
    """
    model, limit = (
        theory.DiagonalQuadratic(*figures.MOMENTS, figures.THETA),
        np.divide(*figures.MOMENTS),
    )
    w0 = np.sqrt(
        limit * np.random.default_rng(seed).uniform(0.05, 0.95, size=(STARTS, 3))
    )
    return np.stack(
        [
            model.srel(w, times, targets, sources).numpy().reshape(len(times), -1)
            for w in w0
        ]
    )


def _diagonal(
    targets: np.ndarray, sources: np.ndarray, times: np.ndarray, seed: int
) -> Case:
    """Make the case of all pairs of targets and sources, with ‖x' − x‖ and the P(x, x') of Theorem 5.1."""
    source, target = (
        i.ravel() for i in np.meshgrid(np.arange(len(sources)), np.arange(len(targets)))
    )
    pairs = sources[source], targets[target]
    predictor = theory.HomogeneousPredictor(
        lambda x: tf.zeros(len(x), tf.float64), tf.linalg.diag, degree=2
    )
    ids = {"source_id": len(targets) + source, "target_id": target}
    distances = pd.DataFrame(
        {
            **ids,
            "distance": np.linalg.norm(pairs[1] - pairs[0], axis=1),
            "metric": "input",
        }
    )
    proximity = pd.DataFrame(
        {**ids, "proximity": predictor.proximity(pairs[1], pairs[0]).numpy()}
    )
    frame = tidy(
        _eq_14(*pairs, times, seed),
        times,
        ids["source_id"],
        ids["target_id"],
        "l1",
        "limit",
    )
    return Case(frame, distances, proximity)


def tidy(
    srel: np.ndarray,
    times: np.ndarray,
    source_ids: np.ndarray,
    target_ids: np.ndarray,
    measure: str,
    estimator: str,
) -> pd.DataFrame:
    """Make a frame from S_rel of shape [start, time, pair].

    The column seed holds the number of the initial value, and the column step holds the time.
    """
    start, time, pair = (i.ravel() for i in np.indices(srel.shape))
    frame = pd.DataFrame(
        {
            "run": [f"start-{s}" for s in start],
            "seed": start,
            "step": np.asarray(times)[time],
        }
    )
    frame = frame.assign(
        epoch=np.nan,
        measure=measure,
        update="sgd",
        estimator=estimator,
        learning_rate=np.nan,
    )
    frame = frame.assign(
        source_id=np.asarray(source_ids)[pair],
        source_class="",
        target_id=np.asarray(target_ids)[pair],
    )
    values = srel.ravel()
    return frame.assign(target_class="", srel=values, valid=np.isfinite(values))


def _logarithmic() -> np.ndarray:
    return figures.log_spaced(figures.LAST_TIME, 80)
