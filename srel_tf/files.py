"""Write files completely or not at all.

Each file is written under a temporary name, flushed to the disk and renamed. This module does not import TensorFlow.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from srel_tf.errors import StorageError

AnyPath = str | os.PathLike[str]
JsonObject = dict[str, Any]

LEFTOVER = re.compile(r"\..+\.\d+\.srel_tf\.part")
REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EROFS: "make it writable or choose another directory",
    errno.EACCES: "make it writable or choose another directory",
}


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary file name in the directory of `path`; the file replaces `path` if the block raises no error.

    Content and name are flushed to the disk, so that a crash or a power cut leaves either the old file or the new one.
    If the block or the disk fails, the old file stays.

    Raises:
        StorageError: If the file cannot be written. This error replaces the `OSError`, and names the reason and a
            remedy.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.srel_tf.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: AnyPath, error: Exception) -> StorageError:
    """Return a `StorageError` that says why `path` cannot be written, and gives a remedy."""
    number = getattr(error, "errno", None) or 0
    remedy = REMEDIES.get(number, "choose another directory")
    # pyarrow's error messages name the temporary file, so the operating system's message is used if there is one.
    reason = os.strerror(number) if number else error
    return StorageError(
        f"cannot write {path}: {reason}; {remedy}; earlier saves are complete"
    )


def make_directory(path: AnyPath) -> None:
    """Make a directory and its missing parents, and flush their names to the disk."""
    path = Path(path).absolute()
    missing = [
        directory for directory in (path, *path.parents) if not directory.exists()
    ]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:
        sync_directory(directory.parent)


def sync_directory(path: AnyPath) -> None:
    """Flush the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: AnyPath) -> None:
    """Delete temporary files of `replacing` that a killed process left behind.

    No other process may be writing to the directory at this time.
    """
    for path in Path(directory).glob(".*.part"):
        if LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):  # A leftover temporary file is harmless.
                path.unlink(missing_ok=True)


def write_json(path: AnyPath, content: object) -> None:
    """Write JSON, completely or not at all. Raises `StorageError`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: AnyPath) -> JsonObject:
    """Read the object (a dict) in a JSON file.

    Raises:
        StorageError: If `path` is not a regular file, is damaged, or holds something other than an object.
    """
    check_regular(path)
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path} cannot be read as JSON ({error}): it is damaged, or was not written by srel_tf"
        ) from error
    if not isinstance(content, dict):
        raise StorageError(
            f"{path} holds a {type(content).__name__}, not an object: it is damaged, or was not written by srel_tf"
        )
    return content


def check_regular(path: AnyPath) -> None:
    """Raise `StorageError` unless `path` is a regular file: reading a pipe or a device may never end."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not regular:
        raise StorageError(f"{path} is not a regular file")


def as_json(content: Any) -> Any:
    """Convert `content` to the types that it has after it is written as JSON and read again."""
    return json.loads(json.dumps(content))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each name whose value differs between `saved` and `now`."""
    different = [n for n in sorted({*saved, *now}) if saved.get(n) != now.get(n)]
    return [f"  {n}: {saved.get(n)!r} saved, {now.get(n)!r} now" for n in different]


def sha256(path: AnyPath) -> str:
    """Compute the hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: AnyPath) -> tuple[int, str]:
    """Compute (size in bytes, hex SHA-256) of a file, for `find_damage`."""
    return Path(path).stat().st_size, sha256(path)


def find_damage(path: Path, expected_size: int, expected_sha256: str) -> str:
    """Compare a file with its `fingerprint`. Returns what is wrong with the file, or "" if it is intact."""
    try:
        if path.is_symlink():
            return "is a link"
        check_regular(path)
        size = path.stat().st_size
        if size < expected_size:
            return f"has {size} of its {expected_size} bytes"
        if size > expected_size:
            return "has grown"
        return "" if sha256(path) == expected_sha256 else "has been altered"
    except StorageError:
        return "is missing" if not path.exists() else "is not a regular file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def remove(path: AnyPath) -> None:
    """Remove a file that no index refers to any more. A failure is harmless and only gives a warning."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"{path} is no longer needed, but stays: {error.strerror}", stacklevel=2
        )


def remove_directory(path: AnyPath) -> None:
    """Remove a directory that is no longer needed. If it holds other files, it stays, and a warning lists them."""
    try:
        Path(path).rmdir()
    except OSError as error:
        kept = (
            ", ".join(sorted(file.name for file in Path(path).glob("*")))
            or error.strerror
        )
        warnings.warn(f"{path} is no longer needed, but stays: {kept}", stacklevel=2)


def lock(directory: AnyPath, **options: Any) -> filelock.BaseFileLock:
    """Make `directory` and take its lock. The operating system releases the lock when the process ends.

    Args:
        directory: A directory to which only one process at a time may write.
        **options: Passed to `filelock.FileLock`.

    Raises:
        StorageError: If another process holds the lock, or the directory cannot be written.
    """
    try:
        make_directory(directory)
        held = filelock.FileLock(Path(directory) / ".lock", timeout=0, **options)
        held.acquire()
    except filelock.Timeout as error:
        raise StorageError(
            f"another process is writing to {directory}, or this process has already opened it for writing: wait for "
            "the other process, close what this process has open, or choose another directory"
        ) from error
    except OSError as error:
        raise cannot_write(directory, error) from error
    return held
