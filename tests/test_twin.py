"""The float64 twin of a model: which models have one, that it is the same function, and what `auto` gains by it."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.frames import METHODS
from srel_tf.measurement import MEASURES
from srel_tf.network import Network
from srel_tf.twin import NoTwin, Twin, as_float64
from tests import reference
from tests.nets import classifier, digits, double_precision

L = keras.layers
SHAPE = (6, 6, 4)


def compiled(outputs, inputs, model_class=keras.Model):
    model = model_class(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def net(*layers, model_class=keras.Model):
    """Layers between an input [n, 6, 6, 4] and three logits."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input(SHAPE)
    for layer in (*layers, L.Flatten(), L.Dense(3)):
        x = layer(x)
    return compiled(x, inputs, model_class)


def adapted():
    """It works with constants that are made of its weights."""
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(2).normal(3, 2, size=[20, *SHAPE]))
    return layer


def sequential():
    keras.utils.set_random_seed(0)
    model = srel_tf.SRelSequential([keras.Input(SHAPE), L.Conv2D(3, 3, activation="gelu"), L.Flatten(), L.Dense(3)])
    model.compile("sgd", keras.losses.MeanSquaredError())
    return model


def shared():
    """A layer that is called twice, and a weight that is frozen with its layer."""
    keras.utils.set_random_seed(0)
    inputs, twice = keras.Input(SHAPE), L.Dense(4, activation="tanh")
    frozen = L.Dense(5, trainable=False)
    return compiled(L.Dense(3)(L.Flatten()(frozen(twice(twice(inputs))))), inputs)


def nested():
    inner = keras.Sequential([keras.Input(SHAPE), L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU()])
    return net(inner, L.Reshape((-1, 3)), L.Bidirectional(L.GRU(3)))


def transformer():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = L.Reshape((36, 4))(inputs)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 3, dropout=0.1)(x, x))
    return compiled(L.Dense(3)(L.GlobalAveragePooling1D()(L.Dropout(0.2)(x))), inputs)


def tokens():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    return compiled(L.Dense(3)(L.Flatten()(L.Embedding(7, 4)(inputs))), inputs)


TWINS = {
    "sequential": sequential,
    "with probes": lambda: net(L.Conv2D(3, 3), L.GroupNormalization(1), model_class=srel_tf.SRelModel),
    "shared": shared,
    "nested": nested,
    "transformer": transformer,
    "tokens": tokens,
    "penalty": lambda: net(L.Dense(3, kernel_regularizer="l2", activation="leaky_relu")),
    "adapted": lambda: net(adapted(), L.Dense(2)),
    "rescaled": lambda: net(L.Rescaling(1 / 255), L.DepthwiseConv2D(3), L.PReLU()),
}


def examples(model, n=5):
    rng = np.random.default_rng(0)
    if model.inputs[0].dtype == "int32":
        return tf.constant(rng.integers(0, 7, [n, 5]), "int32")
    return tf.constant(rng.normal(size=[n, *SHAPE]), "float32")


@pytest.mark.parametrize("kind", TWINS)
def test_it_is_the_same_function_in_float64_with_the_weights_of_the_moment(kind):
    model = TWINS[kind]()
    x = examples(model)
    twin = Twin(Network(model), x, model.loss)
    rng = np.random.default_rng(1)
    for weight in () if kind == "adapted" else model.weights:  # Moving statistics too.
        weight.assign(
            np.abs(rng.normal(size=weight.shape)) if "variance" in weight.path else rng.normal(size=weight.shape)
        )
    twin.follow()
    outputs = twin.network.outputs(as_float64(x))
    assert outputs.dtype == tf.float64
    assert {v.dtype for v in twin.network.model.weights if "float" in v.dtype} == {"float64"}
    for ours, theirs in zip(twin.network.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(outputs, Network(model).outputs(x), rtol=1e-4, atol=1e-4)
    with double_precision():
        expected = reference.clone(model, "float64")(as_float64(x), training=False)
    if kind not in ("nested", "rescaled", "adapted"):  # Whose inner layers and constants a plain copy leaves as made.
        np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
    assert [v.name for v in twin.network.variables] == [v.name for v in model.trainable_variables]


class Own(L.Layer):
    def call(self, x):
        return x * 1.0

    def compute_output_shape(self, shape):
        return shape


class OwnCall(keras.Model):
    def call(self, x, training=False):
        return 2 * super().call(x, training=training)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = L.Dense(3)

    def call(self, x):
        return self.head(keras.ops.reshape(x, (-1, 144)))


def squared(x):
    return x**2


def relu(x):
    """Keras would save it by its name, and find its own by that."""
    return keras.ops.clip(x, 0, 3)


def with_penalty(of):
    """Keras penalises weights by what they were given when they were made, or later themselves."""
    model = net(L.Dense(3))
    layer = model.layers[1]
    if of == "layer":
        layer.kernel_regularizer = keras.regularizers.L2(0.1)
    else:
        layer.kernel.regularizer = keras.regularizers.L2(0.1)
    return model


def patched():
    model = net(L.Dense(3))
    layer, call = model.layers[1], model.layers[1].call
    layer.call = lambda x: 2 * call(x)
    return model


def subclassed():
    model = Subclassed()
    model.compile("sgd", "mse")
    model(np.zeros([1, *SHAPE], "float32"))
    return model


def one_weight_frozen():
    model = net(L.Dense(3))
    model.layers[1].bias.trainable = False
    return model


def cast_within():
    inputs = keras.Input(SHAPE)
    return compiled(L.Dense(3)(L.Flatten()(keras.ops.cast(keras.ops.cast(inputs, "float16"), "float32"))), inputs)


def in_float64():
    with double_precision():
        return net()


NONE = {
    "a layer of the user's": (lambda: net(Own()), "Own is none of Keras's own"),
    "a function as a layer": (lambda: net(L.Lambda(lambda x: 2 * x)), "__lambda__ is none of Keras's own"),
    "a function as an activation": (lambda: net(L.Dense(3, activation=lambda x: x**2)), "cannot be made again"),
    "a named function as an activation": (
        lambda: net(L.Dense(3, activation=squared)),
        "function squared is none of Keras's own",
    ),
    "a layer of the user's within another": (lambda: net(L.TimeDistributed(Own())), "Own is none of Keras's own"),
    "a subclass": (subclassed, "cannot be made again"),
    "a call of its own": (lambda: net(model_class=OwnCall), "`call` of its own"),
    "one weight frozen": (one_weight_frozen, "trains others"),
    "a penalty that its layer was given too late": (lambda: with_penalty("layer"), "other weights or penalties"),
    "a penalty that its weight alone has": (lambda: with_penalty("weight"), "other weights or penalties"),
    "a penalty in float32": (
        lambda: net(L.Dense(3, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.1))),
        "cannot be made again",
    ),
    "a function that is called as one of Keras's": (lambda: net(L.Dense(3, activation=relu)), "a function that is not"),
    "a layer that is called in another way": (patched, "a function that is not"),
    "interpolation, which TensorFlow does in float32": (
        lambda: net(L.UpSampling2D(interpolation="bilinear")),
        "less than float64",
    ),
    "a cast to float16": (cast_within, "less than float64"),
    "float64 already": (in_float64, "in float64 itself"),
}


@pytest.mark.parametrize("kind", NONE)
def test_there_is_none_where_it_may_be_another_function_or_not_in_float64(kind):
    make, reason = NONE[kind]
    model = make()
    with pytest.raises(NoTwin, match=reason):
        Twin(Network(model), tf.zeros([2, *SHAPE], model.dtype), model.loss)


def test_a_model_that_has_become_another_function_is_told():
    model = net(L.LeakyReLU(0.1))
    twin = Twin(Network(model), examples(model), model.loss)
    twin.follow()
    model.layers[1].negative_slope = 0.9
    with pytest.raises(NoTwin, match="other outputs"):
        twin.follow()


def test_making_it_leaves_model_and_random_numbers_as_they_were():
    model = net(L.Dense(3), L.Dropout(0.5), model_class=srel_tf.SRelModel)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random.seed(0)
    optimizer, state, numpy_state = model.optimizer, random.getstate(), np.random.get_state()[1].copy()
    Twin(Network(model), examples(model), model.loss).follow()
    assert random.getstate() == state
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert model.optimizer is optimizer
    assert len(model.layers[1]._inbound_nodes) == 1


def test_it_trains_what_the_network_trained_when_it_was_made():
    model = net(L.Dense(3))
    network, layer = Network(model), model.layers[1]
    layer.trainable = False
    with pytest.raises(NoTwin, match="trains others"):
        Twin(network, examples(model), model.loss)
    layer.trainable = True
    Twin(network, examples(model), model.loss).follow()


# --- what auto gains by it ----------------------------------------------------------------------------------------

MEASURED = ("kl", "l1", "l2")


@pytest.fixture(scope="module")
def data():
    return digits(4, per_class=10)


@pytest.fixture(scope="module")
def trained(data):
    model = classifier("mlp", 4, optimizer=keras.optimizers.Adam(1e-2))
    model.fit(*data, epochs=5, batch_size=40, verbose=0)
    return model


@pytest.fixture(scope="module")
def probe(data):
    return srel_tf.ProbeSet.sample(*data, per_class=3)


def test_auto_is_whole_where_float32_resolves_few_and_the_limit_is_another_number(trained, probe):
    """Against the naive version in float64. Rows that float32 resolves stay as they are, others are finite steps."""
    exact, limit, auto = (
        srel_tf.Instrument(trained, probe, srel_tf.Settings(MEASURED, estimator=e)) for e in ("exact", "limit", "auto")
    )
    every, x = np.arange(len(probe)), probe.x.astype("float64")
    for eta, at_most in ((1e-4, 0.3), (3e-4, 0.9)):
        trained.optimizer.learning_rate = eta
        single, slope, found = exact(), limit(), auto()
        double = reference.clone(trained, "float64")
        expected = reference.srels(double, x, probe.y, every, every, eta, reference.MEASURES)
        for name in MEASURED:
            tolerance, valid = MEASURES[name].tolerance * (1 + expected[name]), found.valid(name)
            assert single.valid(name).mean() < at_most
            assert valid.mean() >= 0.99
            assert (np.abs(found.matrix(name) - expected[name]) <= tolerance)[valid].all()
            assert eta == 1e-4 or (np.abs(slope.matrix(name) - expected[name]) > tolerance).any()
            whole, finite = single.valid(name).all(axis=1), np.char.startswith(
                found.matrices[name].method.astype(str), "finite_step"
            )
            np.testing.assert_array_equal(found.matrix(name)[whole], single.matrix(name)[whole])
            assert (finite & ~whole).any()
            # Of size D of the finite step, not of its limit per unit of η or η².
            np.testing.assert_allclose(found.denominator(name)[finite], single.denominator(name)[finite], rtol=0.2)
    assert whole.any()
    frame = found.to_frame()
    assert set(frame["estimator"]) == {"auto"}
    assert "finite_step_float64" in set(frame["method"]) <= {*METHODS}


def test_without_a_twin_auto_leaves_open_what_it_cannot_show(trained, probe):
    model = net_on_digits(Own())
    model.set_weights(trained.get_weights())
    exact, auto = (srel_tf.measure(model, probe, "l1", learning_rate=1e-4, estimator=e) for e in ("exact", "auto"))
    assert (auto.valid("l1").sum(axis=1) >= exact.valid("l1").sum(axis=1)).all()
    assert 0 < auto.valid("l1").mean() < 0.9


def test_auto_measures_a_model_that_runs_eagerly(trained, probe):
    """Whose layers cannot be watched, so that it has no twin."""
    eager = keras.Model(trained.inputs, trained.outputs)
    eager.compile("sgd", trained.loss, run_eagerly=True)
    with pytest.warns(UserWarning, match="the model runs eagerly; the limit is taken source by source"):
        instrument = srel_tf.Instrument(eager, probe, srel_tf.Settings("kl", learning_rate=3e-4, estimator="auto"))
    found = instrument()
    graph = srel_tf.measure(trained, probe, "kl", learning_rate=3e-4, estimator="auto")
    valid = found.valid("kl")
    assert 0.5 < valid.mean() < 1
    tolerance = 2 * MEASURES["kl"].tolerance * (1 + graph.matrix("kl"))
    assert (np.abs(found.matrix("kl") - graph.matrix("kl")) <= tolerance)[valid].all()


def net_on_digits(*layers):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 1))
    for layer in (L.Flatten(), L.Dense(64, activation="relu"), *layers, L.Dense(4)):
        x = layer(x)
    return compiled(x, inputs)


def test_a_loss_in_float32_has_no_twin(probe):
    """A loss of the user's is taken in float32, where p − y loses its digits whatever the model computes in."""

    def own_loss(y, outputs):
        return keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)

    model = classifier("mlp", 4)
    model.compile("sgd", own_loss)
    own = srel_tf.measure(model, probe, "l1", learning_rate=1e-4, estimator="auto")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras_own = srel_tf.measure(model, probe, "l1", learning_rate=1e-4, estimator="auto")
    assert own.valid("l1").mean() < 0.99 <= keras_own.valid("l1").mean()
