"""Hypothesis 1.1(a): at a fixed x' and time, S_rel(x', x) has a downward trend as x gets farther away from x'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError, OptionError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.pair_values import join
from srel_tf.hypotheses.series import groups
from srel_tf.hypotheses.trend import mean_trend, trends_of_seeds
from srel_tf.hypotheses.verdicts import (
    Claim,
    Effect,
    Row,
    check_confidence,
    decide,
    of_permutations,
    table,
)

TREND = "S_rel falls with distance"
NEARER = "a nearer x_l has a higher S_rel, more often than by chance"


@dataclass(frozen=True)
class _StepEffect:
    """Effect of one claim at one step.

    Attributes:
        step: The step.
        claim: The claim.
        of_seeds: One number per seed, [seed].
        shuffled: Mean effect over seeds in each permutation of the sources, [resamples].
    """

    step: float
    claim: Claim
    of_seeds: np.ndarray
    shuffled: np.ndarray

    def row(self, about: Mapping[str, str], metric: str, confidence: float) -> Row:
        """Make the row of the step, with its interval clipped to the values that the effect can have."""
        shared = of_permutations(self.shuffled, confidence)
        scope = f"{metric}, step {self.step:g}"
        effect = Effect(self.claim, self.of_seeds, shared)
        row = effect.row({**about, "scope": scope}, confidence)
        lowest = -1.0 if self.claim.name == TREND else 0.0
        for end in ("ci_low", "ci_high"):
            row[end] = np.clip(row[end], lowest, 1.0)
        return row


def proximity_trend(
    frame: pd.DataFrame,
    distances: pd.DataFrame,
    confidence: float = 0.95,
    min_sources: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Check Hypothesis 1.1(a): one row per metric, step and claim, and one per metric and claim for all steps together.

    Each effect is one number per seed, namely the mean over targets x' of one of two quantities:

    - "S_rel falls with distance": Spearman's rank correlation of S_rel and distance over the sources x. The claim is
      that the correlation is negative.
    - "a nearer x_l has a higher S_rel": the share of sources x_h for which some nearer source x_l has a higher S_rel.
      The nearest source is left out, because no source is nearer. The column `effect` says how many x_h have no such
      x_l. According to the hypothesis every x_h has such an x_l, but x_l may be any point of ℝⁿ. A finite set of
      sources therefore cannot refute the hypothesis. The data can show whether the share is higher than without a
      trend. Without a trend, the expected share is the mean of 1 − 1/(k+1) over x_h, where k is the number of sources
      nearer than x_h. For 200 sources this is 0.975.

    The sources are the same in all seeds. Therefore the interval combines Student's t over seeds with permutations of
    the sources: an effect must exceed the random variation over seeds and over sources. Each permutation is the same in
    all seeds and for all targets. The interval says nothing about other targets.

    The row "at all steps" is "supported" if the claim is supported at every step. The row is "contradicted" if the
    claim is contradicted at one step with an interval widened for the number of steps (Bonferroni). Otherwise the row
    is "undecided". The numbers in the row are those of the step that is least favourable to the claim.

    Args:
        frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
        distances: Columns target_id, source_id, distance. Add a column seed (or run) if distances differ between seeds,
            and a column step if distances differ between steps. If there are several metrics, add a column metric with
            their names, for example "input". Pairs and steps without a distance are left out.
        confidence: Level of the intervals.
        min_sources: Targets with fewer valid sources are left out.
        resamples: Number of permutations of the sources.
        seed: Seed of the permutations.

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`. A verdict is "undecided" if there are fewer than 3 seeds, or if no target
        has `min_sources` valid sources.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`. Also if a distance is negative or missing.
        OptionError: An option is outside its range.

    Example:
        Simulated S_rel = 1/distance of 20 sources in 3 seeds.

        >>> import numpy as np
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import proximity_trend
        >>> distances = pd.DataFrame({"source_id": range(20), "target_id": 99, "distance": np.arange(1.0, 21)})
        >>> noise = np.random.default_rng(0).uniform(0.5, 1.5, size=(3, 20))
        >>> pairs = distances.drop(columns="distance")
        >>> runs = [pairs.assign(run=f"run-{s}", seed=s, srel=noise[s] / distances["distance"]) for s in range(3)]
        >>> frame = pd.concat(runs).assign(step=0, measure="kl", update="sgd", estimator="exact", valid=True)
        >>> proximity_trend(frame, distances)[["claim", "verdict"]].values.tolist()[0]
        ['S_rel falls with distance', 'supported']
    """
    check_confidence(confidence)
    if min_sources < 3 or resamples < 100:
        raise OptionError(
            f"min_sources={min_sources}, resamples={resamples}: give min_sources >= 3 and resamples >= 100"
        )
    check_columns(distances, ["target_id", "source_id", "distance"])
    if not (distances["distance"].astype(float) >= 0).all():
        raise FrameError("distances must be numbers, none of them negative or missing")
    if "metric" not in distances:
        distances = distances.assign(metric="distance")
    rows: list[Row] = []
    generator = np.random.default_rng(seed)
    for key, part in groups(frame):
        about = {"hypothesis": "1.1(a)", **key}
        for name, of_metric in distances.groupby("metric", sort=False):
            metric = str(name)
            joined = join(part, of_metric, "distance")
            steps = []
            for step, of_step in joined.groupby("step"):
                time = cast(float, step)
                effects = _effects(of_step, time, min_sources, resamples, generator)
                if effects is not None:
                    steps.append(effects)
            if not steps:
                rows.append(
                    _no_step({**about, "scope": metric}, min_sources, confidence)
                )
            for of_claim in zip(*steps, strict=True):
                rows += _rows_of_claim(of_claim, about, metric, confidence)
    return table(rows)


def _no_step(
    about: Mapping[str, str],
    min_sources: int,
    confidence: float,
) -> Row:
    """Make the undecided row of a metric for which no target has enough sources."""
    names = {**about, "claim": TREND, "effect": ""}
    reason = f"no target has {min_sources} valid sources at any step"
    return decide(names, [], (-np.inf, 0.0), confidence, reason=reason)


def _effects(
    rows: pd.DataFrame,
    step: float,
    min_sources: int,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[_StepEffect, _StepEffect] | None:
    """Compute the effects of both claims at one step.

    Args:
        rows: Rows of the step with distances.
        step: The step.
        min_sources: Fewest valid sources of a target.
        resamples: Number of permutations.
        generator: Random generator that draws the permutations.

    Returns:
        The effects; None if no target has enough sources.
    """
    of_seeds = trends_of_seeds(rows, min_sources, resamples, generator)
    known = [trend for trend in of_seeds if trend is not None]
    if not known:
        return None
    mean = mean_trend(known)
    rank, share = np.array(
        [
            (np.nan, np.nan) if seed is None else (seed.rank, seed.share)
            for seed in of_seeds
        ]
    ).T
    trend = Claim(TREND, "mean rank correlation with distance", (-np.inf, 0.0))
    count = f"{mean.n_without:.3g} of a target's x_h have none"
    nearer = Claim(
        NEARER,
        f"share of x_h with a nearer, higher x_l; {count}",
        (mean.shuffled_share.mean(), np.inf),
    )
    return (
        _StepEffect(step, trend, rank, mean.shuffled_rank),
        _StepEffect(step, nearer, share, mean.shuffled_share),
    )


def _rows_of_claim(
    effects: Sequence[_StepEffect],
    about: Mapping[str, str],
    metric: str,
    confidence: float,
) -> list[Row]:
    """Make one row per step, and one row for all steps if there are several.

    Args:
        effects: Effect of one claim at each step.
        about: The columns hypothesis, measure, update, estimator.
        metric: Name of the distance.
        confidence: Level of the intervals.

    Returns:
        The rows.
    """
    rows = [effect.row(about, metric, confidence) for effect in effects]
    n_steps = len(effects)
    if n_steps == 1:
        return rows
    bonferroni = 1 - (1 - confidence) / n_steps
    widened = [effect.row(about, metric, bonferroni) for effect in effects]
    together = _all_steps(rows, widened, metric)
    together["scope"] = f"{metric}, at all {n_steps} steps"
    return [*rows, together]


def _all_steps(
    rows: list[Row],
    widened: list[Row],
    metric: str,
) -> Row:
    """Make the row for all steps together.

    Args:
        rows: Rows of the steps.
        widened: The same rows, with intervals widened for the number of steps.
        metric: Name of the distance.

    Returns:
        The row of the least favourable step, with the verdict and the reason for all steps.
    """
    contradicted = [row for row in widened if row["verdict"] == "contradicted"]
    candidates = contradicted or rows
    together = max(candidates, key=_disfavour).copy()
    verdict = together["verdict"]
    are_all_supported = all(row["verdict"] == "supported" for row in rows)
    if verdict == "supported" and not are_all_supported:
        together["verdict"] = "undecided"
        together["reason"] = "the claim is not supported at every step"
    elif verdict == "contradicted" and not contradicted:
        alone = f"contradicted at one of {len(rows)} steps alone"
        together["verdict"] = "undecided"
        together["reason"] = (
            f"{alone}, but not with intervals widened for the number of steps"
        )
    else:
        prefix = f"{metric}, "
        step = together["scope"].removeprefix(prefix)
        together["reason"] = f"{step}: {together['reason']}"
    return together


def _disfavour(row: Row) -> float:
    """Return how strongly the effect of a step speaks against the claim; infinity if the effect is not finite."""
    is_trend = row["claim"] == TREND
    effect = row["effect_size"] if is_trend else row["claim_low"] - row["effect_size"]
    return effect if np.isfinite(effect) else np.inf
