"""The examples between which S_rel is measured."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from srel_tf.errors import ProbeError


class ProbeSet:
    """Examples with labels, between which S_rel is measured.

    A fictitious update is made on each source, and its effect on the predictions is measured at the targets. An example
    may be both.

    Args:
        x: Examples, [n, ...].
        y: Class indices [n], one-hot or multi-hot rows [n, C], or regression targets [n] or [n, C]. These values are
            passed to the model's loss unchanged. Integers [n] are class indices. Floating-point numbers [n] are class
            indices if the model's loss takes class indices (a sparse cross-entropy), else regression targets.
        class_names: Names of class 0, 1, …; without them a class is named by its index. If all rows of y are one-hot,
            each example belongs to the class whose entry is 1. With multi-hot rows or regression targets, no example
            has a class.
        ids: Unique integers or strings that name the examples in frames, [n]; default 0 … n−1.
        sources: Indices into x of the sources, [n_s]; default all examples.
        targets: Indices into x of the targets, [n_t]; default all examples.
        name: Name of the probe, stored in the column `name` of frames. By this name the rows of two probes can be
            distinguished, even if all other columns are equal.

    Attributes:
        labels: Class indices, int64 [n]; None if the examples have no class.
        classes: Class names, str [n]; "" for examples without a class.

    Raises:
        ProbeError: If shapes disagree, values are not finite, labels lack a class name, ids repeat, or indices are
            out of range.

    Example:
        >>> import numpy as np, srel_tf
        >>> probe = srel_tf.ProbeSet(np.eye(3), [0, 1, 1], class_names=["cat", "dog"], sources=[0, 2])
        >>> len(probe), probe.classes.tolist(), probe.sources.tolist()
        (3, ['cat', 'dog', 'dog'], [0, 2])
        >>> srel_tf.ProbeSet.sample(np.arange(100.0)[:, None], np.arange(100) % 2, per_class=3).classes.tolist()
        ['0', '0', '0', '1', '1', '1']
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        class_names: Iterable[object] | None = None,
        ids: ArrayLike | None = None,
        sources: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        name: str = "",
    ) -> None:
        self.name = _as_name(name)
        self.x = _as_array("x", x)
        self.y = _as_array("y", y)
        _check_examples(self.x, self.y)
        n = len(self.x)
        self.labels = class_labels(self.y)
        self.class_names = None if class_names is None else _as_class_names(class_names)
        self.classes = _class_of_each(self.labels, self.class_names, n)
        self.ids = _as_ids(ids, n)
        self.sources = _as_indices("sources", sources, n)
        self.targets = _as_indices("targets", targets, n)

    @classmethod
    def sample(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        per_class: int = 20,
        seed: int = 0,
        classes: Sequence[Any] | None = None,
        class_names: Sequence[object] | None = None,
        name: str = "",
    ) -> ProbeSet:
        """Draw `per_class` examples of each class without replacement. The id of an example is its position in x.

        Args:
            x: Examples, [n, ...].
            y: Labels, as for `ProbeSet`, except that whole floating-point numbers are class indices here.
            per_class: Number of examples of each class.
            seed: Random seed. The examples drawn from a class depend only on `seed` and the class index, so that adding
                a class does not change the examples of the other classes.
            classes: Names or indices of the classes, in the wanted order; default all classes in y.
            class_names: As for `ProbeSet`.
            name: As for `ProbeSet`.

        Raises:
            ProbeError: If a class is unknown or has too few examples.
        """
        x, y = _as_array("x", x), _as_array("y", y)
        are_floats = _are_whole_floats(y)
        labels = y.reshape(len(y)).astype(np.int64) if are_floats else class_labels(y)
        if labels is None:
            raise ProbeError(
                f"y of shape {y.shape} and dtype {y.dtype} does not hold class labels: give class indices or one-hot "
                "rows, or choose the examples yourself, with ProbeSet(x, y)"
            )
        if len(x) != len(labels):
            raise ProbeError(
                f"x of shape {x.shape} and y of shape {y.shape}: give as many labels as examples"
            )
        _check_whole_number("per_class", per_class, least=1)
        _check_whole_number("seed", seed, least=0)
        wanted = np.unique(labels) if classes is None else classes
        indices = [_class_index(name, class_names, labels) for name in wanted]
        num_different = len(set(indices))
        if not indices or num_different < len(indices):
            raise ProbeError(
                f"classes={classes!r}: name at least one class, and none twice"
            )
        positions = np.concatenate(
            [_draw(labels, index, per_class, seed) for index in indices]
        )
        probe = cls(
            x[positions],
            y[positions],
            class_names=class_names,
            ids=positions,
            name=name,
        )
        return probe.with_class_indices() if are_floats else probe

    def with_name(self, name: str) -> ProbeSet:
        """Return the same probe with another name, for example to attach the probe twice."""
        probe = copy.copy(self)
        probe.name = _as_name(name)
        return probe

    def with_class_indices(self) -> ProbeSet:
        """Return the same probe with its floating-point y interpreted as class indices.

        Raises:
            ProbeError: If one of the numbers is not a whole number.
        """
        n = len(self.y)
        y = self.y.reshape(n, -1)[:, 0]
        is_broken = y != np.floor(y)
        if is_broken.any():
            first = is_broken.argmax()
            example = self.ids[first]
            raise ProbeError(
                f"y is {y[first]} for example {example}, but the loss takes class indices: give whole "
                "numbers, or compile with a regression loss"
            )
        probe = copy.copy(self)
        probe.labels = y.astype(np.int64)
        probe.classes = _class_of_each(probe.labels, self.class_names, n)
        return probe

    def __len__(self) -> int:
        return len(self.x)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that defines the measurement: examples, labels, classes, ids, sources, targets."""
        digest = hashlib.sha256()
        for array in (self.x, self.y, self.sources, self.targets):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr((self.ids.tolist(), self.classes.tolist())).encode())
        return digest.hexdigest()

    @property
    def own_columns(self) -> np.ndarray:
        """The column of each source among the targets, int [n_s]; −1 if the source is not a target."""
        column = {index: j for j, index in reversed(list(enumerate(self.targets)))}
        return np.array([column.get(index, -1) for index in self.sources])


def class_labels(y: ArrayLike) -> np.ndarray | None:
    """Read class indices [n] from integer labels ([n] or [n, 1]) or one-hot rows [n, C].

    Returns:
        int [n]; None if y holds something else, such as multi-hot rows or regression targets.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(axis=1) if _is_one_hot(y) else None
    are_integers = y.dtype.kind in "biu" and y.size == len(y)
    return y.reshape(len(y)).astype(np.int64) if are_integers else None


def _is_one_hot(rows: np.ndarray) -> bool:
    """Return whether each row of [n, C] holds a single 1, and otherwise zeros."""
    is_binary = ((rows == 0) | (rows == 1)).all()
    return bool(is_binary and (rows.sum(axis=1) == 1).all())


def _are_whole_floats(y: np.ndarray) -> bool:
    """Return whether y is one floating-point number per example, [n] or [n, 1], and all of them are whole."""
    return y.dtype.kind == "f" and y.size == len(y) and bool((y == np.floor(y)).all())


def _check_whole_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise ProbeError(f"{name}={value!r}: give a whole number, at least {least}")


def _as_array(name: str, values: ArrayLike) -> np.ndarray:
    """Convert values to an array. Raise `ProbeError` for dictionaries, datasets and ragged lists."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ProbeError(
            f"{name} cannot be converted to an array ({error}): give one array"
        ) from error
    if array.dtype == object:
        raise ProbeError(
            f"{name} has dtype object (a {type(values).__name__} was given): give one numeric array [n, ...]"
        )
    return array


def _check_examples(x: np.ndarray, y: np.ndarray) -> None:
    has_rows = x.ndim >= 1 and y.ndim >= 1
    if not has_rows or len(x) == 0 or len(x) != len(y):
        raise ProbeError(
            f"x of shape {x.shape} and y of shape {y.shape}: give n ≥ 1 examples and as many labels"
        )
    _check_values("x", x)
    _check_values("y", y)


def _check_values(name: str, values: np.ndarray) -> None:
    """Raise `ProbeError` unless all `values` [n, ...] are finite numbers."""
    if values.dtype.kind not in "biuf":
        raise ProbeError(f"{name} has dtype {values.dtype}: give one numeric array")
    rows = values.reshape(len(values), -1)
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        raise ProbeError(
            f"{name} is NaN or infinite in example {broken.argmax()}: remove this example"
        )


def _class_of_each(
    labels: np.ndarray | None, class_names: tuple[str, ...] | None, n: int
) -> np.ndarray:
    """Return the class name of each example, str [n]: "" without labels, the class index without class names."""
    if labels is None:
        return np.full(n, "", dtype=object)
    if class_names is None:
        return labels.astype(str).astype(object)
    _check_label_range(labels, len(class_names))
    return np.array(class_names, dtype=object)[labels]


def _check_label_range(labels: np.ndarray, num_names: int) -> None:
    is_outside = (labels < 0) | (labels >= num_names)
    if is_outside.any():
        first = is_outside.argmax()
        raise ProbeError(
            f"label {labels[first]} of example {first} is out of range of the {num_names} class names: give a name "
            "for each class 0, 1, …"
        )


def _as_class_names(names: Iterable[object]) -> tuple[str, ...]:
    """Return the names as strings. Raise `ProbeError` if a name occurs twice: the two classes would become one."""
    as_text = tuple(str(name) for name in names)
    repeated = [name for name in as_text if as_text.count(name) > 1]
    if repeated:
        raise ProbeError(
            f"class_names: {repeated[0]!r} is the name of two classes: give each class a name of its own"
        )
    return as_text


def _as_name(name: object) -> str:
    if not isinstance(name, str):
        raise ProbeError(f"name={name!r}: give a string")
    return name


def _as_ids(ids: ArrayLike | None, n: int) -> np.ndarray:
    """Check ids of n examples; None means 0 … n−1. Returns int64 or str [n]."""
    if ids is None:
        return np.arange(n)
    ids = _as_int64_or_str(np.asarray(ids))
    if ids.shape != (n,) or len(np.unique(ids)) != n:
        raise ProbeError(
            f"ids must be {n} different values, one per example; got shape {ids.shape}"
        )
    return ids


def _as_int64_or_str(ids: np.ndarray) -> np.ndarray:
    """Convert ids to int64 or str. No other types are used, so that frames of several probes can be joined."""
    if _are_strings(ids):
        return ids.astype(str)
    if _fit_int64(ids):
        return ids.astype(np.int64)
    raise ProbeError(f"ids={ids!r}: give integers or strings")


def _are_strings(ids: np.ndarray) -> bool:
    is_object = ids.dtype == object
    return ids.dtype.kind == "U" or (
        is_object and all(isinstance(i, str) for i in ids.ravel())
    )


def _fit_int64(ids: np.ndarray) -> bool:
    is_integer = ids.dtype.kind in "iu"
    return is_integer and (not ids.size or bool(ids.max() < 2**63))


def _as_indices(name: str, indices: ArrayLike | None, n: int) -> np.ndarray:
    """Check indices into n examples; None means all of them. Returns int64 [n_s] or [n_t]."""
    if indices is None:
        return np.arange(n)
    indices = np.asarray(indices)
    if not _are_integers_in_range(indices, n) or len(np.unique(indices)) < len(indices):
        raise ProbeError(
            f"{name}={indices!r}: give different indices from 0 to {n - 1}"
        )
    return indices.astype(np.int64)


def _are_integers_in_range(indices: np.ndarray, n: int) -> bool:
    """Return whether `indices` is a non-empty list of integers from 0 to n − 1."""
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        return False
    return bool(indices.min() >= 0 and indices.max() < n)


def _class_index(
    wanted: Any, class_names: Sequence[object] | None, labels: np.ndarray
) -> int:
    """Find the index of a class, given by name or by index."""
    names = list(_as_class_names(class_names or ()))
    if str(wanted) in names:
        return names.index(str(wanted))
    if not isinstance(wanted, str) and wanted >= 0 and wanted in labels:
        return int(wanted)
    raise ProbeError(
        f"unknown class {wanted!r}: choose from {names or np.unique(labels).tolist()}"
    )


def _draw(labels: np.ndarray, index: int, per_class: int, seed: int) -> np.ndarray:
    """Draw positions [per_class] of examples of one class."""
    positions = np.flatnonzero(labels == index)
    if len(positions) < per_class:
        raise ProbeError(
            f"class {index} has {len(positions)} examples, but {per_class} are requested: lower per_class"
        )
    generator = np.random.default_rng([seed, index])
    return generator.choice(positions, per_class, replace=False)
