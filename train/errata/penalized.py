"""Items 10–15 of `train.errata`: penalised regression (Section 3, Figures 6–9).

Each check computes its findings, {name: number}, from the closed forms of `srel_tf.theory`. The set-up is that of
`train.theory.figures` with seed 0. The checks do not use their argument, the `Evidence`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from srel_tf import theory
from train.errata import variants
from train.errata.evidence import Evidence, Findings, extremes
from train.theory import figures

ENDS = [0.0, figures.LAST_TIME]
PROBES = {
    "sampled from the mean-1 class": theory.sample_pairs,
    "sampled from the mean-9 class": lambda labels, kind, count, seed: (
        variants.published_pairs(labels, count, seed)
    ),
}


def set_up(
    width: int = 10,
    sample: Callable[..., tuple[np.ndarray, np.ndarray]] = theory.random_relu_features,
    ridge: str = "paper",
) -> tuple[theory.PenalizedRegression, np.ndarray, np.ndarray]:
    """Make the model of Figures 6 and 8 (width 10), or of Figures 7 and 9 (width 100).

    Args:
        width: Number of features p.
        sample: Function that draws features and labels.
        ridge: Coefficient of the penalty, as in `theory.PenalizedRegression`.

    Returns:
        (model, labels [N], initial weights [10, 2, width]).
    """
    features, labels = sample(width, seed=0)
    scale = figures.LAMBDA, figures.THETA
    model = theory.PenalizedRegression(features, labels, 2, *scale, ridge)
    return model, labels, np.random.default_rng(2).normal(size=(10, 2, width))


def at_the_ends(name: str, values: npt.ArrayLike) -> Findings:
    """Average values at t = 0 and t = 8000.

    Args:
        name: Name of the quantity.
        values: [10, 2, P] or [10, 2]. The axes are initial weights, the two times, and pairs.

    Returns:
        Two findings: for each time, the mean over the other axes.
    """
    start, end = np.asarray(values).reshape(10, 2, -1).mean(axis=(0, 2))
    return {f"{name}, t = 0": start, f"{name}, t = 8000": end}


def ridge_coefficient(evidence: Evidence) -> Findings:
    """Check item 10: the coefficient of w in the gradient of eq. 3, by automatic differentiation."""
    model, labels, w0 = set_up()
    coefficient = differentiated_coefficient(model, labels, w0[0])
    findings = {
        "coefficient of w in the gradient of eq. 3, N = 2000, K = 2": coefficient,
        "coefficient in M, T and h̃ as printed": model.coefficient,
        "coefficient as printed / coefficient in the gradient": model.coefficient
        / coefficient,
    }
    for number, (kind, width) in figures.PENALIZED.items():
        for ridge, printed in (("paper", "Nλ₁/K"), ("loss", "λ₁/K")):
            model, labels, w0 = set_up(width, ridge=ridge)
            srel = model.srel(w0, ENDS, *theory.sample_pairs(labels, kind, 20, 1))
            findings |= at_the_ends(f"Figure {number} with {printed}: mean S_rel", srel)
    return findings


def differentiated_coefficient(
    model: theory.PenalizedRegression, labels: np.ndarray, w: np.ndarray
) -> float:
    """Return the coefficient of W in the gradient of eq. 3, by automatic differentiation.

    The coefficient is the median over the entries of (∂(eq. 3)/∂W − (1/N) Σ (W h − e) hᵀ) / W.

    Args:
        model: The penalised regression.
        labels: Class of each example, [N].
        w: W, [2, p].

    Returns:
        The coefficient.
    """
    weights, features = tf.Variable(w), model.features.numpy()
    with tf.GradientTape() as tape:
        loss = model.loss(weights)
    of_data = (features @ w.T - np.eye(2)[labels]).T @ features / len(labels)
    return np.median((tape.gradient(loss, weights).numpy() - of_data) / w)


def stray_one_over_n(evidence: Evidence) -> Findings:
    """Check item 11: if T has a factor 1/N in the numerator only, S(x, x) is not 1, and S_rel rises (Figures 6–9)."""
    findings: Findings = {}
    for width in (10, 100):
        model, labels, w0 = set_up(width, variants.published_features)
        source, target = variants.published_pairs(labels, 20, seed=1)
        itself = variants.published_srel(model, w0, [0.0], source, source)
        findings |= extremes(f"p = {width}: S(x, x)", itself)
        exact = model.srel(w0, [0.0], source, source).numpy()
        findings[f"p = {width}: range of S(x, x) by eq. 4"] = np.ptp(exact)
        for name, srel in (
            ("with 1/N", variants.published_srel(model, w0, ENDS, source, target)),
            ("without 1/N", model.srel(w0, ENDS, source, target).numpy()),
        ):
            start, end = srel.mean((0, 2))
            findings[f"p = {width}: S_rel at t = 8000 / S_rel at t = 0, {name}"] = (
                end / start
            )
    return findings


def divided_by_400(evidence: Evidence) -> Findings:
    """Check item 12: the published average is a sum over 20 pairs, divided by 400."""
    model, labels, w0 = set_up()
    pairs = theory.sample_pairs(labels, "inter", 20, seed=1)
    srel = model.srel(w0, ENDS, *pairs).numpy()
    ratio = theory.average_pairs(srel) / variants.published_average(srel)
    return {"Figure 6's pairs: mean over 20 pairs / published average": ratio.mean()}


def variance_and_classes(evidence: Evidence) -> Findings:
    """Check item 13: the published code uses standard deviation 2, not variance 2, and samples the mean-9 class."""
    findings = {}
    for sample, spread in (
        (theory.random_relu_features, "variance 2"),
        (variants.published_features, "standard deviation 2"),
    ):
        name = f"{spread}: variance recovered by least squares"
        findings[name] = input_variance(sample)
        model, labels, w0 = set_up(sample=sample)
        for probe, sample_pairs in PROBES.items():
            srel = model.srel(w0, ENDS, *sample_pairs(labels, "inter", 20, 1))
            findings |= at_the_ends(f"Figure 6, {spread}, {probe}: mean S_rel", srel)
    return findings


def input_variance(
    sample: Callable[..., tuple[np.ndarray, np.ndarray]],
    width: int = 400,
    dimension: int = 20,
    per_class: int = 300,
    seed: int = 2,
) -> float:
    """Estimate the variance of the coordinates of x in the mean-1 class, by solving h = ReLU(W x) for x.

    Args:
        sample: Function that draws features and labels.
        width: Number of features.
        dimension: Number of coordinates of x.
        per_class: Number of examples of each class.
        seed: Seed of the sample.

    Returns:
        The variance of the inputs x, which are recovered by least squares.
    """
    features, labels = sample(width, dimension, per_class, seed)
    mixing = np.random.default_rng(seed).normal(size=(width, dimension))
    rows = features[labels == 0]
    inputs = [np.linalg.lstsq(mixing[h > 0], h[h > 0], rcond=None)[0] for h in rows]
    return np.var(inputs)


def pairs_of_both_classes(evidence: Evidence) -> Findings:
    """Check item 14: the pairs of the "intra-class" notebook join two classes."""
    _, labels, _ = set_up()
    source, target = variants.published_pairs(labels, 20, seed=1)
    n_joining = (labels[source] != labels[target]).sum()
    name = "published “intra-class” pairs that join the two classes, of 20"
    findings = {name: n_joining}
    for number, (kind, width) in figures.PENALIZED.items():
        model, labels, w0 = set_up(width)
        srel = model.srel(w0, ENDS, *theory.sample_pairs(labels, kind, 20, seed=1))
        name = f"Figure {number}, {kind}-class pairs of the text: mean S_rel"
        findings |= at_the_ends(name, srel)
    return findings


def loss_of_both_labels(evidence: Evidence) -> Findings:
    """Check item 15: the published "empirical loss" sums the squared errors of each example to both labels."""
    model, _, w0 = set_up()
    weights = model.weights(w0, ENDS)
    return (
        at_the_ends("Figure 6's set-up: eq. 3", model.loss(weights))
        | at_the_ends(
            "Figure 6's set-up: loss of both labels",
            variants.published_loss(model, weights),
        )
        | {"smallest possible loss of both labels": least_error_to_both()}
    )


def least_error_to_both(steps: int = 1000) -> float:
    """Return the minimum over outputs f of ½ Σ_k ‖e_k − f‖² for K = 2.

    Args:
        steps: Number of steps of a grid on the segment from e₁ to e₂. The minimum lies on this segment.

    Returns:
        The smallest error on the grid.
    """
    share = np.linspace(0, 1, steps + 1)
    outputs = np.stack([share, 1 - share], axis=-1)
    return (((np.eye(2)[:, None] - outputs) ** 2).sum(axis=(0, 2)) / 2).min()
