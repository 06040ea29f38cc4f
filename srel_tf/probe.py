"""The examples between which S_rel is measured."""

import copy
import hashlib

import numpy as np

from srel_tf.errors import ProbeError


class ProbeSet:
    """Examples x [n, ...] with labels or targets y, some of them sources (cause an update), some targets (are read).

    y: class indices [n], one-hot or multi-hot rows [n, C], or regression targets [n] or [n, C]; it goes to the model's
        loss as it is. Integers [n] are class indices. Floating-point numbers [n] are class indices if the model's loss
        takes such indices (a sparse cross-entropy), else regression targets.
    class_names: name of class 0, 1, …; without them a class is called by its number. Rows with a single 1 have the
        class of its column, other rows and regression targets have none.
    ids: unique integers or strings that name the examples in frames; default 0 … n−1.
    sources, targets: index arrays into x; by default all examples are both.

    Raises `ProbeError` for shapes that don't fit, values that are not finite, labels without a class name, repeated
    ids, indices out of range.
    """

    def __init__(self, x, y, class_names=None, ids=None, sources=None, targets=None):
        self.x, self.y = np.asarray(x), np.asarray(y)
        _check_examples(self.x, self.y)
        n = len(self.x)
        self.labels = class_labels(self.y)
        self.class_names = None if class_names is None else tuple(str(name) for name in class_names)
        self.classes = _names_of(self.labels, self.class_names, n)
        self.ids = np.arange(n) if ids is None else _as_ids(ids, n)
        self.sources = _indices("sources", sources, n)
        self.targets = _indices("targets", targets, n)

    @classmethod
    def sample(cls, x, y, per_class=20, seed=0, classes=None, class_names=None):
        """Draw `per_class` examples of each class without replacement; ids are their positions in x.

        classes: names or numbers, in the order wanted; default all that occur. The draw of a class depends on `seed`
        and its number alone, so that adding a class leaves the others' draws as they are.
        Raises `ProbeError` for an unknown class or one with too few examples.
        """
        x, y = np.asarray(x), np.asarray(y)
        labels = class_labels(y)
        of_floats = labels is None and _are_whole(y)
        if of_floats:  # Who draws from classes says that these are class indices.
            labels = y.reshape(len(y)).astype(np.int64)
        if labels is None:
            raise ProbeError(
                f"y of shape {y.shape} and dtype {y.dtype} holds no class labels: give class indices or one-hot rows, "
                "or choose the examples yourself, with ProbeSet(x, y)"
            )
        if len(x) != len(labels):
            raise ProbeError(f"x of shape {x.shape} and y of shape {y.shape}: give as many labels as examples")
        for name, value, least in (("per_class", per_class, 1), ("seed", seed, 0)):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ProbeError(f"{name}={value!r}: give a whole number, at least {least}")
        wanted = np.unique(labels) if classes is None else classes
        numbers = [_class_number(c, class_names, labels) for c in wanted]
        if len(set(numbers)) < len(numbers) or not numbers:
            raise ProbeError(f"classes={classes!r}: name at least one class, and none twice")
        positions = np.concatenate([_draw(labels, number, per_class, seed) for number in numbers])
        probe = cls(x[positions], y[positions], class_names=class_names, ids=positions)
        return probe.with_class_indices() if of_floats else probe

    def with_class_indices(self):
        """The same probe with its floating-point y read as class indices. `ProbeError` if one of them is not whole."""
        y = self.y.reshape(len(self.y), -1)[:, 0]
        broken = np.flatnonzero(y != np.floor(y))
        if len(broken):
            raise ProbeError(
                f"y is {y[broken[0]]} for example {self.ids[broken[0]]}, and the loss takes class indices: give whole "
                "numbers, or compile with a regression loss"
            )
        probe = copy.copy(self)
        probe.labels = y.astype(np.int64)
        probe.classes = _names_of(probe.labels, self.class_names, len(y))
        return probe

    def __len__(self):
        return len(self.x)

    @property
    def fingerprint(self):
        """Hex SHA-256 of all that is measured: examples, labels, classes, ids, sources and targets."""
        digest = hashlib.sha256()
        for array in (self.x, self.y, self.sources, self.targets):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr((self.ids.tolist(), self.classes.tolist())).encode())
        return digest.hexdigest()

    @property
    def own_columns(self):
        """For each source its column among the targets, −1 where it is none of them: int array [n_s]."""
        column = {index: j for j, index in reversed(list(enumerate(self.targets)))}
        return np.array([column.get(index, -1) for index in self.sources])


def class_labels(y):
    """Class indices [n] from integer labels ([n] or [n, 1]) or one-hot rows; None for regression targets."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        one_hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()
        return y.argmax(axis=1) if one_hot else None
    return y.reshape(len(y)).astype(np.int64) if y.dtype.kind in "biu" and y.size == len(y) else None


def _are_whole(y):
    """Whether y is one floating-point number an example, [n] or [n, 1], and all of them are whole."""
    return y.dtype.kind == "f" and y.size == len(y) and bool((y == np.floor(y)).all())


def _check_examples(x, y):
    if x.ndim < 1 or y.ndim < 1 or len(x) == 0 or len(x) != len(y):
        raise ProbeError(f"x of shape {x.shape} and y of shape {y.shape}: give n ≥ 1 examples and as many labels")
    for name, values in (("x", x), ("y", y)):
        if values.dtype.kind not in "biuf":
            raise ProbeError(f"{name} has dtype {values.dtype}: give one numeric array")
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            raise ProbeError(f"{name} is NaN or infinite in example {np.flatnonzero(~finite)[0]}: remove it")


def _names_of(labels, class_names, n):
    if labels is None:
        return np.full(n, "", dtype=object)
    if class_names is None:
        return labels.astype(str).astype(object)
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise ProbeError(
            f"label {labels[outside[0]]} of example {outside[0]} is out of range of the {len(class_names)} class names"
        )
    return np.array(class_names, dtype=object)[labels]


def _as_ids(ids, n):
    """int64 or str array [n]: two types in all, so that frames of several probes fit together."""
    ids = np.asarray(ids)
    if ids.dtype == object and all(isinstance(i, str) for i in ids.ravel()):
        ids = ids.astype(str)
    whole = ids.dtype.kind in "iu" and (not ids.size or ids.max() < 2**63)
    if not whole and ids.dtype.kind != "U":
        raise ProbeError(f"ids={ids!r}: give integers or strings")
    if ids.shape != (n,) or len(np.unique(ids)) != n:
        raise ProbeError(f"ids must be {n} different values, one an example; got shape {ids.shape}")
    return ids.astype(np.int64) if whole else ids


def _indices(name, indices, n):
    if indices is None:
        return np.arange(n)
    indices = np.asarray(indices)
    valid = indices.ndim == 1 and len(indices) and indices.dtype.kind in "iu"
    if not valid or indices.min() < 0 or indices.max() >= n or len(np.unique(indices)) < len(indices):
        raise ProbeError(f"{name}={indices!r}: give different indices from 0 to {n - 1}")
    return indices.astype(np.int64)


def _class_number(wanted, class_names, labels):
    names = [] if class_names is None else [str(name) for name in class_names]
    if str(wanted) in names:
        return names.index(str(wanted))
    if not isinstance(wanted, str) and wanted >= 0 and wanted in labels:
        return int(wanted)
    raise ProbeError(f"unknown class {wanted!r}: choose from {names or np.unique(labels).tolist()}")


def _draw(labels, number, per_class, seed):
    positions = np.flatnonzero(labels == number)
    if len(positions) < per_class:
        raise ProbeError(f"class {number} has {len(positions)} examples, {per_class} are wanted: lower per_class")
    return np.random.default_rng([seed, number]).choice(positions, per_class, replace=False)
