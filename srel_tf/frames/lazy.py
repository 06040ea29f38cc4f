"""A frame on disk, read piece by piece: what memory holds does not grow with its rows. Knows no TensorFlow."""

import contextlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from srel_tf.errors import FrameError, SRelError
from srel_tf.frames.schema import MATRIX, METHOD_OF_ESTIMATOR, check_columns, empty, lacks_method

ROWS_AT_A_TIME = 2**17


class StoredFrame:
    """The rows of Parquet files, one file after the other. `srel_tf.smooth` and `separation` take it as a frame.

    A file of an earlier version has no column `method`: it is filled in as by `srel_tf.read_frame`.

    dataset: the `pyarrow.dataset.Dataset` for queries of your own, in which a `method` to be filled in is null; None
    without files.
    Raises `FrameError` for files that are no frames.
    """

    def __init__(self, files):
        self._names = [str(Path(file)) for file in files]
        with self._as_frame_errors():
            self.dataset = _with_method(pa.dataset.dataset(self._names, format="parquet")) if self._names else None

    @property
    def schema(self):
        """The Arrow schema of the columns."""
        return self.dataset.schema

    @property
    def num_rows(self):
        """How many rows there are, from the files' footers."""
        with self._as_frame_errors():
            return self.dataset.count_rows() if self._names else 0

    def read(self, where=None):
        """Read all rows into memory, or those that the `pyarrow.compute` expression `where` chooses."""
        if not self._names:
            return empty()
        with self._as_frame_errors():
            return self.dataset.to_table(columns=self._filled_in(self.schema.names), filter=where).to_pandas()

    def tables(self, rows, columns=None):
        """Arrow tables of `rows` rows each, the last one of fewer, whatever the files' own pieces are."""
        if not self._names:
            return
        with self._as_frame_errors():
            columns = self._filled_in(self.schema.names if columns is None else columns)
            scanner = self.dataset.scanner(columns=columns, batch_size=rows, batch_readahead=1, fragment_readahead=1)
            rest = scanner.projected_schema.empty_table()
            for batch in scanner.to_batches():
                rest = pa.concat_tables([rest, pa.Table.from_batches([batch], rest.schema)])
                while rest.num_rows >= rows:
                    yield rest.slice(0, rows).combine_chunks()
                    rest = rest.slice(rows)
            if rest.num_rows:
                yield rest.combine_chunks()

    def pieces(self, columns=None, rows=None):
        """Yield DataFrames of about `rows` rows, more if one measurement has more; none cuts a measurement in two.

        rows: `ROWS_AT_A_TIME` if None. Raises `FrameError` where the rows of a measurement do not stand together.
        """
        seen, rest = set(), empty()[list(columns) if columns else list(empty().columns)]
        if not self._names:
            yield rest
        for table in self.tables(rows or ROWS_AT_A_TIME, columns):
            with self._as_frame_errors():
                part = table.to_pandas()
            check_columns(part, [*MATRIX, *(columns or ())])
            frame = pd.concat([rest, part], ignore_index=True) if len(rest) else part
            matrix = frame.groupby(MATRIX, dropna=False, sort=False).ngroup().to_numpy()
            last = int((matrix == matrix[-1]).argmax())  # Where the last measurement, which may go on, begins.
            rest = frame.iloc[last:]
            if last:
                yield self._new(frame.iloc[:last], seen)
        if len(rest):
            yield self._new(rest, seen)

    def _new(self, piece, seen):
        names = {str(row) for row in piece[MATRIX].drop_duplicates().itertuples(index=False)}
        if names & seen:
            raise FrameError(
                f"the rows of a measurement, {(names & seen).pop()}, do not stand together: read the frame into memory"
            )
        seen |= names
        return piece

    def _filled_in(self, columns):
        """{name: expression} of these columns, where `method` is taken from `estimator` in rows that have none."""
        expressions = {name: pc.field(name) for name in columns}
        text = self.schema.field("method").type if "method" in self.schema.names else pa.null()
        if "method" in columns and text != pa.null():  # An empty frame has columns without a type.
            estimator, method = pc.field("estimator").cast(text), pa.scalar(None, text)
            for name, method_of_it in METHOD_OF_ESTIMATOR.items():
                method = pc.if_else(estimator == name, pa.scalar(method_of_it, text), method)
            expressions["method"] = pc.coalesce(pc.field("method"), method)
        return expressions

    @contextlib.contextmanager
    def _as_frame_errors(self):
        try:
            yield
        except (SRelError, GeneratorExit):
            raise
        except Exception as error:  # pyarrow raises whatever a damaged file leads it to.
            raise FrameError(
                f"{self._names[0]} and {len(self._names) - 1} files more hold no frame, or a damaged one: {error}"
            ) from error


def _with_method(dataset):
    """The dataset with a column `method`, null in the rows of an earlier version; other tables stay as they are."""
    schema = dataset.schema
    if not lacks_method(schema.names):
        return dataset
    text = schema.field("estimator").type
    text = text.value_type if pa.types.is_dictionary(text) else text
    return dataset.replace_schema(schema.insert(schema.get_field_index("estimator") + 1, pa.field("method", text)))


def column_differences(there, now):
    """A text for each column that two Arrow schemas do not share, or hold in other types."""
    there, now = ({field.name: str(field.type) for field in schema} for schema in (there, now))
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    return [f"{name}: {there.get(name)} there, {now.get(name)} now" for name in names]
