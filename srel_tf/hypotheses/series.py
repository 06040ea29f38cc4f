"""S_rel frames as arrays [seed, pair, step], checked: what does not fit is refused, never guessed at."""

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns

GROUP = ["measure", "update", "estimator"]
NEEDED = ["run", "seed", "step", *GROUP, "source_id", "target_id", "srel", "valid"]
NEGLIGIBLE = 0.01  # In log₂: a change by 0.7% of the value.
FALL = np.log2(1.1)  # A bound that loses less than a tenth of its height counts as non-decreasing.
FLOOR = -64.0  # Log₂ of what counts as zero: a valid S_rel of 0 is below all others, and not missing.


class Cube(NamedTuple):
    """S_rel [seed, pair, step], NaN where it is invalid or was not measured, and what its axes are.

    seeds: names of the runs; pairs: (source_id, target_id); steps: ascending; measured: where the frame has a row.
    """

    srel: np.ndarray
    measured: np.ndarray
    seeds: list
    pairs: pd.MultiIndex
    steps: np.ndarray


def groups(frame):
    """Yield ({measure, update, estimator}, rows) of a frame without its diagonal, with a column `replicate`.

    A replicate is a run with its own seed. Rows may come in any order. `FrameError` for missing columns, no rows,
    steps that are missing or not numbers, `valid` that is not true or false, values below zero, one seed under several
    runs, two rows for one entry, runs of different η, or one run under two names.
    """
    check_columns(frame, NEEDED)
    frame = frame[frame["source_id"] != frame["target_id"]]
    if frame.empty:
        raise FrameError("the frame has no pairs of two different examples: nothing to check")
    srel = _numbers(frame, "srel").where(_truth(frame["valid"])).replace([np.inf, -np.inf], np.nan)
    if (srel < 0).any():
        raise FrameError(f"srel is {srel.min()} in row {srel.idxmin()}: S_rel is never negative")
    step = _numbers(frame, "step")
    if not np.isfinite(step).all():
        raise FrameError(f"step is missing in {(~np.isfinite(step)).sum()} rows: say at which step each was measured")
    frame = frame.assign(srel=srel, step=step, replicate=replicates(frame))
    entry = ["replicate", "step", "source_id", "target_id"]
    for key, rows in frame.groupby(GROUP, dropna=False, sort=False, observed=True):
        twice = rows.duplicated(entry)
        if twice.any():
            first = rows.loc[twice, [*entry, "run"]].iloc[0].to_dict()
            raise FrameError(
                f"{twice.sum()} entries occur twice, first {first}: drop the copies, or select one experiment or η"
            )
        _check_replicates(rows)
        yield dict(zip(GROUP, key, strict=True)), rows


def _truth(column):
    """A column of booleans, missing ones as False; text is refused, for "False" would count as true."""
    if pd.api.types.is_bool_dtype(column) or column.dropna().map(lambda v: isinstance(v, (bool, np.bool_))).all():
        return column.eq(True).fillna(False).astype(bool)
    raise FrameError(f"column 'valid' holds {str(column.dropna().iloc[0])!r}: it must be True or False")


def _check_replicates(rows):
    """`FrameError` for runs that are no repetitions of one experiment, or repetitions in name only."""
    if "learning_rate" in rows:
        at_step = rows.groupby("step")["learning_rate"]
        differs = at_step.min() < at_step.max()  # NaN, unknown, is never less.
        if differs.any():
            found = sorted(rows.loc[rows["step"] == differs.idxmax(), "learning_rate"].unique().tolist())
            raise FrameError(f"learning_rate is {found} at step {differs.idxmax()}: check one η at a time")
    seen = {}
    for name, run in rows.sort_values(["step", "source_id", "target_id"]).groupby("replicate"):
        pairs = run.groupby(["source_id", "target_id"])["srel"]
        if run["srel"].nunique() < 2 or (run["step"].nunique() > 1 and (pairs.nunique() < 2).all()):
            continue  # Constant in time, as the theory has it of linear models: seeds may well agree.
        other = seen.setdefault(run["srel"].to_numpy().tobytes(), name)
        if other != name:
            raise FrameError(f"the runs {other} and {name} are the same to the last bit: drop the copy")


def _numbers(frame, name):
    try:
        return pd.to_numeric(frame[name]).astype("float64")
    except (ValueError, TypeError) as error:
        raise FrameError(f"column {name!r} does not hold numbers: {error}") from error


def replicates(frame):
    """One name a run; `FrameError` where a seed belongs to several runs, which would count one twice."""
    runs = frame[["run", "seed"]].drop_duplicates()
    shared = runs["seed"].dropna()
    shared = shared[shared.duplicated()]
    if len(shared):
        names = runs.loc[runs["seed"] == shared.iloc[0], "run"].tolist()
        raise FrameError(f"seed {shared.iloc[0]} belongs to several runs, {names}: check one experiment at a time")
    return frame["run"].astype(str) + "/" + frame["seed"].astype("string").fillna("").astype(str)


def pairs_in_time(rows):
    """The `Cube` of a group's pairs or, where each seed measured examples of its own, of its class pairs."""
    whole, named = cube(rows), {"source_class", "target_class"} <= set(rows.columns)
    if whole.measured.any(axis=2).all(axis=0).any() or not named or (rows["source_class"].astype(str) == "").any():
        return whole
    return cube(of_classes(rows))


def of_classes(rows):
    """One row a (replicate, step, class pair): mean S_rel, NaN where less than half of the entries are valid."""
    found = rows.groupby(["replicate", "step", "source_class", "target_class"], observed=True)["srel"]
    found = found.agg(["mean", "count", "size"]).reset_index()
    names = {"source_class": "source_id", "target_class": "target_id"}
    return found.assign(srel=found["mean"].where(found["count"] >= found["size"] / 2)).rename(columns=names)


def cube(rows):
    """The `Cube` of the rows of one group."""
    pairs = pd.MultiIndex.from_frame(rows[["source_id", "target_id"]])
    pair, pair_names = pd.factorize(pairs)
    seed, seeds = pd.factorize(rows["replicate"], sort=True)
    step, steps = pd.factorize(rows["step"], sort=True)
    srel = np.full((len(seeds), len(pair_names), len(steps)), np.nan)
    measured = np.zeros(srel.shape, bool)
    srel[seed, pair, step] = rows["srel"].to_numpy()
    measured[seed, pair, step] = True
    return Cube(srel, measured, list(seeds), pair_names, np.asarray(steps, float))


def log2(srel):
    """Log₂ of S_rel, `FLOOR` for 0; NaN stays."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log2(srel), FLOOR)


def series(whole, least=12):
    """The pairs that every seed followed for `least` steps or more, at the steps at which all of them were measured.

    Seeds and then pairs with less than half of their entries valid are left out: late in float32 the rest would be a
    selection. Returns a `Cube` of log₂ S_rel, or the reason why there is none.
    """
    followed = (whole.measured.sum(axis=2) >= least).all(axis=0)
    if not followed.any():
        return f"no pair was measured at {least} steps or more in every seed"
    common = whole.measured[:, followed].all(axis=(0, 1))
    if common.sum() < least:
        return f"the pairs and seeds have {common.sum()} steps in common: {least} are needed"
    logs = log2(whole.srel[:, followed][:, :, common])
    usable = np.isfinite(logs)
    seeds = usable.mean(axis=(1, 2)) >= 0.5
    if not seeds.any():
        return "less than half of the entries are valid in every seed"
    pairs = (usable[seeds].mean(axis=2) >= 0.5).all(axis=0)
    if not pairs.any():
        return "no pair has half of its entries valid in every seed"
    names = [name for name, kept in zip(whole.seeds, seeds, strict=True) if kept]
    logs = logs[seeds][:, pairs]
    return Cube(logs, np.isfinite(logs), names, whole.pairs[followed][pairs], whole.steps[common])


def slopes(values, at):
    """Least-squares slope of each row of values [..., n] over at [n] or [..., n]; NaN where `at` does not vary."""
    at = np.where(np.isfinite(values), at, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Rows without a value.
        at = at - np.nanmean(at, axis=-1, keepdims=True)
        values = values - np.nanmean(values, axis=-1, keepdims=True)
    spread = np.nansum(at**2, axis=-1)
    return np.nansum(at * values, axis=-1) / np.where(spread > 0, spread, np.nan)


def median(rows):
    """Median of each row over its last axis without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(rows, axis=-1)
