"""Run directories: settings, environment, and for each seed its frames and history.

    DIR/settings.json environment.json data.json selection.json pairs.csv separation.csv history.csv figures/
    DIR/seed-0/frame.parquet history.csv seed.json

A directory belongs to one set of settings; seeds may be added to it later. While a seed is trained its rows and its
training state lie in `seed-0/frame.parts/` (`srel_tf.FrameStore`). `seed.json`, with the checksums of the others, is
written last: a seed without it was interrupted and keeps what it measured. One process at a time has the directory.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from srel_tf import FrameStore, StorageError, StoredFrame, read_frame, write_frame
from srel_tf.files import (
    differences,
    lock,
    make_directory,
    read_json,
    remove_leftovers,
    write_json,
)
from train.common.environment import environment, versions
from train.common.seed_marks import (
    RunDirectoryError,
    check_mark,
    is_finished,
    mark_as_finished,
    ours,
)

# What a command writes beside the seeds; in a directory that none of ours has begun they are another's.
OWN = (
    "settings.json",
    "environment.json",
    "data.json",
    "pairs.csv",
    "separation.csv",
    "history.csv",
    "risks.csv",
)


class RunDirectory:
    """Creates or reopens `path` for `settings` (a dict that JSON can hold), and keeps other processes out of it.

    shared: for a process to which the one that has the directory gave a seed.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], shared: bool = False
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self._lock = None
        try:
            if shared:
                return
            self._check_that_it_is_ours()
            self._lock = lock(self.path, is_singleton=True)
            self._clean_up()
            if self._holds_results():
                self._check_settings()
                self._check_environment()
            else:  # What a failed command left binds nobody.
                (self.path / "data.json").unlink(missing_ok=True)
                write_json(self.path / "environment.json", environment())
            write_json(self.path / "settings.json", self.settings)
        except RunDirectoryError:
            raise
        except (StorageError, OSError) as error:
            reason = error.strerror or error
            raise RunDirectoryError(
                f"cannot write to {self.path}: {reason}; choose another --out"
            ) from error

    def _check_that_it_is_ours(self) -> None:
        """Before the first command, it holds nothing under the names of what that will write, or remove."""
        there = [name for name in OWN if (self.path / name).exists()]
        if there and not (self.path / ".lock").exists() and not self._holds_results():
            raise RunDirectoryError(
                f"{self.path} holds {', '.join(there)}, and no seed that they could belong to: "
                "choose another --out, or move them away"
            )

    def _clean_up(self) -> None:
        """Delete what a killed process left behind."""
        remove_leftovers(self.path)
        for parts in self.path.glob("seed-*/frame.parts"):
            with contextlib.suppress(
                StorageError
            ):  # Damaged (who needs the seed is told), or another process has it.
                if is_finished(parts.parent):
                    remove_store(parts)

    def _holds_results(self) -> bool:
        """Whether a command got as far as to save something."""
        saved = ("selection.json", "selection.parts/state-*")
        return (
            any(any(self.path.glob(name)) for name in saved)
            or self._holds_measurements()
        )

    def _holds_measurements(self) -> bool:
        saved = (
            "frame.parquet",
            "seed.json",
            "frame.parts/part-*",
            "frame.parts/state-*",
        )
        return any(any(self.path.glob(f"seed-*/{name}")) for name in saved)

    def _check_settings(self) -> None:
        file = self.path / "settings.json"
        if not file.exists():
            raise RunDirectoryError(
                f"{self.path} holds results, but no {file.name}: restore it, or choose another --out"
            )
        saved = ours(read_json, file)
        lines = differences(saved, self.settings)
        if lines:
            raise RunDirectoryError(
                f"{self.path} holds results of other settings; choose another --out:\n"
                + "\n".join(lines)
            )

    def _check_environment(self) -> None:
        """Say where versions or the machine differ from those of the results; each seed keeps its own in seed.json."""
        file = self.path / "environment.json"
        lines = (
            differences(ours(read_json, file), environment()) if file.exists() else []
        )
        if lines:
            print(
                f"note: {self.path} was begun in another environment:\n"
                + "\n".join(lines)
            )

    def check_data(self, fingerprint: str) -> None:
        """Bind the directory to the data with this hash; `RunDirectoryError` where it holds results of other data."""
        file = self.path / "data.json"
        measured = (
            self._holds_measurements()
        )  # First: another seed's process may bind the directory and measure now.
        if not file.exists():
            if measured:
                raise RunDirectoryError(
                    f"{self.path} holds results, but no {file.name}: restore it, or choose another --out"
                )
            write_json(file, {"fingerprint": fingerprint})
        elif ours(read_json, file).get("fingerprint") != fingerprint:
            raise RunDirectoryError(
                f"{self.path} holds results of other data (see data.json); choose another --out"
            )

    def is_complete(self, seed: int) -> bool:
        """Whether this seed has been run to its end, its files being those it ended with.

        Raises `RunDirectoryError` where one has changed since, or seed.json is damaged: running it again would
        replace results that may be restored; and where it is another seed, or one of other settings, that someone has
        copied here.
        """
        path = self.seed_path(seed)
        if not is_finished(path):
            return False
        check_mark(path, {"settings": self.settings, "seed": seed})
        return True

    def seed_path(self, seed: int) -> Path:
        return self.path / f"seed-{seed}"

    def note(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What numbers of one kind have in common, to be saved with each state: settings, versions, and `about`."""
        kept = {f"settings {name}": value for name, value in self.settings.items()}
        return {**kept, **versions(), **json.loads(json.dumps(about))}

    def store(self, seed: int, note: Mapping[str, Any], **options: bool) -> FrameStore:
        """The `FrameStore` of a seed, to write; note and options as for `open_store`."""
        store = self.open_store(
            self.seed_path(seed) / "frame.parts", f"seed {seed}", note, **options
        )
        remove_leftovers(self.seed_path(seed))
        return store

    def open_store(
        self,
        path: Path,
        name: str,
        note: Mapping[str, Any],
        resume: bool = False,
        restart: bool = False,
        skip_damaged: bool = False,
    ) -> FrameStore:
        """The `FrameStore` at `path` of what is called `name`: to go on with what it holds, or `restart` to forget it.

        skip_damaged: leave parts of it that were damaged out for good; without it they are a `StorageError`.
        note: what `note()` gave, saved with each state by whom this store is given to.
        Raises `StorageError` where another process has it; `RunDirectoryError` where it is to go on from a state with
        another note, say other versions of packages: its numbers would be of two kinds. And where it holds something
        that neither `resume` nor `restart` speaks of.
        """
        store = FrameStore(path, write=True, anew=restart)
        try:
            if (store.num_rows or store.about) and not resume:
                steps = (store.about or {}).get("step", "some")
                raise RunDirectoryError(
                    f"{name} was interrupted; {steps} updates and {store.num_rows} rows of it are saved in "
                    f"{store.path}: give --resume to go on, or --restart to forget them"
                )
            saved = note if store.about is None else store.about.get("note")
            lines = differences(saved if isinstance(saved, dict) else {}, note)
            if lines:
                raise RunDirectoryError(
                    f"{name} was interrupted under other versions, settings or data; go back to those, or "
                    "give --restart to forget what it measured:\n" + "\n".join(lines)
                )
            store.check(skip_damaged)
            for part in store.left_out:
                print(
                    f"{name}: {part['rows']} rows are left out, {part['file']} {part['fault']}",
                    flush=True,
                )
        except BaseException:
            store.close()
            raise
        return store

    def save_rows(
        self,
        seed: int,
        store: FrameStore,
        history: pd.DataFrame,
        more: pd.DataFrame | None = None,
    ) -> None:
        """Write what `store` holds, and the frame `more`, as frame.parquet, in bounded memory; and the history."""
        store.export(self.seed_path(seed) / "frame.parquet", more)
        write_frame(history, self.seed_path(seed) / "history.csv")

    def finish_seed(
        self,
        seed: int,
        store: FrameStore,
        history: pd.DataFrame,
        about: Mapping[str, Any],
    ) -> None:
        """Write a seed's frame and history, mark it as complete with `about` (a dict), and drop its training state.

        The mark also names the damaged parts whose rows the frame lacks.
        """
        self.save_rows(seed, store, history)
        mark_as_finished(
            self.seed_path(seed),
            {**about, "settings": self.settings, "left_out": store.left_out},
        )
        store.delete()

    def save_seed(
        self,
        seed: int,
        frame: pd.DataFrame,
        history: pd.DataFrame,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a seed's frame and history; `about` (a dict) marks it as complete.

        Without `about` a seed that is complete stays as it is: another process took the run over and was faster.
        """
        path = self.seed_path(seed)
        if about is None and self.is_complete(seed):
            return
        try:
            make_directory(path)
            write_frame(frame, path / "frame.parquet")
            write_frame(history, path / "history.csv")
            if about is not None:
                mark_as_finished(path, {**about, "settings": self.settings})
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write to {path}: {error}; what was saved before is whole"
            ) from error

    def frames(self, seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(frame, history) of these seeds together, in memory."""
        files = [self._file(s, "frame.parquet") for s in seeds]
        return pd.concat(
            [read_frame(f) for f in files], ignore_index=True
        ), self.histories(seeds)

    def scan(self, seeds: Sequence[int]) -> StoredFrame:
        """The frames of these seeds together, to be read in bounded memory."""
        return StoredFrame([self._file(s, "frame.parquet") for s in seeds])

    def histories(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Loss and accuracy by epoch of these seeds together."""
        return pd.concat(
            [read_frame(self._file(s, "history.csv")) for s in seeds], ignore_index=True
        )

    def _file(self, seed: int, name: str) -> Path:
        """A file of a seed; `RunDirectoryError` where the seed is finished and it is not what was written."""
        is_finished(self.seed_path(seed), [name])
        return self.seed_path(seed) / name


def remove_store(path: Path) -> None:
    """Remove a store, or what is left of one that a killed process was removing."""
    if any((path / name).exists() for name in ("index.json", ".lock")):
        FrameStore(path, write=True, anew=True).delete()
    else:
        with contextlib.suppress(OSError):  # It holds files of others.
            path.rmdir()
