"""Figure 5's claim: the initial rise of S_rel coincides with the phase in which the risks fall rapidly.

This phase is defined by the risk: it lasts from the start until 90% of the fall of log risk is done. There is no
verdict on whether S_rel and the risk settle at the same time. Such a verdict would compare a change point of S_rel with
a change point of the risk. It would not be reliable, because change-point detection returns a point for every series,
even for a series without a change.

- "S_rel rises while the risk falls rapidly": the least-squares slope of log₂ S_rel in this phase, times the length of
  the phase;
- "S_rel rises faster then than after": the slope in the phase minus the slope after it, times the measured span;
- "S_rel rises from the start on": log₂ S_rel when half of the fall of log risk is done, minus log₂ S_rel at the start.

A seed is judged only if its risk falls to half or less, and if S_rel was measured at 3 or more steps in the phase and
at 12 or more steps after it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.series import NEGLIGIBLE, Cube, replicates, slopes
from srel_tf.hypotheses.verdicts import Claim, Row, rows_of_median_pair

RISES = Claim(
    "S_rel rises while the risk falls rapidly",
    "log₂ change of S_rel in that phase",
    (NEGLIGIBLE, np.inf),
)
RISES_FASTER = Claim(
    "S_rel rises faster then than after",
    "difference of slopes of log₂ S_rel",
    (NEGLIGIBLE, np.inf),
)
RISES_FIRST = Claim(
    "S_rel rises from the start on",
    "log₂ change until half of the fall is done",
    (NEGLIGIBLE, np.inf),
)
CLAIMS = (RISES, RISES_FASTER, RISES_FIRST)
RAPID = 0.9  # The phase ends when this share of the fall of log₂ risk is done.
LEAST_FALL = 1.0  # Smallest fall of log₂ risk that is judged: the risk must fall to half or less.
LEAST_IN, LEAST_AFTER = 3, 12  # Fewest measured steps in the phase and after it.


class RiskCurve(NamedTuple):
    """Risk of one seed, from the first to the last step of S_rel.

    Attributes:
        steps: [n].
        log_risk: Log₂ of the risk, [n].
    """

    steps: np.ndarray
    log_risk: np.ndarray


def risk_rows(
    followed: Cube,
    risks: pd.DataFrame,
    about: Mapping[str, str],
    confidence: float,
) -> list[Row]:
    """Make the rows of Figure 5's claims.

    Args:
        followed: Log₂ S_rel.
        risks: Columns run, seed, step, split, loss.
        about: The columns hypothesis, measure, update, estimator.
        confidence: Level of the intervals.

    Returns:
        One row per kind of risk and claim.

    Raises:
        FrameError: The risks are incomplete or not positive.
    """
    rows = []
    for kind, curves in _curves(risks, followed).items():
        falls = [rapid_fall(*curve) for curve in curves]
        of_seeds = _effects_of_seeds(followed, falls)
        ends = [end for _, end in falls]

        if np.isfinite(ends).any():
            scope = f"{kind} risk, 90% of its fall done at {np.nanmean(ends):g}"
            reason = ""
        else:
            scope = kind
            reason = f"the {kind} risk does not fall to less than half in any seed"
        names = {**about, "scope": scope}
        n_pairs = len(followed.pairs)
        rows += rows_of_median_pair(
            names, CLAIMS, of_seeds, n_pairs, confidence, reason
        )
    return rows


def rapid_fall(steps: np.ndarray, log_risk: np.ndarray) -> tuple[float, float]:
    """Find the first step at which half of the fall of log₂ risk is done, and the end of the rapid phase.

    The rapid phase ends at the first step at which the share `RAPID` of the fall is done.

    Args:
        steps: [n].
        log_risk: [n].

    Returns:
        The two steps; NaN if log₂ risk falls by less than `LEAST_FALL`.
    """
    span = steps[-1] - steps[0]
    is_end = steps >= steps[-1] - 0.1 * span  # The last tenth.
    start = log_risk[0]
    end = np.median(log_risk[is_end])
    fall = start - end
    if fall < LEAST_FALL:
        return np.nan, np.nan

    half_done = log_risk <= start - 0.5 * fall
    rapid_done = log_risk <= start - RAPID * fall
    return steps[np.argmax(half_done)], steps[np.argmax(rapid_done)]


def _effects_of_seeds(
    followed: Cube, falls: list[tuple[float, float]]
) -> list[dict[Claim, np.ndarray] | None]:
    """Compute the effects of each seed; None for a seed that cannot be judged.

    Args:
        followed: Log₂ S_rel.
        falls: The two steps of `rapid_fall`, for the risk of each seed.
    """
    steps = followed.steps
    of_seeds: list[dict[Claim, np.ndarray] | None] = []
    for logs, (half, rapid) in zip(followed.srel, falls, strict=True):
        n_in = (steps <= rapid).sum()
        n_after = (steps > rapid).sum()
        is_judged = n_in >= LEAST_IN and n_after >= LEAST_AFTER
        of_seeds.append(_effects(logs, steps, half, rapid) if is_judged else None)
    return of_seeds


def _effects(
    logs: np.ndarray,
    steps: np.ndarray,
    half: float,
    rapid: float,
) -> dict[Claim, np.ndarray]:
    """Compute the effects of one seed for each pair.

    Args:
        logs: Log₂ S_rel, [pair, step].
        steps: [step].
        half: Step at which half of the fall of log risk is done.
        rapid: Step at which the rapid phase ends.

    Returns:
        {claim: effect of each pair, [pair]}.
    """
    is_during = steps <= rapid
    is_after = ~is_during
    span = steps[-1] - steps[0]
    length = np.ptp(steps[is_during])
    slope_during = slopes(logs[:, is_during], steps[is_during])
    slope_after = slopes(logs[:, is_after], steps[is_after])

    change_at_start = np.full(len(logs), np.nan)
    is_begun = (steps <= half) & (steps > steps[0])
    if is_begun.any():
        at_half = logs[:, is_begun][:, -1]
        change_at_start = at_half - logs[:, 0]
    return {
        RISES: slope_during * length,
        RISES_FASTER: (slope_during - slope_after) * span,
        RISES_FIRST: change_at_start,
    }


def _curves(risks: pd.DataFrame, followed: Cube) -> dict[str, list[RiskCurve]]:
    """Return the risk curves of each seed whose S_rel was measured.

    Args:
        risks: Columns run, seed, step, split, loss.
        followed: Log₂ S_rel.

    Returns:
        {kind of risk: curve of each seed}.

    Raises:
        FrameError: The risks are incomplete or not positive.
    """
    check_columns(risks, ["run", "seed", "step", "split", "loss"])
    risks = risks.reset_index(drop=True)
    risks = risks.assign(replicate=replicates(risks))
    names = set(risks["replicate"])
    missing = [name for name in followed.seeds if name not in names]
    if missing:
        raise FrameError(
            f"the risks lack the runs {missing}: add their rows; the runs given are {sorted(names)}"
        )
    is_positive = np.isfinite(risks["loss"].astype(float)) & (risks["loss"] > 0)
    if not is_positive.all():
        raise FrameError(
            f"the risks range from {risks['loss'].min()} to {risks['loss'].max()}: all must be positive and finite"
        )
    span = followed.steps[[0, -1]]
    curves = {}
    for split, of_kind in risks.groupby("split", sort=False):
        kind = str(split)
        curves[kind] = [
            _curve_of_seed(of_kind, kind, name, span) for name in followed.seeds
        ]
    return curves


def _curve_of_seed(
    risks: pd.DataFrame,
    kind: str,
    name: str,
    span: np.ndarray,
) -> RiskCurve:
    """Return the risk of one seed, interpolated to begin and end at the first and last step of S_rel.

    Args:
        risks: Rows of one kind of risk.
        kind: Name of the kind, for error messages.
        name: Name of the seed.
        span: First and last step of S_rel, [2].

    Returns:
        The curve.

    Raises:
        FrameError: A step occurs twice, or the risk does not span the steps of S_rel.
    """
    rows = risks[risks["replicate"] == name].sort_values("step")
    if rows["step"].duplicated().any():
        raise FrameError(f"the {kind} risk of {name} has a step twice: drop the copies")
    steps = rows["step"].to_numpy(float)
    first, last = span
    if len(steps) < 2 or steps[0] > first or steps[-1] < last:
        raise FrameError(
            f"the {kind} risk of {name} does not span the steps of S_rel: give the risk from step {first:g} to {last:g}"
        )
    loss = rows["loss"].to_numpy(float)
    log_risk = np.log2(loss)
    is_inside = (steps > first) & (steps < last)
    inner_steps = steps[is_inside]
    all_steps = np.unique([first, *inner_steps, last])
    return RiskCurve(all_steps, np.interp(all_steps, steps, log_risk))
