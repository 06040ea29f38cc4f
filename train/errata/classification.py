"""Items 1–4 of `train.errata`: the measures and the fictitious step of the published classification experiments.

Each check takes the `Evidence` and returns its `Findings`.
"""

from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf
from scipy.special import rel_entr, xlogy

import srel_tf
from train.common import data
from train.errata.evidence import (
    Evidence,
    Findings,
    central_values,
    extremes,
    rank_correlation,
)
from train.models import build_model

EPSILON, ETA = 1e-8, 1e-4
SMALL_STEP = "sgd η=0.0001"  # A rule of the protocol "crossed".
RULES = (SMALL_STEP, "fresh_adam")


def published_kl(evidence: Evidence) -> Findings:
    """Check item 1: without an update, `published_kl` depends only on the confidence of the predictions at x and x'."""
    p = simplex(200)
    at_rest = unmoved_published_kl(p)
    differences = np.abs(3 * at_rest + entropy_and_square(p))
    ratios = np.array([at_rest.max() / at_rest.min(), at_rest.min() / at_rest.max()])
    name = "value without an update: largest difference from −(H(p) + ‖p‖²)/C on a grid of the simplex"
    findings = {name: differences.max()}
    findings |= extremes("value without an update, C = 3", at_rest)
    findings |= extremes("ratio of two values without an update, C = 3", ratios)
    for eta in (1e-12, ETA):
        name = f"published_kl of a net at initialisation, fresh Adam, η = {eta:g}"
        findings |= extremes(name, srel_at_initialisation(eta))
    g, g_plus = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    example = "g = (0.7, 0.2, 0.1), g⁺ = (0.5, 0.2, 0.3)"
    with_logarithm = np.sum(g * (np.log(g) - np.log(g_plus)))
    findings |= {
        f"with the logarithm, kl_div(log g⁺, g) for {example}": with_logarithm,
        f"KL(g, g⁺) for {example}": rel_entr(g, g_plus).sum(),
        f"KL(g⁺, g) for {example}": rel_entr(g_plus, g).sum(),
    }
    findings |= evidence.of_runs("crossed", _kl_beside_published_kl)
    if evidence.srel is not None:
        curves = evidence.srel[evidence.srel["measure"] == "published_kl"]
        findings |= extremes(
            "published curves, first value", curves[curves["step"] == 0]["srel"]
        )
        name = (
            "published curves, share of values in the range of ratios without an update"
        )
        findings[name] = curves["srel"].between(*ratios).mean()
    return findings


def unmoved_published_kl(p: np.ndarray) -> np.ndarray:
    """Return mean_c p_c (log p_c − p_c), which is torch's kl_div(p, p) for probabilities p.

    Args:
        p: Probabilities, [..., C].

    Returns:
        One value per distribution, [...].
    """
    return (xlogy(p, p) - p * p).mean(axis=-1)


def entropy_and_square(p: np.ndarray) -> np.ndarray:
    """Return H(p) + ‖p‖², with the entropy H in nats.

    The lower bound is 1, because H >= −log ‖p‖² >= 1 − ‖p‖². The upper bound is log C + 1/C, because
    KL(p, u) >= ‖p − u‖₁²/2 >= ‖p − u‖₂² for the uniform distribution u.

    Args:
        p: Probabilities, [..., C].

    Returns:
        One value per distribution, [...].
    """
    return -xlogy(p, p).sum(axis=-1) + (p**2).sum(axis=-1)


def simplex(parts: int) -> np.ndarray:
    """Return all probability vectors of three classes whose entries are multiples of 1/parts, [N, 3]."""
    first, second = np.indices((parts + 1, parts + 1)).reshape(2, -1)
    third = parts - first - second
    return np.stack([first, second, third], axis=-1)[third >= 0] / parts


def srel_at_initialisation(learning_rate: float) -> np.ndarray:
    """Measure `published_kl` of 24 digits on the small net before training, with the step of a fresh Adam.

    Args:
        learning_rate: η of the step.

    Returns:
        S_rel, [24, 24].
    """
    digits = data.load("digits", classes=["3", "5", "8"])
    keras.utils.set_random_seed(0)
    model = build_model("cnn", digits.input_shape, digits.num_classes)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    probe = srel_tf.ProbeSet.sample(digits.train.x, digits.train.y, per_class=8, seed=0)
    result = srel_tf.measure(
        model,
        probe,
        measures="published_kl",
        update="fresh_adam",
        learning_rate=learning_rate,
    )
    return result.matrix("published_kl")


def _kl_beside_published_kl(path: Path) -> Findings:
    """Read the AUC of `kl` and of `published_kl`, and the rank correlation of the two, from a condensed run."""
    measures = ("kl", "published_kl")
    findings = central_values(path, measures, RULES)
    for rule in RULES:
        findings |= rank_correlation(path, *measures, rule)
    return findings


def fresh_adam(evidence: Evidence) -> Findings:
    """Check item 2: a fresh Adam changes each weight by almost η, if |g| is well above ε."""
    keras.utils.set_random_seed(0)
    model = build_model("resnet18", (32, 32, 3), 3)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    gradient = loss_gradient(model, image, [0])
    adam, sgd = first_adam_step(gradient, ETA), ETA * gradient
    adam_norm, sgd_norm = np.linalg.norm(adam), np.linalg.norm(sgd)
    share = (np.abs(gradient) > 100 * EPSILON).mean()
    findings = {
        "published ResNet-18 at initialisation, an image of noise: number of weights": gradient.size,
        "share of weights with |g| > 1e-6, which change by η": share,
        "‖w⁺ − w‖": adam_norm,
        "‖w⁺ − w‖ / ‖w⁺ − w‖ of sgd with the same η": adam_norm / sgd_norm,
        "cosine of the two steps": adam @ sgd / adam_norm / sgd_norm,
    }
    rules = (*RULES, "optimizer")
    return findings | evidence.of_runs(
        "crossed", lambda path: central_values(path, ("kl", "l1"), rules)
    )


def loss_gradient(model: keras.Model, x: np.ndarray, y: npt.ArrayLike) -> np.ndarray:
    """Return the gradient of the cross-entropy of logits.

    Args:
        model: A model that returns logits.
        x: Examples, [n, ...].
        y: Classes, [n].

    Returns:
        The gradients of all trainable weights in one float64 vector.
    """
    with tf.GradientTape() as tape:
        logits = model(x, training=False)
        loss = keras.losses.sparse_categorical_crossentropy(
            np.asarray(y), logits, from_logits=True
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    return np.concatenate([g.numpy().ravel() for g in gradients]).astype(float)


def first_adam_step(gradient: np.ndarray, learning_rate: float) -> np.ndarray:
    """Return w − w⁺ for the first step of Adam, where m̂ = g and v̂ = g².

    Args:
        gradient: g.
        learning_rate: η. The other constants are β₁ = 0.9, β₂ = 0.999 and ε = 1e-8.

    Returns:
        η g / (|g| + ε).
    """
    return learning_rate * gradient / (np.abs(gradient) + EPSILON)


def published_l2(evidence: Evidence) -> Findings:
    """Check item 3: the published form of Definition 1.

    The published form is the mean |Δp| at x' divided by the root mean square of Δp at x. This equals S_rel of ℓ1 times
    the factor ‖Δp‖₁/(√C ‖Δp‖₂), where Δp is the change at x.
    """
    findings = extremes("S(x, x), C = 3", diagonal_of_published_l2(3600))
    return findings | evidence.of_runs("crossed", _l1_beside_published_l2)


def _l1_beside_published_l2(path: Path) -> Findings:
    """Read the AUC of `l1`, `l2` and `published_l2`, and the rank correlation of `l1` and `published_l2`."""
    aucs = central_values(path, ("l1", "l2", "published_l2"), ("fresh_adam",))
    return aucs | rank_correlation(path, "l1", "published_l2", "fresh_adam")


def diagonal_of_published_l2(directions: int) -> tuple[float, float]:
    """Return the range of S(x, x) of `published_l2` for three classes.

    S(x, x) is mean |Δ| / (mean Δ²)^½ for a change Δ of the probabilities. This ratio depends only on the direction of Δ
    in the plane Σ_c Δ_c = 0.

    Args:
        directions: Number of directions, evenly spaced.

    Returns:
        (lowest, highest).
    """
    angle = np.arange(directions) * 2 * np.pi / directions
    change = np.cos(angle[:, None] + np.array([0, 2, 4]) * np.pi / 3)
    ratio = np.abs(change).mean(axis=1) / np.sqrt((change**2).mean(axis=1))
    return ratio.min(), ratio.max()


def epsilon(evidence: Evidence) -> Findings:
    """Check item 4: the effect of adding 1e-8 to denominators, but not to numerators.

    This lowers `published_l2` noticeably if the prediction at x hardly changes. It never changes `published_kl`
    noticeably.
    """
    # The largest and the smallest denominator of published_kl without an update, in absolute value.
    denominators = np.array([np.log(3) + 1 / 3, 1]) / 3
    name = "relative change of published_kl's denominator by 1e-8, without an update"
    findings = extremes(name, EPSILON / denominators)
    return findings | evidence.of_runs("crossed", _lowest_denominators)


def _lowest_denominators(path: Path) -> Findings:
    """Return, for each step, a lower bound of the root mean square of Δp, and the effect of 1e-8 at this bound."""
    file = path / "matrices.parquet"
    if not file.exists():
        return {f"not measured: {file} is missing": np.nan}
    entries = srel_tf.read_frame(file)
    is_adam = (entries["measure"] == "l1") & (entries["update"] == "fresh_adam")
    rows = entries[is_adam & entries["valid"]]
    findings = {}
    for step, r in smallest_root_mean_square(rows).items():
        change = EPSILON / (r + EPSILON)
        findings[f"step {step}, smallest root mean square of Δp at valid sources"] = r
        findings[f"step {step}, largest relative change of published_l2"] = change
    return findings


def smallest_root_mean_square(rows: pd.DataFrame, classes: int = 3) -> pd.Series:
    """Return a lower bound of the root mean square of Δp over all sources of a step, from ‖Δp‖₁ <= √C ‖Δp‖₂.

    Args:
        rows: Rows of ℓ1 of an S_rel frame, with denominators.
        classes: Number of classes C.

    Returns:
        The bound, indexed by step.
    """
    return (rows["denominator"] / classes).groupby(rows["step"]).min()
