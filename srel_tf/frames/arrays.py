"""Named arrays in one file, in the format safetensors. This module does not import TensorFlow."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike

from srel_tf.errors import StorageError
from srel_tf.files import replacing

TYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "bfloat16", "float16", "float32", "float64", "complex64"),
}


def write_arrays(file: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write {name: array} completely or not at all.

    Raises:
        StorageError: If the disk fails, or if safetensors does not support the type of an array, for example objects.
    """
    # safetensors copies the memory, so arrays must be in C order. The byte order needs no conversion, because machines
    # that run TensorFlow are little-endian.
    converted = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    rejected = [
        f"{name} ({array.dtype})"
        for name, array in converted.items()
        if array.dtype.name not in TYPES
    ]
    if rejected:
        raise StorageError(
            f"arrays of these types cannot be saved: {', '.join(rejected)}; convert them to numbers"
        )
    with replacing(file) as part:
        part.write_bytes(safetensors.numpy.save(converted))


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read {name: array} from a file that `write_arrays` wrote. Raise `StorageError` if it is not such a file."""
    try:
        return safetensors.numpy.load_file(file)
    except Exception as error:  # Malformed files raise many exception types.
        raise StorageError(
            f"{file} holds no arrays ({error}): start again without this file"
        ) from error
