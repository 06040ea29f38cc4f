"""The claim on classifiers (Sections 1.3 and 2.1): intra-class S^{k,smooth} is above inter-class, and constant."""

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import with_name
from srel_tf.hypotheses.series import NEGLIGIBLE, Cube, cube, groups, log2, slopes
from srel_tf.hypotheses.verdicts import (
    Claim,
    Row,
    check_confidence,
    decide,
    of_bootstrap,
    table,
)

CONSTANT = 0.5  # In log₂: "relatively constant" means a change by less than a factor of √2 over the training.
MIN_STEPS, MIN_EXAMPLES = 3, 8
CLAIMS = (
    Claim(
        "intra above inter at (almost) all times",
        "5% quantile of log₂ (intra / inter)",
        (0.0, np.inf),
    ),
    Claim(
        "intra above inter",
        "log₂ (intra / inter), mean over class pairs and steps",
        (NEGLIGIBLE, np.inf),
    ),
    Claim(
        "intra constant in time",
        "log₂ change of intra over the measured span",
        (-CONSTANT, CONSTANT),
    ),
    Claim(
        "inter decreasing",
        "log₂ change of inter over the measured span",
        (-np.inf, -NEGLIGIBLE),
    ),
    Claim(
        "inter decreases more than intra",
        "log₂ change of inter minus that of intra",
        (-np.inf, -NEGLIGIBLE),
    ),
)


class _Entries(NamedTuple):
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
    """Check the claim on classifiers: one row a measure, update rule, estimator and part of the claim.

    Each effect is one number a seed. For a source class c, intra is S(c, c), and inter is S(c', c) for each other class
    c'. S^{k,smooth} is that of `srel_tf.smooth`. A class mean counts as missing if less than half of its entries are
    valid. Changes are least-squares slopes of log₂ S^{k,smooth} times the measured span, averaged over classes. The
    bounds stand in `claim_low` and `claim_high`.

    The interval joins Student's t over seeds with the bootstrap over examples within their classes: an example that
    several seeds measured has one weight in all of them, as source and as target.

    Args:
        frame: S_rel frame of several seeds with classes (`srel_tf.frames.COLUMNS`).
        confidence: Level of the intervals.
        diagonal: Whether the pairs of an example with itself count, as in the paper's Definition 3. Their S_rel is 1
            for every net: this alone lifts intra above inter if S_rel < 1. They are left out by default.
        resamples: Number of resamples of the bootstrap over examples.
        seed: Seed of the bootstrap.

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for less than 3 seeds or 3 steps, or a class of less than 8
        examples.

    Raises:
        FrameError: The frame does not fit, or has less than two classes.
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
        effects, draws = _effects(part, class_of, resamples, generator)
        for i, claim in enumerate(CLAIMS):
            shared = of_bootstrap(draws[:, i], least, confidence)
            row = decide(
                {**about, "claim": claim.name, "effect": claim.effect},
                effects[:, i],
                claim.bounds,
                confidence,
                shared=shared,
                reason=reason,
            )
            rows.append(row)
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
        FrameError: An example has no class or two, or there is only one class.
    """
    columns = ["id", "class"]
    sources = part[["source_id", "source_class"]].set_axis(columns, axis=1)
    targets = part[["target_id", "target_class"]].set_axis(columns, axis=1)
    named = pd.concat([sources, targets]).drop_duplicates()
    is_empty = named["class"].isna() | (named["class"].astype(str) == "")
    n_classes = part["source_class"].nunique()
    if is_empty.any() or n_classes < 2:
        raise FrameError(
            "the claim compares classes: source_class must name at least two, and none may be empty"
        )
    is_second = named["id"].duplicated()
    if is_second.any():
        first = named.loc[is_second, "id"].iloc[0]
        raise FrameError(f"example {first!r} belongs to two classes")
    return named.set_index("id")["class"].sort_index(key=lambda ids: ids.astype(str))


def _effects(
    part: pd.DataFrame,
    class_of: pd.Series,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Effects of each seed, and their means in the resamples.

    Args:
        part: Rows of one group.
        class_of: Class of each example id.
        resamples: Number of resamples of the examples.
        generator: Source of the resamples.

    Returns:
        The effects [seed, claim], and their mean over seeds in each resample of the examples [resamples, claim].
    """
    by_class = _class_weights(class_of, resamples, generator)
    ids = class_of.index
    runs = [cube(rows) for _, rows in part.groupby("replicate")]
    of_runs = [_effects_of_run(run, ids, by_class) for run in runs]
    of_seeds = np.array(of_runs)  # [seed, draw, claim]
    effects = of_seeds[:, 0]
    # The mean in each resample is over the seeds that have an effect.
    is_judged = np.isfinite(effects)
    draws = of_seeds[:, 1:]
    judged_draws = np.where(is_judged[:, None], draws, 0)

    total = judged_draws.sum(axis=0)
    count = np.maximum(is_judged.sum(axis=0), 1)
    mean_draws = total / count
    return effects, mean_draws


def _class_weights(
    class_of: pd.Series,
    resamples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Weight of each example in each draw, for each class.

    Args:
        class_of: Class of each example id.
        resamples: Number of resamples; each keeps the number of examples of a class.
        generator: Source of the resamples.

    Returns:
        [1 + resamples, class, example]; the first draw has every example once. 0 for examples of other classes.
    """
    names, codes = np.unique(class_of.to_numpy(str), return_inverse=True)
    weights = np.ones((1 + resamples, len(codes)))
    for code in range(len(names)):
        members = np.flatnonzero(codes == code)
        probabilities = np.full(len(members), 1 / len(members))
        weights[1:, members] = generator.multinomial(
            len(members), probabilities, resamples
        )
    is_member = codes == np.arange(len(names))[:, None]  # [class, example]
    return weights[:, None] * is_member


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
        [draw, claim].
    """
    source = ids.get_indexer(run.pairs.get_level_values(0))
    target = ids.get_indexer(run.pairs.get_level_values(1))
    logs = []
    for step in range(len(run.steps)):
        entries = _Entries(
            run.srel[0, :, step], run.measured[0, :, step], source, target
        )
        logs.append(_class_means(entries, by_class))
    return _effects_of_means(np.stack(logs, axis=-1), run.steps)


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


def _effects_of_means(logs: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Effects of one seed, in the order of `CLAIMS`.

    Args:
        logs: Log₂ S^{k,smooth}, [draw, source class, target class, step].
        steps: [step].

    Returns:
        [draw, claim].
    """
    is_intra = np.eye(logs.shape[1], dtype=bool)
    intra = logs[:, is_intra]  # [draw, class, step]
    inter = logs[:, ~is_intra]  # [draw, class pair, step]
    gaps = (intra[:, :, None] - logs)[:, ~is_intra].reshape(len(logs), -1)
    quantile = np.nanquantile if np.isnan(gaps).any() else np.quantile
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # There may be no gap, or no curve.
        low_gap = quantile(gaps, 0.05, axis=1)
        mean_gap = np.nanmean(gaps, axis=1)
        change_intra = _change(intra, steps)
        change_inter = _change(inter, steps)
    effects = [
        low_gap,
        mean_gap,
        change_intra,
        change_inter,
        change_inter - change_intra,
    ]
    return np.stack(effects, axis=1)


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
