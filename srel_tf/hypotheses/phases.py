"""Hypothesis 1.2: an early, elastic phase in which S_rel is small and rises fast, a late one in which it stays large.

The times t₁, t₂ and t* come from change-point detection, common to all pairs. To look at a seed through times that were
chosen to suit it would find phases in noise; so each seed is judged at times that the other seeds chose.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import ruptures
from scipy.stats import spearmanr

from srel_tf.errors import FrameError
from srel_tf.frames import check_columns
from srel_tf.hypotheses.series import groups, pairs_in_time, replicates, series, slopes
from srel_tf.hypotheses.verdicts import MIN_SEEDS, check_confidence, decide, table

NEGLIGIBLE = 0.01  # In log₂: a change by 0.7% of the value.
FALL = np.log2(1.1)  # A bound that loses less than a tenth of its height counts as non-decreasing.
ALMOST = 0.95  # "(Almost) all".
WINDOWS = 10  # Windows of the late phase, whose minima are C(t).
LARGEST = 500  # Steps that change points are looked for among: the search is quadratic in them.


class Phases(NamedTuple):
    """Indices into the steps: the early interval [t₁, t₂], both ends in it, and t* where the late phase begins."""

    first: int
    last: int
    star: int


def find_phases(values):
    """`Phases` of log S_rel [steps, pairs], every pair with equal weight, by three change points of its mean.

    The least-squares segmentation (ruptures, `KernelCPD` with a linear kernel) into four segments. The last begins at
    t*; of the others, the one with the lowest mean is [t₁, t₂]: Hypothesis 1.2(a) lets it start after 0.
    """
    spread = np.nanstd(values, axis=0)
    values = (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1)
    values = np.column_stack([_without_gaps(column) for column in values.T])
    thin = -(-len(values) // LARGEST)
    means = values[: len(values) // thin * thin].reshape(-1, thin, values.shape[1]).mean(axis=1)
    search = ruptures.KernelCPD(kernel="linear", min_size=max(2, len(means) // 40))
    starts = [0, *(thin * change for change in search.fit(means).predict(n_bkps=3)[:3])]
    first, last = min(pairwise(starts), key=lambda segment: values[slice(*segment)].mean())
    return Phases(first, last - 1, starts[-1])


def _without_gaps(column):
    known = np.isfinite(column)
    return np.interp(np.arange(len(column)), np.flatnonzero(known), column[known])


def two_phases(frame, risks=None, confidence=0.95):
    """Verdicts on Hypothesis 1.2, and on Figure 5's claim where `risks` are given.

    frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`) in which pairs are followed over 12 steps or more;
        where each seed has a probe of its own, the means over class pairs stand for pairs.
    risks: columns run, seed, step, split (which risk: "empirical", "population", …), loss; or None.
    confidence: of the intervals over seeds (Student's t). A verdict is wrong with probability at most 1 − confidence.

    Each effect is one number a seed, S_rel on a log₂ scale; of all pairs together, or the median over them: a single
    pair that does otherwise, as some do, changes that little.

    - early interval below all late values: share of (pair, late step) with S_rel above all of the pair's values in
      [t₁, t₂]; the hypothesis claims 1 for all pairs, we ask for more than 0.95;
    - the same at any times: the share of pairs for which it holds at the times that suit the seed best, [t₁, t₂] two
      consecutive steps and t* so late as to leave a tenth of them. Such times can contradict, never support;
    - late level above early level: log₂ ratio of medians, median over pairs;
    - rises before t*; rises faster before t* than after: least-squares slopes of log₂ S_rel per measured span;
    - late lower bound positive: lowest late value over the late median, median over pairs;
    - late lower bound non-decreasing: change over the late phase of C(t), the minima of ten windows, in log₂; a fall by
      less than a tenth is let pass;
    - S_rel rises while the risk falls: rank correlation of mean log S_rel and the risk over the steps;
    - S_rel and the risk settle together: log₂ ratio of the risk's last change point and the seed's own t*, within a
      factor of 2. Seeds whose S_rel does not move are left out of both.

    Returns a frame of `srel_tf.hypotheses.COLUMNS`. "undecided" for less than 3 seeds, 12 steps or half of the entries
    valid. Raises `FrameError` as `srel_tf.hypotheses.series.groups` does, and for risks that do not fit.
    """
    check_confidence(confidence)
    rows = []
    for key, part in groups(frame):
        about = {"hypothesis": "1.2", **key}
        followed = series(pairs_in_time(part))
        if isinstance(followed, str):
            empty = {**about, "claim": "two phases", "scope": "", "effect": ""}
            rows.append(decide(empty, [], (np.nan, np.nan), confidence, reason=followed))
            continue
        rows += _judge(followed, about, confidence)
        if risks is not None:
            rows += _with_risks(followed, _risk_series(risks, part, followed), about, confidence)
    return table(rows)


def change_points(frame):
    """The times t₁, t₂, t* of each group's mean over seeds: measure, update, estimator, t1, t2, t_star, n_pairs."""
    found = []
    for key, part in groups(frame):
        followed = series(pairs_in_time(part))
        if not isinstance(followed, str):
            found.append({**key, **_times(followed), "n_pairs": len(followed.pairs)})
    return pd.DataFrame(found, columns=["measure", "update", "estimator", "t1", "t2", "t_star", "n_pairs"])


def _times(followed):
    phases = find_phases(_mean_over_seeds(followed.srel))
    t1, t2, star = followed.steps[list(phases)]
    return {"t1": t1, "t2": t2, "t_star": star}


def _mean_over_seeds(logs):
    """[steps, pairs]"""
    count = np.isfinite(logs).sum(axis=0)
    return (np.nansum(logs, axis=0) / np.where(count, count, np.nan)).T


def _judge(followed, about, confidence):
    times = _times(followed)
    scope = f"t1={times['t1']:g}, t2={times['t2']:g}, t*={times['t_star']:g}; {len(followed.pairs)} pairs"
    n, effects = len(followed.seeds), []
    for seed in range(n if n > 1 else 0):
        others = _mean_over_seeds(np.delete(followed.srel, seed, axis=0))
        usable = np.isfinite(others).any(axis=0)
        phases = find_phases(others[:, usable])
        effects.append(_effects(followed.srel[seed, usable], followed.steps, phases))
    effects = np.array(effects) if effects else np.full((n, len(CLAIMS)), np.nan)
    about = {**about, "scope": scope}
    return [
        *(
            decide({**about, "claim": name, "effect": effect}, effects[:, i], claim, confidence)
            for i, (name, effect, claim) in enumerate(CLAIMS)
        ),
        _at_any_times(followed, about, confidence),
    ]


def _at_any_times(followed, about, confidence):
    """The row on Hypothesis 1.2(a) that can only contradict."""
    about = {**about, "claim": "(a) the same at any times", "effect": "share of pairs, times chosen to suit the seed"}
    about["scope"] = f"{len(followed.pairs)} pairs"
    late = len(followed.steps) - max(2, len(followed.steps) // 10)
    shares = []
    for logs in followed.srel:
        lowest = np.where(np.isfinite(logs[:, late:]), logs[:, late:], np.inf).min(axis=1, keepdims=True)
        shares.append((np.maximum(logs[:, : late - 1], logs[:, 1:late]) < lowest).mean(axis=0).max())
    row = decide(about, shares, (ALMOST, np.inf), confidence)
    if row["verdict"] == "supported":
        row |= {"verdict": "undecided", "reason": "times chosen to suit each seed can contradict, but not support"}
    return row


CLAIMS = (
    ("(a) early interval below all late values", "share of late values above all early ones", (ALMOST, np.inf)),
    ("(a) late level above early level", "log₂ (late median / early median), median pair", (NEGLIGIBLE, np.inf)),
    ("rises before t*", "slope of log₂ S_rel per measured span, median pair", (NEGLIGIBLE, np.inf)),
    ("rises faster before t* than after", "difference of slopes of log₂ S_rel, median pair", (NEGLIGIBLE, np.inf)),
    ("(b) late lower bound positive", "late minimum / late median, median pair", (0.0, np.inf)),
    ("(b) late lower bound non-decreasing", "log₂ change of C(t) in the late phase, median pair", (-FALL, np.inf)),
)


def _effects(logs, steps, phases):
    """The six effects of one seed, log₂ S_rel [pairs, steps], in the order of `CLAIMS`."""
    early, late = logs[:, phases.first : phases.last + 1], logs[:, phases.star :]
    both = np.isfinite(early).any(axis=1) & np.isfinite(late).any(axis=1)
    if not both.any():
        return [np.nan] * len(CLAIMS)
    logs, early, late = logs[both], early[both], late[both]
    highest = np.nanmax(early, axis=1, keepdims=True)
    middle = np.nanmedian(late, axis=1)
    span = steps[-1] - steps[0]
    # From the early interval on: S_rel may fall before t₁.
    rise = slopes(logs[:, phases.first : phases.star], steps[phases.first : phases.star]) * span
    rest = slopes(late, steps[phases.star :]) * span
    return [
        (late > highest)[np.isfinite(late)].mean(),
        np.median(middle - np.nanmedian(early, axis=1)),
        np.nanmedian(rise),
        np.nanmedian(rise - rest),
        np.median(2 ** (np.nanmin(late, axis=1) - middle)),
        np.nanmedian(_change_of_minima(late, steps[phases.star :])),
    ]


def _change_of_minima(late, steps):
    """C(t), the minima of consecutive windows of the late phase: slope times the phase's length, [pairs]."""
    windows = [w for w in np.array_split(np.arange(len(steps)), min(WINDOWS, len(steps))) if len(w)]
    with np.errstate(all="ignore"):
        minima = np.stack([np.min(np.where(np.isfinite(late[:, w]), late[:, w], np.inf), axis=1) for w in windows], 1)
    minima[np.isinf(minima)] = np.nan
    return slopes(minima, np.array([steps[w].mean() for w in windows])) * (steps[-1] - steps[0])


def _risk_series(risks, part, followed):
    """{kind of risk: log₂ risk [seed, step]} at the steps of S_rel, between its own by linear interpolation."""
    check_columns(risks, ["run", "seed", "step", "split", "loss"])
    risks = risks.reset_index(drop=True)
    names = replicates(risks)
    missing = [name for name in followed.seeds if name not in set(names)]
    if missing:
        raise FrameError(f"the risks lack the runs {missing}: they have {sorted(set(names))}")
    if not (np.isfinite(risks["loss"].astype(float)) & (risks["loss"] > 0)).all():
        raise FrameError(f"the risks range from {risks['loss'].min()} to {risks['loss'].max()}: they must be positive")
    found = {}
    for kind, of_kind in risks.groupby("split", sort=False):
        curves = []
        for name in followed.seeds:
            curve = of_kind[names.loc[of_kind.index] == name].sort_values("step")
            if curve["step"].duplicated().any():
                raise FrameError(f"the {kind} risk of {name} has a step twice: drop the copies")
            if len(curve) < 2 or curve["step"].min() > followed.steps[0] or curve["step"].max() < followed.steps[-1]:
                raise FrameError(f"the {kind} risk of {name} does not span the steps {followed.steps[[0, -1]]}")
            values = np.log2(curve["loss"].astype(float))
            curves.append(np.interp(followed.steps, curve["step"].astype(float), values))
        found[kind] = np.array(curves)
    return found


def _with_risks(followed, risks, about, confidence):
    """Figure 5: the initial rise of S_rel coincides with the fall of the risks."""
    rows = []
    for kind, curves in risks.items():
        together, ends = [], []
        for logs, curve in zip(followed.srel, curves, strict=True):
            level = logs - np.nanmean(logs, axis=1, keepdims=True)
            mean = _mean_over_seeds(level[:, None])[:, 0]  # Of this seed over its pairs, by step.
            known = np.isfinite(mean)
            if np.ptp(mean[known]) <= NEGLIGIBLE:  # S_rel does not move.
                together.append(np.nan)
                ends.append(np.nan)
                continue
            together.append(spearmanr(mean[known], curve[known]).statistic)
            star, risk_star = find_phases(logs.T).star, find_phases(curve[:, None]).star
            ends.append(np.log2(followed.steps[risk_star] / followed.steps[star]))
        scope = f"{kind} risk; {len(followed.pairs)} pairs"
        moving = int(np.isfinite(ends).sum())
        still = f"S_rel moves in {moving} of {len(ends)} seeds" if moving < min(MIN_SEEDS, len(ends)) else ""
        for claim, effect, values, bounds in (
            ("Figure 5: S_rel rises while the risk falls", "rank correlation with the risk", together, (-np.inf, 0.0)),
            ("Figure 5: S_rel and the risk settle together", "log₂ (the risk's t* / t*)", ends, (-1.0, 1.0)),
        ):
            names = {**about, "claim": claim, "scope": scope, "effect": effect}
            rows.append(decide(names, values, bounds, confidence, reason=still))
    return rows
