"""A frame on disk that is read in pieces, so that memory use is bounded. This module does not import TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from srel_tf.errors import FrameError, SRelError
from srel_tf.files import AnyPath
from srel_tf.frames.schema import (
    MATRIX,
    METHOD_OF_ESTIMATOR,
    check_columns,
    empty,
    missing_columns,
)

ROWS_AT_A_TIME = 2**17


class StoredFrame:
    """The rows of Parquet files, one file after the other. `srel_tf.smooth` and `separation` accept it as a frame.

    Files of an earlier version lack the column `name` or `method`. When rows are read, these columns are added, with
    the same values as by `srel_tf.read_frame`.

    Args:
        files: Paths of Parquet files with the same columns.

    Attributes:
        dataset: The `pyarrow.dataset.Dataset`, for custom queries; None without files. In the dataset, a missing column
            `name` or `method` holds null.

    Raises:
        FrameError: If a file is not a frame.

    Example:
        >>> import tempfile, numpy as np, pandas as pd, srel_tf
        >>> frame = pd.DataFrame({"step": [0, 9], "srel": [0.5, 0.75]})
        >>> directory = tempfile.TemporaryDirectory()
        >>> stored = srel_tf.StoredFrame([srel_tf.write_frame(frame, f"{directory.name}/frame.parquet")])
        >>> stored.num_rows, stored.read()["srel"].tolist()
        (2, [0.5, 0.75])
        >>> import pyarrow.compute as pc
        >>> stored.read(where=pc.field("step") == 9)["srel"].tolist()
        [0.75]
    """

    def __init__(self, files: Iterable[AnyPath]) -> None:
        self._names = [str(Path(file)) for file in files]
        self.dataset: pa.dataset.Dataset | None = None
        if self._names:
            with self._as_frame_errors():
                self.dataset = _with_all_columns(
                    pa.dataset.dataset(self._names, format="parquet")
                )

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the columns."""
        return self._opened().schema

    @property
    def num_rows(self) -> int:
        """Number of rows, which is read from the footers of the files."""
        with self._as_frame_errors():
            return self._opened().count_rows() if self._names else 0

    def read(self, where: pc.Expression | None = None) -> pd.DataFrame:
        """Read all rows into memory, or only those that the `pyarrow.compute` expression `where` selects."""
        if not self._names:
            return empty()
        with self._as_frame_errors():
            columns = self._filled_in(self.schema.names)
            return self._opened().to_table(columns=columns, filter=where).to_pandas()

    def tables(
        self, rows: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield Arrow tables of `rows` rows each; the last one may be shorter. A table may span several files.

        Args:
            rows: Number of rows per table.
            columns: Names of the columns to read; None reads all.
        """
        if not self._names:
            return
        with self._as_frame_errors():
            if columns is None:
                columns = self.schema.names
            expressions = self._filled_in(columns)
            scanner = self._opened().scanner(
                columns=expressions,
                batch_size=rows,
                batch_readahead=1,
                fragment_readahead=1,
            )
            rest = scanner.projected_schema.empty_table()
            for batch in scanner.to_batches():
                batch_table = pa.Table.from_batches([batch], rest.schema)
                rest = pa.concat_tables([rest, batch_table])
                while rest.num_rows >= rows:
                    yield rest.slice(0, rows).combine_chunks()
                    rest = rest.slice(rows)
            if rest.num_rows:
                yield rest.combine_chunks()

    def pieces(
        self, columns: Sequence[str] | None = None, rows: int | None = None
    ) -> Iterator[pd.DataFrame]:
        """Yield DataFrames that hold whole measurements.

        Args:
            columns: Names of the columns to read, including those that identify a measurement; None reads all.
            rows: Approximate number of rows per frame; None means `ROWS_AT_A_TIME`. A measurement with more rows is not
                divided.

        Raises:
            FrameError: If the rows of a measurement are not contiguous.
        """
        finished: set[str] = set()  # Measurements that have been yielded.
        rest = empty()
        if columns:
            rest = rest[list(columns)]
        if not self._names:
            yield rest
        for table in self.tables(rows or ROWS_AT_A_TIME, columns):
            with self._as_frame_errors():
                frame = table.to_pandas()
            check_columns(frame, [*MATRIX, *(columns or ())])
            if len(rest):
                frame = pd.concat([rest, frame], ignore_index=True)
            # The last measurement may continue in the next table.
            start = _start_of_last_measurement(frame)
            rest = frame.iloc[start:]
            if start:
                yield _finish(frame.iloc[:start], finished)
        if len(rest):
            yield _finish(rest, finished)

    def _opened(self) -> pa.dataset.Dataset:
        """Return the dataset. Raises `FrameError` if there are no files."""
        if self.dataset is None:
            raise FrameError(
                "a StoredFrame without files has no schema: give it at least one Parquet file"
            )
        return self.dataset

    def _filled_in(self, columns: Sequence[str]) -> dict[str, pc.Expression]:
        """Return {name: expression} of the columns. The expressions replace null in `name` and `method` by defaults."""
        expressions = {name: pc.field(name) for name in columns}
        for name in {"name", "method"}.intersection(columns, self.schema.names):
            expressions[name] = _filled_in_column(name, self.schema.field(name).type)
        return expressions

    @contextlib.contextmanager
    def _as_frame_errors(self) -> Iterator[None]:
        try:
            yield
        except (SRelError, GeneratorExit):
            raise
        except (
            Exception
        ) as error:  # pyarrow raises many exception types on damaged files.
            raise FrameError(
                f"{self._names[0]} or one of {len(self._names) - 1} other files is not a frame, or is damaged: {error}"
            ) from error


def _start_of_last_measurement(frame: pd.DataFrame) -> int:
    """Return the position of the first row of the last measurement."""
    measurement = frame.groupby(MATRIX, dropna=False, sort=False).ngroup().to_numpy()
    return int((measurement == measurement[-1]).argmax())


def _finish(piece: pd.DataFrame, finished: set[str]) -> pd.DataFrame:
    """Add the measurements of `piece` to `finished`. Raise `FrameError` if `finished` already holds one of them."""
    names = {
        str(row) for row in piece[MATRIX].drop_duplicates().itertuples(index=False)
    }
    repeated = names & finished
    if repeated:
        raise FrameError(
            f"the rows of the measurement {repeated.pop()} are not contiguous: read the frame into memory with read()"
        )
    finished |= names
    return piece


def _filled_in_column(name: str, text: pa.DataType) -> pc.Expression:
    """Return the expression for the column `name` or `method` in which null is replaced by the default.

    Args:
        name: "name" or "method".
        text: The Arrow type of the column.
    """
    column = pc.field(name)
    if text == pa.null():  # Columns of an empty frame have Arrow's type null.
        return column
    missing = pa.scalar("", text) if name == "name" else _method_of_estimator(text)
    return pc.coalesce(column, missing)


def _method_of_estimator(text: pa.DataType) -> pc.Expression:
    """Return the expression that computes `method` from the column `estimator` with `METHOD_OF_ESTIMATOR`."""
    estimator = pc.field("estimator").cast(text)
    method = pa.scalar(None, text)
    for name, method_of_it in METHOD_OF_ESTIMATOR.items():
        method = pc.if_else(estimator == name, pa.scalar(method_of_it, text), method)
    return method


def _with_all_columns(dataset: pa.dataset.Dataset) -> pa.dataset.Dataset:
    """Add the columns that a frame of an earlier version lacks, filled with null. Other tables stay unchanged."""
    schema = dataset.schema
    for name in missing_columns(schema.names):
        text = schema.field("estimator").type
        if pa.types.is_dictionary(text):
            text = text.value_type
        before = {"name": "seed", "method": "estimator"}[name]
        place = schema.get_field_index(before) + 1
        schema = schema.insert(place, pa.field(name, text))
    return dataset.replace_schema(schema)
