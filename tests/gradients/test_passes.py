"""Gradients of single examples from one batched backward pass, compared with one backward pass for each example."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.gradients.backprop import LossBackprop, NotSeparable, SourceGradients
from srel_tf.gradients.network import Network
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
    """Yield gradients and outputs of each example twice: from the batch, and from the example alone."""
    network = Network(model)
    x, y = tf.constant(x, tf.float64), tf.constant(y)
    backprop = LossBackprop(network, x[:2], y[:2])

    @tf.function(autograph=False)
    def of_batch():
        captured = SourceGradients(
            backprop, x, y, tf.fill([len(x)], tf.constant(factor, tf.float64))
        )
        weights = range(len(network.variables))
        gradients = [[captured.of_weight(k, i) for k in weights] for i in range(len(x))]
        return gradients, captured.outputs

    gradients, outputs = of_batch()
    for i in range(len(x)):
        alone, output = network.loss_gradient(x[i, None], y[i, None], factor)
        if backprop.link == "softmax":  # `outputs` holds the logits of the softmax.
            np.testing.assert_allclose(
                tf.nn.softmax(outputs[i, None]), output, rtol=1e-10
            )
            output = outputs[i, None]
        yield (gradients[i], outputs[i, None]), (alone, output)


class MixesTheBatch(L.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


def shared():
    inputs, layer = keras.Input((8, 8, 1)), L.Dense(64)
    flat = L.Flatten()(inputs)
    return compiled(inputs, L.Dense(3)(layer(layer(flat))))


def nested():
    inputs = keras.Input((8, 8, 1))
    return compiled(
        inputs, L.Dense(3)(keras.Sequential([L.Flatten(), L.Dense(4)])(inputs))
    )


def with_operation():
    inputs = keras.Input((8, 8, 1))
    flat = L.Flatten()(inputs)
    return compiled(
        inputs, L.Dense(3)(flat - keras.ops.mean(flat, axis=0, keepdims=True))
    )


class Tied(keras.Model):
    """An autoencoder whose decoder uses the encoder's kernel."""

    def __init__(self):
        super().__init__()
        self.flatten, self.encoder = L.Flatten(), L.Dense(3)

    def call(self, x):
        return self.encoder(self.flatten(x)) @ keras.ops.transpose(self.encoder.kernel)


def tied():
    model = Tied()
    model(np.zeros((1, 8, 8, 1)))
    model.compile("sgd", CROSS_ENTROPY(from_logits=True))
    return model


class WithoutCorrect(keras.losses.Loss):
    """A loss that depends on which examples are wrong, and on their number in the batch."""

    def call(self, y, p):
        labels = keras.ops.cast(y, "int32")
        wrong = keras.ops.cast(keras.ops.argmax(p, -1) != labels, p.dtype)
        return (
            keras.ops.sum((p - keras.ops.one_hot(labels, 3)) ** 2)
            * (1 + wrong)
            / (1 + keras.ops.sum(wrong))
        )


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
    layer(flat)  # The layer's first call is not part of the model.
    return compiled(inputs, L.Dense(3)(layer(L.Dense(64)(flat))))


MODELS = {
    "dense": lambda: net(L.Flatten(), L.Dense(9, activation="gelu")),
    "conv": lambda: net(
        L.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        L.Conv2D(3, 2, dilation_rate=2),
    ),
    "depthwise": lambda: net(
        L.DepthwiseConv2D(3, depth_multiplier=2), L.SeparableConv2D(4, 3)
    ),
    "grouped": lambda: net(
        L.Conv2D(4, 1), L.Conv2D(4, 3, groups=2), L.GroupNormalization(2)
    ),
    "normalised": lambda: net(
        L.LayerNormalization(), L.Conv2D(4, 3, use_bias=False), L.PReLU()
    ),
    "recurrent": lambda: net(L.Reshape((8, 8)), L.LSTM(5)),
    "dropout": lambda: net(L.Dropout(0.5), L.Conv2D(2, 3)),
    "softmax": lambda: classifier("mlp", softmax=True),
    "residual": lambda: classifier("resnet"),
    "a layer of another graph": of_another_graph,
    "a layer called twice": shared,
    "a nested model": nested,
    "an overridden call": overridden,
    "a penalty": lambda: net(L.Dense(2, kernel_regularizer="l2")),
    "a user's loss": lambda: net(
        loss=lambda y, p: keras.ops.mean((p - keras.ops.one_hot(y, 3)) ** 4)
    ),
    "a loss of the whole batch": lambda: net(L.Dense(2), loss=WithoutCorrect()),
    "ignored labels": lambda: net(
        L.Dense(2), loss=CROSS_ENTROPY(from_logits=True, ignore_class=2)
    ),
    "a sum over the batch": lambda: net(
        loss=CROSS_ENTROPY(from_logits=True, reduction="sum")
    ),
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
    for batched, alone in two_paths(net(L.Conv2D(3, 3), L.BatchNormalization()), x, y):
        for ours, theirs in zip(batched[0], alone[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_regression_losses(data):
    x, _ = data
    y = np.stack([x.sum((1, 2, 3)), x.max((1, 2, 3))], axis=1).astype("float64")
    for loss in ("mse", keras.losses.Huber(), keras.losses.mean_absolute_error):
        for batched, alone in two_paths(net(L.Conv2D(2, 3), loss=loss, units=2), x, y):
            for ours, theirs in zip(batched[0], alone[0], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


REFUSED = {
    "a weight used outside its layer": tied,
    "a penalty on activities": lambda: net(L.Dense(2, activity_regularizer="l2")),
    "eager execution": eager,
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_take_one_backward_pass_a_source(name, data):
    x, y = data
    model = REFUSED[name]()
    with pytest.raises(NotSeparable):
        LossBackprop(Network(model), tf.constant(x[:2], tf.float64), tf.constant(y[:2]))
    assert (
        srel_tf.measure(model, srel_tf.ProbeSet(x, y), learning_rate=0.1)
        .valid("kl")
        .any()
    )


@pytest.mark.parametrize(
    "make",
    [with_operation, lambda: net(MixesTheBatch(), L.Dense(2))],
    ids=["operation", "layer"],
)
@pytest.mark.parametrize("estimator", ["exact", "limit", "auto"])
def test_models_that_mix_the_batch_are_refused(make, estimator, data):
    with pytest.raises(srel_tf.ModelError, match="depend on the other examples"):
        srel_tf.measure(
            make(), srel_tf.ProbeSet(*data), learning_rate=0.1, estimator=estimator
        )


@pytest.mark.parametrize("estimator", ["exact", "limit"])
@pytest.mark.parametrize("case", ["one source", "first two alike", "outputs near 1000"])
def test_models_that_mix_the_batch_are_refused_whatever_the_probe(
    case, estimator, data
):
    """These cases once went unnoticed.

    With one source, the batch had one example. With large outputs, a difference of 1/1000 counted as rounding.
    """
    x, y = data[0].copy(), data[1]
    sources = [0] if case == "one source" else None
    if case == "first two alike":
        x[1] = x[0]
    model = net(MixesTheBatch(), L.Dense(2))
    if case == "outputs near 1000":
        far = L.Rescaling(1.0, offset=1000.0)(model.output)
        model = compiled(model.input, far)
    with pytest.raises(srel_tf.ModelError, match="depend on the other examples"):
        srel_tf.measure(
            model,
            srel_tf.ProbeSet(x, y, sources=sources),
            learning_rate=0.1,
            estimator=estimator,
        )
