"""Effects that decide the claim on classifiers, computed from intra- and inter-class S^{k,smooth} of each seed.

A bootstrap over the examples computes the same effects in resamples.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import DegenerateDataWarning, bootstrap

from srel_tf.hypotheses.series import NEGLIGIBLE, Cube, log2, slopes
from srel_tf.hypotheses.verdicts import Claim

MIN_STEPS = 3  # The change in time is computed only for curves with at least this many finite values.
# A curve is "relatively constant" if its log₂ changes by less than this number, that is, by less than a factor of √2.
CONSTANT = 0.5
ALMOST_ALWAYS = Claim(
    "intra above inter at (almost) all times",
    "5% quantile of log₂ (intra / inter)",
    (0.0, np.inf),
)
ABOVE = Claim(
    "intra above inter",
    "log₂ (intra / inter), mean over class pairs and steps",
    (NEGLIGIBLE, np.inf),
)
INTRA_CONSTANT = Claim(
    "intra constant in time",
    "log₂ change of intra over the measured span",
    (-CONSTANT, CONSTANT),
)
INTER_FALLS = Claim(
    "inter decreasing",
    "log₂ change of inter over the measured span",
    (-np.inf, -NEGLIGIBLE),
)
INTER_FALLS_MORE = Claim(
    "inter decreases more than intra",
    "log₂ change of inter minus that of intra",
    (-np.inf, -NEGLIGIBLE),
)
CLAIMS = (ALMOST_ALWAYS, ABOVE, INTRA_CONSTANT, INTER_FALLS, INTER_FALLS_MORE)


@dataclass(frozen=True)
class _Entries:
    """Entries of one measurement.

    Attributes:
        srel: S_rel, [pair]; NaN if it is invalid.
        measured: Whether the frame has a row for the pair, bool [pair].
        source: Index of the source of each pair, [pair].
        target: Index of the target of each pair, [pair].
    """

    srel: np.ndarray
    measured: np.ndarray
    source: np.ndarray
    target: np.ndarray


def class_effects(
    runs: Sequence[Cube],
    class_of: pd.Series,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the effects of each seed, and their means over seeds in bootstrap resamples of the examples.

    Args:
        runs: S_rel of each seed.
        class_of: Class of each example id.
        resamples: Number of resamples. Examples are drawn within classes, so each class keeps its size.
        generator: Random generator that draws the resamples.

    Returns:
        The effects [claim, seed], and their means in the resamples [claim, resamples]. The means are empty,
        [claim, 0], if a class has only one example.
    """
    codes = np.unique(class_of.to_numpy(str), return_inverse=True)[1]
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]

    def effects_of_draws(*drawn: np.ndarray) -> np.ndarray:
        """Compute the effects, [claim, seed, draw], from the examples drawn for each class, [draw, class size]."""
        weights = _class_weights(drawn, len(codes))
        of_runs = [_effects_of_run(run, class_of.index, weights) for run in runs]
        return np.stack(of_runs, axis=1)

    effects = effects_of_draws(*(rows[None] for rows in members))[:, :, 0]
    if min(len(rows) for rows in members) < 2:
        return effects, np.empty((len(CLAIMS), 0))
    # In every resample, the mean is over the same seeds: the seeds whose effect on the original examples is finite.
    is_judged = np.isfinite(effects)
    n_judged = np.maximum(is_judged.sum(axis=1), 1)

    def mean_effects(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """Compute the means over seeds, [claim, draw], or [claim] for one draw."""
        of_seeds = effects_of_draws(*(np.atleast_2d(rows) for rows in drawn))
        total = np.where(is_judged[..., None], of_seeds, 0).sum(axis=1)
        means = total / n_judged[:, None]
        return means if drawn[0].ndim == 2 else means[:, 0]

    with warnings.catch_warnings():
        # If an effect cannot be computed in a resample, it is NaN, and `of_bootstrap` ignores it.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            members,
            mean_effects,
            n_resamples=resamples,
            vectorized=True,
            method="percentile",
            random_state=generator,
        )
    return effects, result.bootstrap_distribution


def _class_weights(drawn: Sequence[np.ndarray], n_examples: int) -> np.ndarray:
    """Count how often each example was drawn, [draw, class, example].

    Args:
        drawn: Indices of the examples drawn for each class, [draw, class size] each.
        n_examples: Number of examples of all classes.

    Returns:
        The counts; 0 for examples of other classes.
    """
    n_draws = len(drawn[0])
    weights = np.zeros((n_draws, len(drawn), n_examples))
    for code, rows in enumerate(drawn):
        np.add.at(weights[:, code], (np.arange(n_draws)[:, None], rows), 1)
    return weights


def _effects_of_run(
    run: Cube,
    ids: pd.Index,
    by_class: np.ndarray,
) -> np.ndarray:
    """Compute the effects of one seed in each draw.

    Args:
        run: S_rel of one seed.
        ids: Ids of the examples, in the order of the weights.
        by_class: Weights, [draw, class, example].

    Returns:
        [claim, draw].
    """
    source = ids.get_indexer(run.pairs.get_level_values(0))
    target = ids.get_indexer(run.pairs.get_level_values(1))
    logs = []
    for srel, measured in zip(run.srel[0].T, run.measured[0].T, strict=True):
        entries = _Entries(srel, measured, source, target)
        logs.append(_class_means(entries, by_class))
    effects = _effects_of_means(np.stack(logs, axis=-1), run.steps)
    return np.array([effects[claim] for claim in CLAIMS])


def _class_means(entries: _Entries, by_class: np.ndarray) -> np.ndarray:
    """Compute log₂ S^{k,smooth} of each class pair.

    Args:
        entries: Entries of one measurement.
        by_class: Weights, [draw, class, example].

    Returns:
        [draw, source class, target class]; NaN if less than half of the entries are valid.
    """
    is_valid = np.isfinite(entries.srel)
    total = _sum_of_class_pairs(np.where(is_valid, entries.srel, 0), entries, by_class)
    n_valid = _sum_of_class_pairs(is_valid, entries, by_class)
    n_measured = _sum_of_class_pairs(entries.measured, entries, by_class)
    is_known = (n_valid > 0) & (n_valid >= n_measured / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = total / n_valid
    return log2(np.where(is_known, means, np.nan))


def _sum_of_class_pairs(
    values: np.ndarray,
    entries: _Entries,
    by_class: np.ndarray,
) -> np.ndarray:
    """Sum the weighted values of pairs, [pair], over each class pair, [draw, source class, target class]."""
    n_examples = by_class.shape[2]
    matrix = np.zeros((n_examples, n_examples))
    matrix[entries.source, entries.target] = values
    return by_class @ matrix @ by_class.transpose(0, 2, 1)


def _effects_of_means(logs: np.ndarray, steps: np.ndarray) -> dict[Claim, np.ndarray]:
    """Compute the effects of one seed in each draw from its class means.

    Args:
        logs: Log₂ S^{k,smooth}, [draw, source class, target class, step].
        steps: [step].

    Returns:
        {claim: effect in each draw, [draw]}.
    """
    is_intra = np.eye(logs.shape[1], dtype=bool)
    intra = logs[:, is_intra]  # [draw, class, step]
    inter = logs[:, ~is_intra]  # [draw, class pair, step]
    gaps = (intra[:, :, None] - logs)[:, ~is_intra].reshape(len(logs), -1)
    quantile = np.nanquantile if np.isnan(gaps).any() else np.quantile
    with warnings.catch_warnings():
        # NumPy warns if all gaps or all curves of a draw are NaN. The effect is then NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        low_gap = quantile(gaps, 0.05, axis=1)
        mean_gap = np.nanmean(gaps, axis=1)
        change_intra = _change(intra, steps)
        change_inter = _change(inter, steps)
    return {
        ALMOST_ALWAYS: low_gap,
        ABOVE: mean_gap,
        INTRA_CONSTANT: change_intra,
        INTER_FALLS: change_inter,
        INTER_FALLS_MORE: change_inter - change_intra,
    }


def _change(curves: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Compute the change of each curve as its slope times its span, and average over curves.

    Args:
        curves: [draw, curve, step].
        steps: [step].

    Returns:
        [draw]; NaN if no curve has finite values at `MIN_STEPS` steps.
    """
    is_known = np.isfinite(curves)
    has_enough = is_known.sum(axis=2, keepdims=True) >= MIN_STEPS
    curves = np.where(has_enough, curves, np.nan)
    last = np.where(is_known, steps, -np.inf).max(axis=2)
    first = np.where(is_known, steps, np.inf).min(axis=2)
    span = last - first
    change = slopes(curves, np.broadcast_to(steps, curves.shape)) * span
    return np.nanmean(change, axis=1)
