"""Frames on disk that grow during a training, saved together with its state. This module does not import TensorFlow.

    DIR/index.sqlite               the parts in order and the state, each with its size and SHA-256 (`.index`)
    DIR/part-000000.parquet …      rows
    DIR/state-000003.safetensors   arrays, for example weights and optimizer variables (`srel_tf.Checkpoint`)

The index is written last, and files that it names are never written again. Therefore the index on the disk names only
complete files, even if a process dies. `FrameStore.commit` saves a state and the rows measured before it in one
transaction, so that the two always belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from srel_tf.errors import FrameError, StorageError
from srel_tf.files import (
    AnyPath,
    JsonObject,
    differences,
    find_damage,
    fingerprint,
    lock,
    remove,
    remove_directory,
    remove_leftovers,
    replacing,
)
from srel_tf.frames.arrays import read_arrays, write_arrays
from srel_tf.frames.index import INDEX, Entry, Index, file_name, own_files
from srel_tf.frames.lazy import ROWS_AT_A_TIME, StoredFrame
from srel_tf.frames.schema import arrow_errors, empty, parquet_options, write_frame


class FrameStore:
    """A frame stored in a directory. Many processes may read it; only one process at a time may write it.

    Args:
        path: The directory.
        write: Whether to open the store for writing. If True, the directory is made if necessary, and locked until
            `close` is called or the process ends.
        anew: With `write`, whether to discard the rows and the state in the directory, even if they are damaged.

    Raises:
        StorageError: If the directory cannot be written; if another process writes to it; if its index is damaged, or
            missing although there are data files; or if there is no index and `write` is False.

    Example:
        >>> import tempfile, pandas as pd, srel_tf
        >>> directory = tempfile.TemporaryDirectory()
        >>> with srel_tf.FrameStore(f"{directory.name}/frame", write=True) as store:
        ...     store.append(pd.DataFrame({"step": [0], "srel": [0.5]}))
        ...     store.append(pd.DataFrame({"step": [9], "srel": [0.75]}))
        >>> store = srel_tf.FrameStore(f"{directory.name}/frame")
        >>> store.num_rows, store.read()["srel"].tolist()
        (2, [0.5, 0.75])
    """

    def __init__(self, path: AnyPath, write: bool = False, anew: bool = False) -> None:
        self.path = Path(path)
        self._index = Index(self.path)
        # Columns and types of the rows; None until the first rows are written.
        self._schema: pa.Schema | None = None
        self._lock: filelock.BaseFileLock | None = lock(self.path) if write else None
        try:
            if write:
                self._begin(anew)
            else:
                self._index.check()
        except BaseException:
            self.close()
            raise

    def _begin(self, anew: bool) -> None:
        remove_leftovers(self.path)
        if anew:
            self.clear()
        elif (self.path / INDEX).exists() or own_files(self.path):
            self._index.check()
            self._remove_old_states(own_files(self.path, "state"))
        else:  # Create the index before any data file, so that data files without an index show that it was lost.
            self._index.create()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, so that another process may write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def num_rows(self) -> int:
        """Number of rows saved so far."""
        return sum(part.rows for part in self._parts())

    @property
    def about(self) -> JsonObject | None:
        """Metadata that was saved with the latest state; None if there is no state."""
        return self._index.metadata()

    @property
    def left_out(self) -> list[JsonObject]:
        """One dict {file, rows, fault} for each damaged part that `check(skip_damaged=True)` has left out."""
        return [
            {"file": part.file, "rows": part.rows, "fault": part.damage}
            for part in self._index.parts()
            if part.damage
        ]

    def append(self, frame: pd.DataFrame) -> None:
        """Save the rows of `frame` after the rows that are already saved."""
        self.commit(frame)

    def commit(
        self,
        frame: pd.DataFrame | None = None,
        arrays: Mapping[str, ArrayLike] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Add rows and replace the state in one transaction: after a crash either both are saved or neither.

        If the call fails, earlier saves stay complete, and the call may be repeated.

        Args:
            frame: Rows to add, with the same columns and types as the saved rows.
            arrays: The state, {name: array}.
            about: Metadata of the state, a dict that JSON can represent.

        Raises:
            FrameError: If columns or types differ from those of the saved rows, or if a column has values of several
                types.
            StorageError: If the store is open for reading only, or the disk fails.
        """
        self._check_writable()
        entries: list[Entry] = []
        if frame is not None and len(frame):
            entries.append(self._write_part(frame))
        old_state = self._index.latest("state")
        if arrays is not None:
            number = old_state.number + 1 if old_state else 1
            entries.append(self._write_state(arrays, about or {}, number))
        self._index.save(*entries)
        if arrays is not None and old_state:
            remove(self.path / old_state.file)

    def state(self) -> tuple[dict[str, np.ndarray], JsonObject] | None:
        """Read the latest state.

        Returns:
            The arrays {name: array} and the metadata of the state; None if no state is saved.

        Raises:
            StorageError: If the state is damaged.
        """
        entry = self._index.latest("state")
        if entry is None:
            return None
        try:
            return self._read_state(entry)
        except StorageError:
            if self._index.latest("state") == entry:
                raise
        return self.state()  # The writer has replaced the state in the meantime.

    def _read_state(self, entry: Entry) -> tuple[dict[str, np.ndarray], JsonObject]:
        file = self.path / entry.file
        damage = find_damage(file, entry.bytes, entry.sha256)
        if damage:
            raise StorageError(
                f"the state {file} {damage}: start again without this state"
            )
        return read_arrays(file), json.loads(entry.metadata)

    def scan(self, skip_damaged: bool = False) -> StoredFrame:
        """Return all saved rows as a `StoredFrame`, which reads them in bounded memory.

        First every part is compared with its checksum.

        Args:
            skip_damaged: Whether to leave out parts that are missing, truncated or altered, instead of raising.

        Raises:
            StorageError: If parts are damaged and `skip_damaged` is False. The message names the parts.
        """
        intact, _ = self._check_parts(skip_damaged)
        return self._stored_frame(intact)

    def check(self, skip_damaged: bool = False) -> None:
        """Compare every part with its checksum, as `scan` does. `skip_damaged` leaves out damaged parts permanently."""
        _, damaged = self._check_parts(skip_damaged)
        if damaged:
            self._check_writable()
            self._index.save(*damaged)

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StorageError(
                f"{self.path} is open for reading only: open it with FrameStore(path, write=True) to change it"
            )

    def _parts(self) -> list[Entry]:
        """Return the parts in order, without those that `check` has left out."""
        return [part for part in self._index.parts() if not part.damage]

    def _check_parts(self, skip_damaged: bool) -> tuple[list[Entry], list[Entry]]:
        """Compare every part with its checksum.

        Returns:
            The intact parts, and the damaged parts with the field `damage` filled in.

        Raises:
            StorageError: If parts are damaged and `skip_damaged` is False.
        """
        parts = [
            part._replace(
                damage=find_damage(self.path / part.file, part.bytes, part.sha256)
            )
            for part in self._parts()
        ]
        damaged = [part for part in parts if part.damage]
        if damaged and not skip_damaged:
            raise StorageError(
                f"of the {len(parts)} parts of {self.path}, {len(damaged)} cannot be used: "
                f"{'; '.join(f'{part.file} {part.damage}' for part in damaged)}. Restore them, or leave them out with "
                "skip_damaged=True"
            )
        return [part for part in parts if not part.damage], damaged

    def read(self, skip_damaged: bool = False) -> pd.DataFrame:
        """Read all saved rows into memory."""
        return self.scan(skip_damaged).read()

    def export(self, path: AnyPath, more: pd.DataFrame | None = None) -> Path:
        """Write all rows to one Parquet file, in bounded memory. The same rows always give the same bytes.

        Args:
            path: The Parquet file.
            more: Rows to write to the file after the saved rows. These rows are not added to the store.

        Returns:
            The path.
        """
        frame = self.scan()
        if frame.dataset is None:
            return write_frame(empty() if more is None else more, path)
        schema = frame.schema
        with (
            replacing(path) as part,
            arrow_errors(),
            pq.ParquetWriter(part, schema, **parquet_options(schema)) as writer,
        ):
            for table in frame.tables(ROWS_AT_A_TIME):
                writer.write_table(table)
            if more is not None and len(more):
                writer.write_table(
                    pa.Table.from_pandas(more, schema, preserve_index=False)
                )
        return Path(path)

    def clear(self) -> None:
        """Remove all rows and the state."""
        self._check_writable()
        self._schema = None
        self._index.clear()
        for file in own_files(self.path):
            remove(file)

    def delete(self) -> None:
        """Remove the store from the disk and close it. If the directory has other files, it stays, with a warning."""
        self.clear()
        remove(self.path / INDEX)
        remove(
            self.path / ".lock"
        )  # While the lock is still held; a later writer makes a new lock file.
        self.close()
        remove_directory(self.path)

    def _write_part(self, frame: pd.DataFrame) -> Entry:
        """Write rows as the next part. Return its entry for the index."""
        with arrow_errors():
            table = pa.Table.from_pandas(frame, preserve_index=False)
        schema = self._schema or self._stored_schema() or table.schema
        self._check_schema(table.schema, schema)
        latest = self._index.latest("part")
        number = latest.number + 1 if latest else 0
        file = self.path / file_name("part", number)
        with replacing(file) as part:
            pq.write_table(table, part, **parquet_options(schema))
        self._schema = schema
        return Entry("part", number, table.num_rows, *fingerprint(file))

    def _check_schema(self, schema: pa.Schema, stored: pa.Schema) -> None:
        """Raise `FrameError` if new rows do not have the columns and types of the stored rows."""
        if schema.equals(stored):
            return
        types = [
            {column.name: str(column.type) for column in columns}
            for columns in (stored, schema)
        ]
        different = "; ".join(differences(*types)) or "  their order differs"
        raise FrameError(
            f"{self.path} holds a frame with other columns or types:{different}; give the new rows the columns and "
            "types of the saved rows, or use another directory"
        )

    def _stored_schema(self) -> pa.Schema | None:
        """Read the columns and types from the first part; None without parts. A damaged part raises `FrameError`."""
        first = self._parts()[:1]
        return self._stored_frame(first).schema if first else None

    def _stored_frame(self, parts: Iterable[Entry]) -> StoredFrame:
        return StoredFrame([self.path / part.file for part in parts])

    def _write_state(
        self, arrays: Mapping[str, ArrayLike], about: Mapping[str, Any], number: int
    ) -> Entry:
        """Write the `number`-th state. Return its entry for the index."""
        file = self.path / file_name("state", number)
        write_arrays(file, arrays)
        return Entry("state", number, 0, *fingerprint(file), metadata=json.dumps(about))

    def _remove_old_states(self, states: Iterable[Path]) -> None:
        """Remove these states, except the one that the index names."""
        current = self._index.latest("state")
        for file in states:
            if current is None or file.name != current.file:
                remove(file)


def scan_frame(path: AnyPath, skip_damaged: bool = False) -> StoredFrame:
    """Open the frame at `path` for reading in bounded memory.

    Args:
        path: A Parquet file, or the directory of a `FrameStore`.
        skip_damaged: As for `FrameStore.scan`.

    Raises:
        FrameError: If `path` holds no frame.
        StorageError: If parts of the frame are damaged.

    Example:
        >>> import tempfile, pandas as pd, srel_tf
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = srel_tf.write_frame(pd.DataFrame({"step": [0, 9]}), f"{directory}/frame.parquet")
        ...     srel_tf.scan_frame(path).num_rows
        2
    """
    path = Path(path)
    if (path / INDEX).is_file() or own_files(path):
        return FrameStore(path).scan(skip_damaged)
    if path.suffix != ".parquet" or not path.is_file():
        raise FrameError(
            f"there is no frame {path}: give a .parquet file, or a directory with an {INDEX}"
        )
    return StoredFrame([path])
