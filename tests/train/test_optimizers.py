"""Tests of optimizers with L2 decay in the gradient, compared with NumPy."""

import keras
import numpy as np
import pytest

from srel_tf import OptionError
from train.common.optimizers import AdamL2, SgdL2, make_optimizer

RNG = np.random.default_rng(0)
# These numbers are exact in float32, to which Keras rounds constants.
RATE, BETA_1, BETA_2, L2 = 2**-4, 1 - 2**-3, 1 - 2**-6, 0.25
START = RNG.normal(size=(3, 4))
GRADIENTS = RNG.normal(size=(6, 3, 4))


def adam(
    w, l2, decoupled=0.0, learning_rate=RATE, epsilon=1e-8, beta_1=BETA_1, beta_2=BETA_2
):
    """Apply Adam (Kingma & Ba, end of section 2: ε is added to √v, as in Keras) to g + l2·w.

    `decoupled` is the weight decay of AdamW.
    """
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = gradient + l2 * w
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        rate = learning_rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w = w * (1 - learning_rate * decoupled) - rate * m / (np.sqrt(v) + epsilon)
    return w


def sgd(w, l2, momentum=0.0, learning_rate=RATE):
    """v ← momentum·v − η(g + l2·w), w ← w + v."""
    velocity = np.zeros_like(w)
    for gradient in GRADIENTS:
        velocity = momentum * velocity - learning_rate * (gradient + l2 * w)
        w = w + velocity
    return w


def trained(optimizer):
    variable = keras.Variable(START, dtype="float64")
    for gradient in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float64")], [variable])
    return variable.numpy()


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("l2", [0.0, L2])
def test_adam_with_l2_in_the_gradient(l2):
    close(
        trained(AdamL2(RATE, beta_1=BETA_1, beta_2=BETA_2, epsilon=1e-8, l2=l2)),
        adam(START, l2),
    )


def test_l2_in_the_gradient_is_not_decoupled_decay():
    options = {"beta_1": BETA_1, "beta_2": BETA_2, "epsilon": 1e-8}
    close(
        trained(keras.optimizers.AdamW(RATE, weight_decay=L2, **options)),
        adam(START, 0.0, decoupled=L2),
    )
    assert np.abs(adam(START, 0.0, decoupled=L2) - adam(START, L2)).max() > 0.01


@pytest.mark.parametrize("momentum", [0.0, 0.875])
@pytest.mark.parametrize("l2", [0.0, L2])
def test_sgd_with_l2_in_the_gradient(momentum, l2):
    close(trained(SgdL2(RATE, momentum=momentum, l2=l2)), sgd(START, l2, momentum))


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adam", AdamL2, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}),
        ("sgd", SgdL2, {"momentum": 0.0, "nesterov": False}),
        ("momentum", SgdL2, {"momentum": 0.9, "nesterov": False}),
    ],
)
def test_optimizers_by_name(name, kind, options):
    optimizer = make_optimizer(name, 0.25, 0.5)
    assert type(optimizer) is kind
    assert {
        **options,
        "learning_rate": 0.25,
        "l2": 0.5,
    }.items() <= optimizer.get_config().items()
    assert optimizer.weight_decay is None  # The decoupled decay of Keras.


@pytest.mark.parametrize("name", ["adam", "sgd", "momentum"])
def test_the_configuration_gives_the_same_optimizer(name):
    optimizer = make_optimizer(name, 0.02, 0.3)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert again.l2 == 0.3
    np.testing.assert_array_equal(trained(again), trained(optimizer))


def test_without_l2_it_is_keras_own():
    np.testing.assert_array_equal(
        trained(make_optimizer("sgd", 0.05)), trained(keras.optimizers.SGD(0.05))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lion", 0.1), "'lion'.*adam, sgd, momentum"),
        (("adam", 0.0), r"learning rate 0\.0"),
        (("adam", -1.0), r"learning rate -1\.0"),
        (("sgd", float("nan")), "learning rate nan"),
        (("sgd", 0.1, -0.5), r"weight decay -0\.5"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        make_optimizer(*arguments)
