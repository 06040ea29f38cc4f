"""The synthetic set-up of Section 3.1: random ReLU features of two Gaussian classes, and pairs of examples."""

import numpy as np
import numpy.typing as npt

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_count, as_positive, check_option


def random_relu_features(
    width: int,
    dimension: int = 100,
    per_class: int = 1000,
    seed: int = 0,
    variance: float = 2.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Sample h = ReLU(W_r x), with W_r from N(0, 1) and x from two isotropic Gaussians (Section 3.1).

    Args:
        width: p, the number of features.
        dimension: Dimension of x.
        per_class: Number of examples of each class.
        seed: Seed of the generator.
        variance: Variance of each coordinate in the class with mean 1. The class with mean 9 has variance 1.

    Returns:
        Features [2·per_class, p] and labels [2·per_class]: 0 for e₁ (mean 1), 1 for e₂ (mean 9).

    Raises:
        ShapeError: A count is not a whole number >= 1.
        AssumptionError: `variance` is not positive.

    Example:
        >>> from srel_tf import theory
        >>> features, labels = theory.random_relu_features(width=5, dimension=3, per_class=2)
        >>> features.shape, labels.tolist()
        ((4, 5), [0, 0, 1, 1])
    """
    width = as_count(width, "width")
    dimension = as_count(dimension, "dimension")
    per_class = as_count(per_class, "per_class")
    variance = as_positive(variance, "variance", "Section 3.1")

    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, dimension))
    shape = (per_class, dimension)
    first = generator.normal(1.0, np.sqrt(variance), size=shape)
    second = generator.normal(9.0, 1.0, size=shape)
    inputs = np.concatenate([first, second])
    preactivations = inputs @ mixing.T
    features = np.maximum(0.0, preactivations)
    labels = np.repeat([0, 1], per_class)
    return features, labels


def sample_pairs(
    labels: npt.ArrayLike,
    kind: str,
    count: int = 20,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Sample pairs of rows (source, target) for Figures 6–9.

    Args:
        labels: 0 or 1 for each example, [N].
        kind: "inter": the sources have label 0 (e₁), and the targets have label 1 (e₂). "intra": sources and targets
            have label 0, and no row occurs twice.
        count: Number of pairs.
        seed: Seed of the generator.

    Returns:
        Source rows [count] and target rows [count].

    Raises:
        ShapeError: `labels` is not a list of 0 and 1, or `count` is not a whole number >= 1.
        OptionError: `kind` is neither "inter" nor "intra".
        AssumptionError: A class has too few examples.

    Example:
        >>> from srel_tf import theory
        >>> labels = [0, 0, 0, 1, 1, 1]
        >>> source, target = theory.sample_pairs(labels, "inter", count=2)
        >>> bool((source < 3).all()), bool((target >= 3).all())
        (True, True)
    """
    check_option(kind, ("inter", "intra"), "kind")
    first, second = _rows_of_classes(labels)
    count = as_count(count, "count")
    needed = (2 * count, 0) if kind == "intra" else (count, count)
    present = (len(first), len(second))
    if present[0] < needed[0] or present[1] < needed[1]:
        raise AssumptionError(
            f"{count} {kind}-class pairs need {needed} examples of labels (0, 1); given {present}. "
            "Ask for fewer pairs."
        )

    generator = np.random.default_rng(seed)
    if kind == "intra":
        both = generator.choice(first, 2 * count, replace=False)
        return both[:count], both[count:]
    source = generator.choice(first, count, replace=False)
    target = generator.choice(second, count, replace=False)
    return source, target


def _rows_of_classes(labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the rows with label 0, and the indices of the rows with label 1."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not set(np.unique(labels)) <= {0, 1}:
        raise ShapeError(
            f"labels must have one axis and hold only 0 and 1; given an array of shape {labels.shape}."
        )
    return np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)


def average_pairs(srel: npt.ArrayLike) -> np.ndarray:
    """Average S_rel over the pairs, the last axis.

    Args:
        srel: S_rel, [..., P].

    Returns:
        [...]; NaN where S_rel of at least one pair is NaN.

    Example:
        >>> from srel_tf import theory
        >>> print(theory.average_pairs([[1.0, 3.0], [2.0, 2.0]]))
        [2. 2.]
    """
    return np.mean(np.asarray(srel), -1)
