"""Items 10–15 of `train.errata`: penalised regression (Section 3, Figures 6–9).

Each check computes its findings, {name: number}, on the closed forms of `srel_tf.theory` in the set-up of
`train.theory.figures`, seed 0. It needs no `Evidence`.
"""

import numpy as np
import tensorflow as tf

from srel_tf import theory
from train.errata import variants
from train.errata.evidence import extremes
from train.theory import figures

ENDS = [0.0, figures.LAST_TIME]
PROBES = {
    "sampled from the mean-1 class": theory.sample_pairs,
    "sampled from the mean-9 class": lambda labels, kind, count, seed: (
        variants.published_pairs(labels, count, seed)
    ),
}


def set_up(width=10, sample=theory.random_relu_features, ridge="paper"):
    """Make (model, labels, w0 [10, 2, width]) of Figures 6 and 8, or with width 100 of Figures 7 and 9."""
    features, labels = sample(width, seed=0)
    scale = figures.LAMBDA, figures.THETA
    model = theory.PenalizedRegression(features, labels, 2, *scale, ridge)
    return model, labels, np.random.default_rng(2).normal(size=(10, 2, width))


def at_the_ends(name, values):
    """Make findings from values [..., 2, P] or [..., 2] at t = 0 and t = 8000, as means over the other axes."""
    start, end = np.asarray(values).reshape(10, 2, -1).mean(axis=(0, 2))
    return {f"{name}, t = 0": start, f"{name}, t = 8000": end}


def ridge_coefficient(evidence):
    """10. The coefficient of w in the gradient of eq. 3, by automatic differentiation."""
    model, labels, w0 = set_up()
    coefficient = differentiated_coefficient(model, labels, w0[0])
    findings = {
        "coefficient of w in the gradient of eq. 3, N = 2000, K = 2": coefficient,
        "coefficient in M, T and h̃ as printed": model.coefficient,
        "the one over the other": model.coefficient / coefficient,
    }
    for number, (kind, width) in figures.PENALIZED.items():
        for ridge, printed in (("paper", "Nλ₁/K"), ("loss", "λ₁/K")):
            model, labels, w0 = set_up(width, ridge=ridge)
            srel = model.srel(w0, ENDS, *theory.sample_pairs(labels, kind, 20, 1))
            findings |= at_the_ends(f"Figure {number} with {printed}: mean S_rel", srel)
    return findings


def differentiated_coefficient(model, labels, w):
    """Compute the median entry of the ratio (∂(eq. 3)/∂w − (1/N) Σ (W h − e) hᵀ) / w."""
    weights, features = tf.Variable(w), model.features.numpy()
    with tf.GradientTape() as tape:
        loss = model.loss(weights)
    of_data = (features @ w.T - np.eye(2)[labels]).T @ features / len(labels)
    return np.median((tape.gradient(loss, weights).numpy() - of_data) / w)


def stray_one_over_n(evidence):
    """11. With a factor 1/N only in the numerator's T, S(x, x) is not 1, and S_rel rises (Figures 6–9)."""
    findings = {}
    for width in (10, 100):
        model, labels, w0 = set_up(width, variants.published_features)
        source, target = variants.published_pairs(labels, 20, seed=1)
        itself = variants.published_srel(model, w0, [0.0], source, source)
        findings |= extremes(f"p = {width}: S(x, x)", itself)
        exact = model.srel(w0, [0.0], source, source).numpy()
        findings[f"p = {width}: range of S(x, x) by eq. 4"] = np.ptp(exact)
        for name, srel in (
            ("with 1/N", variants.published_srel(model, w0, ENDS, source, target)),
            ("without", model.srel(w0, ENDS, source, target).numpy()),
        ):
            start, end = srel.mean((0, 2))
            findings[f"p = {width}: S_rel at t = 8000 over t = 0, {name}"] = end / start
    return findings


def divided_by_400(evidence):
    """12. A sum over 20 pairs is divided by 400."""
    model, labels, w0 = set_up()
    pairs = theory.sample_pairs(labels, "inter", 20, seed=1)
    srel = model.srel(w0, ENDS, *pairs).numpy()
    ratio = theory.average_pairs(srel) / variants.published_average(srel)
    return {"Figure 6's pairs: mean over 20 pairs over the sum over 400": ratio.mean()}


def variance_and_classes(evidence):
    """13. Standard deviation 2 means variance 4; the class of the sampled point also differs."""
    findings = {}
    for sample, spread in (
        (theory.random_relu_features, "variance 2"),
        (variants.published_features, "deviation 2"),
    ):
        name = f"{spread}: variance recovered by least squares"
        findings[name] = input_variance(sample)
        model, labels, w0 = set_up(sample=sample)
        for probe, sample_pairs in PROBES.items():
            srel = model.srel(w0, ENDS, *sample_pairs(labels, "inter", 20, 1))
            findings |= at_the_ends(f"Figure 6, {spread}, {probe}: mean S_rel", srel)
    return findings


def input_variance(sample, width=400, dimension=20, per_class=300, seed=2):
    """Estimate the variance of a coordinate of x in the mean-1 class, from h = ReLU(W x) and W."""
    features, labels = sample(width, dimension, per_class, seed)
    mixing = np.random.default_rng(seed).normal(size=(width, dimension))
    rows = features[labels == 0]
    inputs = [np.linalg.lstsq(mixing[h > 0], h[h > 0], rcond=None)[0] for h in rows]
    return np.var(inputs)


def pairs_of_both_classes(evidence):
    """14. The pairs in the "intra-class" notebook."""
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


def loss_of_both_labels(evidence):
    """15. The published "empirical loss", which adds up the errors to both labels."""
    model, _, w0 = set_up()
    weights = model.weights(w0, ENDS)
    return (
        at_the_ends("Figure 6's set-up: eq. 3", model.loss(weights))
        | at_the_ends(
            "Figure 6's set-up: with both labels",
            variants.published_loss(model, weights),
        )
        | {"least error to both labels": least_error_to_both()}
    )


def least_error_to_both(steps=1000):
    """Compute the minimum over f of ½ Σ_k ‖e_k − f‖² for K = 2, which lies between e₁ and e₂."""
    share = np.linspace(0, 1, steps + 1)
    outputs = np.stack([share, 1 - share], axis=-1)
    return (((np.eye(2)[:, None] - outputs) ** 2).sum(axis=(0, 2)) / 2).min()
