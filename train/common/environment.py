"""Properties of software and machine, which are saved with the results and compared before a run continues."""

import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import srel_tf
import train
from srel_tf.files import sha256

PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-datasets",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
)
VARIABLES = (
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
)


def versions() -> dict[str, Any]:
    """Collect package versions, a hash of the source code, and numbers of processors and threads.

    The numbers of processors and threads are included because rounding depends on them.
    """
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "sources": _sources(),
        "processors allowed": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": [
            tf.config.threading.get_intra_op_parallelism_threads(),
            tf.config.threading.get_inter_op_parallelism_threads(),
        ],
        **{name: os.environ.get(name) for name in VARIABLES},
    }


@functools.cache
def _sources() -> str:
    """Compute the hex SHA-256 of the Python files of srel_tf and train."""
    digest = hashlib.sha256()
    for package in (Path(str(module.__file__)).parent for module in (srel_tf, train)):
        for file in sorted(package.rglob("*.py")):
            digest.update(
                f"{package.name}/{file.relative_to(package).as_posix()} {sha256(file)}\n".encode()
            )
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Collect all properties of software and machine that can affect a result."""
    return {
        **versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "devices": [
            f"{d.device_type}: {_device_name(d)}"
            for d in tf.config.list_physical_devices()
        ],
        "op_determinism": True,
        "jit_compile": False,
        "floatx": keras.config.floatx(),
    }


def _device_name(device: Any) -> str:
    return tf.config.experimental.get_device_details(device).get(
        "device_name", device.name
    )
