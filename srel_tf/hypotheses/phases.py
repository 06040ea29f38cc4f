"""Hypothesis 1.2: an early, elastic phase in which S_rel is small and rises fast, a late one in which it stays large.

The times t₁, t₂ and t* come from change-point detection, common to all pairs. To look at a seed through times that were
chosen to suit it would find phases in noise; so each seed is judged at times that the other seeds chose.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import ruptures

from srel_tf.hypotheses.risks import risk_rows
from srel_tf.hypotheses.series import FALL, FLOOR, NEGLIGIBLE, groups, median, pairs_in_time, series, slopes
from srel_tf.hypotheses.verdicts import MIN_SEEDS, check_confidence, decide, of_median_pair, seeds, table

WINDOWS = 10  # Windows of the late phase, whose minima are C(t).
GRID = 200  # Intervals of equal length in time, at most, that change points are looked for among.
LEAST = {"start": 1, "early": 2, "rise": 3, "late": 12}  # Measured steps that a phase must have to be judged.


class Phases(NamedTuple):
    """Times: where the first segment ends, the early interval [t₁, t₂), and t* where the late phase begins."""

    start: float
    t1: float
    t2: float
    star: float

    def steps(self, steps):
        """Which of the steps belong to each phase."""
        return {
            "start": steps < self.start,
            "early": (steps >= self.t1) & (steps < self.t2),
            "rise": (steps >= self.t1) & (steps < self.star),  # From the early interval on: S_rel may fall before t₁.
            "late": steps >= self.star,
        }


def find_phases(logs, steps):
    """`Phases` of log S_rel [pair, step], every pair with equal weight, by three change points of its mean.

    The least-squares segmentation (ruptures, `KernelCPD` with a linear kernel) into four segments, of means over
    intervals of equal length: how densely S_rel was measured when makes no difference. The last segment begins at t*;
    of the others, the one with the lowest mean is [t₁, t₂): Hypothesis 1.2(a) lets it start after 0.
    """
    edges, values = on_grid(logs, steps)
    spread = values.std(axis=1, keepdims=True)
    values = ((values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)).T
    search = ruptures.KernelCPD(kernel="linear", min_size=max(2, len(values) // 40))
    starts = [0, *search.fit(values).predict(n_bkps=3)[:3]]
    first, last = min(pairwise(starts), key=lambda segment: values[slice(*segment)].mean())
    return Phases(edges[starts[1]], edges[first], edges[last], edges[starts[-1]])


def on_grid(logs, steps):
    """Edges [n + 1] of intervals of equal length, and means of logs [pair, step] in them, interpolated where empty."""
    n = min(GRID, len(steps))
    edges = np.linspace(steps[0], steps[-1], n + 1)
    at = np.minimum(np.searchsorted(edges, steps, side="right") - 1, n - 1)
    within, middles, found = np.eye(n)[at], (edges[1:] + edges[:-1]) / 2, []
    for row in logs:
        known = np.isfinite(row)
        count = known @ within
        total = np.where(known, row, 0) @ within
        found.append(np.interp(middles, middles[count > 0], total[count > 0] / count[count > 0]))
    return edges, np.array(found)


def two_phases(frame, risks=None, confidence=0.95):
    """Verdicts on Hypothesis 1.2, and on Figure 5's claim where `risks` are given.

    frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`) in which pairs are followed over 12 steps or more;
        where each seed has a probe of its own, the means over class pairs stand for pairs.
    risks: columns run, seed, step, split (which risk: "empirical", "population", …), loss; or None.
    confidence: of the intervals over seeds (Student's t).

    Each effect is one number a seed, S_rel on a log₂ scale. Hypothesis 1.2 speaks of all pairs: one row does, the rest
    are on the median of the measured pairs, and their `scope` says for how many pairs the mean over seeds agrees.

    - "(a) all pairs": lowest late value over the highest of two consecutive earlier steps, t₁ and t₂, for the pair for
      which it is lowest, at the t₁ that suits the seed best; the late phase is the last tenth, as late as t* can be.
      Times chosen to suit can contradict, never support;
    - "late level above that of [t₁, t₂]", "above the start": log₂ ratios of medians; the start is the first segment;
    - "rises from t₁ to t*"; "faster than after": least-squares slopes of log₂ S_rel per measured span;
    - "(b) late values stay above half the level before t*": log₂ of the lowest late value over the median before t*;
    - "(b) late lower bound non-decreasing": change over the late phase of C(t), the minima of ten windows; a fall by
      less than a tenth is let pass, a late S_rel of 0 is not.

    Figure 5's rows are described in `srel_tf.hypotheses.risks`. Returns a frame of `srel_tf.hypotheses.COLUMNS`.
    "undecided" for less than 3 seeds, 12 steps, 12 of them late, or half of the entries valid. Raises `FrameError` as
    `srel_tf.hypotheses.series.groups` does, and for risks that do not fit.
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
        rows += [*_judge(followed, about, confidence), _all_pairs(followed, about, confidence)]
        if risks is not None:
            rows += risk_rows(followed, risks, {**about, "hypothesis": "1.2, Figure 5"}, confidence)
    return table(rows)


def change_points(frame):
    """t₁, t₂, t* of each group's mean over seeds: measure, update, estimator, t1, t2, t_star, …_low, …_high, n_pairs.

    The times are measured steps. low and high: the range of t* when a seed or every other step is left out.
    """
    found = []
    for key, part in groups(frame):
        followed = series(pairs_in_time(part))
        if not isinstance(followed, str):
            found.append({**key, **_times(followed), "n_pairs": len(followed.pairs)})
    names = ["t1", "t2", "t_star", "t_star_low", "t_star_high", "n_pairs"]
    return pd.DataFrame(found, columns=["measure", "update", "estimator", *names])


def _times(followed):
    mean, steps = mean_over_seeds(followed.srel), followed.steps
    phases = find_phases(mean, steps)
    early = steps[phases.steps(steps)["early"]]
    t1, t2 = (early[0], early[-1]) if len(early) else (phases.t1, phases.t2)
    others = [
        find_phases(mean_over_seeds(np.delete(followed.srel, s, axis=0)), steps).star for s in _left_out(followed)
    ]
    halves = (0, 1) if len(steps) >= 16 else ()  # Four segments of two steps.
    others += [find_phases(mean[:, half::2], steps[half::2]).star for half in halves]
    stars = [steps[np.searchsorted(steps, star)] for star in (phases.star, *others)]
    return {"t1": t1, "t2": t2, "t_star": stars[0], "t_star_low": min(stars), "t_star_high": max(stars)}


def _left_out(followed):
    return range(len(followed.seeds)) if len(followed.seeds) > 1 else []


def mean_over_seeds(logs):
    """[pair, step] of logs [seed, pair, step], without pairs that are nowhere known."""
    known = np.isfinite(logs)
    count = known.sum(axis=0)
    mean = np.where(known, logs, 0).sum(axis=0) / np.where(count, count, np.nan)
    return mean[np.isfinite(mean).any(axis=1)]


CLAIMS = (
    ("(a) late level above that of [t₁, t₂]", "log₂ (late / early median)", (NEGLIGIBLE, np.inf)),
    ("(a) late level above the start", "log₂ (late median / median of the first segment)", (NEGLIGIBLE, np.inf)),
    ("rises from t₁ to t*", "slope of log₂ S_rel per measured span", (NEGLIGIBLE, np.inf)),
    ("rises faster from t₁ to t* than after", "difference of slopes of log₂ S_rel", (NEGLIGIBLE, np.inf)),
    ("(b) late values stay above half the level before t*", "log₂ (lowest late value / median before)", (-1.0, np.inf)),
    ("(b) late lower bound non-decreasing", "log₂ change of C(t) in the late phase", (-FALL, np.inf)),
)


def _judge(followed, about, confidence):
    times, n = _times(followed), len(followed.seeds)
    scope = "t1={t1:g}, t2={t2:g}, t*={t_star:g} ({t_star_low:g} to {t_star_high:g})".format(**times)
    effects = np.full((n, len(CLAIMS), len(followed.pairs)), np.nan)
    for seed in _left_out(followed):
        others = mean_over_seeds(np.delete(followed.srel, seed, axis=0))
        phases = find_phases(others, followed.steps).steps(followed.steps)
        if all(phases[name].sum() >= least for name, least in LEAST.items()):
            effects[seed] = _effects(followed.srel[seed], followed.steps, phases)
    short = f"{int(np.isfinite(effects).any(axis=(1, 2)).sum())} of {seeds(n)} have phases of {LEAST['late']} late and "
    short += "3 earlier steps" if n >= MIN_SEEDS and not np.isfinite(effects).any() else ""
    return [
        of_median_pair({**about, "claim": claim, "scope": scope, "effect": effect}, effects[:, i], bounds, confidence,
                       short if short.endswith("steps") else "")
        for i, (claim, effect, bounds) in enumerate(CLAIMS)
    ]  # fmt: skip


def _effects(logs, steps, phases):
    """The six effects of one seed, log₂ S_rel [pair, step], for each pair, in the order of `CLAIMS`: [claim, pair]."""
    start, early, late = (median(logs[:, phases[name]]) for name in ("start", "early", "late"))
    span = steps[-1] - steps[0]
    rise, rest = (slopes(logs[:, phases[p]], steps[phases[p]]) * span for p in ("rise", "late"))
    lowest = np.min(logs[:, phases["late"]], axis=1, initial=np.inf, where=np.isfinite(logs[:, phases["late"]]))
    bound = _change_of_minima(logs[:, phases["late"]], steps[phases["late"]])
    return np.stack([
        late - early,
        late - start,
        rise,
        rise - rest,
        np.where(np.isfinite(lowest), lowest, np.nan) - median(logs[:, ~phases["late"]]),
        np.where(lowest <= FLOOR, FLOOR, bound),  # A bound of 0 is none.
    ])  # fmt: skip


def _change_of_minima(late, steps):
    """C(t), the minima of consecutive windows of the late phase: slope times the phase's length, [pairs]."""
    windows = np.array_split(np.arange(len(steps)), WINDOWS)
    known = np.where(np.isfinite(late), late, np.inf)
    minima = np.stack([known[:, w].min(axis=1) for w in windows], axis=1)
    minima[np.isinf(minima)] = np.nan
    return slopes(minima, np.array([steps[w].mean() for w in windows])) * (steps[-1] - steps[0])


def _all_pairs(followed, about, confidence):
    """The row on Hypothesis 1.2(a) as it is written, which can only contradict."""
    n = len(followed.steps)
    late, effects = n - max(2, n // 10), []
    for logs in followed.srel:
        known = np.isfinite(logs)
        lowest = np.where(known, logs, -FLOOR)[:, late:].min(axis=1, keepdims=True)
        before = np.where(known, logs, FLOOR)[:, :late]  # What is not known speaks for the hypothesis.
        gaps = lowest - np.maximum(before[:, :-1], before[:, 1:])
        effects.append(gaps.min(axis=0).max())
    names = {"claim": "(a) all pairs: all late values above early ones", "scope": f"{len(followed.pairs)} pairs"}
    names["effect"] = "log₂ (lowest late / highest early value), lowest pair, times chosen to suit"
    row = decide({**about, **names}, effects, (0.0, np.inf), confidence)
    if row["verdict"] == "supported":
        row |= {"verdict": "undecided", "reason": "times chosen to suit each seed can contradict, but not support"}
    return row
