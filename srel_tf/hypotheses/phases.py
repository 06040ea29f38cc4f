"""Hypothesis 1.2: an early, elastic phase in which S_rel is small and rises fast, a late one in which it stays large.

The times t₁, t₂ and t* come from change-point detection and are common to all pairs. Times that were chosen to suit a
seed would find phases in noise. Therefore each seed is judged at times that the other seeds chose.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import ruptures

from srel_tf.hypotheses.risks import risk_rows
from srel_tf.hypotheses.series import (
    FALL,
    FLOOR,
    GROUP,
    NEGLIGIBLE,
    Cube,
    groups,
    median,
    pairs_in_time,
    series,
    slopes,
)
from srel_tf.hypotheses.verdicts import (
    MIN_SEEDS,
    Claim,
    Row,
    check_confidence,
    decide,
    of_median_pair,
    seeds,
    table,
)

WINDOWS = 10  # Number of windows of the late phase; their minima are C(t).
GRID = 200  # Largest number of intervals of equal length in time among which change points are sought.
LEAST = {
    "start": 1,
    "early": 2,
    "rise": 3,
    "late": 12,
}  # Measured steps that a phase must have to be judged.
LEAST_FOR_HALVES = (
    16  # Steps from which on every other step still makes four segments of two.
)

CLAIMS = (
    Claim(
        "(a) late level above that of [t₁, t₂]",
        "log₂ (late / early median)",
        (NEGLIGIBLE, np.inf),
    ),
    Claim(
        "(a) late level above the start",
        "log₂ (late median / median of the first segment)",
        (NEGLIGIBLE, np.inf),
    ),
    Claim(
        "rises from t₁ to t*",
        "slope of log₂ S_rel per measured span",
        (NEGLIGIBLE, np.inf),
    ),
    Claim(
        "rises faster from t₁ to t* than after",
        "difference of slopes of log₂ S_rel",
        (NEGLIGIBLE, np.inf),
    ),
    Claim(
        "(b) late values stay above half the level before t*",
        "log₂ (lowest late value / median before)",
        (-1.0, np.inf),
    ),
    Claim(
        "(b) late lower bound non-decreasing",
        "log₂ change of C(t) in the late phase",
        (-FALL, np.inf),
    ),
)


class Phases(NamedTuple):
    """Times of the phases.

    Attributes:
        start: End of the first segment.
        t1: t₁, begin of the early interval [t₁, t₂).
        t2: t₂, its end.
        star: t*, begin of the late phase.
    """

    start: float
    t1: float
    t2: float
    star: float

    def steps(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Assign steps, [n], to the phases: a mask, bool [n], for each phase."""
        return {
            "start": steps < self.start,
            "early": (steps >= self.t1) & (steps < self.t2),
            "rise": (steps >= self.t1)
            & (steps < self.star),  # S_rel may fall before t₁.
            "late": steps >= self.star,
        }


class _Times(NamedTuple):
    """Measured steps of a group's phases.

    Attributes:
        t1: First step of the early interval.
        t2: Last step of the early interval.
        t_star: First step of the late phase.
        t_star_low: Lowest t* when a seed or every other step is left out.
        t_star_high: Highest t* when a seed or every other step is left out.
    """

    t1: float
    t2: float
    t_star: float
    t_star_low: float
    t_star_high: float


def find_phases(logs: np.ndarray, steps: np.ndarray) -> Phases:
    """Find the phases by three change points of the mean of log S_rel, with equal weight of every pair.

    This is the least-squares segmentation (ruptures, `KernelCPD` with a linear kernel) into four segments. It is
    computed from means over intervals of equal length, so that it does not depend on how densely S_rel was measured
    at which time. The last segment begins at t*. Of the others, the one with the lowest mean is [t₁, t₂): Hypothesis
    1.2(a) allows that it begins after 0.

    Args:
        logs: Log S_rel, [pair, step].
        steps: [step].

    Returns:
        Times of the phases.
    """
    edges, means = on_grid(logs, steps)
    deviation = means.std(axis=1, keepdims=True)
    centred = means - means.mean(axis=1, keepdims=True)
    values = (centred / np.where(deviation > 0, deviation, 1)).T  # [interval, pair]
    search = ruptures.KernelCPD(kernel="linear", min_size=max(2, len(values) // 40))
    change_points = search.fit(values).predict(n_bkps=3)
    starts = [0, *change_points[:3]]
    first, last = min(
        pairwise(starts), key=lambda segment: values[slice(*segment)].mean()
    )
    return Phases(
        start=edges[starts[1]],
        t1=edges[first],
        t2=edges[last],
        star=edges[starts[-1]],
    )


def on_grid(logs: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over intervals of equal length in time, interpolated over empty intervals.

    Args:
        logs: Log S_rel, [pair, step].
        steps: [step].

    Returns:
        Edges of the intervals [n + 1], and means [pair, n].
    """
    n = min(GRID, len(steps))
    edges = np.linspace(steps[0], steps[-1], n + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    interval = np.searchsorted(edges, steps, side="right") - 1
    interval = np.minimum(interval, n - 1)  # The last step is the last edge.
    is_in_interval = np.eye(n)[interval]  # [step, n]
    means = []
    for row in logs:
        is_known = np.isfinite(row)
        total = np.where(is_known, row, 0) @ is_in_interval
        count = is_known @ is_in_interval
        is_filled = count > 0
        mean = total[is_filled] / count[is_filled]
        means.append(np.interp(middles, middles[is_filled], mean))
    return edges, np.array(means)


def two_phases(
    frame: pd.DataFrame,
    risks: pd.DataFrame | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Check Hypothesis 1.2, and Figure 5's claim if `risks` are given.

    Each effect is one number a seed, S_rel on a log₂ scale. Hypothesis 1.2 is about all pairs, and so is one row. The
    other rows are about the median of the measured pairs; their `scope` says for how many pairs the mean over seeds
    agrees.

    - "(a) all pairs": lowest late value over the highest of two consecutive earlier steps, t₁ and t₂, for the pair for
      which it is lowest, at the t₁ that suits the seed best. The late phase is the last tenth, as late as t* can be.
      Times that are chosen to suit can contradict, but never support.
    - "late level above that of [t₁, t₂]", "above the start": log₂ ratios of medians; the start is the first segment.
    - "rises from t₁ to t*", "faster than after": least-squares slopes of log₂ S_rel per measured span.
    - "(b) late values stay above half the level before t*": log₂ of the lowest late value over the median before t*.
    - "(b) late lower bound non-decreasing": change over the late phase of C(t), the minima of ten windows. A fall by
      less than a tenth passes, a late S_rel of 0 does not.

    Figure 5's rows are described in `srel_tf.hypotheses.risks`.

    Args:
        frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`) in which pairs are followed over 12 steps or
            more. If each seed has a probe of its own, means over class pairs are used instead of pairs.
        risks: Columns run, seed, step, split (which risk: "empirical", "population", …), loss; or None.
        confidence: Level of the intervals over seeds (Student's t).

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for less than 3 seeds, 12 steps, 12 of them late, or half of
        the entries valid.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`, or the risks do not fit.
        OptionError: `confidence` is not in [0.5, 1).

    Example:
        Simulated S_rel of 3 seeds that rises from 1 to 8 in the first half of the training.

        >>> import numpy as np
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import two_phases
        >>> run, step = (index.ravel() for index in np.indices((3, 60)))
        >>> noise = np.random.default_rng(0).uniform(0.9, 1.1, size=len(run))
        >>> srel = noise * 2 ** np.clip(step / 10, 0, 3)
        >>> frame = pd.DataFrame({"run": run, "seed": run, "step": step, "srel": srel, "valid": True})
        >>> frame = frame.assign(source_id=0, target_id=1, measure="kl", update="sgd", estimator="exact")
        >>> verdicts = two_phases(frame).set_index("claim")["verdict"]
        >>> verdicts["rises from t₁ to t*, median pair"]
        'supported'
    """
    check_confidence(confidence)
    rows: list[Row] = []
    for key, part in groups(frame):
        about = {"hypothesis": "1.2", **key}
        followed = series(pairs_in_time(part))
        if isinstance(followed, str):
            rows.append(_not_followed(about, followed, confidence))
            continue
        rows += _judge(followed, about, confidence)
        rows.append(_all_pairs(followed, about, confidence))
        if risks is not None:
            about_risks = {**about, "hypothesis": "1.2, Figure 5"}
            rows += risk_rows(followed, risks, about_risks, confidence)
    return table(rows)


def _not_followed(
    about: Mapping[str, str],
    reason: str,
    confidence: float,
) -> Row:
    """Undecided row of a group that cannot be followed in time."""
    names = {**about, "claim": "two phases", "scope": "", "effect": ""}
    return decide(names, [], (np.nan, np.nan), confidence, reason=reason)


def change_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Find t₁, t₂ and t* of the mean over seeds of each group.

    Args:
        frame: S_rel frame, as in `two_phases`.

    Returns:
        Columns measure, update, estimator, t1, t2, t_star, t_star_low, t_star_high, n_pairs. The times are measured
        steps. low and high are the range of t* when a seed or every other step is left out. Groups that cannot be
        followed have no row.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`.

    Example:
        >>> import numpy as np
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import change_points
        >>> step = np.arange(40)
        >>> srel = np.array([1.0, 2.0, 4.0, 8.0])[step // 10]
        >>> frame = pd.DataFrame({"run": 0, "seed": 0, "step": step, "srel": srel, "valid": True})
        >>> frame = frame.assign(source_id=0, target_id=1, measure="kl", update="sgd", estimator="exact")
        >>> print(change_points(frame)[["t1", "t2", "t_star"]].iloc[0].tolist())
        [0.0, 9.0, 30.0]
    """
    rows = []
    for key, part in groups(frame):
        followed = series(pairs_in_time(part))
        if isinstance(followed, str):  # The reason why the group cannot be followed.
            continue
        times = _times(followed)._asdict()
        n_pairs = len(followed.pairs)
        row: Row = {**key, **times, "n_pairs": n_pairs}
        rows.append(row)
    columns = [*GROUP, *_Times._fields, "n_pairs"]
    return pd.DataFrame(rows, columns=columns)


def _times(followed: Cube) -> _Times:
    """Times of the mean over seeds of log₂ S_rel, and their range."""
    steps = followed.steps
    mean = mean_over_seeds(followed.srel)
    phases = find_phases(mean, steps)
    means_of_others = [_mean_of_others(followed, seed) for seed in _left_out(followed)]
    others = [find_phases(mean_of_others, steps) for mean_of_others in means_of_others]
    if len(steps) >= LEAST_FOR_HALVES:
        others += [find_phases(mean[:, half::2], steps[half::2]) for half in (0, 1)]
    stars = [_first_step(steps, times.star) for times in (phases, *others)]

    is_early = phases.steps(steps)["early"]
    t1 = phases.t1
    t2 = phases.t2
    if is_early.any():
        t1 = steps[is_early].min()
        t2 = steps[is_early].max()
    return _Times(
        t1=t1,
        t2=t2,
        t_star=stars[0],
        t_star_low=min(stars),
        t_star_high=max(stars),
    )


def _first_step(steps: np.ndarray, time: float) -> float:
    """First measured step at or after a time."""
    return steps[np.searchsorted(steps, time)]


def _left_out(followed: Cube) -> range:
    """Numbers of the seeds that can be left out: none if there is only one."""
    n = len(followed.seeds)
    return range(n) if n > 1 else range(0)


def _mean_of_others(followed: Cube, seed: int) -> np.ndarray:
    """Mean of log₂ S_rel over all seeds but one, [pair, step]."""
    return mean_over_seeds(np.delete(followed.srel, seed, axis=0))


def mean_over_seeds(logs: np.ndarray) -> np.ndarray:
    """Mean over seeds without NaN, and without pairs that are never known.

    Args:
        logs: [seed, pair, step].

    Returns:
        [pair, step].
    """
    is_known = np.isfinite(logs)
    known = np.where(is_known, logs, 0)
    total = known.sum(axis=0)
    count = is_known.sum(axis=0)
    positive_count = np.where(count, count, np.nan)
    mean = total / positive_count
    is_known_mean = np.isfinite(mean)
    has_values = is_known_mean.any(axis=1)
    return mean[has_values]


def _judge(
    followed: Cube,
    about: Mapping[str, str],
    confidence: float,
) -> list[Row]:
    """Make the rows on the median pair.

    Args:
        followed: Log₂ S_rel.
        about: The columns hypothesis, measure, update, estimator.
        confidence: Level of the intervals.

    Returns:
        One row a claim.
    """
    times = _times(followed)._asdict()
    scope = "t1={t1:g}, t2={t2:g}, t*={t_star:g} ({t_star_low:g} to {t_star_high:g})".format(
        **times
    )
    effects = _effects_of_seeds(followed)
    reason = ""
    n_seeds = len(followed.seeds)
    has_effect = np.isfinite(effects).any()
    if n_seeds >= MIN_SEEDS and not has_effect:
        needed = f"{LEAST['late']} late and 3 earlier steps"
        reason = f"0 of {seeds(n_seeds)} have phases of {needed}"

    rows = []
    for i, claim in enumerate(CLAIMS):
        names = {**about, "claim": claim.name, "scope": scope, "effect": claim.effect}
        rows.append(
            of_median_pair(names, effects[:, i], claim.bounds, confidence, reason)
        )
    return rows


def _effects_of_seeds(followed: Cube) -> np.ndarray:
    """Effects of each seed at times that the other seeds chose, [seed, claim, pair]; NaN if a phase is too short."""
    shape = (len(followed.seeds), len(CLAIMS), len(followed.pairs))
    effects = np.full(shape, np.nan)
    steps = followed.steps
    for seed in _left_out(followed):
        times = find_phases(_mean_of_others(followed, seed), steps)
        phases = times.steps(steps)
        is_long_enough = [phases[name].sum() >= least for name, least in LEAST.items()]
        if all(is_long_enough):
            logs = followed.srel[seed]
            effects[seed] = _effects(logs, steps, phases)
    return effects


def _effects(
    logs: np.ndarray,
    steps: np.ndarray,
    phases: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Effects of one seed for each pair, in the order of `CLAIMS`.

    Args:
        logs: Log₂ S_rel, [pair, step].
        steps: [step].
        phases: Which steps belong to each phase, bool [step] each.

    Returns:
        [claim, pair].
    """
    is_late = phases["late"]
    late = logs[:, is_late]
    early = logs[:, phases["early"]]
    start = logs[:, phases["start"]]
    before = logs[:, ~is_late]
    late_level = median(late)

    span = steps[-1] - steps[0]
    is_rise = phases["rise"]
    slope_of_rise = slopes(logs[:, is_rise], steps[is_rise]) * span
    slope_after = slopes(late, steps[is_late]) * span

    is_known = np.isfinite(late)
    lowest = np.min(
        late,
        axis=1,
        initial=np.inf,
        where=is_known,
    )
    lowest_known = np.where(np.isfinite(lowest), lowest, np.nan)
    change_of_bound = _change_of_minima(late, steps[is_late])
    effects = [
        late_level - median(early),
        late_level - median(start),
        slope_of_rise,
        slope_of_rise - slope_after,
        lowest_known - median(before),
        np.where(
            lowest <= FLOOR, FLOOR, change_of_bound
        ),  # A lower bound of 0 says nothing.
    ]
    return np.stack(effects)


def _change_of_minima(late: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Change of C(t), the minima of consecutive windows of the late phase: slope times length of the phase.

    Args:
        late: Log₂ S_rel in the late phase, [pair, step].
        steps: [step].

    Returns:
        [pair].
    """
    indices = np.arange(len(steps))
    windows = np.array_split(indices, WINDOWS)
    known = np.where(np.isfinite(late), late, np.inf)
    minima_of_windows = [known[:, window].min(axis=1) for window in windows]
    minima = np.stack(minima_of_windows, axis=1)  # [pair, window]
    minima[np.isinf(minima)] = np.nan
    middles = np.array([steps[window].mean() for window in windows])
    length = steps[-1] - steps[0]
    return slopes(minima, middles) * length


def _all_pairs(
    followed: Cube,
    about: Mapping[str, str],
    confidence: float,
) -> Row:
    """Make the row on Hypothesis 1.2(a) as it is written. It can only contradict.

    Args:
        followed: Log₂ S_rel.
        about: The columns hypothesis, measure, update, estimator.
        confidence: Level of the interval.

    Returns:
        The row.
    """
    effects = [_largest_gap_of_lowest_pair(logs) for logs in followed.srel]
    names = {
        **about,
        "claim": "(a) all pairs: all late values above early ones",
        "scope": f"{len(followed.pairs)} pairs",
        "effect": "log₂ (lowest late / highest early value), lowest pair, times chosen to suit",
    }
    row = decide(names, effects, (0.0, np.inf), confidence)
    if row["verdict"] == "supported":
        reason = "times chosen to suit each seed can contradict, but not support"
        row |= {"verdict": "undecided", "reason": reason}
    return row


def _largest_gap_of_lowest_pair(logs: np.ndarray) -> float:
    """Lowest late value minus the higher of two consecutive early values, of the lowest pair, at the best early time.

    Unknown values are replaced by those that favour the hypothesis.

    Args:
        logs: Log₂ S_rel of one seed, [pair, step].

    Returns:
        The gap.
    """
    n = logs.shape[1]
    first_late = n - max(2, n // 10)
    is_known = np.isfinite(logs)
    late = np.where(is_known, logs, -FLOOR)[:, first_late:]
    early = np.where(is_known, logs, FLOOR)[:, :first_late]
    lowest_late = late.min(axis=1, keepdims=True)
    highest_early = np.maximum(early[:, :-1], early[:, 1:])
    gaps = lowest_late - highest_early
    return gaps.min(axis=0).max()
