"""Tidy frames of measurements: their columns, and their files. Knows no TensorFlow."""

from pathlib import Path

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError

COLUMNS = (
    "run", "seed", "step", "epoch", "measure", "update", "estimator", "learning_rate",
    "source_id", "source_class", "target_id", "target_class", "numerator", "denominator", "srel", "valid",
)  # fmt: skip


def tidy(result, run, seed, epoch):
    """One row a (measure, source, target) of a result; `step` and `seed` are nullable integers, `epoch` a float."""
    return pd.concat([_rows(result, m, run, seed, epoch) for m in result.matrices], ignore_index=True)


def _rows(result, measure, run, seed, epoch):
    probe, entries = result.probe, result.matrices[measure]
    n_s, n_t = entries.srel.shape

    def nullable(value):
        return pd.array([pd.NA if value is None else int(value)], dtype="Int64").repeat(n_s * n_t)

    # All columns at once: column by column a small frame takes four times as long, and there is one a step.
    return pd.DataFrame(
        {
            "run": str(run),
            "seed": nullable(seed),
            "step": nullable(result.step),
            "epoch": float(epoch),
            "measure": measure,
            "update": result.update,
            "estimator": result.estimator,
            "learning_rate": result.learning_rate,
            "source_id": np.repeat(probe.ids[probe.sources], n_t),
            "source_class": np.repeat(probe.classes[probe.sources], n_t),
            "target_id": np.tile(probe.ids[probe.targets], n_s),
            "target_class": np.tile(probe.classes[probe.targets], n_s),
            "numerator": entries.numerator.ravel(),
            "denominator": np.repeat(entries.denominator, n_t),
            "srel": entries.srel.ravel(),
            "valid": entries.valid.ravel(),
        }
    )[list(COLUMNS)]


def empty():
    """A frame of no measurements, with the schema's columns."""
    return pd.DataFrame(columns=list(COLUMNS))


def check_columns(frame, needed):
    """`FrameError` unless `frame` is a DataFrame with these columns."""
    if not isinstance(frame, pd.DataFrame):
        raise FrameError(f"expected a pandas DataFrame, got {type(frame).__name__}")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise FrameError(f"the frame lacks the columns {missing}: it has {list(frame.columns)}")


_TEXT = ("run", "measure", "update", "estimator", "source_class", "target_class")


def _read_csv(path):
    # Text stays text, be it empty (a run without a name) or look like something else (a class called 3 or NA).
    numbers = [name for name in pd.read_csv(path, nrows=0).columns if name not in _TEXT]
    types = {"seed": "Int64", "step": "Int64", **dict.fromkeys(_TEXT, "str")}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={name: [""] for name in numbers})


_WRITERS = {".parquet": "to_parquet", ".csv": "to_csv"}
_READERS = {".parquet": pd.read_parquet, ".csv": _read_csv}


def write_frame(frame, path):
    """Write a frame as `.parquet` or `.csv`, under a temporary name first: a crash leaves the old file whole."""
    path = Path(path)
    _check_suffix(path)
    part = path.with_name(f".{path.name}.part")
    getattr(frame, _WRITERS[path.suffix])(part, index=False)
    part.replace(path)
    return path


def read_frame(path):
    """Read a frame that `write_frame` wrote. `FrameError` where there is none."""
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise FrameError(f"there is no frame {path}")
    return _READERS[path.suffix](path)


def _check_suffix(path):
    if path.suffix not in _WRITERS:
        raise FrameError(f"{path.name}: the name of a frame ends in {' or '.join(_WRITERS)}")
