"""Named arrays in one file, without pickle. Knows no TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from srel_tf.errors import StorageError
from srel_tf.files import JsonObject, fingerprint, replacing


def write_arrays(file: Path, arrays: Mapping[str, ArrayLike]) -> JsonObject:
    """Write {name: array} completely or not at all.

    Returns:
        The `fingerprint` of the file.

    Raises:
        StorageError: If the disk fails, or for types that cannot be read without pickle: objects, bfloat16.
    """
    converted: dict[str, Any] = {
        name: np.asarray(array) for name, array in arrays.items()
    }
    _check_types(converted)
    with replacing(file) as part:
        with open(part, "wb") as opened:
            np.savez(opened, **converted)
        return fingerprint(part)


def _check_types(arrays: Mapping[str, np.ndarray]) -> None:
    rejected = [
        f"{name} ({array.dtype})"
        for name, array in arrays.items()
        if array.dtype.kind in "OV"
    ]
    if rejected:
        raise StorageError(
            f"arrays of such types cannot be saved without pickle: {', '.join(rejected)}; convert them"
        )


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read the {name: array} that `write_arrays` wrote. Raises `StorageError` if the file holds something else."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if any(entry.compress_type for entry in arrays.zip.infolist()):
                raise ValueError(
                    "they are compressed, as ours never are: a few bytes could fill the memory"
                )
            return dict(arrays.items())
    except (
        Exception
    ) as error:  # np.load raises many exception types on malformed files.
        raise StorageError(
            f"{file} holds no arrays ({error}): start again without it"
        ) from error
