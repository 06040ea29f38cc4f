"""Run directories: settings, environment, and for each seed its frames and history.

    DIR/settings.json environment.json data.json pairs.csv separation.csv history.csv figures/
    DIR/seed-0/frame.parquet history.csv seed.json

A directory belongs to one set of settings; seeds may be added to it later. `seed.json` is written last: a seed without
it was interrupted, keeps what it measured, and is run again.
"""

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import keras
import pandas as pd
import tensorflow as tf

from srel_tf import SRelError, read_frame, write_frame

PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "pandas", "scipy", "scikit-learn")


class RunDirectoryError(SRelError, OSError):
    """A run directory that cannot be written, or that holds results of other settings."""


class RunDirectory:
    """Creates or reopens `path` for `settings` (a dict that JSON can hold)."""

    def __init__(self, path, settings):
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._holds_results():
                self._check_settings()
            else:  # What a failed command left binds nobody.
                (self.path / "data.json").unlink(missing_ok=True)
            write_json(self.path / "settings.json", self.settings)
            write_json(self.path / "environment.json", environment())
        except RunDirectoryError:
            raise
        except OSError as error:
            raise RunDirectoryError(f"cannot write to {self.path}: {error.strerror}; choose another --out") from error

    def _holds_results(self):
        """Whether a command got as far as to save something."""
        return (self.path / "selection.json").exists() or any(self.path.glob("seed-*/frame.parquet"))

    def _check_settings(self):
        file = self.path / "settings.json"
        if not file.exists():
            return
        saved = json.loads(file.read_text(encoding="utf-8"))
        names = sorted({*saved, *self.settings})
        other = [n for n in names if saved.get(n) != self.settings.get(n)]
        if other:
            lines = [f"  {n}: {saved.get(n)!r} there, {self.settings.get(n)!r} now" for n in other]
            raise RunDirectoryError(
                f"{self.path} holds results of other settings; choose another --out:\n" + "\n".join(lines)
            )

    def check_data(self, fingerprint):
        """Bind the directory to the data with this hash; `RunDirectoryError` where it holds results of other data."""
        file = self.path / "data.json"
        if file.exists() and json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
            raise RunDirectoryError(f"{self.path} holds results of other data (see data.json); choose another --out")
        write_json(file, {"fingerprint": fingerprint})

    def is_complete(self, seed):
        """Whether this seed has been run to its end."""
        return (self.seed_path(seed) / "seed.json").exists()

    def seed_path(self, seed):
        return self.path / f"seed-{seed}"

    def save_seed(self, seed, frame, history, about=None):
        """Write a seed's frame and history; `about` (a dict) marks it as complete."""
        path = self.seed_path(seed)
        try:
            path.mkdir(exist_ok=True)
            write_frame(frame, path / "frame.parquet")
            write_frame(history, path / "history.csv")
            if about is not None:
                write_json(path / "seed.json", about)
        except OSError as error:
            raise RunDirectoryError(f"cannot write to {path}: {error}; what was saved before is whole") from error

    def frames(self, seeds):
        """(frame, history) of these seeds together."""
        frames = [read_frame(self.seed_path(s) / "frame.parquet") for s in seeds]
        histories = [read_frame(self.seed_path(s) / "history.csv") for s in seeds]
        return pd.concat(frames, ignore_index=True), pd.concat(histories, ignore_index=True)


def write_json(path, content):
    """Write JSON under a temporary name first."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def environment():
    """Versions and machine, as far as they can change a number."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "devices": [f"{d.device_type}: {_device_name(d)}" for d in tf.config.list_physical_devices()],
        "op_determinism": True,
        "jit_compile": False,
        "floatx": keras.config.floatx(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def _device_name(device):
    return tf.config.experimental.get_device_details(device).get("device_name", device.name)
