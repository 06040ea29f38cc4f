"""S_rel frames as arrays [seed, pair, step]. Frames are checked, and inconsistent data are refused."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns, with_name

GROUP = ["name", "measure", "update", "estimator"]
NEEDED = [
    *("run", "seed", "step", "measure", "update", "estimator"),
    *("source_id", "target_id", "srel", "valid"),
]
# A change of log₂ S_rel by at most this number is negligible: S_rel changes by 0.7% or less.
NEGLIGIBLE = 0.01
# A lower bound that falls by less than a tenth counts as non-decreasing.
FALL = np.log2(1.1)
FLOOR = -64.0  # Lowest log₂ S_rel. A valid S_rel of 0 gets this value and does not count as missing.

_ENTRY = ["replicate", "step", "source_id", "target_id"]


class Cube(NamedTuple):
    """S_rel of one group as an array.

    Attributes:
        srel: S_rel, [seed, pair, step]; NaN if it is invalid or was not measured.
        measured: Whether the frame has a row for the entry, bool [seed, pair, step].
        seeds: Names of the runs, as in `replicates`.
        pairs: (source_id, target_id) of each pair.
        steps: Steps, ascending.
    """

    srel: np.ndarray
    measured: np.ndarray
    seeds: list[str]
    pairs: pd.MultiIndex
    steps: np.ndarray


def groups(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Check a frame, leave out its diagonal, and split it by probe, measure, update rule and estimator.

    Rows may come in any order. A replicate is one run with one seed.

    Args:
        frame: S_rel frame with the columns `NEEDED`. If there is no column `name`, the name of every row is "".

    Yields:
        {name, measure, update, estimator}, and the rows of this group with a further column `replicate`.

    Raises:
        FrameError: In any of these cases:

            - The frame lacks columns, or has no pairs of two different examples.
            - A step is missing, or steps or S_rel are not numbers.
            - `valid` holds anything other than True and False.
            - An S_rel is negative.
            - A seed belongs to several runs.
            - An entry has two rows.
            - A step was measured with several η.
            - Two runs have identical S_rel.
    """
    check_columns(frame, NEEDED)
    is_pair = frame["source_id"] != frame["target_id"]
    pairs = frame[is_pair]
    if pairs.empty:
        raise FrameError(
            "the frame has no pairs of two different examples, so there is nothing to check: measure such pairs"
        )
    checked = with_name(pairs).assign(
        srel=_checked_srel(pairs),
        step=_checked_steps(pairs),
        replicate=replicates(pairs),
    )
    grouped = checked.groupby(
        GROUP,
        dropna=False,
        sort=False,
        observed=True,
    )
    for key, rows in grouped:
        _check_entries(rows)
        _check_replicates(rows)
        names = cast(tuple[str, ...], key)
        yield dict(zip(GROUP, names, strict=True)), rows


def _checked_srel(frame: pd.DataFrame) -> pd.Series:
    """Return S_rel with NaN for invalid and infinite entries; raise `FrameError` for negative entries."""
    is_valid = _as_bool(frame["valid"])
    srel = _as_numbers(frame, "srel").where(is_valid)
    srel = srel.replace([np.inf, -np.inf], np.nan)
    if (srel < 0).any():
        raise FrameError(
            f"srel is {srel.min()} in row {srel.idxmin()}, but S_rel is never negative: correct the value"
        )
    return srel


def _checked_steps(frame: pd.DataFrame) -> pd.Series:
    """Return steps as numbers; raise `FrameError` if one is missing."""
    steps = _as_numbers(frame, "step")
    n_missing = (~np.isfinite(steps)).sum()
    if n_missing:
        raise FrameError(
            f"step is missing in {n_missing} rows: give the step at which each row was measured"
        )
    return steps


def _as_bool(column: pd.Series) -> pd.Series:
    """Return a column of booleans, with False for missing values.

    Text is refused, because "False" would count as true.
    """
    is_bool = pd.api.types.is_bool_dtype(column)
    if (
        is_bool
        or column.dropna().map(lambda value: isinstance(value, (bool, np.bool_))).all()
    ):
        return column.eq(True).fillna(False).astype(bool)
    raise FrameError(
        f"column 'valid' holds {str(column.dropna().iloc[0])!r}: it must be True or False"
    )


def _as_numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column as float64; raise `FrameError` if it does not hold numbers."""
    try:
        return pd.to_numeric(frame[name]).astype("float64")
    except (ValueError, TypeError) as error:
        raise FrameError(f"column {name!r} does not hold numbers: {error}") from error


def replicates(frame: pd.DataFrame) -> pd.Series:
    """Build a name from the run and the seed of each row.

    Args:
        frame: Columns run and seed.

    Returns:
        Names, one per row.

    Raises:
        FrameError: A seed belongs to several runs, so that it would count more than once.
    """
    runs = frame[["run", "seed"]].drop_duplicates()
    seeds = runs["seed"].dropna()
    repeated = seeds[seeds.duplicated()]
    if len(repeated):
        seed = repeated.iloc[0]
        names = runs.loc[runs["seed"] == seed, "run"].tolist()
        raise FrameError(
            f"seed {seed} belongs to several runs, {names}: check one experiment at a time"
        )
    seed_names = frame["seed"].astype("string").fillna("").astype(str)
    return frame["run"].astype(str) + "/" + seed_names


def _check_entries(rows: pd.DataFrame) -> None:
    """Raise `FrameError` if an entry of a group occurs twice."""
    is_copy = rows.duplicated(_ENTRY)
    if is_copy.any():
        first = rows.loc[is_copy, [*_ENTRY, "run"]].iloc[0].to_dict()
        raise FrameError(
            f"{is_copy.sum()} entries occur twice, the first of them is {first}: drop the copies, or select one "
            "experiment or η"
        )


def _check_replicates(rows: pd.DataFrame) -> None:
    """Raise `FrameError` if the runs of a group are not independent repetitions of one experiment."""
    if "learning_rate" in rows:
        _check_learning_rates(rows)
    run_of_values: dict[bytes, str] = {}
    ordered = rows.sort_values(["step", "source_id", "target_id"])
    for name, run in ordered.groupby("replicate"):
        if _may_agree(run):
            continue

        values = run["srel"].to_numpy()
        first_name = run_of_values.setdefault(values.tobytes(), name)
        if first_name != name:
            raise FrameError(
                f"the S_rel of the runs {first_name} and {name} are the same to the last bit: drop one of the runs"
            )


def _check_learning_rates(rows: pd.DataFrame) -> None:
    """Raise `FrameError` if a step was measured with several η. A missing η (NaN) agrees with every η."""
    at_step = rows.groupby("step")["learning_rate"]
    differs = at_step.min() < at_step.max()
    if differs.any():
        step = differs.idxmax()
        rates = sorted(
            rows.loc[rows["step"] == step, "learning_rate"].unique().tolist()
        )
        raise FrameError(
            f"learning_rate is {rates} at step {step}: check one η at a time"
        )


def _may_agree(run: pd.DataFrame) -> bool:
    """Return whether S_rel of a run is constant in time, as for linear models.

    Different seeds may then have equal values, so equal values do not show that a run was copied.
    """
    if run["srel"].nunique() < 2:
        return True
    values_of_pairs = run.groupby(["source_id", "target_id"])["srel"].nunique()
    return run["step"].nunique() > 1 and bool((values_of_pairs < 2).all())


def pairs_in_time(rows: pd.DataFrame) -> Cube:
    """Arrange the rows of a group by pairs, or by class pairs if each seed measured its own examples.

    Args:
        rows: Rows of one group.

    Returns:
        Cube of the pairs, or of the means over class pairs.
    """
    by_pair = cube(rows)
    is_measured = by_pair.measured.any(axis=2)  # [seed, pair]
    is_common = is_measured.all(axis=0)
    if is_common.any() or not _has_classes(rows):
        return by_pair
    return cube(of_classes(rows))


def _has_classes(rows: pd.DataFrame) -> bool:
    """Return whether each row has a source class and a target class."""
    if not {"source_class", "target_class"} <= set(rows.columns):
        return False
    classes = rows[["source_class", "target_class"]].astype(str)
    return not (classes == "").any(axis=None)


def of_classes(rows: pd.DataFrame) -> pd.DataFrame:
    """Average S_rel over class pairs.

    Args:
        rows: Rows of one group, with classes.

    Returns:
        One row per replicate, step and class pair. The ids are the classes. `srel` is the mean, or NaN if less than
        half of the entries are valid.
    """
    keys = ["replicate", "step", "source_class", "target_class"]
    srel = rows.groupby(keys, observed=True)["srel"]
    means = srel.agg(["mean", "count", "size"]).reset_index()
    is_known = means["count"] >= means["size"] / 2
    means = means.assign(srel=means["mean"].where(is_known))
    return means.rename(
        columns={"source_class": "source_id", "target_class": "target_id"}
    )


def cube(rows: pd.DataFrame) -> Cube:
    """Arrange the rows of one group as an array.

    Args:
        rows: Columns replicate, step, source_id, target_id, srel.

    Returns:
        Cube of the rows.
    """
    ids = rows[["source_id", "target_id"]]
    pair, pair_names = pd.factorize(pd.MultiIndex.from_frame(ids))
    seed, seeds = pd.factorize(rows["replicate"], sort=True)
    step, steps = pd.factorize(rows["step"], sort=True)
    shape = (len(seeds), len(pair_names), len(steps))
    srel = np.full(shape, np.nan)
    srel[seed, pair, step] = rows["srel"].to_numpy()
    measured = np.zeros(shape, bool)
    measured[seed, pair, step] = True
    return Cube(srel, measured, list(seeds), pair_names, np.asarray(steps, float))


def log2(srel: np.ndarray) -> np.ndarray:
    """Compute log₂ S_rel, of any shape. The result is at least `FLOOR`, also for 0; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log2(srel), FLOOR)


def series(whole: Cube, least: int = 12) -> Cube | str:
    """Select the pairs measured at `least` steps or more in every seed, and the steps common to these pairs and seeds.

    First, seeds with less than half of their entries valid are left out. Then pairs are left out if less than half of
    their entries are valid in one of the remaining seeds. Late in a float32 training, the valid entries of such seeds
    or pairs would be a biased selection.

    Args:
        whole: S_rel of a group.
        least: Fewest steps.

    Returns:
        Cube of log₂ S_rel, or the reason why there is none.
    """
    n_measured = whole.measured.sum(axis=2)  # [seed, pair]
    followed = (n_measured >= least).all(axis=0)
    if not followed.any():
        return f"no pair was measured at {least} steps or more in every seed"
    common = whole.measured[:, followed].all(axis=(0, 1))
    n_common = common.sum()
    if n_common < least:
        return (
            f"the pairs and seeds have {n_common} steps in common: {least} are needed"
        )

    chosen = whole.srel[:, followed][:, :, common]
    logs = log2(chosen)
    is_known = np.isfinite(logs)
    share_of_seed = is_known.mean(axis=(1, 2))
    seeds = share_of_seed >= 0.5
    if not seeds.any():
        return "in every seed, less than half of the entries are valid"
    share_of_pair = is_known[seeds].mean(axis=2)  # [seed, pair]
    pairs = (share_of_pair >= 0.5).all(axis=0)
    if not pairs.any():
        return "no pair has at least half of its entries valid in every seed"

    logs = logs[seeds][:, pairs]
    return Cube(
        srel=logs,
        measured=np.isfinite(logs),
        seeds=selected(whole.seeds, seeds),
        pairs=whole.pairs[followed][pairs],
        steps=whole.steps[common],
    )


def selected(names: list[str], mask: np.ndarray) -> list[str]:
    """Return the names whose entry of the mask is true."""
    return [name for name, is_kept in zip(names, mask, strict=True) if is_kept]


def slopes(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Compute the least-squares slope of each row of values over `at`, ignoring NaN.

    Args:
        values: [..., n].
        at: Abscissae, [n] or [..., n].

    Returns:
        [...]; NaN if `at` does not vary.
    """
    at = np.where(np.isfinite(values), at, np.nan)
    with warnings.catch_warnings():
        # NumPy warns if a row holds only NaN. The mean and the slope are then NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        at = at - np.nanmean(at, axis=-1, keepdims=True)
        values = values - np.nanmean(values, axis=-1, keepdims=True)
    covariance = np.nansum(at * values, axis=-1)
    variance = np.nansum(at**2, axis=-1)
    positive_variance = np.where(variance > 0, variance, np.nan)
    return covariance / positive_variance


def median(rows: np.ndarray) -> np.ndarray:
    """Compute the median over the last axis, [...] from [..., n], ignoring NaN; NaN if all entries are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(rows, axis=-1)
