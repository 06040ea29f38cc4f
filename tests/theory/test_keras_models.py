"""The closed forms compared with `srel_tf.measure` on the same models in Keras."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from srel_tf import Instrument, ProbeSet, Settings, measure
from srel_tf.theory import (
    DiagonalQuadratic,
    HomogeneousPredictor,
    PenalizedRegression,
    ReLUGate,
    quadratic_srel,
)
from srel_tf.theory.keras_models import (
    HalfSquaredError,
    homogeneous_network,
    penalized_network,
    relu_gate_network,
)

SLOW = pytest.mark.slow


def measured(model, probe, eta):
    """Measure S_rel, [n_s, n_t], one row per source."""
    result = measure(model, probe, measures="l2", learning_rate=eta, predictions="raw")
    assert result.valid("l2").all()
    return result.matrix("l2")


def measured_at(etas, model, probe):
    """Measure S_rel, [n_s, n_t], for each η with one graph. η is set in the optimizer, which stores it in float32."""
    instrument = Instrument(model, probe, Settings("l2", predictions="raw"))
    for eta in etas:
        model.optimizer.learning_rate = eta
        result = instrument()
        assert result.valid("l2").all()
        yield result.matrix("l2")


def train(network, x, y, batch_size, repeats):
    """Call `fit` with a fixed order of examples. The data are repeated within one epoch, because epochs cost time."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).repeat(repeats)
    network.fit(data, shuffle=False, verbose=0)


def representable(shape, seed):
    """Draw normal numbers that are exact in float32, so that Keras may convert them to float32 without rounding."""
    return (
        np.random.default_rng(seed)
        .normal(size=shape)
        .astype(np.float32)
        .astype(np.float64)
    )


# --- Section 3 -------------------------------------------------------------------------------------------------


def section_3(ridge):
    features, labels = representable((9, 4), 0), np.arange(9) % 3
    return (
        PenalizedRegression(features, labels, 3, 0.8, 0.5, ridge),
        features,
        np.eye(3)[labels],
    )


@pytest.mark.parametrize("ridge", ["paper", "loss"])
def test_theorem_3_2_is_what_the_instrument_measures(ridge):
    model, features, one_hot = section_3(ridge)
    w0, t = representable((3, 4), 1), 3.7
    network = penalized_network(model, model.weights(w0, t)[0], 0.1)
    sources, targets = np.divmod(np.arange(81), 9)
    closed = model.srel(w0, t, sources, targets).numpy().reshape(9, 9)
    for ours in measured_at((1e-3, 0.5), network, ProbeSet(features, one_hot)):
        np.testing.assert_allclose(ours, closed, rtol=1e-8)


@pytest.mark.parametrize("ridge", [pytest.param("paper", marks=SLOW), "loss"])
def test_training_the_layer_follows_theorem_3_1_and_the_error_halves_with_the_step(
    ridge,
):
    model, features, one_hot = section_3(ridge)
    w0, elapsed = representable((3, 4), 1), 0.25  # steps × η = θ² t
    flow = model.weights(w0, elapsed / 0.5**2)[0].numpy()
    errors = []
    for steps in (25, 50, 100):
        network = penalized_network(model, w0, elapsed / steps)
        train(network, features, one_hot, 9, steps)
        errors.append(np.linalg.norm(network.trainable_variables[0].numpy() - flow))
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, rtol=0.1)


@pytest.mark.parametrize("ridge", ["paper", pytest.param("loss", marks=SLOW)])
def test_theorem_3_2_is_measured_on_a_plain_dense_layer_with_a_keras_regularizer(ridge):
    """The model is a Dense layer of Keras. The penalty is part of ℓ as a Keras regularisation loss, in float32."""
    model, features, one_hot = section_3(ridge)
    w0 = representable((3, 4), 1)
    penalty = keras.regularizers.L2(model.coefficient / 2)
    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=penalty)
    network = keras.Sequential([keras.Input((4,)), layer])
    layer.kernel.assign(w0.T)
    network.compile("sgd", HalfSquaredError(dtype="float32"), jit_compile=False)
    ours = measured(
        network, ProbeSet(features.astype(np.float32), one_hot.astype(np.float32)), 0.1
    )
    sources, targets = np.divmod(np.arange(81), 9)
    closed = model.srel(w0, 0.0, sources, targets).numpy().reshape(9, 9)
    np.testing.assert_allclose(ours, closed, rtol=1e-3)
    unpenalised = np.abs(features @ features.T) / np.sum(features**2, 1)[:, None]
    assert (
        np.median(np.abs(closed / unpenalised - 1)) > 0.05
    )  # The penalty changes S_rel by more than the tolerance.


def test_keras_loss_is_equation_3():
    model, features, one_hot = section_3("loss")
    w = representable((3, 4), 2)
    network = penalized_network(model, w, 0.1)
    x, y = tf.constant(features), tf.constant(one_hot)
    loss = network.compute_loss(x=x, y=y, y_pred=network(x))
    np.testing.assert_allclose(loss, model.loss(w), rtol=1e-13)


# --- Section 4 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [pytest.param(1e-3, marks=SLOW), 0.3])
def test_equations_19_and_20_are_what_the_instrument_measures(eta):
    w_star, w0, x = representable(3, 0), representable(3, 1), representable((12, 3), 2)
    gate, t = ReLUGate(w_star, np.diag([0.5, 0.7, 1.1]), beta=1.3), 0.6
    labels = np.maximum(0, x @ w_star)[:, None]
    sources, targets = (
        i.ravel() for i in np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    )
    closed = gate.srel(w0, t, x[targets], x[sources], eta).numpy()[0].reshape(12, 12)
    network = relu_gate_network(gate, gate.weights(w0, t)[0], 0.1)
    with pytest.warns(
        UserWarning, match="changes nothing: the gradient is zero"
    ):  # The warning is about sources whose gate is shut.
        result = measure(
            network, ProbeSet(x, labels), "l2", learning_rate=eta, predictions="raw"
        )
    undefined = np.isnan(closed)
    assert 0 < undefined.sum() < 144
    np.testing.assert_array_equal(result.valid("l2"), ~undefined)
    np.testing.assert_allclose(result.matrix("l2"), closed, rtol=1e-8, atol=1e-12)
    assert (
        len(np.unique(np.round(closed[~undefined] / bounds(x)[~undefined], 9))) > 1
    )  # Some of the gates clip.


def bounds(x):
    return np.abs(x @ x.T) / np.sum(x**2, 1)[:, None]


def test_training_the_gate_follows_theorem_4_1_and_the_error_halves_with_the_step():
    w_star, w0, half = (
        representable(3, 0),
        representable(3, 1),
        representable((20, 3), 2),
    )
    x = np.concatenate([half, -half])
    moment = np.mean([np.outer(v, v) * (w_star @ v > 0) for v in x], 0)
    gate, labels = (
        ReLUGate(w_star, moment, beta=0.8),
        np.maximum(0, x @ w_star)[:, None],
    )
    flow = gate.weights(w0, 1.5)[0].numpy()
    errors = []
    for steps in (25, 50, 100):
        network = relu_gate_network(gate, w0, 1.5 / steps)
        train(network, x, labels, 40, steps)
        errors.append(np.linalg.norm(network.trainable_variables[0].numpy() - flow))
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, rtol=0.1)


# --- Section 5 -------------------------------------------------------------------------------------------------

MIX = representable((2, 3, 4), 5)


def homogeneous(degree):
    return HomogeneousPredictor(
        lambda x: tf.reduce_sum(x, -1),
        lambda x: tf.tanh(tf.einsum("rni,bi->brn", tf.constant(MIX), x)),
        degree,
    )


def all_pairs(function, x):
    """Evaluate function(x_target, x_source, source index) on all pairs, [n_s, n_t]."""
    sources, targets = np.divmod(np.arange(len(x) ** 2), len(x))
    return np.asarray(function(x[targets], x[sources], sources)).reshape(len(x), len(x))


@pytest.mark.parametrize(
    "degree", [1, pytest.param(2, marks=SLOW), 3, pytest.param(4, marks=SLOW)]
)
def test_equations_26_and_28_are_what_the_instrument_measures(degree):
    h, w, x, y = (
        homogeneous(degree),
        representable((2, 3), 0),
        representable((6, 4), 1),
        representable(6, 2),
    )
    network = homogeneous_network(h, w, (4,), 0.1)
    np.testing.assert_allclose(network(x)[:, 0], h(w, x), rtol=1e-13)
    etas = 2.0**-10, 2.0**-3
    both = measured_at(etas, network, ProbeSet(x, y[:, None]))
    for eta, ours in zip(etas, both, strict=True):
        closed = all_pairs(
            lambda target, source, i, eta=eta: h.srel(
                w, target, source, eta, label=y[i]
            ),
            x,
        )
        np.testing.assert_allclose(ours, closed, rtol=1e-8)


@pytest.mark.parametrize("degree", [pytest.param(2, marks=SLOW), 3])
def test_gap_to_equation_31_shrinks_in_proportion_to_the_step(degree):
    h, w, x, y = (
        homogeneous(degree),
        representable((2, 3), 0),
        representable((6, 4), 1),
        representable(6, 2),
    )
    network, probe = homogeneous_network(h, w, (4,), 0.1), ProbeSet(x, y[:, None])
    limit = all_pairs(lambda target, source, _: h.srel_limit(w, target, source), x)
    gaps = [
        np.abs(ours - limit)[~np.eye(6, dtype=bool)]
        for ours in measured_at((1e-4, 5e-5, 2.5e-5), network, probe)
    ]
    for wide, narrow in itertools.pairwise(gaps):
        np.testing.assert_allclose(np.median(wide / narrow), 2, rtol=0.01)
        np.testing.assert_allclose(wide.sum() / narrow.sum(), 2, rtol=0.02)


W_STAR, START = np.array([1.0, 2.0, 3.0]), np.sqrt([0.5, 2.0, 4.0])


def diagonal(w, eta=0.1):
    predictor = HomogeneousPredictor(lambda x: 0 * x[:, 0], lambda x: x[:, None, :], 2)
    return homogeneous_network(predictor, w[None], (3,), eta)


@pytest.mark.parametrize(
    "t", [pytest.param(0.0, marks=SLOW), 40.0, pytest.param(400.0, marks=SLOW)]
)
def test_theorem_5_2_along_the_flow_is_what_the_instrument_measures(t):
    model, x = DiagonalQuadratic(W_STAR**2, np.ones(3), 0.001), representable((7, 3), 3)
    w, probe = model.weights(START, t)[0].numpy(), ProbeSet(x, (x @ W_STAR**2)[:, None])
    finite = all_pairs(
        lambda target, source, _: model.srel_finite(START, t, target, source, 2**-7), x
    )
    large, *small = measured_at((2**-7, 2e-4, 1e-4, 5e-5), diagonal(w), probe)
    np.testing.assert_allclose(large, finite, rtol=1e-8)
    limit = all_pairs(lambda target, source, _: model.srel(START, t, target, source), x)
    gaps = [np.abs(ours - limit).sum() for ours in small]
    np.testing.assert_allclose(np.array(gaps[:-1]) / gaps[1:], 2, rtol=0.05)


def test_diagonal_finite_step_formula_is_what_the_instrument_measures_off_the_flow():
    w, x = np.array([0.3, -1.0, 2.0]), representable((5, 3), 4)
    y = representable(5, 5)
    step = 2 * 0.05 * (y - x @ w**2)
    closed = all_pairs(
        lambda target, source, i: quadratic_srel(w, target, source, step[i]), x
    )
    np.testing.assert_allclose(
        measured(diagonal(w), ProbeSet(x, y[:, None]), 0.05), closed, rtol=1e-8
    )


def test_mini_batch_training_of_the_diagonal_net_follows_theorem_5_2_and_the_error_halves_with_the_step():
    """Keras's SGD with two examples per batch in a fixed order also deviates from the flow in proportion to η."""
    x = (
        np.sqrt(4.0)
        * np.concatenate([np.eye(4)[:, :3], -np.eye(4)[:, :3]])[
            [0, 1, 2, 4, 5, 6, 3, 7]
        ]
    )
    flow = DiagonalQuadratic(W_STAR**2, np.ones(3), 1.0).weights(START, 0.05)[0].numpy()
    errors = []
    for epochs in (10, 20, 40):
        network = diagonal(START, 0.05 / (4 * epochs))
        train(network, x, (x @ W_STAR**2)[:, None], 2, epochs)
        errors.append(np.linalg.norm(network.trainable_variables[0].numpy()[0] - flow))
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, rtol=0.1)
