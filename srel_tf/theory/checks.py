"""Input checks of the closed forms: conversion to float64 tensors, and errors that name an unsuitable argument.

Values are checked in eager execution only. Inside a `tf.function`, only shapes are checked.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from srel_tf.errors import AssumptionError, OptionError, ShapeError

ArrayLike: TypeAlias = npt.ArrayLike | tf.Tensor | tf.Variable

_SYMMETRY_TOLERANCE = (
    1e-12  # Tolerated asymmetry relative to the largest entry of the matrix.
)


def as_tensor(
    value: ArrayLike,
    name: str,
    rank: int | tuple[int, ...] | None = None,
) -> tf.Tensor:
    """Convert `value` to a finite float64 tensor.

    Args:
        value: Number, array, tensor or variable.
        name: Name of the argument, for the error message.
        rank: Allowed number of axes, or a tuple of allowed numbers. None allows any number of axes.

    Returns:
        Float64 tensor of the same shape.

    Raises:
        ShapeError: `value` is not a rectangular array of numbers, or has another rank.
        AssumptionError: An entry is not finite.
    """
    tensor = _to_float64(value, name)
    if rank is not None:
        _check_rank(tensor, name, (rank,) if isinstance(rank, int) else rank)
    if tf.executing_eagerly():
        _check_finite(tensor, name)
    return tensor


def _to_float64(value: ArrayLike, name: str) -> tf.Tensor:
    """Convert `value` to float64, or raise `ShapeError`."""
    if tf.is_tensor(value) or isinstance(value, tf.Variable):
        return tf.cast(value, tf.float64)
    try:
        return tf.constant(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{name} is not a rectangular array of numbers: {error}"
        ) from error


def _check_rank(
    tensor: tf.Tensor,
    name: str,
    ranks: tuple[int, ...],
) -> None:
    """Raise `ShapeError` unless the number of axes is one of `ranks`."""
    if tensor.shape.rank not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise ShapeError(
            f"{name} must have {wanted} axes, but has shape {tuple(tensor.shape)}."
        )


def _check_finite(tensor: tf.Tensor, name: str) -> None:
    """Raise `AssumptionError` if an entry is NaN or infinite."""
    count = np.sum(~np.isfinite(tensor.numpy()))
    if count:
        raise AssumptionError(
            f"{name} must be finite, but {count} of its values are not finite."
        )


def as_times(t: ArrayLike) -> tf.Tensor:
    """Convert times to a float64 tensor [T]; a scalar gives T = 1.

    Args:
        t: Times, [T] or a scalar.

    Returns:
        [T].

    Raises:
        ShapeError: `t` has more than one axis.
        AssumptionError: A time is negative or not finite.
    """
    times = tf.reshape(as_tensor(t, "t", (0, 1)), [-1])
    if tf.executing_eagerly() and (times.numpy() < 0).any():
        smallest = times.numpy().min()
        raise AssumptionError(
            f"Times must be >= 0, because the flow starts at t = 0; the smallest given is t = {smallest:g}."
        )
    return times


def as_number(value: ArrayLike, name: str) -> float:
    """Convert `value` to a finite Python float.

    Raises:
        ShapeError: `value` is not a single number. Text such as "1" is refused too.
        AssumptionError: The number is not finite.
    """
    try:
        is_text = np.asarray(value).dtype.kind in "SU"
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} must be one number; given {value!r}.") from error
    if is_text:
        raise ShapeError(f"{name} must be one number; given {value!r}.")
    if number.shape != ():
        raise ShapeError(f"{name} must be one number, but has shape {number.shape}.")
    if not np.isfinite(number):
        raise AssumptionError(f"{name} must be finite; given {name} = {number:g}.")
    return float(number)


def as_positive(
    value: ArrayLike,
    name: str,
    why: str,
) -> float:
    """Convert `value` to a finite Python float > 0.

    Args:
        value: The number.
        name: Name of the argument, for the error message.
        why: Why the number must be positive, for the error message; for example the definition that requires it.

    Raises:
        ShapeError: `value` is not a single number.
        AssumptionError: The number is not finite, or not positive.
    """
    number = as_number(value, name)
    if number <= 0:
        raise AssumptionError(f"{name} must be > 0 ({why}); given {name} = {number:g}.")
    return number


def as_learning_rate(value: ArrayLike) -> float:
    """Convert η, the length of the fictitious step of Definition 1, to a Python float.

    Raises:
        ShapeError: `value` is not a single number.
        AssumptionError: η is not finite, or not positive.
    """
    return as_positive(value, "learning_rate", "Definition 1")


def as_count(
    value: ArrayLike,
    name: str,
    least: int = 1,
) -> int:
    """Convert `value` to a Python int; raise `ShapeError` unless it is a whole number >= `least`."""
    count = _as_whole_number(value)
    if count is None or count < least:
        raise ShapeError(
            f"{name} must be a whole number >= {least}; given {name}={value!r}."
        )
    return count


def as_degree(value: ArrayLike) -> int:
    """Convert the degree d of Definition 6 to a Python int; raise `AssumptionError` unless it is an integer >= 1."""
    degree = _as_whole_number(value)
    if degree is None or degree < 1:
        raise AssumptionError(
            f"Definition 6 needs an integer degree d >= 1; given degree={value!r}."
        )
    return degree


def _as_whole_number(value: ArrayLike) -> int | None:
    """Convert `value` to a Python int; None if it is not a whole number."""
    if isinstance(value, bool):
        return None
    try:
        number = int(value)  # type: ignore[arg-type]  # Errors of int() are caught below.
        return number if number == value else None
    except (TypeError, ValueError, OverflowError):
        return None


def as_indices(
    value: npt.ArrayLike,
    name: str,
    size: int,
) -> np.ndarray:
    """Check integer indices of rows or of classes.

    Args:
        value: One index, or indices [P], each in 0..size − 1.
        name: Name of the argument, for the error message.
        size: Number of rows or classes.

    Returns:
        Integer array, [] or [P].

    Raises:
        ShapeError: `value` has more than one axis, holds entries that are not integers, or holds an index outside
            0..size − 1.
    """
    indices = np.asarray(value)
    if indices.ndim > 1:
        raise ShapeError(
            f"{name} must be one index or a list of indices, but has shape {indices.shape}."
        )
    if not np.issubdtype(indices.dtype, np.integer):
        raise ShapeError(f"{name} must hold integers, but has dtype {indices.dtype}.")
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ShapeError(
            f"{name} must lie in 0..{size - 1}; given {indices.min()}..{indices.max()}."
        )
    return indices


def check_last_axis(
    tensor: tf.Tensor,
    size: int,
    name: str,
    meaning: str,
) -> None:
    """Raise `ShapeError` unless the last axis of `tensor` has `size` entries.

    The message gives `meaning` as the reason for this size.
    """
    if tensor.shape[-1] != size:
        raise ShapeError(
            f"The last axis of {name} must have {size} entries ({meaning}); the shape given is {tuple(tensor.shape)}."
        )


def check_same_shape(
    first: tf.Tensor,
    second: tf.Tensor,
    first_name: str,
    second_name: str,
) -> None:
    """Raise `ShapeError` unless both tensors have the same shape."""
    if first.shape != second.shape:
        raise ShapeError(
            f"{first_name} and {second_name} must have the same shape, but have shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )


def check_option(
    value: str,
    allowed: tuple[str, ...],
    name: str,
) -> str:
    """Return `value`; raise `OptionError` unless it is one of `allowed`."""
    if value not in allowed:
        raise OptionError(
            f"{name}={value!r} does not exist; choose one of {', '.join(map(repr, allowed))}."
        )
    return value


def check_positive_definite(
    matrix: tf.Tensor, name: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Diagonalise a matrix, which must be symmetric and positive definite as Theorem 4.1 assumes.

    Args:
        matrix: [n, n].
        name: Name of the argument, for the error message.

    Returns:
        Eigenvalues [n] in ascending order, and eigenvectors [n, n], one per column.

    Raises:
        ShapeError: The matrix is not square.
        AssumptionError: The matrix is not symmetric, or not positive definite.
    """
    array = matrix.numpy()
    if array.shape[0] != array.shape[1]:
        raise ShapeError(f"{name} must be square, but has shape {array.shape}.")
    asymmetry = np.abs(array - array.T).max()
    if asymmetry > _SYMMETRY_TOLERANCE * np.abs(array).max():
        raise AssumptionError(
            f"{name} must be symmetric; entries of the matrix and of its transpose differ by up to {asymmetry:g}."
        )
    eigenvalues, eigenvectors = tf.linalg.eigh((matrix + tf.transpose(matrix)) / 2)
    smallest = float(eigenvalues[0])
    largest = float(eigenvalues[-1])
    rounding = len(array) * np.finfo(np.float64).eps * abs(largest)
    if smallest <= rounding:
        raise AssumptionError(
            f"{name} must be positive definite; its smallest eigenvalue is {smallest:g} (largest {largest:g}). "
            "Give the second moment of inputs that span the whole space."
        )
    return eigenvalues, eigenvectors


def nan_unless(condition: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Keep the values where the condition holds, and return NaN elsewhere."""
    return tf.where(condition, values, tf.constant(np.nan, tf.float64))


def ratio_or_nan(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    """Divide, with NaN where the denominator is zero, because Definition 1 is undefined there."""
    is_defined = denominator > 0
    safe = tf.where(is_defined, denominator, tf.ones_like(denominator))
    return nan_unless(is_defined, numerator / safe)


def as_vector_pair(
    first: ArrayLike,
    second: ArrayLike,
    names: tuple[str, str],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Check that two arguments have the same shape, [n] or [P, n]; `names` are used in error messages."""
    vectors = as_tensor(first, names[0], (1, 2)), as_tensor(second, names[1], (1, 2))
    check_same_shape(*vectors, *names)
    return vectors


def inner(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Compute inner products over the last axis."""
    return tf.reduce_sum(first * second, -1)
