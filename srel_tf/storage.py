"""Frames on disk that grow while they are measured, and the training state that belongs to them. Knows no TensorFlow.

    DIR/index.json              the parts in order and the state, each with its size and SHA-256
    DIR/part-000000.parquet …   rows
    DIR/state-000003.npz        arrays without pickle, say weights and optimizer variables (`srel_tf.Checkpoint`)

The index is written last, and a file that it names is never written again. Whenever a process dies, the index names
whole files, and a state together with exactly the rows that had been measured before it.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srel_tf.errors import FrameError, StorageError
from srel_tf.files import check_regular, lock, read_json, remove_leftovers, replacing, sha256, write_json
from srel_tf.frames import empty, write_frame
from srel_tf.stored import StoredFrame

INDEX = "index.json"
FORMAT = 1
EMPTY = {"format": FORMAT, "saved": 0, "parts": [], "state": None}
PART, STATE = re.compile(r"part-\d{6,12}\.parquet"), re.compile(r"state-\d{6,12}\.npz")
ROWS_AT_A_TIME = 2**17


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
                self._known = _read_index(self.path)
        except BaseException:
            self.close()
            raise

    def _begin(self, anew):
        remove_leftovers(self.path)
        if anew:
            self._known = EMPTY
            self.clear()
        elif (self.path / INDEX).exists() or _has_files(self.path):
            self._known = _read_index(self.path)
            self._drop_states(self.path.glob("state-*.npz"))
        else:  # From here on, files without an index mean that it was lost.
            self._write_index(EMPTY)

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
            self._known = _read_index(self.path)
        return self._known

    @property
    def num_rows(self):
        """Rows saved so far."""
        return sum(part["rows"] for part in self._index["parts"])

    @property
    def about(self):
        """What was saved about the latest state, a dict; None where there is none."""
        return self._index["state"] and self._index["state"]["about"]

    def append(self, frame):
        """Save the rows of `frame` after those saved before."""
        self.commit(frame)

    def commit(self, frame=None, arrays=None, about=None):
        """Save rows and, in place of the former one, a state, in one act: after a crash both are there or neither.

        frame: rows to add, with the columns and types of those saved before. arrays: {name: array}, about: a dict that
        JSON can hold. Raises `FrameError` for other columns or types, `StorageError` where the disk fails; what was
        saved before is whole then, and the same call may be made again.
        """
        self._check_writable()
        before = self._index["state"]
        index = {**self._index, "saved": self._index["saved"] + 1}
        if frame is not None and len(frame):
            index["parts"] = [*index["parts"], self._write_part(frame)]
        if arrays is not None:
            index["state"] = {**self._write_state(arrays, index["saved"]), "about": about or {}}
        self._write_index(index)
        if before and arrays is not None:
            self._drop_states([self.path / before["file"]])

    def state(self):
        """(arrays, about) of the latest state, None where there is none. `StorageError` where it is damaged."""
        entry = self._index["state"]
        if entry is None:
            return None
        file = self.path / entry["file"]
        fault = _fault(file, entry)
        if fault:
            raise StorageError(f"the state {file} {fault}: start again without it")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}, entry["about"]
        except Exception as error:  # NumPy and zipfile raise whatever a stranger's file leads them to.
            raise StorageError(f"the state {file} holds no arrays ({error}): start again without it") from error

    def scan(self, skip_damaged=False):
        """The rows saved so far as a `StoredFrame`, which reads them in bounded memory.

        Checks every part against its checksum first. A part that is missing, truncated or altered is named in a
        `StorageError`, or with `skip_damaged` left out.
        """
        return StoredFrame([self.path / part["file"] for part in self._sound(skip_damaged)])

    def check(self, skip_damaged=False):
        """Check every part against its checksum, as `scan` does; `skip_damaged` leaves damaged ones out for good."""
        sound = self._sound(skip_damaged)
        if len(sound) < len(self._index["parts"]):
            self._check_writable()
            self._write_index({**self._index, "saved": self._index["saved"] + 1, "parts": sound})

    def _check_writable(self):
        if self._lock is None:
            raise StorageError(f"{self.path} is open for reading: FrameStore(path, write=True) writes")

    def _sound(self, skip_damaged):
        """The entries of the parts that are whole."""
        parts = self._index["parts"]
        faults = [_fault(self.path / part["file"], part) for part in parts]
        damaged = [f"{part['file']} {fault}" for part, fault in zip(parts, faults, strict=True) if fault]
        if damaged and not skip_damaged:
            raise StorageError(
                f"of the {len(parts)} parts of {self.path}, {len(damaged)} cannot be trusted: "
                f"{'; '.join(damaged)}. Restore them, or leave them out with skip_damaged=True"
            )
        return [part for part, fault in zip(parts, faults, strict=True) if not fault]

    def read(self, skip_damaged=False):
        """All rows saved so far, in memory."""
        return self.scan(skip_damaged).read()

    def export(self, path, more=None):
        """Write all rows to one Parquet file, in bounded memory; the same rows give the same bytes.

        more: a frame of rows to write after them, which have not been saved.
        """
        frame = self.scan()
        if not self._index["parts"]:
            return write_frame(empty() if more is None else more, path)
        with replacing(path) as part, pq.ParquetWriter(part, frame.schema) as writer:
            for table in frame.tables(ROWS_AT_A_TIME):
                writer.write_table(table)
            if more is not None and len(more):
                writer.write_table(pa.Table.from_pandas(more, frame.schema, preserve_index=False))
        return Path(path)

    def clear(self):
        """Forget all rows and the state."""
        self._schema = None
        self._write_index({**EMPTY, "saved": self._index["saved"] + 1})
        for pattern in ("part-*.parquet", "state-*.npz"):
            for file in self.path.glob(pattern):
                _remove(file)

    def delete(self):
        """Remove the store from the disk and let go of it; a directory that holds other files stays, with a warning."""
        self.clear()
        _remove(self.path / INDEX)
        _remove(self.path / ".lock")  # While it is held: who comes now makes a new one.
        self.close()
        try:
            self.path.rmdir()
        except OSError as error:
            kept = ", ".join(sorted(file.name for file in self.path.glob("*"))) or error.strerror
            warnings.warn(f"{self.path} is no longer needed, but stays: {kept}", stacklevel=2)

    def _write_part(self, frame):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if self._schema is None:
            parts = self._index["parts"]
            self._schema = StoredFrame([self.path / parts[0]["file"]]).schema if parts else table.schema
        if not table.schema.equals(self._schema):
            there, now = ({f.name: str(f.type) for f in s} for s in (self._schema, table.schema))
            names = [n for n in {**there, **now} if there.get(n) != now.get(n)]
            other = "; ".join(f"{n}: {there.get(n)} there, {now.get(n)} now" for n in names)
            raise FrameError(f"{self.path} holds a frame of other columns or types: {other or 'their order differs'}")
        file = self.path / f"part-{self._next_number():06}.parquet"
        with replacing(file) as part:
            pq.write_table(table, part)
            entry = {"file": file.name, "rows": table.num_rows, "bytes": part.stat().st_size, "sha256": sha256(part)}
        return entry

    def _next_number(self):
        """After the last part's, whichever were left out before it."""
        parts = self._index["parts"]
        return 1 + max(int(re.search(r"\d+", part["file"])[0]) for part in parts) if parts else 0

    def _write_state(self, arrays, number):
        file = self.path / f"state-{number:06}.npz"
        with replacing(file) as part:
            with open(part, "wb") as opened:
                np.savez(opened, **arrays)
            return {"file": file.name, "bytes": part.stat().st_size, "sha256": sha256(part)}

    def _write_index(self, index):
        self._known = None  # Until it is certain.
        write_json(self.path / INDEX, {**index, "sha256": _seal(index)})
        self._known = json.loads(json.dumps(index))  # As it will be read.

    def _drop_states(self, files):
        """Remove these states, unless the index names them. All is saved already: a failure is told and no more."""
        kept = self._index["state"] and self._index["state"]["file"]
        for file in files:
            if file.name != kept:
                _remove(file)


def scan_frame(path, skip_damaged=False):
    """The frame at `path`, a Parquet file or the directory of a `FrameStore`, to be read in bounded memory.

    Raises `FrameError` where there is none, `StorageError` where its parts are damaged (see `FrameStore.scan`).
    """
    path = Path(path)
    if (path / INDEX).is_file() or _has_files(path):
        return FrameStore(path).scan(skip_damaged)
    if path.suffix != ".parquet" or not path.is_file():
        raise FrameError(f"there is no frame {path}: give a .parquet file, or a directory with an {INDEX}")
    return StoredFrame([path])


def _seal(index):
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _read_index(path):
    file = path / INDEX
    if not file.exists():
        lost = _has_files(path)
        remedy = (
            "restore it, or give the rows up: FrameStore(path, write=True, anew=True)" if lost else "look elsewhere"
        )
        raise StorageError(f"{path} holds {'parts of a frame' if lost else 'no frame'}, but no {INDEX}: {remedy}")
    index = read_json(file)
    seal = index.pop("sha256", None)
    if index.get("format") != FORMAT:
        raise StorageError(f"{file} has format {index.get('format')!r}, this version reads {FORMAT}")
    if seal != _seal(index):
        raise StorageError(f"{file} has been altered: its checksum does not fit; restore it")
    _check_index(file, index)
    return index


def _remove(file):
    """Remove what no index names any more; whether that succeeds changes nothing that is read."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"{file} is no longer needed, but stays: {error.strerror}", stacklevel=2)


def _has_files(path):
    """Whether rows or a state lie there."""
    return any(any(path.glob(name)) for name in ("part-*.parquet", "state-*.npz"))


def _check_index(file, index):
    """A seal proves no good will: names stay within the directory, sizes are numbers."""
    parts, state = index.get("parts"), index.get("state")
    good = set(index) == set(EMPTY) and _is_count(index["saved"]) and isinstance(parts, list)
    good = good and all(_is_entry(p, PART) and _is_count(p.get("rows")) for p in parts)
    good = good and len({p["file"] for p in parts}) == len(parts)
    if not good or not (state is None or (_is_entry(state, STATE) and isinstance(state.get("about"), dict))):
        raise StorageError(f"{file} is no index of a frame: entries are missing, of other types, or name other places")


def _is_entry(entry, pattern):
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("file", "sha256"))
        and pattern.fullmatch(entry["file"]) is not None
        and _is_count(entry.get("bytes"))
    )


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _fault(file, entry):
    """What is wrong with a file of the index, "" where nothing is."""
    try:
        if file.is_symlink():
            return "is a link"
        check_regular(file)
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} of its {entry['bytes']} bytes" if size < entry["bytes"] else "has grown"
        return "" if sha256(file) == entry["sha256"] else "has been altered"
    except StorageError:
        return "is missing" if not file.exists() else "is no regular file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
