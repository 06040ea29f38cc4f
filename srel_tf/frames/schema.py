"""Tidy frames of measurements: their columns, and their files. Knows no TensorFlow."""

import contextlib
import numbers
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from srel_tf.errors import FrameError, OptionError, StorageError
from srel_tf.files import check_regular, replacing

COLUMNS = (
    "run", "seed", "step", "epoch", "measure", "update", "estimator", "method", "learning_rate",
    "source_id", "source_class", "target_id", "target_class", "numerator", "denominator", "srel", "valid",
)  # fmt: skip

# How a row was computed, whichever estimator was asked for: by a finite step or as the limit η → 0. The names in
# _float64 are of rows that were computed in float64.
METHODS = ("finite_step", "finite_step_float64", "limit", "limit_float64")

# Frames that were written before there was a column `method` named it in the column `estimator`.
METHOD_OF_ESTIMATOR = {"exact": "finite_step", "limit": "limit"}

# What makes a measurement: two rows that agree in these come from one matrix. `method` is not among them: the rows of
# one "auto" matrix are computed in several ways.
MATRIX = ["run", "seed", "step", "epoch", "measure", "update", "estimator", "learning_rate"]


def tidy(result, run, seed, epoch):
    """One row a (measure, source, target) of a result; `step` and `seed` are nullable integers, `epoch` a float."""
    check_seed(seed)
    return pd.concat([_rows(result, m, run, seed, epoch) for m in result.matrices], ignore_index=True)


def check_seed(seed):
    """`OptionError` unless it can stand in a frame."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if seed is not None and not (whole and -(2**63) <= seed < 2**63):
        raise OptionError(f"seed={seed!r}: give a whole number, or None")


def _rows(result, measure, run, seed, epoch):
    probe, entries = result.probe, result.matrices[measure]
    n_s, n_t = entries.srel.shape

    def nullable(value):
        return pd.array([pd.NA if value is None else int(value)], dtype="Int64").repeat(n_s * n_t)

    columns = {
        "run": str(run),
        "seed": nullable(seed),
        "step": nullable(result.step),
        "epoch": np.full(n_s * n_t, epoch, dtype=np.float64),
        "measure": measure,
        "update": result.update,
        "estimator": result.estimator,
        "method": np.repeat(entries.method, n_t),
        "learning_rate": np.full(n_s * n_t, result.learning_rate, dtype=np.float64),
        "source_id": np.repeat(probe.ids[probe.sources], n_t),
        "source_class": np.repeat(probe.classes[probe.sources], n_t),
        "target_id": np.tile(probe.ids[probe.targets], n_s),
        "target_class": np.tile(probe.classes[probe.targets], n_s),
        "numerator": entries.numerator.ravel(),
        "denominator": np.repeat(entries.denominator, n_t),
        "srel": entries.srel.ravel(),
        "valid": entries.valid.ravel(),
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def rule_names(frame):
    """Name the fictitious step of each row, for tables and legends.

    The name is the update rule ("sgd"), with ", auto" for that estimator; estimator "limit" is called "limit", whatever
    its η. If a run has several η of one rule and estimator at one step, the names of both say η ("sgd η=0.001").
    """
    update, estimator, eta = frame["update"].astype(str), frame["estimator"].astype(str), frame["learning_rate"]
    at_one_step = eta.groupby([frame["run"], frame["step"], update, estimator], dropna=False)
    has_several = (at_one_step.transform("nunique") > 1).groupby([update, estimator]).transform("any")
    names = update + (" η=" + eta.map("{:g}".format)).where(has_several, "")
    names = names.mask(estimator == "auto", names + ", auto").mask(estimator == "limit", "limit")
    return names.rename("rule")


def empty():
    """A frame of no measurements, with the schema's columns."""
    return pd.DataFrame(columns=list(COLUMNS))


def merged(parts):
    """Frames of several probes as one: step by step, the rows of each measurement together.

    Two probes of the same settings make one measurement of a step, as for `srel_tf.smooth`.
    """
    frame = pd.concat(parts, ignore_index=True)
    matrix = frame.groupby(MATRIX, dropna=False, sort=False).ngroup()
    # The measurements of one step are in the order of the probes and their measures.
    order = frame[["step"]].assign(matrix=matrix).sort_values(["step", "matrix"], kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def check_columns(frame, needed):
    """`FrameError` unless `frame` is a DataFrame with these columns."""
    if not isinstance(frame, pd.DataFrame):
        raise FrameError(f"expected a pandas DataFrame, got {type(frame).__name__}")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise FrameError(f"the frame lacks the columns {missing}: it has {list(frame.columns)}")


_TEXT = ("run", "measure", "update", "estimator", "method", "source_class", "target_class")
_IDS = ("source_id", "target_id")


def _read_csv(path):
    # Text stays text, be it empty (a run without a name) or look like something else (a class called 3 or NA).
    columns = list(pd.read_csv(path, nrows=0).columns)
    text = [name for name in columns if name in (*_TEXT, *_IDS)]
    types = {"seed": "Int64", "step": "Int64", **dict.fromkeys(text, "str")}
    numbers = {name: [""] for name in columns if name not in text}
    frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=numbers)
    ids = [name for name in _IDS if name in columns]
    if all(_are_whole_numbers(frame[name]) for name in ids):
        frame = frame.astype(dict.fromkeys(ids, "int64"))
    return frame


def _are_whole_numbers(text):
    """Whether all ids are written as whole numbers are: 7, but not 007, which is a name."""
    return bool(text.drop_duplicates().str.fullmatch("0|-?[1-9][0-9]{0,17}").all())


def _write_parquet(frame, file):
    schema = pa.Schema.from_pandas(frame.iloc[:0], preserve_index=False)
    frame.to_parquet(file, index=False, **parquet_options(schema))


def parquet_options(schema):
    """How rows are written: without a dictionary of numbers, which are seldom equal, a file is a quarter smaller."""
    return {"compression": "zstd", "use_dictionary": [c.name for c in schema if not pa.types.is_floating(c.type)]}


_WRITERS = {".parquet": _write_parquet, ".csv": lambda frame, file: frame.to_csv(file, index=False)}
_READERS = {".parquet": pd.read_parquet, ".csv": _read_csv}


def lacks_method(columns):
    """Whether these are the columns of a frame of an earlier version, which had no `method`.

    Tables of statistics have no `source_id`, and never have a `method`.
    """
    return "method" not in columns and {"estimator", "source_id", "target_id", "srel", "valid"} <= set(columns)


def with_method(frame):
    """Add the column `method` to a frame of an earlier version; any other table is returned as it is."""
    if not lacks_method(frame.columns):
        return frame
    method = frame["estimator"].astype(str).map(METHOD_OF_ESTIMATOR)
    frame.insert(frame.columns.get_loc("estimator") + 1, "method", method)
    return frame


def write_frame(frame, path):
    """Write a frame as `.parquet` or `.csv`; a crash or a full disk leaves the old file whole.

    Raises `StorageError` where the file cannot be written, `FrameError` for another ending or columns of mixed types.
    """
    path = Path(path)
    _check_suffix(path)
    with replacing(path) as part, arrow_errors():
        _WRITERS[path.suffix](frame, part)
    return path


@contextlib.contextmanager
def arrow_errors():
    """What Arrow cannot hold in a column, as `FrameError`."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise FrameError(
            f"a column holds values of several types, which no file can ({error}): are the ids of one probe numbers, "
            "those of another one text? Give ProbeSet(ids=...) of one type to all"
        ) from error


def read_frame(path):
    """Read a frame that `write_frame` wrote. `FrameError` where there is none, or where it is damaged.

    A frame of an earlier version has no column `method`: it gets one ("exact" is "finite_step", "limit" is "limit").
    The rows of estimator "auto" in such a frame keep the estimator that they were saved with, which is "exact" or
    "limit", for it named their method; whether such a row was computed in float64 is not known.

    Ids in a `.csv` are integers if all of them are written so (7, not 007), else strings; `.parquet` keeps their type.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.exists():
        raise FrameError(f"there is no frame {path}")
    try:
        check_regular(path)
        return with_method(_READERS[path.suffix](path))
    except StorageError as error:
        raise FrameError(f"there is no frame {path}: it is no regular file") from error
    except Exception as error:  # pandas and pyarrow raise whatever a damaged file leads them to.
        raise FrameError(f"{path} holds no frame, or a damaged one ({type(error).__name__}: {error})") from error


def _check_suffix(path):
    if path.suffix not in _WRITERS:
        raise FrameError(f"{path.name}: the name of a frame ends in {' or '.join(_WRITERS)}")
