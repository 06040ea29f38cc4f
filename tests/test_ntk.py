"""The empirical kernel compared with J Jᵀ from `tape.jacobian`, in float64, with n1 ≠ n2."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from tests.nets import classifier

pytestmark = pytest.mark.usefixtures("in_double_precision")
L = keras.layers


class Tied(keras.Model):
    """Encoder and decoder share a kernel, so that the layers' inputs and outputs do not determine its gradient."""

    def __init__(self):
        super().__init__()
        self.encoder = L.Dense(3, activation="tanh")

    def call(self, x):
        return self.encoder(x) @ keras.ops.transpose(self.encoder.kernel)


def jacobian(model, x):
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x, training=False)
        outputs = outputs[:, None] if len(outputs.shape) == 1 else outputs
    parts = tape.jacobian(
        outputs,
        [v.value for v in model.trainable_variables],
        experimental_use_pfor=False,
    )
    return np.concatenate(
        [p.numpy().reshape(*outputs.shape, -1) for p in parts], axis=-1
    )


def check(model, x1, x2, **options):
    expected = np.einsum("icp,jdp->ijcd", jacobian(model, x1), jacobian(model, x2))
    np.testing.assert_allclose(
        srel_tf.empirical_kernel(model, x1, x2, **options),
        expected,
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("batch_size", [128, 2])
@pytest.mark.parametrize("body", ["mlp", "resnet"])
def test_equals_the_product_of_jacobians(body, batch_size):
    rng = np.random.default_rng(0)
    check(
        classifier(body),
        rng.normal(size=(5, 8, 8, 1)),
        rng.normal(size=(3, 8, 8, 1)),
        batch_size=batch_size,
    )


def test_a_model_whose_layers_cannot_be_watched():
    model, rng = Tied(), np.random.default_rng(0)
    model(np.zeros((1, 4)))
    check(model, rng.normal(size=(3, 4)), rng.normal(size=(2, 4)))


@pytest.mark.parametrize("n", [5, 7])
def test_positions_as_many_as_examples(n):
    class Positions(L.Layer):
        def __init__(self):
            super().__init__()
            self.table = L.Embedding(7, 2)

        def call(self, x):
            return x + self.table(keras.ops.arange(7))

    inputs = keras.Input((7, 2))
    model = keras.Model(
        inputs, L.Dense(2)(L.Flatten()(keras.ops.tanh(Positions()(inputs))))
    )
    check(model, *np.random.default_rng(0).normal(size=(2, n, 7, 2)))


def test_one_output_and_one_set_of_examples():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), L.Dense(4, activation="tanh"), L.Dense(1), L.Reshape(())]
    )
    x = np.random.default_rng(0).normal(size=(4, 3))
    theta = srel_tf.empirical_kernel(model, x)
    assert theta.shape == (4, 4, 1, 1)
    np.testing.assert_allclose(theta[..., 0, 0], theta[..., 0, 0].T, rtol=1e-12)
    check(model, x, x)


def test_bad_input_is_named():
    model = classifier("mlp")
    with pytest.raises(srel_tf.ProbeError, match=r"shape \(0, 8\)"):
        srel_tf.empirical_kernel(model, np.zeros((0, 8)))
    with pytest.raises(srel_tf.ProbeError, match="does not accept"):
        srel_tf.empirical_kernel(model, np.zeros((2, 5)))
    with pytest.raises(srel_tf.OptionError, match="batch_size=0"):
        srel_tf.empirical_kernel(model, np.zeros((2, 8, 8, 1)), batch_size=0)
