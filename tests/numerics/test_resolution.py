"""The numerics contract: valid entries in float32 agree with float64, at any stage of training and for any η."""

import itertools

import keras
import numpy as np
import pytest

import srel_tf
from srel_tf.estimators.assemble import assembled
from srel_tf.estimators.auto import _better_rows
from srel_tf.measures.registry import MEASURES
from srel_tf.numerics import rounding as resolution
from srel_tf.result import Matrices
from tests import reference
from tests.nets import classifier, digits, double_precision

CLASSES = 4
ETAS = (1e-8, 1e-4, 1e-2, 1.0)
RAW = {"raw_l1": reference.raw_norm(1), "raw_l2": reference.raw_norm(2)}


@pytest.fixture(scope="module")
def data():
    return digits(CLASSES, per_class=10)


@pytest.fixture(scope="module")
def probe(data):
    return srel_tf.ProbeSet.sample(*data, per_class=3)


class StopBelow(keras.callbacks.Callback):
    def __init__(self, loss):
        super().__init__()
        self._loss = loss

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = logs["loss"] < self._loss


def stages(body, softmax, data):
    """Yield the same net at initialisation, in mid-training, and converged to a loss below 1e-4."""
    x, y = data
    model = classifier(body, CLASSES, softmax, optimizer=keras.optimizers.Adam(1e-2))
    yield "init", model
    for stage, loss in (("mid", 0.3), ("converged", 9e-5)):
        model.fit(
            x, y, epochs=600, batch_size=40, verbose=0, callbacks=[StopBelow(loss)]
        )
        assert model.evaluate(x, y, verbose=0) < max(loss, 1e-4)
        yield stage, model


def in_float64(model, probe, eta):
    """Return S_rel {measure: [n, n]} from the naive reference in float64, with the weights of the float32 net."""
    with double_precision():
        net = reference.clone(model, "float64")
        softmax = isinstance(model.layers[-1], keras.layers.Softmax)
        read = reference.of_probabilities if softmax else lambda distance: distance
        every = np.arange(len(probe))
        distances = {
            name: read(distance) for name, distance in reference.MEASURES.items()
        }
        return reference.srels(
            net, probe.x, probe.y, every, every, eta, {**distances, **RAW}
        )


# A minute each. `test_contract.py` has deeper nets.
SLOWER = [
    pytest.param(body, False, marks=pytest.mark.slow) for body in ("cnn", "resnet")
]


@pytest.mark.parametrize(("body", "softmax"), [("mlp", True), *SLOWER])
def test_valid_entries_are_within_the_contract(body, softmax, data, probe):
    instrument = None
    for stage, model in stages(body, softmax, data):
        # `model` is the same object at every stage, so that one graph is enough.
        instrument = instrument or srel_tf.Instrument(
            model,
            probe,
            srel_tf.Settings((*reference.MEASURES, *RAW), learning_rate=None),
        )
        trained, shares = float(model.optimizer.learning_rate), {}
        for eta in ETAS:
            model.optimizer.learning_rate = eta
            result = instrument()
            with np.errstate(invalid="ignore", divide="ignore"):
                exact = in_float64(model, probe, result.learning_rate)
            for name, expected in exact.items():
                valid = result.valid(name)
                error = np.abs(result.matrix(name) - expected)[valid]
                assert (
                    error <= MEASURES[name].tolerance * (1 + expected[valid])
                ).all(), (stage, eta, name)
                assert np.isnan(result.matrix(name)[~valid]).all()
                shares[eta, name] = valid.mean()
        model.optimizer.learning_rate = trained
        # The contract must not be kept by calling all entries invalid: a large step is resolved, and a step below the
        # spacing of float32 is not. In a converged net, float32 has lost the digits of p − y, whatever η is.
        for name in exact:
            assert shares[1e-8, name] < 0.1, (stage, name)
            assert (
                shares[1.0, name] > {"init": 0.9, "mid": 0.5, "converged": -1}[stage]
            ), (stage, name)


def test_float64_resolves_what_float32_does_not(data, probe):
    *_, (_, model) = itertools.islice(stages("cnn", False, data), 2)
    with double_precision():
        result = srel_tf.measure(
            reference.clone(model, "float64"), probe, learning_rate=1e-6
        )
    assert result.valid("kl").mean() > 0.95
    assert srel_tf.measure(model, probe, learning_rate=1e-6).valid("kl").mean() < 0.5


def test_noise_of_a_sum_that_cancels_is_seen():
    """f = 1000 w₁ − 1000 w₂ + x·w₃ has noise of about 1e-4 in float32. An entry with a smaller change is invalid."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.layers[-1].set_weights([np.array([[1.0], [1.0], [0.5]], dtype="float32")])
    model.compile("sgd", "mse")
    x = np.array([[1000, -1000, 1], [1000.5, -1000, 1], [0, 0, 1]], dtype="float32")
    result = srel_tf.measure(
        model, srel_tf.ProbeSet(x, np.zeros(3)), measures="l1", learning_rate=1e-5
    )
    valid = result.valid("l1")
    assert not valid[2].any()  # The update on x₂ changes f(x₂) by 1e-5.
    assert valid[1, 1]  # The update on x₁ changes f(x₁) by 20.


def test_error_bound_contains_the_error_of_a_perturbed_ratio():
    """Check the bound, which rests on the triangle inequality, on random norms and squares of norms."""
    rng = np.random.default_rng(0)
    d, d0 = rng.uniform(0.1, 10, size=(2, 1000))
    n, n0 = rng.uniform(0, 1e-3, size=(2, 1000))
    noisy, noisy0 = d + rng.uniform(-1, 1, 1000) * n, d0 + rng.uniform(-1, 1, 1000) * n0
    for name in ("l1", "kl"):
        measure = MEASURES[name]
        power = measure.degree
        srel = (noisy / noisy0) ** power
        noise = resolution.noise_between(measure.degree, d**power, (d + n) ** power)
        np.testing.assert_allclose(noise, n, rtol=1e-9)
        noise = resolution.Noise(n[:, None], n0, np.zeros((len(n), 1)))
        bounds = resolution.error_bound(
            measure.degree, srel[:, None], noisy0**power, noise
        )[:, 0]
        errors = np.abs(srel - (d / d0) ** power)
        assert (errors <= bounds).all()
        root = srel ** (1 / power)
        first_order = power * root ** (power - 1) * (n + root * n0) / noisy0
        assert (bounds < 2 * first_order).all()


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_the_tolerance_is_that_of_one_plus_s(share):
    """An entry of S_rel = 3 is valid up to an error of four times the tolerance of `l1`."""
    measure, one = MEASURES["l1"], np.ones((1, 1))
    noise = resolution.Noise(0 * one, np.zeros(1), share * measure.tolerance * one)
    matrices = assembled(
        measure, 3 * one, np.ones(1), noise, np.array([-1]), "finite_step"
    )
    np.testing.assert_allclose(matrices.bound, share * 4 * measure.tolerance * one)
    assert matrices.valid.item() == (share < 1)


def test_auto_replaces_rows_only_by_better_ones():
    """A row with as many valid entries in float64 as in float32 stays as it is."""

    def matrices(valid, value, method):
        rows = np.full((3, 2), value)
        return Matrices(
            rows, rows[:, 0], rows, np.array(valid, bool), rows, np.full(3, method)
        )

    single = matrices([[1, 1], [1, 0], [0, 0]], 1.0, "finite_step")
    double = matrices([[1, 1], [0, 1], [1, 0]], 2.0, "finite_step_float64")
    better = _better_rows(single, double)
    assert better.method.tolist() == [*["finite_step"] * 2, "finite_step_float64"]
    assert better.numerator[:, 0].tolist() == [1, 1, 2]


def test_noise_of_what_is_no_number():
    """If only the value at perturbed weights is not finite, the noise is infinite. If the first is not, it is zero."""
    first, second = (
        np.array([1.0, np.nan, np.inf, 2.0]),
        np.array([np.nan, 1.0, 1.0, np.inf]),
    )
    noise = resolution.noise_between(1, first, second)
    np.testing.assert_array_equal(noise, [np.inf, 0, 0, np.inf])


def test_a_relu_at_its_kink_is_not_resolved():
    """At the second example, the input of a hidden unit is 2⁻²³, so that a rounding error decides its gradient."""
    first = np.array([1, -1, 0.5, -0.5, 2, -2, 0.25, -0.25])
    second = np.array([1, 0.5, 0, 0.25, 0, 0.5, 1, 0])
    x = np.array(
        [first / 4 + 0.5, np.full(8, 0.75), 0.25 - first / 8]
    )  # first @ x = 2.66, 0, −1.33
    x[1, 0] += 2.0**-23
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(2, activation="relu", use_bias=False)
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(hidden(inputs)))
    hidden.set_weights([np.stack([first, second], axis=1)])
    model.layers[-1].set_weights([np.array([[0.4, -0.2], [0.3, 0.4]])])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = srel_tf.measure(
        model, srel_tf.ProbeSet(x, np.array([0, 1, 0])), learning_rate=0.1
    )
    assert result.valid("kl")[[0, 2]].all()
    assert not result.valid("kl")[
        1, [0, 2]
    ].any()  # S_rel(x, x) is 1, whatever the gradient is.
