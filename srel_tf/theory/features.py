"""The synthetic set-up of Section 3.1: random ReLU features of two Gaussian classes, and the pairs to measure."""

import numpy as np

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_count, check_option


def random_relu_features(width, dimension=100, per_class=1000, seed=0, spread="variance"):
    """h = ReLU(W_r x) with W_r of N(0, 1) entries and x of two isotropic Gaussians (Section 3.1).

    Args:
        width: p, the number of features. dimension: of x. per_class: examples of each class. seed: an integer.
        spread: of the class with mean 1 in each coordinate: "variance", variance 2 as the text says;
            "deviation", standard deviation 2 as in the published script. The class with mean 9 has variance 1.

    Returns:
        features [2·per_class, p] and labels [2·per_class]: 0 for e₁ (mean 1), 1 for e₂ (mean 9).

    Raises:
        ShapeError: counts that are no whole numbers >= 1. OptionError: another `spread`.
    """
    width, dimension = as_count(width, "width"), as_count(dimension, "dimension")
    per_class = as_count(per_class, "per_class")
    check_option(spread, ("variance", "deviation"), "spread")
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, dimension))
    first = generator.normal(1.0, np.sqrt(2.0) if spread == "variance" else 2.0, size=(per_class, dimension))
    second = generator.normal(9.0, 1.0, size=(per_class, dimension))
    features = np.maximum(0.0, np.concatenate([first, second]) @ mixing.T)
    return features, np.repeat([0, 1], per_class)


def sample_pairs(labels, kind, count=20, seed=0, convention="text"):
    """Pairs of rows (source, target) for Figures 6–9.

    Args:
        labels: [N] of 0 and 1. kind: "inter" or "intra". count: number of pairs. seed: an integer.
        convention: "text": the source has label e₁; the target e₂ (inter-class) or e₁ (intra-class, another
            example). "published": the source comes from the mean-9 class and the target from the other, for both
            kinds, as in the published scripts.

    Returns:
        source [count], target [count].
    """
    check_option(kind, ("inter", "intra"), "kind")
    check_option(convention, ("text", "published"), "convention")
    labels = np.asarray(labels)
    if labels.ndim != 1 or not set(np.unique(labels)) <= {0, 1}:
        raise ShapeError(f"labels must be a list of 0 and 1, but has shape {labels.shape}.")
    count, generator = as_count(count, "count"), np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
    needed = (2 * count, 0) if (kind, convention) == ("intra", "text") else (count, count)
    present = tuple(len(rows) for rows in of_class)
    if present[0] < needed[0] or present[1] < needed[1]:
        raise AssumptionError(f"{count} {kind}-class pairs need {needed} examples of the two classes; given {present}.")
    if convention == "published":
        return generator.choice(of_class[1], count, replace=False), generator.choice(of_class[0], count, replace=False)
    if kind == "intra":
        both = generator.choice(of_class[0], 2 * count, replace=False)
        return both[:count], both[count:]
    return generator.choice(of_class[0], count, replace=False), generator.choice(of_class[1], count, replace=False)


def average_pairs(srel, convention="mean"):
    """Average S_rel over pairs, the last axis.

    Args:
        srel: [..., P]. convention: "mean"; or "published", the sum over P pairs divided by P², as the published
            scripts divide twenty (i, i) pairs by 400 (the mean divided by P).

    Returns:
        [...]; NaN where a pair is undefined.
    """
    check_option(convention, ("mean", "published"), "convention")
    mean = np.mean(np.asarray(srel), -1)
    return mean if convention == "mean" else mean / np.shape(srel)[-1]
