"""Hypothesis 1.1(a): at a fixed x' and time, S_rel(x', x) has a downward trend as x gets farther away from x'."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from srel_tf.errors import FrameError, OptionError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.series import cube, groups
from srel_tf.hypotheses.verdicts import (
    Bounds,
    Row,
    check_confidence,
    decide,
    of_permutations,
    table,
)

TREND = "S_rel falls with distance"
NEARER = "a nearer x_l has a higher S_rel, more often than by chance"

_RANGE = {TREND: (-1.0, 1.0), NEARER: (0.0, 1.0)}  # Values that an effect can have.


class Effect(NamedTuple):
    """Effect of one claim at one step.

    Attributes:
        of_seeds: One number a seed, [seed].
        shuffled: Mean over seeds in each permutation of the sources, [resamples].
        bounds: The claim.
        name: What was computed.
    """

    of_seeds: np.ndarray
    shuffled: np.ndarray
    bounds: Bounds
    name: str


class _Trend(NamedTuple):
    """Statistics of one target, or their means over the targets of one seed.

    Attributes:
        rank: Rank correlation of S_rel and distance.
        shuffled_rank: The same in each permutation of the sources, [resamples].
        nearer: Share of x_h with a nearer x_l of higher S_rel, and number of x_h without, [2].
        shuffled_nearer: The same in each permutation of the sources, [resamples, 2].
    """

    rank: np.ndarray
    shuffled_rank: np.ndarray
    nearer: np.ndarray
    shuffled_nearer: np.ndarray


def proximity_trend(
    frame: pd.DataFrame,
    distances: pd.DataFrame,
    confidence: float = 0.95,
    min_sources: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Check Hypothesis 1.1(a): one row a metric, step and claim, and one a metric and claim for all steps together.

    Each effect is one number a seed, the mean over targets x' of

    - "S_rel falls with distance": Spearman's rank correlation of S_rel and distance over the sources x; claimed < 0;
    - "a nearer x_l has a higher S_rel": the share of x_h for which some nearer x_l has a higher S_rel. The nearest x is
      left out, since none is nearer. `effect` says how many x_h have no such x_l. The hypothesis says this of all x_h,
      but also of all x in ℝⁿ: a finite set of points cannot refute it. The data can show whether the share is above
      that of sources without a trend, 1 − mean 1/(k+1) over the numbers k of nearer ones: 0.975 for 200 sources.

    All seeds share the sources. So the interval joins Student's t over seeds with the permutations of the sources,
    which are the same in all seeds and for all targets: an effect must be beyond what both leave to chance. It says
    nothing about other targets. "at all steps" is supported if every step is, which needs no wider intervals. It is
    contradicted if one step is with an interval widened for their number (Bonferroni). Otherwise the row shows the
    least favourable step.

    Args:
        frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
        distances: Columns target_id, source_id, distance; if distances differ between them, also seed (or run), step,
            and metric (a name, "input" say). Pairs and steps without a distance are left out.
        confidence: Level of the intervals.
        min_sources: A target with fewer valid sources is left out.
        resamples: Number of permutations of the sources.
        seed: Seed of the permutations.

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for less than 3 seeds or `min_sources`.

    Raises:
        FrameError: The frame or the distances do not fit.
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
            f"min_sources={min_sources}, resamples={resamples}: give at least 3 and 100"
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
            steps = _effects_of_steps(joined, min_sources, resamples, generator)
            if steps:
                rows += _verdicts(steps, {**about, "claim": TREND}, metric, confidence)
                rows += _verdicts(steps, {**about, "claim": NEARER}, metric, confidence)
            else:
                rows.append(
                    _no_step({**about, "scope": metric}, min_sources, confidence)
                )
    return table(rows)


def _no_step(
    about: Mapping[str, str],
    min_sources: int,
    confidence: float,
) -> Row:
    """Undecided row of a metric for which no target has enough sources."""
    names = {**about, "claim": TREND, "effect": ""}
    reason = f"no target has {min_sources} valid sources at any step"
    return decide(names, [], (-np.inf, 0.0), confidence, reason=reason)


def join(
    part: pd.DataFrame,
    values: pd.DataFrame,
    column: str,
) -> pd.DataFrame:
    """Add a column to the rows of a group, matched by all identifying columns that `values` has.

    Args:
        part: Rows of a group.
        values: The column, and some of the columns run, seed, step, source_id, target_id.
        column: Name of the column.

    Returns:
        The rows that have a value.

    Raises:
        FrameError: A pair has several values, or no pair has one.
    """
    on = [
        name
        for name in ("run", "seed", "step", "source_id", "target_id")
        if name in values
    ]
    is_second = values.duplicated(on)
    if is_second.any():
        raise FrameError(
            f"{is_second.sum()} pairs have a second {column}, told apart by {on}"
        )
    # Seeds and steps are compared as floats: pandas does not merge a frame's nullable integers with NumPy's.
    types = {name: float for name in on if name in ("seed", "step")}
    left = part.astype(types)
    right = values[[*on, column]].astype(types)
    joined = left.merge(right, on=on)
    if joined.empty:
        raise FrameError(
            f"no row of the frame has a {column}: source_id, target_id and step must agree in both"
        )
    return joined


def _effects_of_steps(
    joined: pd.DataFrame,
    min_sources: int,
    resamples: int,
    generator: np.random.Generator,
) -> list[tuple[float, dict[str, Effect]]]:
    """Effects of each step at which some target has enough sources.

    Args:
        joined: Rows of a group with distances.
        min_sources: Fewest valid sources of a target.
        resamples: Number of permutations.
        generator: Source of the permutations.

    Returns:
        Steps and {claim: effect}.
    """
    found = []
    for step, rows in joined.groupby("step"):
        effects = _effects(rows, min_sources, resamples, generator)
        if effects is not None:
            found.append((cast(float, step), effects))
    return found


def _effects(
    rows: pd.DataFrame,
    min_sources: int,
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, Effect] | None:
    """Effects of one step.

    Args:
        rows: Rows of one step with distances.
        min_sources: Fewest valid sources of a target.
        resamples: Number of permutations.
        generator: Source of the permutations.

    Returns:
        {claim: effect}; None if no target has enough sources.
    """
    srel = by_source(rows, "srel")
    distance = by_source(rows, "distance")
    sources = np.arange(srel.shape[2])
    unshuffled = np.tile(sources, (resamples, 1))
    orders = generator.permuted(unshuffled, axis=1)  # [resamples, source]
    of_seeds = [
        _trend_of_seed(*arrays, orders, min_sources)
        for arrays in zip(srel, distance, strict=True)
    ]
    known = [trend for trend in of_seeds if trend is not None]
    if not known:
        return None

    rank = np.array([np.nan if trend is None else trend.rank for trend in of_seeds])
    nearer = np.array(
        [(np.nan, np.nan) if trend is None else trend.nearer for trend in of_seeds]
    )
    share, n_without = nearer.T
    shuffled_rank = np.mean([trend.shuffled_rank for trend in known], axis=0)
    shuffled_share = np.mean([trend.shuffled_nearer[:, 0] for trend in known], axis=0)
    mean_without = np.nanmean(n_without)
    count = f"{mean_without:.3g} of a target's x_h have none"
    return {
        TREND: Effect(
            of_seeds=rank,
            shuffled=shuffled_rank,
            bounds=(-np.inf, 0.0),
            name="mean rank correlation with distance",
        ),
        NEARER: Effect(
            of_seeds=share,
            shuffled=shuffled_share,
            bounds=(shuffled_share.mean(), np.inf),
            name=f"share of x_h with a nearer, higher x_l; {count}",
        ),
    }


def _trend_of_seed(
    srel: np.ndarray,
    distance: np.ndarray,
    orders: np.ndarray,
    min_sources: int,
) -> _Trend | None:
    """Mean statistics over the targets of one seed.

    Args:
        srel: [target, source].
        distance: [target, source].
        orders: Permutations of the sources, [resamples, source].
        min_sources: Fewest valid sources of a target.

    Returns:
        The means; None if no target has enough sources.
    """
    is_known = np.isfinite(srel) & np.isfinite(distance)
    n_known = is_known.sum(axis=1)  # [target]
    has_enough = n_known >= min_sources
    if not has_enough.any():
        return None
    targets = np.flatnonzero(has_enough)
    of_targets = [
        _trend_of_target(srel[target], distance[target], orders) for target in targets
    ]

    means = [np.mean(values, axis=0) for values in zip(*of_targets, strict=True)]
    return _Trend(*means)


def _trend_of_target(
    srel: np.ndarray,
    distance: np.ndarray,
    orders: np.ndarray,
) -> _Trend:
    """Statistics of one target, from S_rel [source], distance [source] and permutations [resamples, source]."""
    shuffled = srel[orders]
    return _Trend(
        rank=correlation(distance, srel),
        shuffled_rank=correlation(distance, shuffled),
        nearer=higher(distance, srel),
        shuffled_nearer=higher(distance, shuffled),
    )


def by_source(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Arrange a column of the rows of one step as [seed, target, source], with NaN for missing rows."""
    whole = cube(rows.assign(srel=rows[name]))
    source, sources = whole.pairs.get_level_values(0).factorize()
    target, targets = whole.pairs.get_level_values(1).factorize()
    values = np.full((len(whole.seeds), len(targets), len(sources)), np.nan)
    values[:, target, source] = whole.srel[:, :, 0]
    return values


def correlation(distance: np.ndarray, srel: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of distance and each row of S_rel, over the entries that both have.

    The rows must be permutations of each other. The distances are therefore ranked once, and a missing entry of a
    shuffled row gets the middle rank.

    Args:
        distance: [n].
        srel: [..., n].

    Returns:
        [...]; NaN if one of the two is constant.
    """
    rows = np.atleast_2d(srel)
    if srel.ndim == 1:
        distance = np.where(np.isfinite(srel), distance, np.nan)
        rows = np.where(np.isfinite(distance), rows, np.nan)
    (distance_ranks,) = _centred_ranks(distance[None])
    srel_ranks = _centred_ranks(rows)
    distance_square = (distance_ranks**2).sum()
    srel_squares = (srel_ranks**2).sum(axis=1)
    norms = np.sqrt(distance_square * srel_squares)
    covariances = srel_ranks @ distance_ranks
    correlations = covariances / np.where(norms > 0, norms, np.nan)
    return correlations if srel.ndim > 1 else correlations[0]


def _centred_ranks(rows: np.ndarray) -> np.ndarray:
    """Ranks in each row of [m, n], minus their mean; 0 for NaN."""
    is_known = np.isfinite(rows)
    ranks = rankdata(np.where(is_known, rows, np.inf), axis=1)
    mean_rank = (is_known.sum(axis=1, keepdims=True) + 1) / 2
    return np.where(is_known, ranks - mean_rank, 0)


def higher(distance: np.ndarray, srel: np.ndarray) -> np.ndarray:
    """Share of the sources x_h of one target for which a nearer x_l has a higher S_rel, and number of the others.

    Args:
        distance: [n].
        srel: [..., n].

    Returns:
        Share and number, [..., 2].
    """
    order = np.argsort(distance, kind="stable")
    order = order[np.isfinite(distance[order])]
    distance = distance[order]
    srel = srel[..., order]
    n_nearer = np.searchsorted(
        distance, distance, side="left"
    )  # Strictly nearer sources.
    known = np.where(np.isfinite(srel), srel, -np.inf)
    highest_so_far = np.maximum.accumulate(known, axis=-1)
    highest_nearer = highest_so_far[..., n_nearer - 1]

    has_nearer = (n_nearer > 0) & np.isfinite(highest_nearer)
    is_counted = has_nearer & np.isfinite(srel)
    is_without = is_counted & ~(highest_nearer > srel)
    n_without = is_without.sum(axis=-1)
    n_counted = is_counted.sum(axis=-1)
    share = 1 - n_without / np.maximum(n_counted, 1)
    return np.stack([share, n_without], axis=-1)


def _verdicts(
    steps: Sequence[tuple[float, dict[str, Effect]]],
    about: Mapping[str, str],
    metric: str,
    confidence: float,
) -> list[Row]:
    """Make one row a step, and one for all of them if there are several.

    Args:
        steps: Steps and {claim: effect}.
        about: The columns hypothesis, claim, measure, update, estimator.
        metric: Name of the distance.
        confidence: Level of the intervals.

    Returns:
        The rows.
    """
    rows = _rows_of_steps(steps, about, metric, confidence)
    n_steps = len(steps)
    if n_steps == 1:
        return rows
    error_rate = (1 - confidence) / n_steps
    bonferroni = 1 - error_rate
    widened = _rows_of_steps(steps, about, metric, bonferroni)
    together = _all_steps(rows, widened, metric)
    together["scope"] = f"{metric}, at all {n_steps} steps"
    return [*rows, together]


def _rows_of_steps(
    steps: Sequence[tuple[float, dict[str, Effect]]],
    about: Mapping[str, str],
    metric: str,
    confidence: float,
) -> list[Row]:
    """One row a step, with its interval clipped to the values that the effect can have."""
    claim = about["claim"]
    rows = []
    for step, effects in steps:
        effect = effects[claim]
        names = {**about, "scope": f"{metric}, step {step:g}", "effect": effect.name}
        shared = of_permutations(effect.shuffled, confidence)
        row = decide(names, effect.of_seeds, effect.bounds, confidence, shared)
        lowest, highest = _RANGE[claim]
        for end in ("ci_low", "ci_high"):
            row[end] = np.clip(row[end], lowest, highest)
        rows.append(row)
    return rows


def _all_steps(
    rows: list[Row],
    widened: list[Row],
    metric: str,
) -> Row:
    """The row for all steps together.

    Args:
        rows: Rows of the steps.
        widened: The same, with intervals widened for their number.
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
        together["reason"] = "not every step is supported"
    elif verdict == "contradicted" and not contradicted:
        alone = f"contradicted at one of {len(rows)} steps alone"
        together["verdict"] = "undecided"
        together["reason"] = f"{alone}, not with intervals widened for their number"
    else:
        prefix = f"{metric}, "
        step = together["scope"].removeprefix(prefix)
        together["reason"] = f"{step}: {together['reason']}"
    return together


def _disfavour(row: Row) -> float:
    """Distance of the effect of a step towards refuting the claim; infinite for a step without an effect."""
    is_trend = row["claim"] == TREND
    effect = row["effect_size"] if is_trend else row["claim_low"] - row["effect_size"]
    return effect if np.isfinite(effect) else np.inf
