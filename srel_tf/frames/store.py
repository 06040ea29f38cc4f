"""Frames on disk that grow while they are measured, and the training state that belongs to them. Knows no TensorFlow.

    DIR/index.json              the parts in order and the state, each with its size and SHA-256 (`.index`)
    DIR/part-000000.parquet …   rows
    DIR/state-000003.npz        arrays without pickle, say weights and optimizer variables (`srel_tf.Checkpoint`)

The index is written last, and a file that it names is never written again. Whenever a process dies, the index names
whole files, and a state together with exactly the rows that had been measured before it.
"""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srel_tf.errors import FrameError, StorageError
from srel_tf.files import (
    as_json,
    fault,
    fingerprint,
    lock,
    remove,
    remove_directory,
    remove_leftovers,
    replacing,
)
from srel_tf.frames.arrays import read_arrays, write_arrays
from srel_tf.frames.index import INDEX, Index, has_files, own_files, part_name, read_index, state_name, write_index
from srel_tf.frames.lazy import ROWS_AT_A_TIME, StoredFrame, column_differences
from srel_tf.frames.schema import arrow_errors, empty, parquet_options, write_frame


class FrameStore:
    """The frame in directory `path`, read by anyone, written by one process at a time.

    write: whether to write; makes the directory, and holds a lock that ends with the process, however it ends.
    anew: forget what it holds, damaged or not.
    Raises `StorageError` where the directory cannot be written, another process writes to it, or its index is damaged
    or lost; without `write`, where there is none.
    """

    def __init__(self, path, write=False, anew=False):
        self.path = Path(path)
        self._schema = self._known = None
        self._lock = lock(self.path) if write else None
        try:
            if write:
                self._begin(anew)
            else:
                self._known = read_index(self.path)
        except BaseException:
            self.close()
            raise

    def _begin(self, anew):
        remove_leftovers(self.path)
        if anew:
            self._known = Index()
            self.clear()
        elif (self.path / INDEX).exists() or has_files(self.path):
            self._known = read_index(self.path)
            self._drop_states(own_files(self.path, "state"))
        else:  # From here on, files without an index mean that it was lost.
            self._write_index(Index())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Let another process write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def _index(self):
        """The index on the disk; read again where an interrupt or a failing disk left open which one that is."""
        if self._known is None:
            self._known = read_index(self.path)
        return self._known

    @property
    def num_rows(self):
        """Rows saved so far."""
        return self._index.num_rows

    @property
    def about(self):
        """What was saved about the latest state, a dict; None where there is none."""
        return self._index.state and self._index.state["about"]

    @property
    def left_out(self):
        """The damaged parts that `check(skip_damaged=True)` has left out: a list of {file, rows, fault}."""
        return self._index.left_out

    def append(self, frame):
        """Save the rows of `frame` after those saved before."""
        self.commit(frame)

    def commit(self, frame=None, arrays=None, about=None):
        """Save rows and, in place of the former one, a state, in one act: after a crash both are there or neither.

        frame: rows to add, with the columns and types of those saved before. arrays: {name: array}, about: a dict that
        JSON can hold. Raises `FrameError` for other columns or types, or two types in a column, `StorageError` where
        the disk fails; what was saved before is whole then, and the same call may be made again.
        """
        self._check_writable()
        old = index = self._index
        if frame is not None and len(frame):
            index = index.added(self.path, self._write_part(frame, index.num_parts))
        if arrays is not None:
            state = {**self._write_state(arrays, index.saved + 1), "about": as_json(about or {})}
            index = dataclasses.replace(index, state=state)
        self._write_index(dataclasses.replace(index, saved=index.saved + 1))
        if arrays is not None and old.state:
            self._drop_states([self.path / old.state["file"]])

    def state(self):
        """(arrays, about) of the latest state, None where there is none. `StorageError` where it is damaged."""
        entry = self._index.state
        if entry is None:
            return None
        file = self.path / entry["file"]
        wrong = fault(file, entry)
        if wrong:
            raise StorageError(f"the state {file} {wrong}: start again without it")
        return read_arrays(file), entry["about"]

    def scan(self, skip_damaged=False):
        """The rows saved so far as a `StoredFrame`, which reads them in bounded memory.

        Checks every part against its checksum first. A part that is missing, truncated or altered is named in a
        `StorageError`, or with `skip_damaged` left out.
        """
        sound, _ = self._sorted(skip_damaged)
        return StoredFrame([self.path / part["file"] for part in sound])

    def check(self, skip_damaged=False):
        """Check every part against its checksum, as `scan` does; `skip_damaged` leaves damaged ones out for good."""
        _, damaged = self._sorted(skip_damaged)
        if damaged:
            self._check_writable()
            left_out = [*self.left_out, *({n: part[n] for n in ("file", "rows", "fault")} for part in damaged)]
            self._write_index(dataclasses.replace(self._index, left_out=left_out))

    def _check_writable(self):
        if self._lock is None:
            raise StorageError(f"{self.path} is open for reading: FrameStore(path, write=True) writes")

    def _parts(self):
        """The entries of the parts in order, without those that have been left out."""
        left_out = {part["file"] for part in self.left_out}
        return [part for part in self._index.all_parts(self.path) if part["file"] not in left_out]

    def _sorted(self, skip_damaged):
        """Entries of the sound parts, and of the damaged ones with their fault; these are an error, unless skipped."""
        parts = self._parts()
        faults = [fault(self.path / part["file"], part) for part in parts]
        damaged = [{**part, "fault": wrong} for part, wrong in zip(parts, faults, strict=True) if wrong]
        if damaged and not skip_damaged:
            raise StorageError(
                f"of the {len(parts)} parts of {self.path}, {len(damaged)} cannot be trusted: "
                f"{'; '.join(part['file'] + ' ' + part['fault'] for part in damaged)}. "
                "Restore them, or leave them out with skip_damaged=True"
            )
        return [part for part, wrong in zip(parts, faults, strict=True) if not wrong], damaged

    def read(self, skip_damaged=False):
        """All rows saved so far, in memory."""
        return self.scan(skip_damaged).read()

    def export(self, path, more=None):
        """Write all rows to one Parquet file, in bounded memory; the same rows give the same bytes.

        more: a frame of rows to write after them, which have not been saved.
        """
        frame = self.scan()
        if frame.dataset is None:
            return write_frame(empty() if more is None else more, path)
        options = parquet_options(frame.schema)
        with replacing(path) as part, arrow_errors(), pq.ParquetWriter(part, frame.schema, **options) as writer:
            for table in frame.tables(ROWS_AT_A_TIME):
                writer.write_table(table)
            if more is not None and len(more):
                writer.write_table(pa.Table.from_pandas(more, frame.schema, preserve_index=False))
        return Path(path)

    def clear(self):
        """Forget all rows and the state."""
        self._schema = None
        self._write_index(Index(saved=self._index.saved + 1))
        for file in own_files(self.path):
            remove(file)

    def delete(self):
        """Remove the store from the disk and let go of it; a directory that holds other files stays, with a warning."""
        self.clear()
        remove(self.path / INDEX)
        remove(self.path / ".lock")  # While it is held: who comes now makes a new one.
        self.close()
        remove_directory(self.path)

    def _write_part(self, frame, number):
        with arrow_errors():
            table = pa.Table.from_pandas(frame, preserve_index=False)
        schema = self._schema or self._stored_schema() or table.schema
        if not table.schema.equals(schema):
            other = "; ".join(column_differences(schema, table.schema)) or "their order differs"
            raise FrameError(f"{self.path} holds a frame of other columns or types: {other}")
        file = self.path / part_name(number)
        with replacing(file) as part:
            pq.write_table(table, part, **parquet_options(schema))
            entry = {"file": file.name, "rows": table.num_rows, **fingerprint(part)}
        self._schema = schema
        return entry

    def _stored_schema(self):
        """The columns and types of the rows saved before; None without rows. `FrameError` for a damaged part."""
        first = self._parts()[:1]
        return StoredFrame([self.path / part["file"] for part in first]).schema if first else None

    def _write_state(self, arrays, number):
        file = self.path / state_name(number)
        return {"file": file.name, **write_arrays(file, arrays)}

    def _write_index(self, index):
        self._known = None  # Until it is certain.
        write_index(self.path, index)
        self._known = index

    def _drop_states(self, files):
        """Remove these states, unless the index names them."""
        kept = self._index.state and self._index.state["file"]
        for file in files:
            if file.name != kept:
                remove(file)


def scan_frame(path, skip_damaged=False):
    """The frame at `path`, a Parquet file or the directory of a `FrameStore`, to be read in bounded memory.

    Raises `FrameError` where there is none, `StorageError` where its parts are damaged (see `FrameStore.scan`).
    """
    path = Path(path)
    if (path / INDEX).is_file() or has_files(path):
        return FrameStore(path).scan(skip_damaged)
    if path.suffix != ".parquet" or not path.is_file():
        raise FrameError(f"there is no frame {path}: give a .parquet file, or a directory with an {INDEX}")
    return StoredFrame([path])
