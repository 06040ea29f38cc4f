"""The times t₁, t₂ and t* of Hypothesis 1.2, found by change-point detection in log S_rel of all pairs together."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import ruptures

from srel_tf.hypotheses.series import GROUP, Cube, groups, pairs_in_time, series
from srel_tf.hypotheses.verdicts import Row

GRID = 200  # Largest number of equally long time intervals. Change points are edges of these intervals.
# With at least this many steps, every other step still leaves enough steps for four segments of two steps.
LEAST_FOR_HALVES = 16


class Phases(NamedTuple):
    """Times of the phases.

    Attributes:
        start: End of the first segment.
        t1: t₁, start of the early interval [t₁, t₂).
        t2: t₂, end of the early interval.
        star: t*, start of the late phase.
    """

    start: float
    t1: float
    t2: float
    star: float

    def steps(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Return for each phase a mask, bool [n], of the steps, [n], that belong to the phase."""
        return {
            "start": steps < self.start,
            "early": (steps >= self.t1) & (steps < self.t2),
            "rise": (steps >= self.t1)
            & (steps < self.star),  # From t₁ on, because S_rel may fall before t₁.
            "late": steps >= self.star,
        }


class Times(NamedTuple):
    """Measured steps at which the phases of a group begin or end.

    Attributes:
        t1: First step of the early interval.
        t2: Last step of the early interval.
        t_star: First step of the late phase.
        t_star_low: Lowest t* of several fits: with all data, with one seed left out, and with every other step.
        t_star_high: Highest t* of these fits.
    """

    t1: float
    t2: float
    t_star: float
    t_star_low: float
    t_star_high: float


def find_phases(logs: np.ndarray, steps: np.ndarray) -> Phases:
    """Find the phases by three change points in log S_rel, in which all pairs have equal weight.

    The change points are those of the least-squares segmentation into four segments (ruptures, `KernelCPD` with a
    linear kernel). The segmentation is computed from means over time intervals of equal length, so that it does not
    depend on how densely S_rel was measured at different times. The last segment begins at t*. Of the other three
    segments, the one with the lowest mean is [t₁, t₂). This need not be the first segment, because Hypothesis 1.2(a)
    allows t₁ > 0.

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
    """Average over time intervals of equal length; values of empty intervals are interpolated.

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
    interval = np.minimum(interval, n - 1)  # The last step lies on the last edge.
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


def change_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Find t₁, t₂ and t* of the mean over seeds of each group.

    Args:
        frame: S_rel frame, as in `two_phases`.

    Returns:
        Columns name, measure, update, estimator, t1, t2, t_star, t_star_low, t_star_high, n_pairs. The times are
        measured steps. `t_star_low` and `t_star_high` are the lowest and highest t* of several fits: with all data,
        with one seed left out, and with every other step. A group whose pairs cannot be followed in time has no row.

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
        if isinstance(followed, str):  # The reason why no pair can be followed.
            continue
        times = times_of_mean(followed)._asdict()
        n_pairs = len(followed.pairs)
        row: Row = {**key, **times, "n_pairs": n_pairs}
        rows.append(row)
    columns = [*GROUP, *Times._fields, "n_pairs"]
    return pd.DataFrame(rows, columns=columns)


def times_of_mean(followed: Cube) -> Times:
    """Find the times of the phases in the mean over seeds of log₂ S_rel, and the range of t*."""
    steps = followed.steps
    mean = mean_over_seeds(followed.srel)
    phases = find_phases(mean, steps)
    others = [
        find_phases(mean_of_others(followed, seed), steps)
        for seed in left_out(followed)
    ]
    if len(steps) >= LEAST_FOR_HALVES:
        others += [find_phases(mean[:, half::2], steps[half::2]) for half in (0, 1)]
    stars = [_first_step(steps, times.star) for times in (phases, *others)]

    is_early = phases.steps(steps)["early"]
    t1 = phases.t1
    t2 = phases.t2
    if is_early.any():
        t1 = steps[is_early].min()
        t2 = steps[is_early].max()
    return Times(
        t1=t1,
        t2=t2,
        t_star=stars[0],
        t_star_low=min(stars),
        t_star_high=max(stars),
    )


def _first_step(steps: np.ndarray, time: float) -> float:
    """Return the first measured step at or after a time."""
    return steps[np.searchsorted(steps, time)]


def left_out(followed: Cube) -> range:
    """Return the indices of the seeds that can be left out one at a time: none if there is only one seed."""
    n = len(followed.seeds)
    return range(n) if n > 1 else range(0)


def mean_of_others(followed: Cube, seed: int) -> np.ndarray:
    """Compute the mean of log₂ S_rel over all seeds but one, [pair, step]."""
    return mean_over_seeds(np.delete(followed.srel, seed, axis=0))


def mean_over_seeds(logs: np.ndarray) -> np.ndarray:
    """Compute the mean over seeds, ignoring NaN; pairs without a finite value are left out.

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
