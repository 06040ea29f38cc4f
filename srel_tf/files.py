"""Files that are whole or absent: written under a temporary name, flushed to the disk, renamed. Knows no TensorFlow."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import warnings
from pathlib import Path

import filelock

from srel_tf.errors import StorageError

LEFTOVER = re.compile(r"\..+\.\d+\.srel_tf\.part")


@contextlib.contextmanager
def replacing(path):
    """The name of a temporary file beside `path`, which takes its place once the block has filled it.

    Its content and its name are on the disk when the block is left: a crash or a power cut leaves the old file or the
    new one. Where the block or the disk fails, the old file stays and `StorageError` is raised for an `OSError`.
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


def cannot_write(path, error):
    """The `StorageError` that says why `path` cannot be written and what to do."""
    remedy = {
        errno.ENOSPC: "free space there",
        errno.EDQUOT: "free space there",
        errno.EROFS: "make it writable or choose another directory",
        errno.EACCES: "make it writable or choose another directory",
    }.get(error.errno, "choose another directory")
    reason = os.strerror(error.errno) if error.errno else error  # pyarrow's own text names the temporary file
    return StorageError(f"cannot write {path}: {reason}; {remedy}; what was saved before is whole")


def make_directory(path):
    """Make a directory, and those above it that are missing, and flush their names to the disk."""
    path = Path(path).absolute()
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:
        sync_directory(directory.parent)


def sync_directory(path):
    """Flush the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory):
    """Delete the temporary files of `replacing` that a killed process left; only for who alone may write there."""
    for path in Path(directory).glob(".*.part"):
        if LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):  # It is in nobody's way.
                path.unlink(missing_ok=True)


def write_json(path, content):
    """Write JSON, whole or not at all. Raises `StorageError`."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path):
    """The object (a dict) in a JSON file. `StorageError` where it is no regular file, or damaged, or no object."""
    check_regular(path)
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read as JSON ({error}): it is damaged, or no file of ours") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} holds a {type(content).__name__}, not an object: it is damaged, or no file of ours")
    return content


def as_json(content):
    """`content` as it is read after it has been written."""
    return json.loads(json.dumps(content))


def check_regular(path):
    """`StorageError` unless `path` is a regular file: a pipe would be waited for, a device never ends."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not regular:
        raise StorageError(f"{path} is no regular file")


def differences(saved, now):
    """A line for each name whose values differ."""
    other = [n for n in sorted({*saved, *now}) if saved.get(n) != now.get(n)]
    return [f"  {n}: {saved.get(n)!r} there, {now.get(n)!r} now" for n in other]


def sha256(path):
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path):
    """The size and the SHA-256 of a file, by which `fault` knows it again."""
    return {"bytes": Path(path).stat().st_size, "sha256": sha256(path)}


def fault(path, entry):
    """What is wrong with a file whose `fingerprint` is in `entry`, "" where nothing is."""
    try:
        if path.is_symlink():
            return "is a link"
        check_regular(path)
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} of its {entry['bytes']} bytes" if size < entry["bytes"] else "has grown"
        return "" if sha256(path) == entry["sha256"] else "has been altered"
    except StorageError:
        return "is missing" if not path.exists() else "is no regular file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def remove(path):
    """Remove a file that nothing names any more; where that fails, all is as good as before, and a warning says so."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"{path} is no longer needed, but stays: {error.strerror}", stacklevel=2)


def remove_directory(path):
    """Remove a directory that is no longer needed; one that holds files of others stays, and a warning says so."""
    try:
        Path(path).rmdir()
    except OSError as error:
        kept = ", ".join(sorted(file.name for file in Path(path).glob("*"))) or error.strerror
        warnings.warn(f"{path} is no longer needed, but stays: {kept}", stacklevel=2)


def lock(directory, **options):
    """Make `directory` and hold its lock, which the system takes back when the process ends. Raises `StorageError`."""
    try:
        make_directory(directory)
        held = filelock.FileLock(Path(directory) / ".lock", timeout=0, **options)
        held.acquire()
    except filelock.Timeout as error:
        raise StorageError(
            f"another process is writing to {directory}, or this one has it open: wait for it, close it, or choose "
            "another one"
        ) from error
    except OSError as error:
        raise cannot_write(directory, error) from error
    return held
