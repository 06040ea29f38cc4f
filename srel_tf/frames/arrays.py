"""Named arrays in one file, without pickle. Knows no TensorFlow."""

import numpy as np

from srel_tf.errors import StorageError
from srel_tf.files import fingerprint, replacing


def write_arrays(file, arrays):
    """Write {name: array} whole or not at all; the file's fingerprint.

    Raises `StorageError` where the disk fails, and for types that could not be read again: objects, bfloat16.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    lost = [f"{name} ({array.dtype})" for name, array in arrays.items() if array.dtype.kind in "OV"]
    if lost:
        raise StorageError(f"arrays of such types cannot be saved without pickle: {', '.join(lost)}; convert them")
    with replacing(file) as part:
        with open(part, "wb") as opened:
            np.savez(opened, **arrays)
        return fingerprint(part)


def read_arrays(file):
    """What `write_arrays` wrote. `StorageError` where it is something else."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if any(entry.compress_type for entry in arrays.zip.infolist()):
                raise ValueError("they are compressed, as ours never are: a few bytes could fill the memory")
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # NumPy and zipfile raise whatever a stranger's file leads them to.
        raise StorageError(f"{file} holds no arrays ({error}): start again without it") from error
