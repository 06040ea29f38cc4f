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
    "run", "seed", "step", "epoch", "measure", "update", "estimator", "learning_rate",
    "source_id", "source_class", "target_id", "target_class", "numerator", "denominator", "srel", "valid",
)  # fmt: skip

# What makes a measurement: two rows that agree in these come from one matrix.
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
        "estimator": np.repeat(entries.method, n_t),
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
    """What to call the fictitious step of each row: its update rule; where a run has several of that name at a time,
    "limit", or the rule with its η ("sgd η=0.001") and, of several estimators, with its estimator.
    """
    rules = frame[["run", "step", "update", "estimator", "learning_rate"]].drop_duplicates()
    names = rules["update"].astype(str)
    at_once = rules.assign(finite=rules["learning_rate"].where(rules["estimator"] != "limit"))
    at_once = at_once.groupby(["run", "step", "update"], dropna=False)
    etas, estimators = at_once["finite"].transform("nunique"), at_once["estimator"].transform("nunique")
    is_limit, several = rules["estimator"] == "limit", (estimators > 1) | (etas > 1)
    finite = names + (" η=" + rules["learning_rate"].map("{:.3g}".format)).where(etas > 1, "")
    others = rules["estimator"].where(~is_limit).groupby([rules["run"], rules["step"], rules["update"]], dropna=False)
    finite += (", " + rules["estimator"]).where(others.transform("nunique") > 1, "")
    rules["rule"] = finite.mask(is_limit & several, "limit")
    named = frame[rules.columns.drop("rule")].merge(rules, how="left")
    return pd.Series(named["rule"].to_numpy(), index=frame.index, name="rule")


def empty():
    """A frame of no measurements, with the schema's columns."""
    return pd.DataFrame(columns=list(COLUMNS))


def merged(parts):
    """Frames of several probes as one: step by step, the rows of each measurement together.

    Two probes of the same settings make one measurement of a step, as for `srel_tf.smooth`.
    """
    frame = pd.concat(parts, ignore_index=True)
    matrix = frame.groupby([name for name in MATRIX if name != "estimator"], dropna=False, sort=False).ngroup()
    # "auto" names what gave each row. Measurements of a step in the order of the probes and their measures.
    order = frame[["step"]].assign(matrix=matrix).sort_values(["step", "matrix"], kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def check_columns(frame, needed):
    """`FrameError` unless `frame` is a DataFrame with these columns."""
    if not isinstance(frame, pd.DataFrame):
        raise FrameError(f"expected a pandas DataFrame, got {type(frame).__name__}")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise FrameError(f"the frame lacks the columns {missing}: it has {list(frame.columns)}")


_TEXT = ("run", "measure", "update", "estimator", "source_class", "target_class")
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

    Ids in a `.csv` are integers if all of them are written so (7, not 007), else strings; `.parquet` keeps their type.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.exists():
        raise FrameError(f"there is no frame {path}")
    try:
        check_regular(path)
        return _READERS[path.suffix](path)
    except StorageError as error:
        raise FrameError(f"there is no frame {path}: it is no regular file") from error
    except Exception as error:  # pandas and pyarrow raise whatever a damaged file leads them to.
        raise FrameError(f"{path} holds no frame, or a damaged one ({type(error).__name__}: {error})") from error


def _check_suffix(path):
    if path.suffix not in _WRITERS:
        raise FrameError(f"{path.name}: the name of a frame ends in {' or '.join(_WRITERS)}")
