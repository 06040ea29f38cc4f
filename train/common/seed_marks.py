"""seed.json: the mark of a finished seed, with the checksums of its files and the settings that it was run with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srel_tf import StorageError
from srel_tf.files import differences, read_json, sha256, write_json
from train.common.environment import environment

FILES = ("frame.parquet", "history.csv")  # of a seed
MORE = ("distances.parquet",)  # which some experiments have


class RunDirectoryError(StorageError):
    """A run directory that cannot be written, is in use, or holds results of other settings."""


def mark_as_finished(path: Path, about: Mapping[str, Any]) -> None:
    """Write the seed.json of a seed's directory: `about` (a dict) and what its files are."""
    sums = {
        name: sha256(path / name)
        for name in (*FILES, *MORE)
        if (path / name).exists() or name in FILES
    }
    write_json(
        path / "seed.json", {**about, "environment": environment(), "sha256": sums}
    )


def finished_seeds(path: str | Path) -> list[Path]:
    """Directories of the finished seeds of a run directory, by number.

    Raises `RunDirectoryError` where one's files are not those that it ended with, or it is of another run.
    """
    found = [mark.parent for mark in Path(path).glob("seed-*/seed.json")]
    found.sort(key=lambda seed: (len(seed.name), seed.name))
    finished = [seed for seed in found if is_finished(seed)]
    settings = Path(path) / "settings.json"
    for seed in finished if settings.exists() else []:
        check_mark(seed, {"settings": ours(read_json, settings)})
    return finished


def check_mark(path: Path, expected: Mapping[str, Any]) -> None:
    """`RunDirectoryError` unless the seed.json in `path` says what is expected. Those of before had no settings."""
    mark = ours(read_json, path / "seed.json")
    lines = []
    for name, value in expected.items():
        saved = mark.get(name, value)
        both = (
            (saved, value)
            if isinstance(saved, dict) and isinstance(value, dict)
            else ({name: saved}, {name: value})
        )
        lines += differences(*both)
    if lines:
        raise RunDirectoryError(
            f"{path} is not a seed of this run: give it back to the one that it is of, or delete it:\n"
            + "\n".join(lines)
        )


def is_finished(path: Path, names: Sequence[str] = ()) -> bool:
    """Whether there is a seed.json, and these files, or else all that it names, are what was written with it."""
    mark = path / "seed.json"
    if not mark.exists():
        return False
    sums = ours(read_json, mark).get("sha256")
    if not isinstance(sums, dict) or not {*FILES, *names} <= set(sums) <= {
        *FILES,
        *MORE,
    }:
        raise RunDirectoryError(
            f"{mark} holds no checksums of the seed's files: it is damaged; restore it, or delete it to run it again"
        )
    for name in names or sums:
        file = path / name
        if not file.is_file() or sums[name] != ours(sha256, file):
            raise RunDirectoryError(
                f"{file} is not what was written: restore it, or delete {mark} to run it again"
            )
    return True


def ours(read: Callable[[Path], Any], path: Path) -> Any:
    """read(path), with what is wrong as `RunDirectoryError`."""
    try:
        return read(path)
    except OSError as error:
        raise RunDirectoryError(str(error)) from error
