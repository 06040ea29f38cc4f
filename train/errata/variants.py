"""Formulas as misprinted in the paper, or as computed by the published scripts (items 11–17 of `train.errata`).

`srel_tf.theory` has the correct formulas.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from srel_tf import theory


def published_features(
    width: int, dimension: int = 100, per_class: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw features and labels with standard deviation 2 instead of variance 2 (item 13).

    The arguments and the result are those of `theory.random_relu_features`.
    """
    return theory.random_relu_features(width, dimension, per_class, seed, variance=4.0)


def published_pairs(
    labels: npt.ArrayLike, count: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw sources from the mean-9 class and targets from the mean-1 class (items 13 and 14).

    Both published notebooks draw the pairs in this way.
    """
    return theory.sample_pairs(1 - np.asarray(labels), "inter", count, seed)


def published_srel(
    model: theory.PenalizedRegression,
    w0: npt.ArrayLike,
    t: npt.ArrayLike,
    source: np.ndarray,
    target: np.ndarray,
) -> np.ndarray:
    """Compute eq. 4 with T = c I + h hᵀ/N in the numerator only (item 11).

    The change at x' is c W h' + ⟨h', h⟩ (W h/N − y). The change at x is c W h + ⟨h, h⟩ (W h − y).

    Args:
        model: The penalised regression.
        w0: Initial weights, as in `model.srel`.
        t: Times, as in `model.srel`.
        source: Rows of the sources, [P].
        target: Rows of the targets, [P].

    Returns:
        S_rel in the shape of `model.srel`.
    """
    features = model.features.numpy()
    x, x_target = features[source], features[target]
    label = model.one_hot.numpy()[source]
    weights = model.weights(w0, t).numpy()
    fit, fit_target = (np.einsum("...kp,ip->...ik", weights, h) for h in (x, x_target))
    overlap, square = ((h * x).sum(axis=-1)[:, None] for h in (x_target, x))
    change_target = model.coefficient * fit_target + overlap * (
        fit / model.size - label
    )
    change_source = model.coefficient * fit + square * (fit - label)
    norm = np.linalg.norm
    return norm(change_target, axis=-1) / norm(change_source, axis=-1)


def published_average(srel: npt.ArrayLike) -> np.ndarray:
    """Sum over the P pairs of the last axis, and divide by P² (item 12)."""
    return theory.average_pairs(srel) / np.shape(srel)[-1]


def published_loss(
    model: theory.PenalizedRegression, weights: npt.ArrayLike
) -> np.ndarray:
    """Compute eq. 3 as the published code does (item 15).

    Because of broadcasting, the published loss of an example is the sum of its squared errors with respect to all K
    one-hot labels. In eq. 3 it is the squared error with respect to the example's own label only.

    Args:
        model: The penalised regression.
        weights: W, [..., K, p].

    Returns:
        The loss, [...].
    """
    weights = np.asarray(weights)
    outputs = np.einsum("...kp,np->...nk", weights, model.features.numpy())
    labels = np.eye(model.num_classes)
    errors = sum(((label - outputs) ** 2).sum(axis=(-2, -1)) for label in labels)
    penalty = model.lam / model.num_classes * (weights**2).sum(axis=(-2, -1))
    return errors / (2 * model.size) + penalty / 2


def printed_theorem_5_3_bound(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    w0: npt.ArrayLike,
    theta: float,
    t: npt.ArrayLike,
    beta_target: Sequence[float],
    beta_source: Sequence[float],
    t2_star: float,
) -> tf.Tensor:
    """Compute eq. 39 as printed: with β₂₂(x')² instead of β₂₂(x)² in k₂ and in the first factor (item 16).

    This is the correct bound with β₂₂(x) and β₂₂(x') swapped. The arguments and the result are those of
    `theory.theorem_5_3_bound`.
    """
    (target_1, target_2), (source_1, source_2) = beta_target, beta_source
    swapped = (target_1, source_2), (source_1, target_2)
    return theory.theorem_5_3_bound(a, b, w0, theta, t, *swapped, t2_star=t2_star)


def printed_eq_14(
    model: theory.DiagonalQuadratic,
    w0: npt.ArrayLike,
    t: npt.ArrayLike,
    beta_target: npt.ArrayLike,
    beta_source: npt.ArrayLike,
) -> np.ndarray:
    """Compute eq. 13 without absolute values, as eq. 14 is printed (item 17). The result can be negative.

    Args:
        model: The diagonal model.
        w0: Initial weights.
        t: Times, [T].
        beta_target: β(x'), [P, n] or [n].
        beta_source: β(x), in the same shape.

    Returns:
        Eq. 14 as printed, [T, P] or [T].
    """
    squares = model.weights(w0, t).numpy() ** 2
    target, source = np.asarray(beta_target), np.asarray(beta_source)
    return (squares @ (target * source).T) / (squares @ (source**2).T)
