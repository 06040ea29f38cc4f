"""Run directories: settings, environment, and for each seed its frames and history.

    DIR/settings.json environment.json data.json selection.json pairs.csv separation.csv history.csv figures/
    DIR/seed-0/frame.parquet history.csv seed.json

All seeds of a directory have the same settings. Seeds may be added later. While a seed is trained, its rows and its
training state are kept in `seed-0/frame.parts/` (`srel_tf.FrameStore`). `seed.json` holds the checksums of the other
files and is written last. A seed without `seed.json` is not complete; its measurements so far are kept. Only one
process at a time holds the lock of the directory.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from srel_tf import FrameStore, StorageError, StoredFrame, read_frame, write_frame
from srel_tf.files import (
    as_json,
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

# Files that a command writes next to the seeds. If a directory has no run, files with these names have another origin,
# and a command must not replace them.
OWN = (
    *("settings.json", "environment.json", "data.json"),
    *("pairs.csv", "separation.csv", "history.csv", "risks.csv"),
)
MEASURED = tuple(
    f"seed-*/{name}"
    for name in (
        "frame.parquet",
        "seed.json",
        "frame.parts/part-*",
        "frame.parts/state-*",
    )
)
SELECTED = ("selection.json", "selection.parts/state-*")


class RunDirectory:
    """A run directory for `settings`. The constructor makes or reopens it, and locks it against other processes.

    Args:
        path: The directory.
        settings: Settings that all seeds share, with values that JSON supports.
        shared: Whether another process holds the lock and has assigned a seed to this process.

    Raises:
        RunDirectoryError: If the directory cannot be written, is in use, or holds results with other settings.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], shared: bool = False
    ) -> None:
        self.path = Path(path)
        self.settings = as_json(settings)
        if shared:
            return
        try:
            self._check_that_it_is_ours()
            self._lock = lock(self.path, is_singleton=True)
            self._clean_up()
            if self._holds(*SELECTED, *MEASURED):
                self._check_settings()
                self._note_environment()
            else:
                # There are no results: replace the settings and the data hash of an earlier command.
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
        """Refuse a directory that has no run, but holds files that a command would replace."""
        present = [name for name in OWN if (self.path / name).exists()]
        begun = (self.path / ".lock").exists() or self._holds(*SELECTED, *MEASURED)
        if present and not begun:
            raise RunDirectoryError(
                f"{self.path} holds {', '.join(present)}, but no seed to which these files belong: "
                "choose another --out, or move the files away"
            )

    def _clean_up(self) -> None:
        """Delete the leftovers of killed processes."""
        remove_leftovers(self.path)
        for parts in self.path.glob("seed-*/frame.parts"):
            # Ignore stores that another process has opened. Ignore damaged files, too: they are reported when the seed
            # is read.
            with contextlib.suppress(StorageError):
                if is_finished(parts.parent):
                    remove_store(parts)

    def _holds(self, *patterns: str) -> bool:
        return any(any(self.path.glob(pattern)) for pattern in patterns)

    def _read(self, name: str) -> dict[str, Any]:
        """Read a JSON file that every directory with results contains."""
        file = self.path / name
        if not file.exists():
            raise RunDirectoryError(
                f"{self.path} holds results, but {name} is missing: restore it, or choose another --out"
            )
        return ours(read_json, file)

    def _check_settings(self) -> None:
        lines = differences(self._read("settings.json"), self.settings)
        if lines:
            raise RunDirectoryError(
                f"{self.path} holds results of other settings; choose another --out; the differences are:\n"
                + "\n".join(lines)
            )

    def _note_environment(self) -> None:
        """Print the differences between this environment and the environment in which the directory was begun.

        The environment of each seed is recorded in seed.json of this seed.
        """
        file = self.path / "environment.json"
        begun_in = ours(read_json, file) if file.exists() else environment()
        lines = differences(begun_in, environment())
        if lines:
            print(
                f"note: {self.path} was begun in another environment:\n"
                + "\n".join(lines)
            )

    def check_data(self, fingerprint: str) -> None:
        """Record the hash of the data, or compare it with the recorded hash.

        Raises:
            RunDirectoryError: If the directory holds results of other data.
        """
        # Look for results first, then for data.json, because the process of another seed writes data.json first and
        # results later.
        measured = self._holds(*MEASURED)
        file = self.path / "data.json"
        if not measured and not file.exists():
            write_json(file, {"fingerprint": fingerprint})
        elif self._read("data.json").get("fingerprint") != fingerprint:
            raise RunDirectoryError(
                f"{self.path} holds results of other data (see data.json); choose another --out"
            )

    def is_complete(self, seed: int) -> bool:
        """Return whether this seed is complete.

        Raises:
            RunDirectoryError: If a file of the seed has changed since the seed ended; if seed.json is damaged; or if
                seed.json names another seed or other settings. Such a seed is not run again, because a new run would
                replace results that the user may be able to restore.
        """
        path = self.seed_path(seed)
        if not is_finished(path):
            return False
        check_mark(path, {"settings": self.settings, "seed": seed})
        return True

    def unfinished(self, seeds: Sequence[int]) -> list[int]:
        """Return the seeds that are not complete, and print the directories of the complete seeds."""
        waiting = [seed for seed in seeds if not self.is_complete(seed)]
        for seed in seeds:
            if seed not in waiting:
                print(f"seed {seed}: measured already, kept in {self.seed_path(seed)}")
        return waiting

    def seed_path(self, seed: int) -> Path:
        """Return the directory of a seed."""
        return self.path / f"seed-{seed}"

    def note(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the properties that must agree when a seed continues: settings, versions, and `about`."""
        kept = {f"settings {name}": value for name, value in self.settings.items()}
        return {**kept, **versions(), **as_json(about)}

    def store(self, seed: int, note: Mapping[str, Any], **options: bool) -> FrameStore:
        """Open the `FrameStore` of a seed for writing. `note` and `options` are passed to `open_store`."""
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
        """Open the `FrameStore` at `path` for writing.

        Args:
            path: Directory of the store.
            name: Name of the seed or of the class selection, for messages.
            note: Result of `note()`, which the caller saves with each state.
            resume: Continue with the content of the store.
            restart: Discard the content of the store.
            skip_damaged: Leave out damaged parts permanently.

        Raises:
            StorageError: If another process holds the store, or if a part is damaged and `skip_damaged` is False.
            RunDirectoryError: If the store is not empty and neither `resume` nor `restart` is True; or if the store was
                begun with another note, for example with other versions of packages.
        """
        store = FrameStore(path, write=True, anew=restart)
        try:
            if (store.num_rows or store.about) and not resume:
                steps = (store.about or {}).get("step", "some")
                raise RunDirectoryError(
                    f"{name} was interrupted; {steps} updates and {store.num_rows} rows are saved in "
                    f"{store.path}: give --resume to continue, or --restart to discard them"
                )
            saved = note if store.about is None else store.about.get("note")
            lines = differences(saved if isinstance(saved, dict) else {}, note)
            if lines:
                raise RunDirectoryError(
                    f"{name} was begun with other versions, settings or data; return to those, or give "
                    "--restart to discard its measurements; the differences are:\n"
                    + "\n".join(lines)
                )
            store.check(skip_damaged)
            for part in store.left_out:
                print(
                    f"{name}: {part['rows']} rows are left out, because {part['file']} {part['fault']}",
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
        """Write the rows of `store` and `more` to frame.parquet in bounded memory, and the history to history.csv."""
        store.export(self.seed_path(seed) / "frame.parquet", more)
        write_frame(history, self.seed_path(seed) / "history.csv")

    def finish_seed(
        self,
        seed: int,
        store: FrameStore,
        history: pd.DataFrame,
        about: Mapping[str, Any],
    ) -> None:
        """Write the frame and the history of a seed, mark it as complete, and delete its training state.

        The mark, seed.json, contains `about`. It also lists the damaged parts whose rows are missing in the frame.
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
        """Write the frame and the history of a seed. If `about` is given, also mark the seed as complete.

        If `about` is None and the seed is complete, nothing is written, because another process has taken over the run
        and finished the seed.
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
                f"cannot write to {path}: {error}; make it writable or free space there; earlier saves are complete"
            ) from error

    def frames(self, seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Read (frame, history) of these seeds into memory."""
        files = [self._file(s, "frame.parquet") for s in seeds]
        return pd.concat(
            [read_frame(f) for f in files], ignore_index=True
        ), self.histories(seeds)

    def scan(self, seeds: Sequence[int]) -> StoredFrame:
        """Open the frames of these seeds for reading in bounded memory."""
        return StoredFrame([self._file(s, "frame.parquet") for s in seeds])

    def histories(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Read the histories of these seeds."""
        return pd.concat(
            [read_frame(self._file(s, "history.csv")) for s in seeds], ignore_index=True
        )

    def _file(self, seed: int, name: str) -> Path:
        """Return the path of a file of a seed.

        Raises `RunDirectoryError` if the file of a finished seed has changed.
        """
        is_finished(self.seed_path(seed), [name])
        return self.seed_path(seed) / name


def remove_store(path: Path) -> None:
    """Remove a store, or the remains of a store whose removal was interrupted."""
    if any((path / name).exists() for name in ("index.sqlite", ".lock")):
        FrameStore(path, write=True, anew=True).delete()
    else:
        with contextlib.suppress(OSError):  # The directory may hold other files.
            path.rmdir()
