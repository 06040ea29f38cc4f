"""Hypothesis 1.2: an early, elastic phase with a small, fast rising S_rel, then a phase with a large S_rel.

The times t₁, t₂ and t* come from change-point detection and are common to all pairs. If the times were chosen on the
seed that is judged, phases would be found even in noise. Therefore each seed is judged at times that were chosen on the
other seeds.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from srel_tf.hypotheses.risks import risk_rows
from srel_tf.hypotheses.segments import (
    find_phases,
    left_out,
    mean_of_others,
    times_of_mean,
)
from srel_tf.hypotheses.series import (
    FALL,
    FLOOR,
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
    Effect,
    Row,
    check_confidence,
    decide,
    rows_of_median_pair,
    seeds,
    table,
)

WINDOWS = 10  # The late phase is divided into this many windows. C(t) is the lowest S_rel of each window.
# Fewest measured steps in each phase of a seed that is judged.
LEAST = {"start": 1, "early": 2, "rise": 3, "late": 12}

LATE_ABOVE_EARLY = Claim(
    "(a) late level above that of [t₁, t₂]",
    "log₂ (late / early median)",
    (NEGLIGIBLE, np.inf),
)
LATE_ABOVE_START = Claim(
    "(a) late level above the start",
    "log₂ (late median / median of the first segment)",
    (NEGLIGIBLE, np.inf),
)
RISES = Claim(
    "rises from t₁ to t*",
    "slope of log₂ S_rel per measured span",
    (NEGLIGIBLE, np.inf),
)
RISES_FASTER = Claim(
    "rises faster from t₁ to t* than after",
    "difference of slopes of log₂ S_rel",
    (NEGLIGIBLE, np.inf),
)
STAYS_ABOVE = Claim(
    "(b) late values stay above half the level before t*",
    "log₂ (lowest late value / median before)",
    (-1.0, np.inf),
)
BOUND_KEEPS = Claim(
    "(b) late lower bound non-decreasing",
    "log₂ change of C(t) in the late phase",
    (-FALL, np.inf),
)
ALL_PAIRS = Claim(
    "(a) all pairs: all late values above early ones",
    "log₂ (lowest late / highest early value), lowest pair, times chosen to suit",
    (0.0, np.inf),
)
CLAIMS = (
    LATE_ABOVE_EARLY,
    LATE_ABOVE_START,
    RISES,
    RISES_FASTER,
    STAYS_ABOVE,
    BOUND_KEEPS,
)


def two_phases(
    frame: pd.DataFrame,
    risks: pd.DataFrame | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Check Hypothesis 1.2, and Figure 5's claim if `risks` are given.

    Each effect is one number per seed, computed from log₂ S_rel. Hypothesis 1.2 is about all pairs, and the row
    "(a) all pairs" checks it in this form. The other rows are about the median of the measured pairs. Their `scope`
    says for how many pairs the median over seeds agrees with the claim.

    - "(a) all pairs": log₂ of the ratio of two values, the lowest late value and the higher of the values at two
      consecutive earlier steps, t₁ and t₂. For each t₁, the pair with the lowest ratio counts. The effect of a seed is
      the highest of these ratios over t₁, so t₁ is chosen in favour of the hypothesis. The late phase is the last tenth
      of the steps. Because t₁ is chosen on the seed itself, this row can contradict the claim, but never support it.
    - "(a) late level above that of [t₁, t₂]": log₂ of the late median over the median in [t₁, t₂].
    - "(a) late level above the start": log₂ of the late median over the median of the first segment.
    - "rises from t₁ to t*": the least-squares slope of log₂ S_rel from t₁ to t*, times the measured span.
    - "rises faster from t₁ to t* than after": this slope minus the slope after t*, times the measured span.
    - "(b) late values stay above half the level before t*": log₂ of the lowest late value over the median before t*.
    - "(b) late lower bound non-decreasing": log₂ change of C(t) over the late phase, where C(t) is the minimum in each
      of ten windows. A fall by less than a tenth counts as non-decreasing. A late S_rel of 0 counts as a fall.

    The rows on Figure 5 are described in `srel_tf.hypotheses.risks`.

    Args:
        frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`) in which pairs are followed over 12 steps or
            more. If each seed has its own probe, means over class pairs are used instead of pairs.
        risks: Columns run, seed, step, split and loss, or None. `split` is the kind of risk, for example "empirical" or
            "population".
        confidence: Level of the intervals over seeds (Student's t).

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`. A verdict is "undecided" if there are fewer than 3 seeds, fewer than 12
        steps or fewer than 12 late steps, or if less than half of the entries are valid.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`. Also if the risks are incomplete or not positive.
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
    """Make the undecided row of a group in which no pair can be followed in time."""
    names = {**about, "claim": "two phases", "scope": "", "effect": ""}
    return decide(names, [], (np.nan, np.nan), confidence, reason=reason)


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
        One row per claim.
    """
    times = times_of_mean(followed)
    range_of_star = f"{times.t_star_low:g} to {times.t_star_high:g}"
    scope = f"t1={times.t1:g}, t2={times.t2:g}, t*={times.t_star:g} ({range_of_star})"
    of_seeds = _effects_of_seeds(followed)
    reason = ""
    n_seeds = len(followed.seeds)
    are_unknown = all(effects is None for effects in of_seeds)
    if n_seeds >= MIN_SEEDS and are_unknown:
        needed = f"{LEAST['late']} late and 3 earlier steps"
        reason = f"0 of {seeds(n_seeds)} have phases of {needed}"
    n_pairs = len(followed.pairs)
    return rows_of_median_pair(
        {**about, "scope": scope}, CLAIMS, of_seeds, n_pairs, confidence, reason
    )


def _effects_of_seeds(followed: Cube) -> list[dict[Claim, np.ndarray] | None]:
    """Compute the effects of each seed at times chosen on the other seeds.

    The effects are None if a phase has too few steps, or if there is only one seed.
    """
    steps = followed.steps
    n_seeds = len(followed.seeds)
    of_seeds: list[dict[Claim, np.ndarray] | None] = [None] * n_seeds
    for seed in left_out(followed):
        times = find_phases(mean_of_others(followed, seed), steps)
        phases = times.steps(steps)
        lengths = {name: phases[name].sum() for name in LEAST}
        is_long_enough = all(lengths[name] >= LEAST[name] for name in LEAST)
        if is_long_enough:
            logs = followed.srel[seed]
            of_seeds[seed] = _effects(logs, steps, phases)
    return of_seeds


def _effects(
    logs: np.ndarray,
    steps: np.ndarray,
    phases: Mapping[str, np.ndarray],
) -> dict[Claim, np.ndarray]:
    """Compute the effects of one seed for each pair.

    Args:
        logs: Log₂ S_rel, [pair, step].
        steps: [step].
        phases: Masks of the steps that belong to each phase, bool [step] each.

    Returns:
        {claim: effect of each pair, [pair]}.
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
    lowest = np.min(late, axis=1, initial=np.inf, where=is_known)
    lowest_known = np.where(np.isfinite(lowest), lowest, np.nan)
    change_of_bound = _change_of_minima(late, steps[is_late])
    is_bound_zero = lowest <= FLOOR  # A lower bound of 0 counts as a fall.
    return {
        LATE_ABOVE_EARLY: late_level - median(early),
        LATE_ABOVE_START: late_level - median(start),
        RISES: slope_of_rise,
        RISES_FASTER: slope_of_rise - slope_after,
        STAYS_ABOVE: lowest_known - median(before),
        BOUND_KEEPS: np.where(is_bound_zero, FLOOR, change_of_bound),
    }


def _change_of_minima(late: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Compute the change of C(t) over the late phase: the slope of the minima of the windows, times the phase's length.

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
    """Make the row on Hypothesis 1.2(a) in its literal form. The data can contradict this form, but not support it.

    Args:
        followed: Log₂ S_rel.
        about: The columns hypothesis, measure, update, estimator.
        confidence: Level of the interval.

    Returns:
        The row.
    """
    gaps = [_largest_gap_of_lowest_pair(logs) for logs in followed.srel]
    names = {**about, "scope": f"{len(followed.pairs)} pairs"}
    row = Effect(ALL_PAIRS, np.array(gaps)).row(names, confidence)
    if row["verdict"] == "supported":
        reason = "times chosen to suit each seed can contradict, but not support"
        row |= {"verdict": "undecided", "reason": reason}
    return row


def _largest_gap_of_lowest_pair(logs: np.ndarray) -> float:
    """Compute the smallest gap over pairs for each early time, and return the largest of these over early times.

    The gap is the lowest late value minus the higher of two consecutive early values. Invalid values are replaced by
    values that favour the hypothesis.

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
