"""Tidy frames of measurements: columns and files. This module does not import TensorFlow."""

import contextlib
import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from srel_tf.errors import FrameError, OptionError, StorageError
from srel_tf.files import AnyPath, check_regular, replacing

COLUMNS = (
    "run", "seed", "name", "step", "epoch", "measure", "update", "estimator", "method", "learning_rate",
    "source_id", "source_class", "target_id", "target_class", "numerator", "denominator", "srel", "valid",
)  # fmt: skip

# Methods by which a row can be computed: a finite step or the limit η → 0. Rows of the estimator "auto" may be computed
# by any of these methods. The ending _float64 marks rows that were computed in float64.
METHODS = ("finite_step", "finite_step_float64", "limit", "limit_float64")

# Earlier versions had no column `method` and wrote the method into the column `estimator`.
METHOD_OF_ESTIMATOR = {"exact": "finite_step", "limit": "limit"}

# The columns that identify a measurement: rows with equal values in these columns belong to one matrix. `name` is the
# probe's name. `method` is not among them, because rows of one "auto" matrix may be computed by different methods.
MATRIX = [
    "run",
    "seed",
    "name",
    "step",
    "epoch",
    "measure",
    "update",
    "estimator",
    "learning_rate",
]


class Measurement(Protocol):
    """The fields of a `srel_tf.SRelResult` that `tidy` reads.

    The class itself cannot be imported here, because its module imports this one.
    """

    @property
    def probe(self) -> Any: ...
    @property
    def matrices(self) -> Mapping[str, Any]: ...
    @property
    def update(self) -> str: ...
    @property
    def estimator(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def step(self) -> int | None: ...


def tidy(result: Measurement, run: str, seed: int | None, epoch: float) -> pd.DataFrame:
    """Make a frame of a result, one row per (measure, source, target): n_measures · n_s · n_t rows.

    `step` and `seed` are nullable integers, `epoch` is a float.
    """
    check_seed(seed)
    return pd.concat(
        [_rows(result, measure, run, seed, epoch) for measure in result.matrices],
        ignore_index=True,
    )


def check_seed(seed: object) -> None:
    """Raise `OptionError` unless `seed` is None or an integer of 64 bits, as the frame's column needs."""
    if seed is None:
        return
    is_integer = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_integer or not -(2**63) <= int(seed) < 2**63:  # type: ignore[call-overload]
        raise OptionError(f"seed={seed!r}: give a 64-bit integer, or None")


def _rows(
    result: Measurement, measure: str, run: str, seed: int | None, epoch: float
) -> pd.DataFrame:
    """Make the rows of one measure, ordered by source and then by target."""
    probe, matrices = result.probe, result.matrices[measure]
    n_s, n_t = matrices.srel.shape
    n_rows = n_s * n_t
    per_source = functools.partial(np.repeat, repeats=n_t)
    per_target = functools.partial(np.tile, reps=n_s)
    columns = {
        "run": str(run),
        "seed": _nullable_integers(seed, n_rows),
        "name": probe.name,
        "step": _nullable_integers(result.step, n_rows),
        "epoch": np.full(n_rows, epoch, dtype=np.float64),
        "measure": measure,
        "update": result.update,
        "estimator": result.estimator,
        "method": per_source(matrices.method),
        "learning_rate": np.full(n_rows, result.learning_rate, dtype=np.float64),
        "source_id": per_source(probe.ids[probe.sources]),
        "source_class": per_source(probe.classes[probe.sources]),
        "target_id": per_target(probe.ids[probe.targets]),
        "target_class": per_target(probe.classes[probe.targets]),
        "numerator": matrices.numerator.ravel(),
        "denominator": per_source(matrices.denominator),
        "srel": matrices.srel.ravel(),
        "valid": matrices.valid.ravel(),
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def _nullable_integers(
    value: int | None, n_rows: int
) -> pd.api.extensions.ExtensionArray:
    """Return `value` repeated [n_rows]; None becomes <NA>."""
    entry = pd.NA if value is None else int(value)
    return pd.array([entry], dtype="Int64").repeat(n_rows)


def rule_names(frame: pd.DataFrame) -> pd.Series:
    """Name the fictitious step of each row, for tables and legends.

    The name consists of the update rule (or "limit" for the estimator "limit"), the probe's name, and ", auto" for the
    estimator "auto". An example is "sgd η=0.001, auto".

    Args:
        frame: A frame with the columns `update` and `estimator`. If it has no column `name`, all probe names are "".

    Returns:
        Names, one per row, with the index of `frame`.

    Example:
        >>> import pandas as pd, srel_tf
        >>> frame = pd.DataFrame({"name": ["", "η=0.1", ""], "update": "sgd", "estimator": ["exact", "auto", "limit"]})
        >>> srel_tf.rule_names(frame).tolist()
        ['sgd', 'sgd η=0.1, auto', 'limit']
    """
    frame = with_name(frame)
    update, estimator = (frame[name].astype(str) for name in ("update", "estimator"))
    rule = update.mask(estimator == "limit", "limit")
    names = (rule + " " + frame["name"].astype(str)).str.rstrip()
    return names.mask(estimator == "auto", names + ", auto").rename("rule")


def empty() -> pd.DataFrame:
    """Make a frame with all columns and no rows."""
    return pd.DataFrame(columns=list(COLUMNS))


def merged(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join frames of several probes. The rows are ordered by step, and the rows of a measurement are contiguous.

    At each step, two probes with equal values in the columns `MATRIX` form one measurement, as in `srel_tf.smooth`.
    """
    frame = pd.concat(parts, ignore_index=True)
    keys = frame[["step"]].copy()
    keys["measurement"] = frame.groupby(MATRIX, dropna=False, sort=False).ngroup()
    # Within a step, measurements stay in the order of the probes and their measures.
    keys = keys.sort_values(["step", "measurement"], kind="stable")
    return frame.loc[keys.index].reset_index(drop=True)


def check_columns(frame: object, needed: Iterable[str]) -> None:
    """Raise `FrameError` unless `frame` is a DataFrame with these columns."""
    if not isinstance(frame, pd.DataFrame):
        raise FrameError(f"expected a pandas DataFrame, got {type(frame).__name__}")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise FrameError(
            f"the frame lacks the columns {missing}: its columns are {list(frame.columns)}"
        )


_TEXT = (
    "run",
    "name",
    "measure",
    "update",
    "estimator",
    "method",
    "source_class",
    "target_class",
)
_IDS = ("source_id", "target_id")
_CSV_TYPES = dict.fromkeys((*_TEXT, *_IDS), "str")


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a frame. Text columns stay text, even if a value is empty or looks like a number or NA."""
    columns = list(pd.read_csv(path, nrows=0).columns)
    text = [name for name in columns if name in _CSV_TYPES]
    missing_values = {name: [""] for name in columns if name not in text}
    types = {**_CSV_TYPES, "seed": "Int64", "step": "Int64"}
    frame = pd.read_csv(
        path, dtype=types, keep_default_na=False, na_values=missing_values
    )
    return _with_integer_ids(frame)


def _with_integer_ids(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert the id columns to integers if all ids are written as integers."""
    ids = [name for name in _IDS if name in frame.columns]
    if not all(_are_integers(frame[name]) for name in ids):
        return frame
    return frame.astype(dict.fromkeys(ids, "int64"))


def _are_integers(text: pd.Series) -> bool:
    """Return whether all ids are written as integers. "007" is not, because the integer 7 is written without zeros."""
    return bool(text.drop_duplicates().str.fullmatch("0|-?[1-9][0-9]{0,17}").all())


def _write_csv(frame: pd.DataFrame, file: Path) -> None:
    frame.to_csv(file, index=False)


def _write_parquet(frame: pd.DataFrame, file: Path) -> None:
    schema = pa.Schema.from_pandas(frame.iloc[:0], preserve_index=False)
    frame.to_parquet(file, index=False, **parquet_options(schema))


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return pyarrow's options for writing Parquet files.

    Floating-point columns are written without a dictionary, because their values are rarely equal. This makes files a
    quarter smaller.
    """
    dictionary_columns = [
        column.name for column in schema if not pa.types.is_floating(column.type)
    ]
    return {"compression": "zstd", "use_dictionary": dictionary_columns}


_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": _read_csv,
}


def missing_columns(names: Iterable[str]) -> list[str]:
    """List which of `name` and `method` a measurement frame lacks because an earlier version wrote it.

    The list is empty for other tables, such as statistics, which lack `source_id` or another column of measurements.

    Args:
        names: The columns of the frame.
    """
    present = set(names)
    if not {"estimator", "source_id", "target_id", "srel", "valid"} <= present:
        return []
    return [name for name in ("name", "method") if name not in present]


def with_name(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the column `name`, "" in each row, to a frame that lacks it."""
    return frame if "name" in frame.columns else frame.assign(name="")


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `name` and `method` to a measurement frame of an earlier version. Return any other table unchanged."""
    missing = missing_columns(frame.columns)
    if not missing:
        return frame
    frame = with_name(frame)
    if "method" in missing:
        method = frame["estimator"].astype(str).map(METHOD_OF_ESTIMATOR)
        frame = frame.assign(method=method)
    known = [name for name in COLUMNS if name in frame.columns]
    others = [name for name in frame.columns if name not in COLUMNS]
    return frame[[*known, *others]]


def write_frame(frame: pd.DataFrame, path: AnyPath) -> Path:
    """Write a frame as `.parquet` or `.csv`. If the disk is full or the program crashes, the old file stays complete.

    Args:
        frame: A measurement frame or a table of statistics.
        path: The file. Its ending selects the format.

    Returns:
        The path.

    Raises:
        StorageError: If the file cannot be written.
        FrameError: If the ending is neither `.parquet` nor `.csv`, or a column has values of several types.

    Example:
        >>> import tempfile, pandas as pd, srel_tf
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = srel_tf.write_frame(pd.DataFrame({"step": [0], "srel": [0.5]}), f"{directory}/frame.parquet")
        ...     path.name, srel_tf.read_frame(path)["srel"].tolist()
        ('frame.parquet', [0.5])
    """
    path = Path(path)
    _check_suffix(path)
    with replacing(path) as part, arrow_errors():
        _WRITERS[path.suffix](frame, part)
    return path


@contextlib.contextmanager
def arrow_errors() -> Iterator[None]:
    """Raise `FrameError` for values that Arrow cannot hold in one column."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise FrameError(
            f"a column holds values of several types, which cannot be written to a file ({error}): if the ids of one "
            "probe are numbers, and the ids of another one are text, give ProbeSet(ids=...) of one type to all probes"
        ) from error


def read_frame(path: AnyPath) -> pd.DataFrame:
    """Read a frame that `write_frame` wrote.

    Frames of earlier versions may lack two columns, which are then added. The column `name` is filled with "". The
    column `method` follows from the estimator: "finite_step" for "exact", and "limit" for "limit". For the estimator
    "auto", earlier versions wrote the method of each row ("exact" or "limit") into the column `estimator`. This column
    is not changed, and it is unknown which of these rows were computed in float64.

    Args:
        path: A `.parquet` or `.csv` file. A `.parquet` file keeps the type of ids. From a `.csv` file, ids are read as
            integers if all of them are written as integers (7, not 007), and as strings otherwise.

    Raises:
        FrameError: If the file does not exist, is damaged, or has another ending.

    Example:
        >>> import tempfile, pandas as pd, srel_tf
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = srel_tf.write_frame(pd.DataFrame({"source_id": ["a", "b"]}), f"{directory}/frame.csv")
        ...     srel_tf.read_frame(path)["source_id"].tolist()
        ['a', 'b']
    """
    path = Path(path)
    _check_suffix(path)
    if not path.exists():
        raise FrameError(f"there is no frame {path}: give the path of an existing file")
    try:
        check_regular(path)
        return completed(_READERS[path.suffix](path))
    except StorageError as error:
        raise FrameError(
            f"there is no frame {path}: it is not a regular file"
        ) from error
    except (
        Exception
    ) as error:  # pandas and pyarrow raise many exception types on damaged files.
        raise FrameError(
            f"{path} holds no frame, or a damaged one ({type(error).__name__}: {error})"
        ) from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in _WRITERS:
        raise FrameError(
            f"{path.name}: give a file name that ends in {' or '.join(_WRITERS)}"
        )
