"""Hypothesis 1.1(b): S_rel(x, x') = O(P(x, x')) for a symmetric, time-independent P."""

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.proximity import join
from srel_tf.hypotheses.series import FALL, NEGLIGIBLE, cube, groups, log2, slopes
from srel_tf.hypotheses.verdicts import MIN_SEEDS, check_confidence, decide, of_jackknife, table

MIN_SOURCES = 20
RISES, AS_FAST, IN_TIME = "S_rel rises with P", "S_rel = O(P): falls with P as fast as P", "max S_rel/P does not grow"
ALPHA = "slope of log S_rel (highest in time) on log P"
CLAIMS = (
    (RISES, ALPHA, (NEGLIGIBLE, np.inf)),
    (AS_FAST, ALPHA, (0.9, np.inf)),
    (IN_TIME, "log₂ change of max S_rel/P over pairs, second half of the time", (-np.inf, FALL)),
)


def bounded_by_proximity(frame, proximity, confidence=0.95):
    """Verdicts on Hypothesis 1.1(b) for a model whose P is known (`HomogeneousPredictor.proximity`, Theorem 5.1).

    frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
    proximity: columns target_id, source_id, proximity; P has no time, and is symmetric where both orders are given.

    Any finite set of pairs with P > 0 has a C with S_rel <= C·P at all its times: max S_rel/P, which stands in `scope`.
    What can be asked is whether one C serves at low P, and whether it serves later. Each effect is one number a seed:

    - α, the least-squares slope over pairs of log S_rel, the highest in time, on log P (S_rel ~ P^α). "S_rel rises with
      P" where α > 0; S_rel/P stays bounded as P falls where α >= 1, less a tenth. A pair with P = 0 whose S_rel is
      above 0 in all seeds (three or more) contradicts that outright;
    - "max S_rel/P does not grow": its change over the second half of the time is less than a tenth.

    α's interval joins Student's t over seeds with the jackknife over sources, each with all its pairs, which all seeds
    share. It says nothing of other targets; the last claim is on the given pairs. "undecided" for less than 3 seeds or
    20 sources. Raises `FrameError` for frames or proximities that do not fit.
    """
    check_confidence(confidence)
    check_columns(proximity, ["target_id", "source_id", "proximity"])
    _check_proximity(proximity)
    rows = []
    for key, part in groups(frame):
        joined = join(part, proximity, "proximity")
        whole = cube(joined)
        p = np.nanmax(cube(joined.assign(srel=joined["proximity"])).srel, axis=(0, 2))
        alive = np.isfinite(whole.srel).any(axis=(1, 2))
        whole = whole._replace(srel=whole.srel[alive], seeds=[s for s, a in zip(whole.seeds, alive, strict=True) if a])
        rows += _verdicts(whole, p, {"hypothesis": "1.1(b)", **key}, confidence)
    return table(rows)


def _check_proximity(proximity):
    values = pd.to_numeric(proximity["proximity"], errors="coerce").astype(float)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise FrameError("proximity must hold finite numbers, none below zero: P(x, x') is in [0, ∞)")
    if set(proximity.columns) & {"step", "seed", "run"}:
        raise FrameError("proximity has a step, seed or run: P(x, x') depends on x and x' alone (Hypothesis 1.1(b))")
    mirrored = proximity.merge(
        proximity, left_on=["source_id", "target_id"], right_on=["target_id", "source_id"], suffixes=("", "_mirrored")
    )
    if not np.allclose(mirrored["proximity"], mirrored["proximity_mirrored"], rtol=1e-9):
        raise FrameError("proximity differs between (x, x') and (x', x): P is symmetric (Hypothesis 1.1(b))")


def _verdicts(whole, p, about, confidence):
    highest = np.max(whole.srel, axis=2, initial=-np.inf, where=np.isfinite(whole.srel))  # [seed, pair]
    refuting = int(((p == 0) & (highest > 0).all(axis=0)).sum()) * (len(whole.seeds) >= MIN_SEEDS)
    used = (p > 0) & (highest > 0).all(axis=0)  # S_rel = 0 or unknown tells nothing of α.
    log_p, logs = np.log2(p[used]), log2(highest[:, used])
    source, sources = whole.pairs[used].get_level_values(0).factorize()
    scope = f"{used.sum()} pairs of {len(sources)} sources with P > 0"
    enough = len(sources) >= MIN_SOURCES and np.ptp(log_p) > 0
    few = not enough and len(whole.seeds) >= MIN_SEEDS
    reason = "" if not few else f"{len(sources)} sources with valid S_rel > 0: {MIN_SOURCES} and different P are needed"
    alpha, shared = [np.nan] * len(whole.seeds), (0.0, 0.0)
    if enough:
        scope += f", max S_rel/P = {2 ** (logs - log_p).max():.3g}"
        alpha = slopes(logs, log_p)
        without = 1 - np.eye(len(sources))[:, source]  # Each source left out in turn, with all its pairs.
        shared = of_jackknife(_weighted_slopes(log_p, logs.mean(axis=0), without), confidence)
    growth = _growth(whole, p) if enough else alpha
    rows = []
    for (claim, effect, bounds), values, extra in zip(
        CLAIMS, (alpha, alpha, growth), (shared, shared, (0.0, 0.0)), strict=True
    ):
        names = {**about, "claim": claim, "scope": scope, "effect": effect}
        row = decide(names, values, bounds, confidence, extra, reason=reason)
        if claim == AS_FAST and refuting:
            why = f"{refuting} pairs have P = 0, and S_rel > 0 in all {len(whole.seeds)} seeds: no C bounds them"
            row |= {"verdict": "contradicted", "reason": why}
        rows.append(row)
    return rows


def _weighted_slopes(x, y, weights):
    """Least-squares slope of y on x [n] for each row of weights [..., n]."""
    x, y = x - x.mean(), y - y.mean()  # Nothing is lost in the differences below.
    total = weights.sum(axis=1)
    mean_x, mean_y, xy, xx = (weights @ v / total for v in (x, y, x * y, x * x))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - mean_x * mean_y) / (xx - mean_x**2)


def _growth(whole, p):
    """Log₂ change over the second half of the time of the highest S_rel/P over pairs [seed]."""
    late = whole.steps >= (whole.steps[0] + whole.steps[-1]) / 2
    followed = (p > 0) & np.isfinite(whole.srel[:, :, late]).all(axis=(0, 2))  # A maximum over the same pairs.
    if late.sum() < 3 or not followed.any():
        return [np.nan] * len(whole.seeds)
    steps = whole.steps[late]
    ratio = (whole.srel[:, followed][:, :, late] / p[followed][:, None]).max(axis=1)
    return slopes(log2(ratio), steps) * (steps[-1] - steps[0])
