"""Checks of what the closed forms are given: float64 tensors out, named errors for what a theorem does not cover.

Values are checked where they are known (eager execution); inside a `tf.function` only the shapes are.
"""

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, OptionError, ShapeError


def as_tensor(value, name, rank=None):
    """`value` as a finite float64 tensor; `rank` is one rank or a tuple of allowed ranks."""
    if tf.is_tensor(value) or isinstance(value, tf.Variable):
        tensor = tf.cast(value, tf.float64)
    else:
        try:
            tensor = tf.constant(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ShapeError(f"{name} is no rectangular array of numbers: {error}") from error
    if rank is not None:
        ranks = (rank,) if isinstance(rank, int) else rank
        if tensor.shape.rank not in ranks:
            wanted = " or ".join(str(r) for r in ranks)
            raise ShapeError(f"{name} must have {wanted} axes, but has shape {tuple(tensor.shape)}.")
    if tf.executing_eagerly() and not np.isfinite(tensor.numpy()).all():
        raise AssumptionError(f"{name} holds {np.sum(~np.isfinite(tensor.numpy()))} values that are not finite.")
    return tensor


def as_times(t):
    """Times as a float64 tensor [T]; a scalar counts as T = 1. Every closed form starts at t = 0."""
    times = tf.reshape(as_tensor(t, "t", (0, 1)), [-1])
    if tf.executing_eagerly() and (times.numpy() < 0).any():
        raise AssumptionError(
            f"Times must be >= 0, the flow starts at t = 0; the smallest given is t = {times.numpy().min():g}."
        )
    return times


def as_number(value, name):
    """A finite scalar, as a Python float."""
    try:
        if np.asarray(value).dtype.kind in "SU":
            raise TypeError("text is no number, not even '1'")
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} must be one number; given {value!r}.") from error
    if number.shape != ():
        raise ShapeError(f"{name} must be one number, but has shape {number.shape}.")
    if not np.isfinite(number):
        raise AssumptionError(f"{name} must be finite; given {name} = {number:g}.")
    return float(number)


def as_positive(value, name, why):
    """A finite scalar > 0, as a Python float."""
    number = as_number(value, name)
    if number <= 0:
        raise AssumptionError(f"{name} must be > 0 ({why}); given {name} = {number:g}.")
    return number


def as_count(value, name, least=1):
    """A whole number >= `least`, as a Python int."""
    count = _whole(value)
    if count is None or count < least:
        raise ShapeError(f"{name} must be a whole number >= {least}; given {name}={value!r}.")
    return count


def as_degree(value):
    """The degree d of Definition 6, an integer >= 1, as a Python int."""
    degree = _whole(value)
    if degree is None or degree < 1:
        raise AssumptionError(f"Definition 6 needs an integer degree d >= 1; given degree={value!r}.")
    return degree


def _whole(value):
    """`value` as a Python int, None if it is no whole number."""
    try:
        number = int(value)
        return None if isinstance(value, bool) or number != value else number
    except (TypeError, ValueError, OverflowError):
        return None


def as_indices(value, name, size):
    """Integer indices in [0, size), scalar or [P]."""
    indices = np.asarray(value)
    if indices.ndim > 1:
        raise ShapeError(f"{name} must be one index or a list of them, but has shape {indices.shape}.")
    if not np.issubdtype(indices.dtype, np.integer):
        raise ShapeError(f"{name} must hold integers (rows of features), but has dtype {indices.dtype}.")
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ShapeError(f"{name} must lie in 0..{size - 1}; given {indices.min()}..{indices.max()}.")
    return indices


def check_last_axis(tensor, size, name, meaning):
    """The last axis of `tensor` must have `size` entries."""
    if tensor.shape[-1] != size:
        raise ShapeError(f"{name} must end in an axis of {size} ({meaning}), but has shape {tuple(tensor.shape)}.")


def check_option(value, allowed, name):
    """`value` must be one of `allowed`."""
    if value not in allowed:
        raise OptionError(f"{name}={value!r} does not exist; choose one of {', '.join(map(repr, allowed))}.")
    return value


def check_positive_definite(matrix, name):
    """Symmetric and positive definite, as Theorem 4.1 assumes; returns eigenvalues [n] and eigenvectors [n, n]."""
    array = matrix.numpy()
    if array.shape[0] != array.shape[1]:
        raise ShapeError(f"{name} must be square, but has shape {array.shape}.")
    asymmetry = np.abs(array - array.T).max()
    if asymmetry > 1e-12 * np.abs(array).max():
        raise AssumptionError(f"{name} must be symmetric; entries differ from their mirror by up to {asymmetry:g}.")
    eigenvalues, eigenvectors = tf.linalg.eigh((matrix + tf.transpose(matrix)) / 2)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest <= len(array) * np.finfo(np.float64).eps * abs(largest):
        raise AssumptionError(
            f"{name} must be positive definite; its smallest eigenvalue is {smallest:g} (largest {largest:g}). "
            "Give the second moment of inputs that span the whole space."
        )
    return eigenvalues, eigenvectors


def ratio_or_nan(numerator, denominator):
    """numerator / denominator, NaN where the denominator is zero: Definition 1 is undefined there."""
    defined = denominator > 0
    safe = tf.where(defined, denominator, tf.ones_like(denominator))
    return tf.where(defined, numerator / safe, tf.constant(np.nan, tf.float64))
