"""The limit η → 0 compared with J g from `tape.jacobian`, for each kind of layer, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.engines.first_order import FirstOrderEngine, directions_from
from srel_tf.gradients.backprop import LossBackprop
from srel_tf.gradients.network import Network
from tests.nets import classifier, digits

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy

double = pytest.mark.usefixtures("in_double_precision")


def jacobian_times_gradient(model, x, y, factor=-1.0):
    """Return −J(x_j) ∇ℓ(x_i) for all pairs, [n, n, C], by brute force. ℓ is the compiled loss of one example alone."""
    weights = model.trainable_variables
    values = [v.value for v in weights]
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x, training=False)
    zero = tf.UnconnectedGradients.ZERO
    jacobians = tape.jacobian(
        outputs, values, unconnected_gradients=zero, experimental_use_pfor=False
    )
    moved = 0
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            predictions = model(x[i : i + 1], training=False)
            loss = model.compute_loss(
                x=x[i : i + 1], y=y[i : i + 1], y_pred=predictions, sample_weight=None
            )
        gradients = tape.gradient(loss, values, unconnected_gradients=zero)
        dense = [tf.convert_to_tensor(g).numpy() for g in gradients]
        row = sum(
            np.tensordot(j.numpy(), g, axes=g.ndim)
            for j, g in zip(jacobians, dense, strict=True)
        )
        moved = moved + factor * np.eye(len(x))[i][:, None, None] * row
    return moved


def first_order(model, x, y, batch_size=64, differences=False):
    network = Network(model)
    x, y = tf.constant(x), tf.constant(y)
    engine = FirstOrderEngine(
        LossBackprop(network, x[:2], y[:2]), np.arange(len(x)), batch_size, differences
    )
    return engine(x, y, x, network.weights)


def net(*layers, shape=(6, 6, 2), loss=None):
    keras.utils.set_random_seed(2)
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    model.compile("sgd", loss or CROSS_ENTROPY(from_logits=True))
    for v in (
        model.trainable_variables
    ):  # Move biases and normalisation weights away from 0 and 1.
        v.assign(v + 0.1 * np.random.default_rng(len(v.shape)).normal(size=v.shape))
    return model


class Block(L.Layer):
    """A transformer block of the user's own."""

    def __init__(self):
        super().__init__()
        self.attention = L.MultiHeadAttention(2, 3)
        self.norms = [L.LayerNormalization(), L.LayerNormalization()]
        self.mlp = keras.Sequential([L.Dense(5, activation="gelu"), L.Dense(4)])

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.mlp(x))


class Scaled(L.Layer):
    """A layer without a rule."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return keras.ops.sin(x * self.scale)


class Standardised(L.Conv2D):
    """A convolution that overrides `convolution_op`, as Keras intends."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(
            inputs, kernel - keras.ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        )


class Masked(L.Dense):
    @property
    def kernel(self):
        return self._kernel * keras.ops.convert_to_tensor(
            np.arange(self._kernel.shape[0])[:, None] % 2.0
        )


def adapted():
    """Return a normalisation of two channels. One never varies, so that its spread is clipped.

    This clipping is a kink, but no example is at it.
    """
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(1).normal(size=(20, 6, 6, 2)) * [1.0, 0.0])
    return layer


class Folded(L.Layer):
    """A ReLU for which the pixels of all examples are in one axis."""

    def call(self, x):
        return keras.ops.reshape(
            keras.ops.relu(keras.ops.reshape(x, (-1, 2))), (-1, *x.shape[1:])
        )


class Attending(L.Layer):
    def __init__(self):
        super().__init__()
        self.attention = L.Attention(use_scale=True)

    def call(self, x):
        return self.attention([x, x])


IMAGES = {
    "dense": lambda: net(L.Flatten(), L.Dense(5, activation="tanh")),
    "dense at positions": lambda: net(L.Dense(5, activation="relu")),
    "conv": lambda: net(L.Conv2D(3, 3, padding="same", activation="softplus")),
    "conv strides": lambda: net(L.Conv2D(3, (3, 2), strides=(2, 1), padding="same")),
    "conv valid strides": lambda: net(L.Conv2D(3, 2, strides=2), L.Conv2D(2, 2)),
    "conv dilation": lambda: net(
        L.Conv2D(3, 2, dilation_rate=(2, 1), padding="same", use_bias=False)
    ),
    "conv groups": lambda: net(L.Conv2D(4, 3, groups=2, padding="same")),
    "depthwise and separable, channels first": lambda: net(
        L.Permute((3, 1, 2)),
        L.DepthwiseConv2D(2, data_format="channels_first"),
        L.SeparableConv2D(3, 2, data_format="channels_first"),
    ),
    "group norm channels first": lambda: net(L.GroupNormalization(2, axis=1)),
    "conv 1d": lambda: net(
        L.Reshape((12, 6)), L.Conv1D(4, 3, padding="causal", dilation_rate=2)
    ),
    "conv 3d": lambda: net(L.Reshape((6, 3, 2, 2)), L.Conv3D(2, 2, padding="same")),
    "depthwise": lambda: net(
        L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", strides=2)
    ),
    "depthwise 1d": lambda: net(L.Reshape((12, 6)), L.DepthwiseConv1D(3)),
    "separable": lambda: net(
        L.SeparableConv2D(4, 3, depth_multiplier=2, padding="same")
    ),
    "separable 1d": lambda: net(L.Reshape((12, 6)), L.SeparableConv1D(4, 3, strides=2)),
    "layer norm": lambda: net(L.Dense(4), L.LayerNormalization()),
    "layer norm of two axes": lambda: net(L.LayerNormalization(axis=(1, 3))),
    "group norm": lambda: net(L.Conv2D(4, 2), L.GroupNormalization(2)),
    "batch norm": lambda: net(L.Conv2D(4, 2), L.BatchNormalization()),
    "einsum": lambda: net(
        L.EinsumDense("abcd,de->abce", output_shape=(6, 6, 3), bias_axes="e")
    ),
    "einsum with groups": lambda: net(
        L.EinsumDense("abcd,bde->abe", (6, 3)), L.EinsumDense("...x,xy->...y", 2)
    ),
    "einsum with a bias by position": lambda: net(
        L.EinsumDense("abcd,cde->abce", (6, 6, 3), bias_axes="ce")
    ),
    "attention": lambda: net(L.Reshape((18, 4)), Block()),
    "recurrent": lambda: net(L.Reshape((12, 6)), L.GRU(3)),
    "bidirectional": lambda: net(L.Reshape((12, 6)), L.Bidirectional(L.LSTM(2))),
    "a convolution with a kernel of its own": lambda: net(Standardised(3, 2)),
    "a dense layer with a kernel of its own": lambda: net(Masked(3, activation="tanh")),
    "a user's layer": lambda: net(Scaled(), L.Dense(2)),
    "prelu": lambda: net(L.Conv2D(2, 2), L.PReLU()),
    "penalty": lambda: net(
        L.Conv2D(2, 3, kernel_regularizer="l2"), L.Dense(3, bias_regularizer="l1")
    ),
    "mean square": lambda: net(L.Conv2D(2, 2), loss="mse"),
    "normalisation by the data": lambda: net(adapted(), L.Dense(3, activation="relu")),
    "a kink on another axis": lambda: net(Folded(), L.Dense(2)),
    "attention with a scale, of a list": lambda: net(L.Reshape((18, 4)), Attending()),
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 6, 6, 2)), np.array([0, 2, 1, 1, 0])


def labels_for(model, y):
    return np.eye(3)[y] if model.loss == "mse" else y


@double
@pytest.mark.filterwarnings("ignore:.*batch normalisation")
@pytest.mark.parametrize("name", IMAGES)
def test_equals_jacobian_times_gradient(name, images):
    model = IMAGES[name]()
    x, y = images[0], labels_for(model, images[1])
    expected = jacobian_times_gradient(model, x, y)
    np.testing.assert_allclose(
        first_order(model, x, y).moved, expected, rtol=1e-10, atol=1e-12
    )


class Shifted(L.Layer):
    """A layer without a rule, with a second argument that all examples share."""

    def build(self, *shapes):
        self.scale = self.add_weight(shape=(2,), initializer="ones")

    def call(self, x, shift):
        return keras.ops.tanh((x + shift) * self.scale)


@double
@pytest.mark.parametrize("length", [5, 6, 7])
def test_an_argument_that_is_as_long_as_the_batch_is_not_split(length):
    rng = np.random.default_rng(0)
    inputs = keras.Input((length, 2))
    hidden = Shifted()(inputs, tf.constant(rng.normal(size=(length, 2))))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))
    model.compile("sgd", CROSS_ENTROPY(from_logits=True))
    x, y = rng.normal(size=(length, length, 2)), np.arange(length) % 3
    np.testing.assert_allclose(
        first_order(model, x, y).moved,
        jacobian_times_gradient(model, x, y),
        1e-10,
        1e-12,
    )


def embedded():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(7, 4)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(Block()(x))))
    model.compile("sgd", CROSS_ENTROPY(from_logits=True))
    return model


def shared():
    inputs, layer = keras.Input((6,)), L.Dense(6, activation="tanh")
    model = keras.Model(inputs, L.Dense(3)(layer(layer(inputs))))
    model.compile("sgd", CROSS_ENTROPY(from_logits=True))
    return model


@double
def test_embedding_and_a_small_transformer():
    x = np.random.default_rng(1).integers(0, 7, size=(5, 6)).astype("int32")
    y, model = np.array([0, 2, 1, 1, 0]), embedded()
    np.testing.assert_allclose(
        first_order(model, x, y).moved,
        jacobian_times_gradient(model, x, y),
        1e-10,
        1e-12,
    )


@double
def test_layer_called_twice():
    x, y, model = (
        np.random.default_rng(1).normal(size=(4, 6)),
        np.array([0, 2, 1, 1]),
        shared(),
    )
    np.testing.assert_allclose(
        first_order(model, x, y).moved,
        jacobian_times_gradient(model, x, y),
        1e-10,
        1e-12,
    )


@double
def test_residual_net_in_batches_and_by_differences():
    x, y = digits(per_class=3)
    x, model = x.astype("float64"), classifier("resnet")
    expected = jacobian_times_gradient(model, x, y)
    for batch_size in (64, 4):
        np.testing.assert_allclose(
            first_order(model, x, y, batch_size).moved, expected, 1e-10, 1e-12
        )
        moved = first_order(model, x, y, batch_size, differences=True).moved
        np.testing.assert_allclose(moved, expected - expected[..., -1:], 1e-10, 1e-12)


@pytest.mark.parametrize("differences", [False, True])
def test_directions_turned_to_each_loss_signal(differences):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    if differences:  # Only three directions. r lies in their span.
        basis = basis[:3]
    r = rng.normal(size=(6, len(basis))) @ basis
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    r[1], r[2, 0], r[3] = 0, np.nan, -basis[0]
    turned = directions_from(tf.constant(r), tf.constant(basis)).numpy()
    np.testing.assert_allclose(
        turned @ turned.transpose(0, 2, 1),
        np.tile(np.eye(len(basis)), [6, 1, 1]),
        atol=1e-14,
    )
    np.testing.assert_allclose(
        turned.transpose(0, 2, 1) @ turned,
        np.tile(basis.T @ basis, [6, 1, 1]),
        atol=1e-14,
    )
    for i in (0, 3, 4, 5):
        assert abs(turned[i, 0] @ r[i]) == pytest.approx(1, abs=1e-14)


@double
def test_frozen_weights_do_not_count():
    x, y = digits(per_class=1)
    x, model = x.astype("float64"), classifier("cnn")
    model.layers[1].trainable = False
    model.compile("sgd", model.loss)
    np.testing.assert_allclose(
        first_order(model, x, y).moved,
        jacobian_times_gradient(model, x, y),
        1e-10,
        1e-12,
    )


@double
@pytest.mark.parametrize("name", ["conv groups", "dense at positions", "attention"])
def test_contraction_in_parts(name, images, monkeypatch):
    model = IMAGES[name]()
    x, y = images
    whole = first_order(model, x, y).moved
    monkeypatch.setattr("srel_tf.gradients.factored.ENTRIES", 50)
    np.testing.assert_allclose(
        first_order(model, x, y).moved, whole, rtol=1e-12, atol=1e-14
    )


def test_convolution_with_channels_first(images):
    """Compare with channels last, in float32: on a CPU TensorFlow has no channels-first convolution in float64."""
    first = net(
        L.Permute((3, 1, 2)),
        L.Conv2D(4, 3, data_format="channels_first"),
        L.Permute((2, 3, 1)),
    )
    last = net(L.Conv2D(4, 3))
    last.set_weights(first.get_weights())
    x, y = images[0].astype("float32"), images[1]
    ours, expected = (first_order(model, x, y).moved.numpy() for model in (first, last))
    np.testing.assert_allclose(
        ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


@double
@pytest.mark.filterwarnings("ignore:.*forward-mode")
def test_weights_that_a_layer_makes_when_first_called_count_from_the_first_measurement_on():
    """If an activation is a layer, it is not built together with the layer that calls it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(3)(L.Dense(6, activation=L.PReLU())(inputs)))
    model.compile("sgd", CROSS_ENTROPY(from_logits=True))
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 3
    before = len(model.trainable_variables)
    result = srel_tf.measure(model, srel_tf.ProbeSet(x, y), "raw_l2", estimator="limit")
    assert len(model.trainable_variables) > before
    moved = jacobian_times_gradient(model, x, y)
    np.testing.assert_allclose(
        result.matrices["raw_l2"].numerator, np.linalg.norm(moved, axis=-1), 1e-10
    )
