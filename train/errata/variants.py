"""Misprinted and published variants of formulas whose correct form is in `srel_tf.theory` (items 11–17)."""

import numpy as np

from srel_tf import theory


def published_features(width, dimension=100, per_class=1000, seed=0):
    """Item 13: `theory.random_relu_features` with standard deviation 2 instead of variance 2."""
    return theory.random_relu_features(width, dimension, per_class, seed, variance=4.0)


def published_pairs(labels, count=20, seed=0):
    """Items 13 and 14: sources from the mean-9 class, targets from the other class, as in both notebooks."""
    return theory.sample_pairs(1 - np.asarray(labels), "inter", count, seed)


def published_srel(model, w0, t, source, target):
    """Item 11: eq. 4 with T = c I + h hᵀ/N in the numerator alone; arguments and result are as in `model.srel`.

    The change at x' is c W h' + ⟨h', h⟩ (W h/N − y), at x it is c W h + ⟨h, h⟩ (W h − y).
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


def published_average(srel):
    """Item 12: the sum over P pairs, the last axis, divided by P²."""
    return theory.average_pairs(srel) / np.shape(srel)[-1]


def published_loss(model, weights):
    """Item 15: eq. 3 with the errors of each example to all K labels, added up by broadcasting, [...]."""
    weights = np.asarray(weights)
    outputs = np.einsum("...kp,np->...nk", weights, model.features.numpy())
    labels = np.eye(model.num_classes)
    errors = sum(((label - outputs) ** 2).sum(axis=(-2, -1)) for label in labels)
    penalty = model.lam / model.num_classes * (weights**2).sum(axis=(-2, -1))
    return errors / (2 * model.size) + penalty / 2


def printed_theorem_5_3_bound(a, b, w0, theta, t, beta_target, beta_source, t2_star):
    """Item 16: eq. 39 as printed, with β₂₂(x')² in k₂ and the first factor: the bound with β₂₂ swapped."""
    (target_1, target_2), (source_1, source_2) = beta_target, beta_source
    swapped = (target_1, source_2), (source_1, target_2)
    return theory.theorem_5_3_bound(a, b, w0, theta, t, *swapped, t2_star=t2_star)


def printed_eq_14(model, w0, t, beta_target, beta_source):
    """Item 17: eq. 13 without absolute values, as eq. 14 is printed, [T] or [T, P]; it can be negative."""
    squares = model.weights(w0, t).numpy() ** 2
    target, source = np.asarray(beta_target), np.asarray(beta_source)
    return (squares @ (target * source).T) / (squares @ (source**2).T)
