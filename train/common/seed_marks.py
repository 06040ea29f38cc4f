"""The file seed.json marks a seed as finished. It holds the settings of the seed and the checksums of its files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srel_tf import StorageError
from srel_tf.files import differences, read_json, sha256, write_json
from train.common.environment import environment

FILES = {"frame.parquet", "history.csv"}  # Files of every seed.
ALL_FILES = FILES | {
    "distances.parquet"
}  # distances.parquet is written only by the regression.


class RunDirectoryError(StorageError):
    """A run directory cannot be written, is in use, or holds results with other settings."""


def mark_as_finished(path: Path, about: Mapping[str, Any]) -> None:
    """Write seed.json into the directory of a seed: `about`, the environment and the checksums of the files."""
    present = {name for name in ALL_FILES if (path / name).exists()}
    sums = {name: sha256(path / name) for name in sorted(FILES | present)}
    content = {**about, "environment": environment(), "sha256": sums}
    write_json(path / "seed.json", content)


def finished_seeds(path: str | Path) -> list[Path]:
    """List the directories of the finished seeds of a run directory, ordered by number.

    Raises:
        RunDirectoryError: If a file of a seed has changed since the seed ended, or if a seed belongs to another run.
    """
    marked = [mark.parent for mark in Path(path).glob("seed-*/seed.json")]
    marked.sort(key=lambda seed: (len(seed.name), seed.name))
    finished = [seed for seed in marked if is_finished(seed)]
    settings = Path(path) / "settings.json"
    for seed in finished if settings.exists() else []:
        check_mark(seed, {"settings": ours(read_json, settings)})
    return finished


def check_mark(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise `RunDirectoryError` unless the seed.json in `path` agrees with `expected`.

    Entries that are missing in seed.json are not compared, because an earlier version did not save settings.
    """
    mark = ours(read_json, path / "seed.json")
    lines = []
    for name, now in expected.items():
        saved = mark.get(name, now)
        if not (isinstance(saved, dict) and isinstance(now, dict)):
            saved, now = {name: saved}, {name: now}
        lines += differences(saved, now)
    if lines:
        raise RunDirectoryError(
            f"{path} is not a seed of this run: move it back to its own run, or delete it; the differences are:\n"
            + "\n".join(lines)
        )


def is_finished(path: Path, names: Sequence[str] = ()) -> bool:
    """Return whether the seed is finished, which means that seed.json exists.

    If seed.json exists, its checksums are also compared with the files `names`. If `names` is empty, they are compared
    with all files of the seed.

    Raises:
        RunDirectoryError: If a file has changed or seed.json is damaged.
    """
    mark = path / "seed.json"
    if not mark.exists():
        return False
    sums = ours(read_json, mark).get("sha256")
    if not isinstance(sums, dict) or not FILES | {*names} <= sums.keys() <= ALL_FILES:
        raise RunDirectoryError(
            f"{mark} is damaged, because checksums of the seed's files are missing in it: restore it, or delete it to "
            "run the seed again"
        )
    for name in names or sums:
        file = path / name
        if not file.is_file() or sums[name] != ours(sha256, file):
            raise RunDirectoryError(
                f"{file} has changed since it was written: restore it, or delete {mark} to run the seed again"
            )
    return True


def ours(read: Callable[[Path], Any], path: Path) -> Any:
    """Return read(path), and convert an `OSError` to a `RunDirectoryError`."""
    try:
        return read(path)
    except OSError as error:
        raise RunDirectoryError(str(error)) from error
