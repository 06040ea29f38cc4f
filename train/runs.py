"""Run directories: settings, environment, and for each seed its frames and history.

    DIR/settings.json environment.json data.json pairs.csv separation.csv history.csv figures/
    DIR/seed-0/frame.parquet history.csv seed.json

A directory belongs to one set of settings; seeds may be added to it later. While a seed is trained its rows and its
training state lie in `seed-0/frame.parts/` (`srel_tf.FrameStore`). `seed.json` is written last: a seed without it was
interrupted and keeps what it measured. One process at a time has the directory.
"""

import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import keras
import pandas as pd
import tensorflow as tf

from srel_tf import FrameStore, StorageError, StoredFrame, read_frame, write_frame
from srel_tf.files import differences, lock, read_json, remove_leftovers, sha256, write_json

PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "pandas", "scipy", "scikit-learn")

VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


class RunDirectoryError(StorageError):
    """A run directory that cannot be written, is in use, or holds results of other settings."""


class RunDirectory:
    """Creates or reopens `path` for `settings` (a dict that JSON can hold), and keeps other processes out of it.

    shared: for a process to which the one that has the directory gave a seed.
    """

    def __init__(self, path, settings, shared=False):
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self._lock = None
        try:
            if shared:
                return
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
            raise RunDirectoryError(f"cannot write to {self.path}: {reason}; choose another --out") from error

    def _clean_up(self):
        """Delete what a killed process left behind."""
        remove_leftovers(self.path)
        for mark in self.path.glob("seed-*/seed.json"):
            shutil.rmtree(mark.with_name("frame.parts"), ignore_errors=True)

    def _holds_results(self):
        """Whether a command got as far as to save something."""
        return (self.path / "selection.json").exists() or self._holds_measurements()

    def _holds_measurements(self):
        saved = ("frame.parquet", "seed.json", "frame.parts/part-*", "frame.parts/state-*")
        return any(any(self.path.glob(f"seed-*/{name}")) for name in saved)

    def _check_settings(self):
        file = self.path / "settings.json"
        if not file.exists():
            raise RunDirectoryError(
                f"{self.path} holds results, but no {file.name}: restore it, or choose another --out"
            )
        saved = _ours(read_json, file)
        lines = differences(saved, self.settings)
        if lines:
            raise RunDirectoryError(
                f"{self.path} holds results of other settings; choose another --out:\n" + "\n".join(lines)
            )

    def _check_environment(self):
        """Say where versions or the machine differ from those of the results; each seed keeps its own in seed.json."""
        file = self.path / "environment.json"
        lines = differences(_ours(read_json, file), environment()) if file.exists() else []
        if lines:
            print(f"note: {self.path} was begun in another environment:\n" + "\n".join(lines))

    def check_data(self, fingerprint):
        """Bind the directory to the data with this hash; `RunDirectoryError` where it holds results of other data."""
        file = self.path / "data.json"
        measured = self._holds_measurements()  # First: another seed's process may bind the directory and measure now.
        if not file.exists():
            if measured:
                raise RunDirectoryError(
                    f"{self.path} holds results, but no {file.name}: restore it, or choose another --out"
                )
            write_json(file, {"fingerprint": fingerprint})
        elif _ours(read_json, file).get("fingerprint") != fingerprint:
            raise RunDirectoryError(f"{self.path} holds results of other data (see data.json); choose another --out")

    def is_complete(self, seed):
        """Whether this seed has been run to its end."""
        return (self.seed_path(seed) / "seed.json").exists()

    def seed_path(self, seed):
        return self.path / f"seed-{seed}"

    def note(self, about):
        """What numbers of one kind have in common, to be saved with each state: settings, versions, and `about`."""
        kept = {f"settings {name}": value for name, value in self.settings.items()}
        return {**kept, **versions(), **json.loads(json.dumps(about))}

    def store(self, seed, note, resume=False, restart=False, skip_damaged=False):
        """The `FrameStore` of a seed, to write: to go on with what it holds, or with `restart` to forget it.

        skip_damaged: leave parts of it that were damaged out for good; without it they are a `StorageError`.
        note: what `note()` gave, saved with each state by whom this store is given to.
        Raises `StorageError` where another process has it; `RunDirectoryError` where it is to go on from a state with
        another note, say other versions of packages: its numbers would be of two kinds. And where it holds something
        that neither `resume` nor `restart` speaks of.
        """
        store = FrameStore(self.seed_path(seed) / "frame.parts", write=True, anew=restart)
        try:
            if (store.num_rows or store.about) and not resume:
                steps = (store.about or {}).get("step", "some")
                raise RunDirectoryError(
                    f"seed {seed} was interrupted; {steps} updates and {store.num_rows} rows of it are saved in "
                    f"{store.path}: give --resume to go on, or --restart to forget them"
                )
            store.check(skip_damaged)
            saved = note if store.about is None else store.about.get("note")
            lines = differences(saved if isinstance(saved, dict) else {}, note)
            if lines:
                raise RunDirectoryError(
                    f"seed {seed} was interrupted under other versions, settings or data; go back to those, or "
                    "give --restart to forget what it measured:\n" + "\n".join(lines)
                )
        except BaseException:
            store.close()
            raise
        return store

    def save_rows(self, seed, store, history, more=None):
        """Write what `store` holds, and the frame `more`, as frame.parquet, in bounded memory; and the history."""
        store.export(self.seed_path(seed) / "frame.parquet", more)
        write_frame(history, self.seed_path(seed) / "history.csv")

    def finish_seed(self, seed, store, history, about):
        """Write a seed's frame and history, mark it as complete with `about` (a dict), and drop its training state."""
        self.save_rows(seed, store, history)
        self._mark(seed, about)
        store.delete()

    def save_seed(self, seed, frame, history, about=None):
        """Write a seed's frame and history; `about` (a dict) marks it as complete."""
        path = self.seed_path(seed)
        try:
            path.mkdir(exist_ok=True)
            write_frame(frame, path / "frame.parquet")
            write_frame(history, path / "history.csv")
            if about is not None:
                self._mark(seed, about)
        except OSError as error:
            raise RunDirectoryError(f"cannot write to {path}: {error}; what was saved before is whole") from error

    def _mark(self, seed, about):
        path = self.seed_path(seed)
        sums = {name: sha256(path / name) for name in ("frame.parquet", "history.csv")}
        write_json(path / "seed.json", {**about, "environment": environment(), "sha256": sums})

    def frames(self, seeds):
        """(frame, history) of these seeds together, in memory."""
        files = [self._file(s, "frame.parquet") for s in seeds]
        return pd.concat([read_frame(f) for f in files], ignore_index=True), self.histories(seeds)

    def scan(self, seeds):
        """The frames of these seeds together, to be read in bounded memory."""
        return StoredFrame([self._file(s, "frame.parquet") for s in seeds])

    def histories(self, seeds):
        """Loss and accuracy by epoch of these seeds together."""
        return pd.concat([read_frame(self._file(s, "history.csv")) for s in seeds], ignore_index=True)

    def _file(self, seed, name):
        """A file of a seed; `RunDirectoryError` where it is not what was written."""
        file = self.seed_path(seed) / name
        mark = self.seed_path(seed) / "seed.json"
        sums = _ours(read_json, mark).get("sha256") if mark.exists() else None
        if isinstance(sums, dict) and file.exists() and sums.get(name) != _ours(sha256, file):
            raise RunDirectoryError(f"{file} is not what was written: restore it, or delete {mark} to run it again")
        return file


def _ours(read, path):
    """read(path), with what is wrong as `RunDirectoryError`."""
    try:
        return read(path)
    except OSError as error:
        raise RunDirectoryError(str(error)) from error


def versions():
    """What computes: packages, our own sources, and what decides on the order of sums."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "sources": _sources(),
        "processors allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": [
            tf.config.threading.get_intra_op_parallelism_threads(),
            tf.config.threading.get_inter_op_parallelism_threads(),
        ],
        **{name: os.environ.get(name) for name in VARIABLES},
    }


@functools.cache
def _sources():
    """Hex SHA-256 of the Python files of srel_tf and train."""
    digest = hashlib.sha256()
    origins = [importlib.util.find_spec(name).origin for name in ("srel_tf", "train")]
    for package in (Path(origin).parent for origin in origins):
        for file in sorted(package.rglob("*.py")):
            digest.update(f"{package.name}/{file.relative_to(package).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def environment():
    """Versions and machine, as far as they can change a number."""
    return {
        **versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "devices": [f"{d.device_type}: {_device_name(d)}" for d in tf.config.list_physical_devices()],
        "op_determinism": True,
        "jit_compile": False,
        "floatx": keras.config.floatx(),
    }


def _device_name(device):
    return tf.config.experimental.get_device_details(device).get("device_name", device.name)
