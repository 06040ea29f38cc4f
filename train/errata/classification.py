"""Items 1–9 of `train.errata`: the published classification experiments (Figures 1, 2, 14–17).

Each item is a function that checks it by a computation and reads the effect from our own runs: it takes the
`Evidence` and returns (check, effect) as text. Runs that are not there are named as not measured.
"""

import keras
import numpy as np
import tensorflow as tf
from scipy.special import rel_entr

import srel_tf
from train.common import data
from train.errata.evidence import figure, rank_correlation
from train.models import build_model

EPSILON, ETA, K = 1e-8, 1e-4, 20
SMALL_STEP = "sgd η=0.0001"  # A rule of the protocol crossed.
# Training and test images a class, batch size; three classes each.
SIZES = {
    "SVHN": (4000, 800, 256),
    "CIFAR-10": (5000, 1000, 256),
    "CIFAR-100": (500, 100, 25),
}


# --- 1: "KL" ---------------------------------------------------------------------------------------------------


def published_kl(evidence):
    """1. kl_div of probabilities with no update at all is a function of the two predictions, whatever the net does."""
    p = simplex(200)
    at_rest = -3 * unmoved_published_kl(p)
    low, high = at_rest.min(), at_rest.max()
    still, moved = (srel_at_initialisation(eta) for eta in (1e-12, ETA))
    check = (
        "with no update it is −(H(p) + ‖p‖²)/C (largest difference "
        f"{np.abs(at_rest - entropy_and_square(p)).max():.0e} on a grid of the simplex), for C = 3 from "
        f"{-high / 3:.3f} (uniform p) to {-low / 3:.3f} (certain), so that the ratio of any two predictions lies in "
        f"[{low / high:.3f}, {high / low:.3f}]. A net at initialisation: {still.min():.3f} to {still.max():.3f} for "
        f"η = 1e-12, {moved.min():.3f} to {moved.max():.3f} for η = 1e-4 (fresh Adam). Nor would a logarithm make "
        f"it Definition 2: kl_div(log g⁺, g) is {kl_div_with_logarithm()}"
    )
    effect = evidence.of_runs("crossed", _kl_beside_published_kl)
    if evidence.srel is not None:
        curves = evidence.srel[evidence.srel["measure"] == "published_kl"]
        first, within = (
            curves[curves["step"] == 0]["srel"],
            curves["srel"].between(low / high, high / low),
        )
        effect += (
            f"; the published curves begin between {first.min():.3f} and {first.max():.3f}, and {within.mean():.1%} of "
            f"their values lie in the interval of two predictions that do not move"
        )
    return check, effect


def kl_div_with_logarithm():
    """Which divergence kl_div(log g⁺, g) is, said by numbers: its terms are g (log g − log g⁺)."""
    old, new = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    computed = np.sum(old * (np.log(old) - np.log(new)))
    return (
        f"KL(g, g⁺), the reverse: {computed:.4f} for g = (0.7, 0.2, 0.1) and g⁺ = (0.5, 0.2, 0.3), where KL(g⁺, g) is "
        f"{rel_entr(new, old).sum():.4f}"
    )


def unmoved_published_kl(p):
    """mean_c p_c (log p_c − p_c), [...] from probabilities [..., C]: torch's kl_div(p, p), handed probabilities."""
    return (p * np.log(np.where(p > 0, p, 1)) - p * p).mean(axis=-1)


def entropy_and_square(p):
    """H(p) + ‖p‖² (nats), [...] from probabilities [..., C].

    It is at least 1, as H >= −log ‖p‖² >= 1 − ‖p‖²; and at most log C + 1/C, as KL(p, u) >= ‖p − u‖₁²/2 >= ‖p − u‖₂²
    for the uniform u.
    """
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1) + (p**2).sum(axis=-1)


def simplex(parts):
    """All probability vectors of three classes in multiples of 1/parts, corners included, [N, 3]."""
    first, second = np.indices((parts + 1, parts + 1)).reshape(2, -1)
    third = parts - first - second
    return np.stack([first, second, third], axis=-1)[third >= 0] / parts


def srel_at_initialisation(learning_rate):
    """`published_kl` of 24 digits on the small net before training, [24, 24]; a fresh Adam's step."""
    digits = data.load("digits", classes=["3", "5", "8"])
    keras.utils.set_random_seed(0)
    model = build_model("cnn", digits.input_shape, digits.num_classes)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    probe = srel_tf.ProbeSet.sample(digits.train.x, digits.train.y, per_class=8, seed=0)
    options = {
        "measures": ("published_kl",),
        "update": "fresh_adam",
        "learning_rate": learning_rate,
    }
    return srel_tf.measure(model, probe, **options).matrix("published_kl")


def _kl_beside_published_kl(path):
    return ", ".join(
        f"{rule}: AUC of kl {figure(path, 'kl', rule)}, of published_kl {figure(path, 'published_kl', rule)}, "
        f"rank correlation of the two {rank_correlation(path, 'kl', 'published_kl', rule):.2f}"
        for rule in (SMALL_STEP, "fresh_adam")
    )


# --- 2: the fictitious step ------------------------------------------------------------------------------------


def fresh_adam(evidence):
    """2. A fresh Adam moves each weight by η whatever its gradient is."""
    keras.utils.set_random_seed(0)
    model = build_model("resnet18", (32, 32, 3), 3)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    gradient = loss_gradient(model, image, [0])
    adam, sgd = first_adam_step(gradient, ETA), ETA * gradient
    large = np.abs(gradient) > 100 * EPSILON
    check = (
        "with both moments at zero the step is η g/(|g| + ε) in each weight. The published ResNet-18 "
        f"({gradient.size:,} weights) at initialisation, an image of noise: the {large.mean():.0%} of the weights "
        f"with |g| > 1e-6 move by η, the others less; ‖w⁺ − w‖ = {np.linalg.norm(adam):.3g}, "
        f"{np.linalg.norm(adam) / np.linalg.norm(sgd):.0f} times that of sgd with the same η; cosine of the two "
        f"steps {adam @ sgd / np.linalg.norm(adam) / np.linalg.norm(sgd):.2f}"
    )
    return check, evidence.of_runs("crossed", _adam_beside_sgd)


def loss_gradient(model, x, y):
    """∇_w of the cross-entropy of logits on x, y, all trainable weights in one float64 vector."""
    with tf.GradientTape() as tape:
        logits = model(x, training=False)
        loss = keras.losses.sparse_categorical_crossentropy(
            np.asarray(y), logits, from_logits=True
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    return np.concatenate([g.numpy().ravel() for g in gradients]).astype(float)


def first_adam_step(gradient, learning_rate):
    """w − w⁺ of an Adam (β₁, β₂ = 0.9, 0.999, ε = 1e-8) that has seen this gradient only: the bias corrections give
    m̂ = g and v̂ = g²."""
    return learning_rate * gradient / (np.abs(gradient) + EPSILON)


def _adam_beside_sgd(path):
    return ", ".join(
        f"AUC of {measure}: {figure(path, measure, SMALL_STEP)} with {SMALL_STEP}, "
        f"{figure(path, measure, 'fresh_adam')} with fresh_adam, {figure(path, measure, 'optimizer')} with the Adam "
        "in use"
        for measure in ("kl", "l1")
    )


# --- 3: the counterpart of Definition 1; 4: ε ------------------------------------------------------------------


def published_l2(evidence):
    """3. mean |Δp'| over the root mean square of Δp is ℓ1's S_rel times a factor of the source alone."""
    low, high = diagonal_of_published_l2(3600)
    check = (
        f"it is ℓ1's S_rel times ‖Δp‖₁/(√C ‖Δp‖₂) at the source, which for C = 3 and Σ Δp = 0 lies in "
        f"[{low:.3f}, {high:.3f}] (3,600 directions): this is S(x, x), which is never 1"
    )
    return check, evidence.of_runs("crossed", _l1_beside_published_l2)


def diagonal_of_published_l2(directions):
    """(lowest, highest) mean |Δ| / (mean Δ²)^½ over so many directions of the plane Σ_c Δ_c = 0 of three classes."""
    angle = np.arange(directions) * 2 * np.pi / directions
    change = np.cos(angle[:, None] + np.array([0, 2, 4]) * np.pi / 3)
    ratio = np.abs(change).mean(axis=1) / np.sqrt((change**2).mean(axis=1))
    return ratio.min(), ratio.max()


def _l1_beside_published_l2(path):
    return ", ".join(
        f"{rule}: AUC of l1 {figure(path, 'l1', rule)}, of l2 {figure(path, 'l2', rule)}, of published_l2 "
        f"{figure(path, 'published_l2', rule)}, rank correlation of l1 and published_l2 "
        f"{rank_correlation(path, 'l1', 'published_l2', rule):.4f}"
        for rule in ("fresh_adam",)
    )


def epsilon(evidence):
    """4. What 1e-8 in the denominator alone does: nothing to published_kl, much to published_l2 where x hardly "
    "moves."""
    low, high = EPSILON * 3 / (np.log(3) + 1 / 3), EPSILON * 3
    check = (
        f"with no update published_kl's denominator changes by a fraction of {low:.1e} to {high:.1e}; published_l2 "
        f"is multiplied by r/(r + ε), r the root mean square of Δp: 1% lower at r = {99 * EPSILON:.2g}, half at "
        f"{EPSILON:g}, and 0 where nothing moves and S_rel is undefined"
    )
    return check, evidence.of_runs("crossed", _lowest_denominators)


def _lowest_denominators(path):
    file = path / "matrices.parquet"
    if not file.exists():
        return f"not measured: {file} is missing"
    entries = srel_tf.read_frame(file)
    rows = entries[
        (entries["measure"] == "l1")
        & (entries["update"] == "fresh_adam")
        & entries["valid"]
    ]
    return ", ".join(
        f"step {step}: where float32 resolves it r of the sources is at least {r:.1e}, so that published_l2 is "
        f"lowered by at most {EPSILON / (r + EPSILON):.1e} of itself"
        for step, r in smallest_root_mean_square(rows).items()
    )


def smallest_root_mean_square(rows, classes=3):
    """A bound from below of the root mean square of Δp over the sources, by step, from the denominators of ℓ1:
    ‖Δp‖₁ <= √C ‖Δp‖₂."""
    return (rows["denominator"] / classes).groupby(rows["step"]).min()
