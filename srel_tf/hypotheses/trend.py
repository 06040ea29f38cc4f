"""Statistics on how S_rel falls with distance: a rank correlation and a share of sources.

Both are also computed for permuted sources.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, rankdata, spearmanr

from srel_tf.hypotheses.pair_values import by_source


@dataclass(frozen=True)
class Trend:
    """Statistics of one target, or their means over targets or seeds.

    Attributes:
        rank: Rank correlation of S_rel and distance.
        shuffled_rank: `rank` in each permutation of the sources, [resamples].
        share: Share of the sources x_h for which a nearer source x_l has a higher S_rel.
        shuffled_share: `share` in each permutation of the sources, [resamples].
        n_without: Number of x_h without such an x_l.
    """

    rank: float
    shuffled_rank: np.ndarray
    share: float
    shuffled_share: np.ndarray
    n_without: float


def mean_trend(trends: list[Trend]) -> Trend:
    """Compute the mean of each statistic."""
    columns = zip(*(vars(trend).values() for trend in trends), strict=True)
    return Trend(*(np.mean(values, axis=0) for values in columns))


def trends_of_seeds(
    rows: pd.DataFrame,
    min_sources: int,
    resamples: int,
    generator: np.random.Generator,
) -> list[Trend | None]:
    """Compute mean statistics over the targets of each seed at one step.

    Args:
        rows: Rows of one step with distances.
        min_sources: Targets with fewer valid sources are left out.
        resamples: Number of permutations of the sources, the same in all seeds and for all targets.
        generator: Random generator that draws the permutations.

    Returns:
        One entry per seed; None if no target has enough sources.
    """
    srel = by_source(rows, "srel")  # [seed, target, source]
    distance = by_source(rows, "distance")
    unshuffled = np.tile(np.arange(srel.shape[2]), (resamples, 1))
    orders = generator.permuted(unshuffled, axis=1)  # [resamples, source]
    n_known = (np.isfinite(srel) & np.isfinite(distance)).sum(axis=2)
    of_seeds = []
    for seed, has_enough in enumerate(n_known >= min_sources):
        trends = [
            trend_of_target(srel[seed, target], distance[seed, target], orders)
            for target in np.flatnonzero(has_enough)
        ]
        of_seeds.append(mean_trend(trends) if trends else None)
    return of_seeds


def trend_of_target(
    srel: np.ndarray,
    distance: np.ndarray,
    orders: np.ndarray,
) -> Trend:
    """Compute the statistics of one target.

    Args:
        srel: S_rel, [source].
        distance: Distance, [source].
        orders: Permutations of the sources, [resamples, source].

    Returns:
        The statistics.
    """
    share, n_without = higher(distance, srel)
    shuffled_share, _ = higher(distance, srel[orders])
    return Trend(
        rank=correlation(distance, srel),
        shuffled_rank=shuffled_correlation(distance, srel, orders),
        share=float(share),
        shuffled_share=shuffled_share,
        n_without=float(n_without),
    )


def correlation(distance: np.ndarray, srel: np.ndarray) -> float:
    """Compute Spearman's rank correlation of distance and S_rel, [n] each, over the entries at which both are finite.

    Returns:
        The correlation; NaN if distance or S_rel is constant.
    """
    is_known = np.isfinite(srel) & np.isfinite(distance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return spearmanr(distance[is_known], srel[is_known]).statistic


def shuffled_correlation(
    distance: np.ndarray, srel: np.ndarray, orders: np.ndarray
) -> np.ndarray:
    """Compute Spearman's rank correlation of distance and permutations of S_rel.

    A permutation of S_rel only permutes the ranks, so S_rel and distance are ranked once. In contrast,
    `scipy.stats.permutation_test` would rank every permutation. A missing entry gets the middle rank.

    Args:
        distance: [n].
        srel: [n].
        orders: Permutations of the entries of S_rel, [resamples, n].

    Returns:
        [resamples]; NaN if distance or S_rel is constant.
    """
    distance_ranks = _centred_ranks(distance)
    srel_ranks = _centred_ranks(srel)
    norm = np.linalg.norm(distance_ranks) * np.linalg.norm(srel_ranks)
    covariances = srel_ranks[orders] @ distance_ranks
    return covariances / (norm if norm > 0 else np.nan)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Compute ranks, [n], minus their mean; 0 for NaN."""
    ranks = rankdata(values, nan_policy="omit")
    return np.nan_to_num(ranks - np.nanmean(ranks))


def higher(distance: np.ndarray, srel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the share of sources x_h that have a nearer source x_l of higher S_rel, for one target.

    A source is not counted as an x_h if its S_rel is invalid, or if no nearer source has a valid S_rel.

    Args:
        distance: [n].
        srel: [..., n].

    Returns:
        The share, [...], and the number of x_h without such an x_l, [...].
    """
    order = np.argsort(distance, kind="stable")
    order = order[np.isfinite(distance[order])]
    distance = distance[order]
    srel = srel[..., order]
    n_nearer = np.searchsorted(distance, distance)  # Strictly nearer sources.
    known = np.where(np.isfinite(srel), srel, -np.inf)
    highest_so_far = np.maximum.accumulate(known, axis=-1)
    highest_nearer = highest_so_far[..., n_nearer - 1]

    has_nearer = (n_nearer > 0) & np.isfinite(highest_nearer)
    is_counted = has_nearer & np.isfinite(srel)
    is_without = is_counted & ~(highest_nearer > srel)
    n_without = is_without.sum(axis=-1)
    n_counted = is_counted.sum(axis=-1)
    share = 1 - n_without / np.maximum(n_counted, 1)
    return share, n_without
