"""The claim on classifiers (Sections 1.3 and 2.1): intra-class S^{k,smooth} is above inter-class, and constant."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import DegenerateDataWarning, bootstrap

from srel_tf.errors import FrameError
from srel_tf.frames.schema import with_name
from srel_tf.hypotheses.series import NEGLIGIBLE, Cube, cube, groups, log2, slopes
from srel_tf.hypotheses.verdicts import (
    Claim,
    Effect,
    Row,
    check_confidence,
    of_bootstrap,
    table,
)

CONSTANT = 0.5  # Bound on the log₂ change: "relatively constant" means a factor of less than √2 over the training.
MIN_STEPS, MIN_EXAMPLES = 3, 8
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
        source: Number of the source of each pair, [pair].
        target: Number of the target of each pair, [pair].
    """

    srel: np.ndarray
    measured: np.ndarray
    source: np.ndarray
    target: np.ndarray


def class_claim(
    frame: pd.DataFrame,
    confidence: float = 0.95,
    diagonal: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Check the claim on classifiers: one row per measure, update rule, estimator and part of the claim.

    Each effect is one number per seed. For a source class c, intra is S(c, c), and inter is S(c', c) for each other
    class c'. S^{k,smooth} is computed as by `srel_tf.smooth`. A class mean counts as missing if less than half of its
    entries are valid. Changes are least-squares slopes of log₂ S^{k,smooth} times the measured span, averaged over
    classes. The bounds are given in `claim_low` and `claim_high`.

    The interval combines Student's t over seeds with a bootstrap over examples within their classes: an example that
    several seeds measured has one weight in all of them, as source and as target.

    Args:
        frame: S_rel frame of several seeds with classes (`srel_tf.frames.COLUMNS`).
        confidence: Level of the intervals.
        diagonal: Whether to include the pairs of an example with itself, as the paper's Definition 3 does. Their S_rel
            is 1 for every net, which alone lifts intra above inter if S_rel < 1. By default they are left out.
        resamples: Number of resamples of the bootstrap over examples.
        seed: Seed of the bootstrap.

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for fewer than 3 seeds or 3 steps, or a class of less than 8
        examples.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`, or the frame has fewer than two classes.
        OptionError: `confidence` is not in [0.5, 1).

    Example:
        Simulated S_rel: 1 within the two classes of 8 examples, 1/2 between them, in 3 seeds at 3 steps.

        >>> import numpy as np
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import class_claim
        >>> run, step, source, target = (index.ravel() for index in np.indices((3, 3, 16, 16)))
        >>> frame = pd.DataFrame({"run": run, "seed": run, "step": step, "source_id": source, "target_id": target})
        >>> frame = frame.assign(source_class=source // 8, target_class=target // 8)
        >>> is_intra = frame["source_class"] == frame["target_class"]
        >>> noise = np.random.default_rng(0).uniform(0.9, 1.1, size=len(frame))
        >>> frame = frame.assign(srel=np.where(is_intra, 1.0, 0.5) * noise, valid=True)
        >>> verdicts = class_claim(frame.assign(measure="kl", update="sgd", estimator="exact"))
        >>> verdicts.set_index("claim")["verdict"]["intra above inter"]
        'supported'
    """
    check_confidence(confidence)
    rows: list[Row] = []
    generator = np.random.default_rng(seed)
    # `groups` checks the frame, but leaves the diagonal out.
    for key, _ in groups(frame):
        part = _rows_of_group(frame, key, diagonal)
        class_of = _classes(part)
        sizes = class_of.astype(str).value_counts()
        least = int(sizes.min())
        reason = ""
        if least < MIN_EXAMPLES:
            reason = f"a class has {least} examples: {MIN_EXAMPLES} are needed"
        about = {
            "hypothesis": "classification",
            **key,
            "scope": f"{len(sizes)} classes",
        }
        runs = [cube(of_run) for _, of_run in part.groupby("replicate")]
        of_seeds, draws = _effects(runs, class_of, resamples, generator)
        for claim, values, draws_of_claim in zip(CLAIMS, of_seeds, draws, strict=True):
            shared = of_bootstrap(draws_of_claim, least, confidence)
            rows.append(Effect(claim, values, shared).row(about, confidence, reason))
    return table(rows)


def _rows_of_group(
    frame: pd.DataFrame,
    key: dict[str, str],
    diagonal: bool,
) -> pd.DataFrame:
    """Rows of one group, with a column `replicate`, and NaN for invalid S_rel.

    Args:
        frame: The whole frame.
        key: Probe, measure, update rule and estimator.
        diagonal: Whether to keep the pairs of an example with itself.

    Returns:
        The rows.
    """
    frame = with_name(frame)
    part = frame[(frame[list(key)] == list(key.values())).all(axis=1)]
    if not diagonal:
        part = part[part["source_id"] != part["target_id"]]
    seeds = part["seed"].astype("string").fillna("")
    is_valid = part["valid"].eq(True).fillna(False)
    srel = part["srel"].where(is_valid)
    return part.assign(
        replicate=part["run"].astype(str) + "/" + seeds,
        srel=srel.replace([np.inf, -np.inf], np.nan),
    )


def _classes(part: pd.DataFrame) -> pd.Series:
    """Class of each example.

    Args:
        part: Rows with the ids and classes of sources and targets.

    Returns:
        Classes, indexed by id.

    Raises:
        FrameError: An example has no class or two classes, or the frame has only one class.
    """
    columns = ["id", "class"]
    sources = part[["source_id", "source_class"]].set_axis(columns, axis=1)
    targets = part[["target_id", "target_class"]].set_axis(columns, axis=1)
    named = pd.concat([sources, targets]).drop_duplicates()
    is_empty = named["class"].isna() | (named["class"].astype(str) == "")
    n_classes = part["source_class"].nunique()
    if is_empty.any() or n_classes < 2:
        raise FrameError(
            "the claim compares classes: source_class must hold at least two names, and none may be empty"
        )
    is_second = named["id"].duplicated()
    if is_second.any():
        first = named.loc[is_second, "id"].iloc[0]
        raise FrameError(f"example {first!r} belongs to two classes")
    return named.set_index("id")["class"].sort_index(key=lambda ids: ids.astype(str))


def _effects(
    runs: Sequence[Cube],
    class_of: pd.Series,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Effects of each seed, and their means over seeds in resamples of the examples of each class.

    Args:
        runs: S_rel of each seed.
        class_of: Class of each example id.
        resamples: Number of resamples; each keeps the number of examples of a class.
        generator: Source of the resamples.

    Returns:
        The effects [claim, seed], and their means [claim, resamples]; no resamples if a class has one example.
    """
    codes = np.unique(class_of.to_numpy(str), return_inverse=True)[1]
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]

    def effects_of_seeds(*drawn: np.ndarray) -> np.ndarray:
        """Compute effects, [claim, seed, draw], from the drawn examples of each class, [draw, size of the class]."""
        weights = _class_weights(drawn, len(codes))
        of_runs = [_effects_of_run(run, class_of.index, weights) for run in runs]
        return np.stack(of_runs, axis=1)

    effects = effects_of_seeds(*(rows[None] for rows in members))[:, :, 0]
    if min(len(rows) for rows in members) < 2:
        return effects, np.empty((len(CLAIMS), 0))
    # The mean in each resample is over the seeds that have an effect.
    is_judged = np.isfinite(effects)
    n_judged = np.maximum(is_judged.sum(axis=1), 1)

    def mean_effects(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """Means over seeds, [claim, draw], or [claim] for one draw."""
        of_seeds = effects_of_seeds(*(np.atleast_2d(rows) for rows in drawn))
        total = np.where(is_judged[..., None], of_seeds, 0).sum(axis=1)
        means = total / n_judged[:, None]
        return means if drawn[0].ndim == 2 else means[:, 0]

    with warnings.catch_warnings():
        # A resample without an effect is NaN; `of_bootstrap` leaves it out.
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
    """Count how often each example was drawn, [draw, class, example], from [draw, size of the class] for each class."""
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
    """Effects of one seed in each draw.

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
    """Log₂ S^{k,smooth} of each class pair.

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
    """Weighted sums of values [pair] over class pairs, [draw, source class, target class]."""
    n_examples = by_class.shape[2]
    matrix = np.zeros((n_examples, n_examples))
    matrix[entries.source, entries.target] = values
    return by_class @ matrix @ by_class.transpose(0, 2, 1)


def _effects_of_means(logs: np.ndarray, steps: np.ndarray) -> dict[Claim, np.ndarray]:
    """Effects of one seed in each draw.

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
        # Without a valid gap or curve, the mean is NaN.
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
    """Mean over curves of slope times span.

    Args:
        curves: [draw, curve, step].
        steps: [step].

    Returns:
        [draw]; NaN if no curve has three steps.
    """
    is_known = np.isfinite(curves)
    has_enough = is_known.sum(axis=2, keepdims=True) >= MIN_STEPS
    curves = np.where(has_enough, curves, np.nan)
    last = np.where(is_known, steps, -np.inf).max(axis=2)
    first = np.where(is_known, steps, np.inf).min(axis=2)
    span = last - first
    change = slopes(curves, np.broadcast_to(steps, curves.shape)) * span
    return np.nanmean(change, axis=1)
