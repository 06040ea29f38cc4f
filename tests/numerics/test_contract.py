"""The numerics contract on nets that are difficult for float32: random, deep and ill-conditioned nets.

The reference is the naive computation on a net that is built again in float64 (tests/reference.py).
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import srel_tf
from srel_tf.measures.registry import MEASURES
from tests import reference
from tests.nets import double_precision

L = keras.layers
NAMES = ("kl", "l1", "l2", "raw_l1", "raw_l2")
DISTANCES = {
    **reference.MEASURES,
    "raw_l1": reference.raw_norm(1),
    "raw_l2": reference.raw_norm(2),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*batch normalisation"),
    pytest.mark.filterwarnings("ignore:model .*forward-mode"),
    pytest.mark.filterwarnings("ignore:rows that float32"),
    pytest.mark.filterwarnings("ignore:.*have a NaN"),
    pytest.mark.filterwarnings("ignore:the update of .* changes nothing"),
]


def normalised(kind):
    return {
        "batch": L.BatchNormalization,
        "layer": L.LayerNormalization,
        "group": lambda: L.GroupNormalization(1),
        "none": lambda: L.Activation("linear"),
    }[kind]()


def net(widths, normalisation, activation, residual=False, inputs=6, classes=3):
    """Return a net of dense blocks that returns logits, in Keras's current precision."""
    x = given_x = keras.Input((inputs,))
    for width in widths:
        y = L.Activation(activation)(normalised(normalisation)(L.Dense(width)(x)))
        x = L.Add()([x, y]) if residual and x.shape == y.shape else y
    return compiled(keras.Model(given_x, L.Dense(classes)(x)))


def compiled(model):
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, dtype=keras.config.floatx()
        ),
    )
    return model


def with_statistics(model, x):
    """Set the moving statistics of all batch normalisations to those of x, layer by layer from the first one."""
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            seen = keras.Model(model.inputs, layer.input)(x).numpy().astype("float64")
            axes = tuple(range(seen.ndim - 1))
            layer.moving_mean.assign(seen.mean(axes))
            layer.moving_variance.assign(seen.var(axes))


def first_order(model, x, y, sources):
    """Return the logits, and their first-order changes [n_s, n, C] per unit of η, by the Jacobian in float64."""
    values = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x, training=False)
    jacobians = tape.jacobian(outputs, values, experimental_use_pfor=False)
    rows = []
    for i in sources:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                x=None, y=y[i : i + 1], y_pred=model(x[i : i + 1], training=False)
            )
        gradients = tape.gradient(loss, values)
        rows.append(
            -sum(
                np.tensordot(j, g, axes=len(g.shape))
                for j, g in zip(jacobians, gradients, strict=True)
            )
        )
    return outputs.numpy(), np.array(rows)


def limits(model, x, y, sources):
    """Return {measure: S_rel [n_s, n]} in the limit."""
    outputs, moved = first_order(model, x, y, sources)
    p = np.exp(reference.log_softmax(outputs)).astype(float)
    d = moved - (p * moved).sum(-1, keepdims=True)  # The change of log p.
    sizes = {
        "kl": 0.5 * (p * d**2).sum(-1),
        "l1": np.abs(p * d).sum(-1),
        "l2": np.linalg.norm(p * d, axis=-1),
        "raw_l1": np.abs(moved).sum(-1),
        "raw_l2": np.linalg.norm(moved, axis=-1),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            k: s / s[np.arange(len(sources)), sources][:, None]
            for k, s in sizes.items()
        }


def check(
    build, x, y, weights, etas, estimators=("exact", "limit", "auto"), precision="auto"
):
    """Assert that all valid entries are within tolerance. Returns the valid share, {(estimator, η): share}."""
    model = build()
    model.set_weights(weights)
    with double_precision():
        exact = build()
    exact.set_weights(model.get_weights())
    sources = np.arange(0, len(x), 2)
    probe, every, shares = (
        srel_tf.ProbeSet(x, y, sources=sources),
        np.arange(len(x)),
        {},
    )
    for estimator in estimators:
        instrument = srel_tf.Instrument(
            model,
            probe,
            srel_tf.Settings(NAMES, estimator=estimator, precision=precision),
        )
        for eta in etas if estimator != "limit" else etas[:1]:
            model.optimizer.learning_rate = eta
            result = instrument()
            with double_precision(), np.errstate(all="ignore"):
                if estimator == "limit":
                    expected = limits(exact, x.astype("float64"), y, sources)
                else:
                    used = float(model.optimizer.learning_rate.numpy())
                    expected = reference.srels(
                        exact, x.astype("float64"), y, sources, every, used, DISTANCES
                    )
            for name, s in expected.items():
                valid = result.valid(name)
                assert np.isfinite(s[valid]).all(), (estimator, eta, name)
                error = (
                    np.abs(result.matrix(name) - s)[valid]
                    / (1 + s[valid])
                    / MEASURES[name].tolerance
                )
                assert (error <= 1).all(), (estimator, eta, name, error.max())
            shares[estimator, eta] = np.mean([result.valid(name) for name in NAMES])
    return shares


def of_large_mean(n=12, inputs=20, classes=3):
    """Return inputs of 1000 ± 0.1, from which a first batch normalisation subtracts the mean, and labels."""
    rng = np.random.default_rng(0)
    return (1000 + 0.1 * rng.normal(size=(n, inputs))).astype("float32"), np.arange(
        n
    ) % classes


def test_batch_normalisation_of_inputs_with_a_large_mean():
    """The rounding errors before the ReLUs, and those of the gradient, are about a thousand ULP."""

    def build():
        return net((256, 64), "batch", "relu", inputs=20)

    x, y = of_large_mean()
    model = build()
    with_statistics(model, x)
    shares = check(build, x, y, model.get_weights(), (1e-6, 1e-3))
    assert shares["limit", 1e-6] == shares["auto", 1e-6] == shares["auto", 1e-3] == 1


@pytest.mark.parametrize("kind", ["weightless", "whole numbers", "frozen"])
def test_rounding_in_layers_that_no_update_moves(kind):
    """A layer without weights, or without trained ones, takes the large mean of inputs of small spread away."""
    rng = np.random.default_rng(0)
    spread = 1e-2 if kind == "weightless" else 1e-3
    x = (1000 + spread * rng.normal(size=(12, 8))).astype("float32")
    if kind == "whole numbers":
        x = (1_000_000 + rng.integers(-3, 4, x.shape)).astype("float32")

    def build():
        inputs = keras.Input((8,))
        if kind == "weightless":
            h = L.Rescaling(100.0, offset=-1e5)(inputs)
        elif kind == "whole numbers":
            h = L.Rescaling(1 / 3, offset=-1e6 / 3)(inputs)
        else:
            h = L.Dense(32, trainable=False)(inputs)
            h = L.Activation("tanh")(L.BatchNormalization(trainable=False)(h))
        h = L.Dense(16, activation="tanh")(h)
        return compiled(keras.Model(inputs, L.Dense(3)(h)))

    model = build()
    with_statistics(model, x)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_variance.assign(layer.moving_variance + spread**2)
    shares = check(build, x, np.arange(12) % 3, model.get_weights(), (1e-1,))
    assert shares["auto", 1e-1] == 1


def test_rounding_where_back_propagation_begins():
    """The columns of the last kernel are nearly equal: the entries of ∂ℓ/∂f, whose sum is zero, cancel behind it."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 8)).astype("float32"), np.arange(12) % 3
    kernel = (1 + 3e-4 * rng.normal(size=(16, 3))).astype("float32")

    def build():
        inputs = keras.Input((8,))
        hidden = L.Dense(16, activation="tanh")(inputs)
        return compiled(keras.Model(inputs, L.Dense(3, trainable=False)(hidden)))

    keras.utils.set_random_seed(0)
    weights = build().get_weights()
    weights[2] = kernel
    check(build, x, y, weights, (1.0,), ("exact", "limit"), precision="float32")


@pytest.mark.parametrize(
    ("normalisation", "estimators"),
    [
        ("batch", ("exact", "limit")),
        ("layer", ("auto",)),
        pytest.param("batch", ("auto",), marks=pytest.mark.slow),
        pytest.param("layer", ("exact", "limit"), marks=pytest.mark.slow),
    ],
)
def test_deep_nets_whose_units_rounding_moves_over_their_kinks(
    normalisation, estimators
):
    """Twelve layers. `auto` repeats the rows that `exact` resolves."""

    def build():
        return net((16,) * 12, normalisation, "relu")

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 6)).astype("float32"), np.arange(12) % 3
    keras.utils.set_random_seed(1)
    model = build()
    with_statistics(model, x)
    shares = check(build, x, y, model.get_weights(), (1e-5, 1e-2), estimators)
    assert shares.get(("limit", 1e-5), 1) == 1
    assert shares.get(("auto", 1e-5), 1) > 0.99


@st.composite
def hard_nets(draw):
    """Draw (options of `net`, spread of the inputs, mean of the inputs, scale of the weights, seed)."""
    width = draw(st.integers(2, 24))
    depth = draw(st.integers(1, 10))
    options = {
        "widths": (width,) * depth,
        "normalisation": draw(st.sampled_from(["batch", "layer", "group", "none"])),
        "activation": draw(
            st.sampled_from(["relu", "tanh", "gelu", "leaky_relu", "silu", "relu6"])
        ),
        "residual": draw(st.booleans()),
    }
    spread, mean = (
        draw(st.sampled_from([1e-2, 1.0, 30.0])),
        draw(st.sampled_from([0.0, 1.0, 300.0])),
    )
    return (
        options,
        spread,
        mean,
        draw(st.sampled_from([0.3, 1.0, 3.0])),
        draw(st.integers(0, 10**6)),
    )


def holds_on(case, estimators=("exact", "limit", "auto")):
    options, spread, mean, scale, seed = case

    def build():
        return net(**options)

    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    x, y = (
        (mean + spread * rng.normal(size=(8, 6))).astype("float32"),
        rng.integers(0, 3, 8),
    )
    model = build()
    for v in model.trainable_variables:
        v.assign(scale * (v + 0.1 * rng.normal(size=v.shape)))
    with_statistics(model, x)
    check(build, x, y, model.get_weights(), (1e-6, 1e-3, 1e-1), estimators)


OPTIONS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ),  # Shrinking is left out: each of its steps would trace a graph.
    "derandomize": True,
}


@settings(max_examples=2, **OPTIONS)
@given(hard_nets())
def test_random_nets(case):
    holds_on(case, ("exact", "limit"))


@pytest.mark.slow
@settings(max_examples=60, **OPTIONS)
@given(hard_nets())
def test_many_random_nets(case):
    holds_on(case)
