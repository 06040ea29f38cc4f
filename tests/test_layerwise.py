"""Gradients of single examples out of one batched backward pass, against one backward pass each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.layerwise import layer_gradients
from srel_tf.network import Network
from tests.nets import classifier, digits

pytestmark = pytest.mark.usefixtures("in_double_precision")

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy


@pytest.fixture(scope="module")
def data():
    return digits(per_class=2)


def compiled(inputs, outputs, loss=None):
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss or CROSS_ENTROPY(from_logits=True))
    return model


def net(*layers, loss=None, units=3):
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((8, 8, 1))
    for layer in layers:
        x = layer(x)
    return compiled(inputs, L.Dense(units)(L.Flatten()(x)), loss)


def two_paths(model, x, y, factor=0.7):
    """Gradients, directions and outputs of each example: from the batch, and one after the other."""
    network = Network(model)
    x, y = tf.constant(x, tf.float64), tf.constant(y)
    layers = layer_gradients(network, x[:1])
    assert layers is not None
    captured = layers.capture(x, y, factor)
    for i in range(len(x)):
        alone = network.loss_gradient(x[i, None], y[i, None], factor)
        yield (layers.gradient(captured, tf.constant(i)), captured.direction[i, None], captured.outputs[i, None]), alone


MODELS = {
    "dense": lambda: net(L.Flatten(), L.Dense(9, activation="gelu")),
    "conv": lambda: net(L.Conv2D(4, 3, strides=2, padding="same", activation="relu"), L.Conv2D(3, 2, dilation_rate=2)),
    "depthwise": lambda: net(L.DepthwiseConv2D(3, depth_multiplier=2), L.SeparableConv2D(4, 3)),
    "grouped": lambda: net(L.Conv2D(4, 1), L.Conv2D(4, 3, groups=2), L.GroupNormalization(2)),
    "normalised": lambda: net(L.LayerNormalization(), L.Conv2D(4, 3, use_bias=False), L.PReLU()),
    "recurrent": lambda: net(L.Reshape((8, 8)), L.LSTM(5)),
    "dropout": lambda: net(L.Dropout(0.5), L.Conv2D(2, 3)),
    "softmax": lambda: classifier("mlp", softmax=True),
    "residual": lambda: classifier("resnet"),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_a_backward_pass_for_each_example(name, data):
    model = MODELS[name]()
    x, y = data
    for batched, alone in two_paths(model, x, y):
        for ours, theirs in zip(batched[0], alone[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)
        for ours, theirs in zip(batched[1:], alone[1:], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_batch_norm_in_inference_mode(data):
    x, y = data
    with pytest.warns(UserWarning, match="batch normalisation"):
        pairs = list(two_paths(net(L.Conv2D(3, 3), L.BatchNormalization()), x, y))
    for batched, alone in pairs:
        for ours, theirs in zip(batched[0], alone[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_regression_losses(data):
    x, _ = data
    y = np.stack([x.sum((1, 2, 3)), x.max((1, 2, 3))], axis=1).astype("float64")
    for loss in ("mse", keras.losses.Huber(), keras.losses.mean_absolute_error):
        for batched, alone in two_paths(net(L.Conv2D(2, 3), loss=loss, units=2), x, y):
            for ours, theirs in zip(batched[0], alone[0], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


class MixesTheBatch(L.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


def shared():
    inputs, layer = keras.Input((8, 8, 1)), L.Dense(64)
    flat = L.Flatten()(inputs)
    return compiled(inputs, L.Dense(3)(layer(layer(flat))))


def nested():
    inputs = keras.Input((8, 8, 1))
    return compiled(inputs, L.Dense(3)(keras.Sequential([L.Flatten(), L.Dense(4)])(inputs)))


def with_operation():
    inputs = keras.Input((8, 8, 1))
    flat = L.Flatten()(inputs)
    return compiled(inputs, L.Dense(3)(flat - keras.ops.mean(flat, axis=0, keepdims=True)))


def eager():
    model = net(L.Flatten())
    model.compile("sgd", CROSS_ENTROPY(from_logits=True), run_eagerly=True)
    return model


class Doubled(srel_tf.SRelModel):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training)


def overridden():
    inputs = keras.Input((8, 8, 1))
    model = Doubled(inputs, L.Dense(3)(L.Flatten()(inputs)))
    model.compile("sgd", CROSS_ENTROPY(from_logits=True))
    return model


def of_another_graph():
    inputs, layer = keras.Input((8, 8, 1)), L.Dense(64)
    flat = L.Flatten()(inputs)
    layer(flat)  # Its first call, which is not the model's.
    return compiled(inputs, L.Dense(3)(layer(L.Dense(64)(flat))))


REFUSED = {
    "an overridden call": overridden,
    "a layer first called in another graph": of_another_graph,
    "a layer called twice": shared,
    "a nested model": nested,
    "a bare operation": with_operation,
    "a user's layer": lambda: net(MixesTheBatch(), L.Dense(2)),
    "a Lambda": lambda: net(L.Lambda(lambda x: x - keras.ops.mean(x, axis=0, keepdims=True)), L.Dense(2)),
    "a penalty": lambda: net(L.Dense(2, kernel_regularizer="l2")),
    "a penalty on activities": lambda: net(L.Dense(2, activity_regularizer="l2")),
    "a user's loss": lambda: net(loss=lambda y, p: keras.ops.sqrt(keras.ops.mean((y - p) ** 2))),
    "a loss of the whole batch": lambda: net(L.Dense(2), loss=keras.losses.Dice()),
    "ignored labels": lambda: net(L.Dense(2), loss=CROSS_ENTROPY(from_logits=True, ignore_class=2)),
    "a sum over the batch": lambda: net(loss=CROSS_ENTROPY(from_logits=True, reduction="sum")),
    "eager execution": eager,
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_take_one_backward_pass_a_source(name, data):
    x, y = data
    model = REFUSED[name]()
    network = Network(model)
    assert layer_gradients(network, tf.constant(x[:1], tf.float64)) is None
    if name not in ("a user's loss", "a loss of the whole batch"):
        assert srel_tf.measure(model, srel_tf.ProbeSet(x, y), learning_rate=0.1).valid("kl").any()
