"""Hypothesis 1.1(b): S_rel(x, x') = O(P(x, x')) for a symmetric, time-independent P."""

import numpy as np

from srel_tf.errors import FrameError
from srel_tf.frames import check_columns
from srel_tf.hypotheses.phases import NEGLIGIBLE
from srel_tf.hypotheses.proximity import join
from srel_tf.hypotheses.series import cube, groups, slopes
from srel_tf.hypotheses.verdicts import check_confidence, decide, table

MIN_PAIRS = 20
QUANTILE = 0.9
CLAIMS = (
    ("S_rel rises with P", "slope of log S_rel on log P, mean over steps", (NEGLIGIBLE, np.inf)),
    ("S_rel stays below C·P", "log₂ of highest S_rel/P, low P over high P", (-np.inf, 1.0)),
)


def bounded_by_proximity(frame, proximity, confidence=0.95, resamples=500, seed=0):
    """Verdicts on Hypothesis 1.1(b) for a model whose P is known (`HomogeneousPredictor.proximity`, Theorem 5.1).

    frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
    proximity: columns target_id, source_id, proximity; P has no time, and is symmetric where both orders are given.
    resamples, seed: of the bootstrap over pairs.

    Each effect is one number a seed:

    - "S_rel rises with P": least-squares slope of log S_rel on log P over pairs, mean over steps;
    - "S_rel stays below C·P": any finite set of pairs has such a C, max S_rel/P; the question is whether one does for
      all, that is, whether the pairs of low P need a larger C than those of high P. The 90% quantile over pairs of the
      highest S_rel/P in time is compared between pairs with P below and above the median: less than 2 times as high.
      max S_rel/P over pairs, seeds and steps stands in `scope`.

    The interval joins Student's t over seeds with the bootstrap over pairs, which all seeds share. "undecided" for less
    than 3 seeds or 20 pairs with P > 0. Pairs with P = 0 must have S_rel = 0: they are counted in `scope` if not.
    Raises `FrameError` for frames or proximities that do not fit.
    """
    check_confidence(confidence)
    check_columns(proximity, ["target_id", "source_id", "proximity"])
    _check_proximity(proximity)
    rows, generator = [], np.random.default_rng(seed)
    for key, part in groups(frame):
        joined = join(part, proximity, "proximity")
        srel = cube(joined).srel
        p = np.nanmax(cube(joined.assign(srel=joined["proximity"])).srel, axis=(0, 2))
        rows += _verdicts(srel, p, {"hypothesis": "1.1(b)", **key}, confidence, resamples, generator)
    return table(rows)


def _check_proximity(proximity):
    if not (np.isfinite(proximity["proximity"].astype(float)) & (proximity["proximity"] >= 0)).all():
        raise FrameError("proximity must hold finite numbers, none below zero: P(x, x') is in [0, ∞)")
    if set(proximity.columns) & {"step", "seed", "run"}:
        raise FrameError("proximity has a step, seed or run: P(x, x') depends on x and x' alone (Hypothesis 1.1(b))")
    mirrored = proximity.merge(
        proximity, left_on=["source_id", "target_id"], right_on=["target_id", "source_id"], suffixes=("", "_mirrored")
    )
    if not np.allclose(mirrored["proximity"], mirrored["proximity_mirrored"], rtol=1e-9):
        raise FrameError("proximity differs between (x, x') and (x', x): P is symmetric (Hypothesis 1.1(b))")


def _verdicts(srel, p, about, confidence, resamples, generator):
    outside = int(((p == 0) & (np.nan_to_num(srel).max(axis=(0, 2)) > 0)).sum())
    srel, p = srel[:, p > 0], p[p > 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(srel > 0, np.log2(srel), np.nan)  # [seed, pair, step]
    known = np.isfinite(logs).all(axis=0).any(axis=1) & (len(p) > 0)
    logs, log_p = logs[:, known], np.log2(p[known])
    if len(log_p) < MIN_PAIRS or np.ptp(log_p) == 0:
        reason = f"{len(log_p)} pairs with valid S_rel > 0 and P > 0: {MIN_PAIRS} with different P are needed"
        names = {**about, "scope": f"{len(log_p)} pairs", "effect": ""}
        return [decide({**names, "claim": c}, [], bounds, confidence, reason=reason) for c, _, bounds in CLAIMS]
    over_p = np.nanmax(logs, axis=2) - log_p  # [seed, pair]: highest log₂ S_rel/P in time.
    scope = f"{len(log_p)} pairs, max S_rel/P = {2 ** over_p.max():.3g}"
    scope += f", {outside} pairs with P = 0 and S_rel > 0" if outside else ""
    mean = np.nanmean(logs, axis=2)
    draws = generator.integers(0, len(log_p), size=(resamples, len(log_p)))
    rows = []
    for function, values, (claim, effect, bounds) in zip((_slope, _excess), (mean, over_p), CLAIMS, strict=True):
        effects = function(log_p, values)
        across = values.mean(axis=0)  # What all seeds share.
        spread = np.nanstd(function(log_p[draws], across[draws]))
        names = {**about, "claim": claim, "scope": scope, "effect": effect}
        rows.append(decide(names, effects, bounds, confidence, spread))
    return rows


def _slope(log_p, values):
    """Slope of each row [..., pairs]."""
    return slopes(values, log_p)


def _excess(log_p, over_p):
    """Log₂ ratio of the highest (90%) S_rel/P of pairs with low P to that of pairs with high P, for each row."""
    low = log_p <= np.median(log_p, axis=-1, keepdims=True)
    return _quantile(over_p, low) - _quantile(over_p, ~low)


def _quantile(values, chosen):
    """The 90% quantile of the chosen ones in each row, NaN for none; NumPy's nanquantile is slow by rows."""
    chosen = np.broadcast_to(chosen, values.shape)
    ascending = np.sort(np.where(chosen, values, -np.inf), axis=-1)
    count = chosen.sum(axis=-1)
    place = values.shape[-1] - count + QUANTILE * (count - 1)
    below = np.floor(np.where(count, place, 0)).astype(int)
    left, right = (
        np.take_along_axis(ascending, at[..., None], axis=-1)[..., 0]
        for at in (below, np.minimum(below + 1, values.shape[-1] - 1))
    )
    with np.errstate(invalid="ignore"):
        return np.where(count, left + (place - below) * (right - left), np.nan)
