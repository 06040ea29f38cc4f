"""The index of a `FrameStore`, which lists the parts (files of rows) and the state.

This module does not import TensorFlow.

The index is a SQLite database with a rollback journal. SQLite ends a transaction by deleting the journal and flushing
the deletion to the disk. Thus a crash or a power cut leaves either the old index or the new one, and between two
transactions the database is a single file. The index stores numbers instead of file names, so that it cannot refer to
files in other directories. Each entry has a checksum, its seal.
"""

import contextlib
import errno
import hashlib
import json
import re
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from srel_tf.errors import StorageError
from srel_tf.files import JsonObject, cannot_write, replacing

INDEX, FORMAT = "index.sqlite", 3
NAMES = {"part": "part-{:06}.parquet", "state": "state-{:06}.safetensors"}
OLD_INDEX = "index.json"  # Index file of formats 1 and 2.
OWN = re.compile(
    r"part-\d{6,12}\.parquet|state-\d{6,12}\.(safetensors|npz)|index(-\d{6,12})?\.json"
)
GIVE_UP = "give the rows up: FrameStore(path, write=True, anew=True)"
SECONDS_TO_WAIT = 60  # How long to wait if another process uses the index.

# If a transaction covers several databases, each journal ends with the name of another file and these bytes. SQLite
# would delete the file of that name.
NAMES_ANOTHER_FILE = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"


class Entry(NamedTuple):
    """A file of a store.

    Attributes:
        kind: "part" or "state".
        number: Number of the file among the files of its kind.
        rows: Number of rows of a part.
        bytes: Size of the file.
        sha256: Hex SHA-256 of the file.
        damage: Reason why a part is left out; "" if the part is read.
        metadata: Metadata of a state, as JSON.
    """

    kind: str
    number: int
    rows: int
    bytes: int
    sha256: str
    damage: str = ""
    metadata: str = "{}"

    @property
    def file(self) -> str:
        """Name of the file."""
        return file_name(self.kind, self.number)

    @property
    def seal(self) -> str:
        """Checksum of the entry, which detects an altered entry."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


TYPES = [*Entry.__annotations__.values()]
SCHEMA = (
    f"CREATE TABLE files ({', '.join(Entry._fields)}, seal, PRIMARY KEY (kind, number)) "
    "WITHOUT ROWID"
)


class Index:
    """The index in a directory. Each method opens the database and closes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / INDEX
        self._journal = directory / f"{INDEX}-journal"

    def parts(self) -> list[Entry]:
        """Read the entries of all parts in order, including those that are left out."""
        return self._select("kind = 'part' ORDER BY number")

    def latest(self, kind: str) -> Entry | None:
        """Read the latest entry of this kind; None if no entry exists."""
        entries = self._select(f"kind = '{kind}' ORDER BY number DESC LIMIT 1")
        return entries[0] if entries else None

    def metadata(self) -> JsonObject | None:
        """Read the metadata of the latest state; None if there is no state."""
        state = self.latest("state")
        return json.loads(state.metadata) if state else None

    def check(self) -> None:
        """Raise `StorageError` if the index is missing, damaged, or not an index of this format."""
        if not self._file.exists():
            raise self._missing()
        with self._opened() as database:
            (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise self._damaged(result)
        numbers = [part.number for part in self.parts()]
        if numbers != list(range(len(numbers))):
            raise self._damaged("a part is missing")
        self.latest("state")

    def create(self) -> None:
        """Write an empty index. An existing index is replaced, even if it is damaged."""
        statements = [
            "PRAGMA journal_mode=OFF",
            SCHEMA,
            f"PRAGMA user_version={FORMAT}",
        ]
        try:
            with replacing(self._file) as new:
                # Otherwise SQLite would apply the journal of the previous index to the new index.
                self._journal.unlink(missing_ok=True)
                with contextlib.closing(sqlite3.connect(new)) as database:
                    database.executescript("; ".join(statements))
        except sqlite3.Error as error:
            raise self._cannot_write(error) from error

    def save(self, *entries: Entry) -> None:
        """Save entries in one transaction.

        A part replaces the part with the same number. A state replaces the previous state.
        """
        values = ", ".join("?" * (len(Entry._fields) + 1))
        with self._opened(write=True) as database:
            if any(entry.kind == "state" for entry in entries):
                database.execute("DELETE FROM files WHERE kind = 'state'")
            database.executemany(
                f"INSERT OR REPLACE INTO files VALUES ({values})",
                [(*entry, entry.seal) for entry in entries],
            )

    def clear(self) -> None:
        """Remove all entries; replace the index if it is missing or damaged."""
        try:
            self.check()
        except StorageError:
            self.create()
        else:
            with self._opened(write=True) as database:
                database.execute("DELETE FROM files")

    def _select(self, condition: str) -> list[Entry]:
        with self._opened() as database:
            rows = database.execute(f"SELECT * FROM files WHERE {condition}").fetchall()
        return [self._entry(row) for row in rows]

    def _entry(self, row: tuple) -> Entry:
        """Convert a row of the table to an `Entry`. Raise `StorageError` if it was altered.

        The values are checked in addition to the seal, because a seal can be forged.
        """
        *values, seal = row
        if [*map(type, values)] == TYPES and values[0] in NAMES and values[2] >= 0:
            entry = Entry(*values)
            with contextlib.suppress(ValueError, RecursionError):
                if seal == entry.seal and type(json.loads(entry.metadata)) is dict:
                    return entry
        raise self._damaged(f"the entry of {values[0]} {values[1]} has been altered")

    @contextlib.contextmanager
    def _opened(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the database and yield it within a transaction. An exception undoes the transaction.

        If a killed process has left a transaction unfinished, SQLite first undoes that transaction. A reader needs
        permission to write only in this case.

        Raises:
            StorageError: If the file is not an index, or the disk fails.
        """
        self._check_files()
        uri = f"{self._file.absolute().as_uri()}?mode=rw"
        try:
            with contextlib.closing(
                sqlite3.connect(uri, SECONDS_TO_WAIT, isolation_level=None, uri=True)
            ) as database:
                database.execute("PRAGMA trusted_schema=OFF")
                database.execute("PRAGMA synchronous=EXTRA")
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                self._check_schema(database)
                yield database
                database.execute("COMMIT")
        except (sqlite3.Error, UnicodeError) as error:
            if write and isinstance(error, sqlite3.OperationalError):
                raise self._cannot_write(error) from error
            raise self._damaged(str(error)) from error

    def _check_files(self) -> None:
        """Raise `StorageError` if a file of the database is not regular, or if its journal names another file."""
        for ending in ("", "-journal", "-wal", "-shm"):
            file = self._directory / f"{INDEX}{ending}"
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(file.lstat().st_mode):
                    raise StorageError(
                        f"{file} is not a regular file, but for example a symbolic link: put a regular file there"
                    )
        # A writer removes its journal, so the journal may vanish at any moment.
        with contextlib.suppress(FileNotFoundError):
            if self._journal.read_bytes().endswith(NAMES_ANOTHER_FILE):
                raise StorageError(
                    f"{self._journal} is not the journal of an index, because it names another file: remove it"
                )

    def _check_schema(self, database: sqlite3.Connection) -> None:
        """Raise `StorageError` unless the database has the table of this format, and no trigger or view."""
        (number,) = database.execute("PRAGMA user_version").fetchone()
        schema = database.execute("SELECT sql FROM sqlite_master").fetchall()
        if number != FORMAT or schema != [(SCHEMA,)]:
            raise StorageError(
                f"{self._file} has format {number} or other tables, but this version reads format {FORMAT}: use the "
                f"version that wrote it, or {GIVE_UP}"
            )

    def _cannot_write(self, error: Exception) -> StorageError:
        if "disk is full" in str(error):  # The errors of SQLite have no errno.
            error = OSError(errno.ENOSPC, str(error))
        return cannot_write(self._file, error)

    def _damaged(self, damage: str) -> StorageError:
        remedy = f"restore it, or {GIVE_UP}"
        if self._journal.exists():
            remedy = (
                f"{self._journal.name} belongs to a killed process: open the directory once with permission to write "
                f"there, or open a copy of it; if that does not help, {remedy}"
            )
        return StorageError(f"{self._file} cannot be read ({damage}): {remedy}")

    def _missing(self) -> StorageError:
        if (self._directory / OLD_INDEX).exists():
            return StorageError(
                f"{self._directory} holds a frame of an earlier version ({OLD_INDEX} and states in .npz), which this "
                f"version does not read: use the version that wrote it, or {GIVE_UP}"
            )
        if own_files(self._directory):
            return StorageError(
                f"{self._directory} holds parts of a frame, but no {INDEX}: restore it, or {GIVE_UP}"
            )
        return StorageError(
            f"{self._directory} does not hold a frame: {INDEX} is missing; pass the directory of a FrameStore"
        )


def own_files(directory: Path, kind: str = "") -> list[Path]:
    """List the files of a store in `directory`, including those that its index does not name.

    Args:
        directory: The directory.
        kind: "part" or "state" restricts the list to this kind.
    """
    return [file for file in directory.glob(f"{kind}*") if OWN.fullmatch(file.name)]


def file_name(kind: str, number: int) -> str:
    """Return the file name of the part or state with this number."""
    return NAMES[kind].format(number)
