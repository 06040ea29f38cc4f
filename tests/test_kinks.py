"""Units within rounding of a kink, worked by hand: which there are, and what share of the signal hangs on them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.kinks import has_untold_kinks, kink_operations, undecided_share
from tests import reference

EPSILON = 2.0**-10  # A coarse arithmetic: values within 4 ε · (root mean square) of a kink are undecided.


def share(function, x, signal):
    """[n]: the shares of signal² through undecided units of the one kink in function(x)."""
    found = []

    @tf.function(autograph=False)
    def run(x, signal):
        graph = tf.compat.v1.get_default_graph()
        first = len(graph.get_operations())
        function(x)
        (op,), _ = kink_operations(graph, first, x)
        found.append(op.type)
        return undecided_share(op, [signal], EPSILON)

    return run(tf.constant(x, tf.float64), tf.constant(signal, tf.float64)).numpy()


# Root mean squares 1 and 2, so that |x| ≤ 4/1024 and 8/1024 are near zero; an exact zero is zero in any precision.
NEAR_ZERO = np.array([[1.0, -1.0, 1.41421, 0.003, 0.0], [2.0, -2.0, 2.82843, 0.006, 0.009]])
SIGNAL = np.array([[1.0, 1.0, 1.0, 2.0, 5.0], [0.0, 1.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("function", [tf.nn.relu, tf.abs, tf.nn.selu, tf.nn.leaky_relu])
def test_kinks_at_zero(function):
    rows = NEAR_ZERO * np.sqrt(5 / 4)  # 4 of 5 squares are not small.
    np.testing.assert_allclose(share(function, rows, SIGNAL), [4 / 32, 1 / 3])


def test_relu6_has_two_kinks():
    x = [[6.003, -6.0, 0.004, 6.1, 6.0]]  # Root mean square 5.4: within 0.02 of 0 or of 6, 6 itself left out.
    np.testing.assert_allclose(share(tf.nn.relu6, x, [[1.0, 2.0, 3.0, 4.0, 5.0]]), [(1 + 9) / 55])


@pytest.mark.parametrize("function", [tf.maximum, tf.minimum])
def test_maximum_of_two(function):
    other = tf.constant([[1.001, 1.0, 3.0]], tf.float64)
    np.testing.assert_allclose(share(lambda x: function(x, other), [[1.0, 1.0, 1.0]], [[1.0, 2.0, 3.0]]), [1 / 14])


def image(rows):
    return np.array(rows, dtype="float64")[None, :, :, None]


# Windows of 2 × 2: a clear winner, a winner by 0.002, an exact tie, all zero.
POOLED = image([[1.0, 0.5, 1.0, 0.998], [0, 0, 0, 0], [1.0, 1.0, 0, 0], [0.9, 0.9, 0, 0]])


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_near_ties_of_max_pooling(padding):
    pool = keras.layers.MaxPooling2D(2, padding=padding)
    np.testing.assert_allclose(share(pool, POOLED, image([[1, 2], [3, 4]])), [4 / 30])


def test_padding_of_max_pooling_is_no_entry():
    """The last column stands alone in its windows; zeros beside it would be near ties."""
    x = image([[1.0, 0.5, 0.001], [0, 0, -0.5], [1.0, 1.0, 0.5]])
    pool = keras.layers.MaxPooling2D(2, padding="same")
    np.testing.assert_allclose(share(pool, x, image([[1, 2], [3, 4]])), [0.0])


def test_near_ties_of_overlapping_windows():
    """0.998 is second to 1 in the first window, and first in the second."""
    pool = keras.layers.MaxPooling2D((1, 3), strides=1)
    np.testing.assert_allclose(share(pool, image([[1.0, 0.998, 0.3, 0.2]]), image([[2, 1]])), [4 / 5])


@pytest.mark.parametrize("keepdims", [False, True])
def test_near_ties_of_global_pooling(keepdims):
    """Of each example's two channels one has a second within 0.002; a tie that is exact does not count."""
    x = [[[1.0, 1.0], [0.998, 0.5]], [[1.0, 0.998], [1.0, 1.0]]]
    signal = np.array([[1.0, 2.0], [3.0, 4.0]])
    signal = signal[:, None] if keepdims else signal
    found = share(lambda t: tf.reduce_max(t, axis=1, keepdims=keepdims), x, signal)
    np.testing.assert_allclose(found, [1 / 5, 16 / 25])


def test_kinks_within_loops_and_functions_are_known_to_be_there():
    inner = tf.function(tf.nn.relu, autograph=False)

    def loop(x):
        return tf.map_fn(tf.nn.relu, x)

    def graph_of(function):
        return tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([2, 3])).graph

    assert [has_untold_kinks(graph_of(f)) for f in (inner.python_function, loop, inner, tf.tanh)] == [
        *(False, True, True, False)
    ]


def test_operations_on_constants_are_no_kinks_of_examples():
    @tf.function(autograph=False)
    def run(x):
        graph = tf.compat.v1.get_default_graph()
        first = len(graph.get_operations())
        clipped = tf.maximum(tf.constant([0.0, 0.1]), 1e-7)
        mixed = tf.nn.relu(tf.reshape(x * clipped, [-1]))
        tf.abs(tf.reshape(mixed, [-1, 2]))
        assert [[op.type for op in ops] for ops in kink_operations(graph, first, x)] == [["Abs"], ["Relu"]]
        return x

    run(tf.ones([3, 2]))


def test_only_operations_of_the_pass_are_found():
    @tf.function(autograph=False)
    def run(x):
        graph = tf.compat.v1.get_default_graph()
        tf.nn.relu(x)
        first = len(graph.get_operations())
        tf.nn.max_pool(tf.tanh(x), 2, 2, "VALID")
        assert [[op.type for op in ops] for ops in kink_operations(graph, first, x)] == [["MaxPool"], []]
        return x

    run(tf.zeros([1, 4, 4, 1]))


def linear_net(layer, weights, outputs=2):
    inputs = keras.Input(weights.shape[:1])
    hidden = keras.layers.Dense(weights.shape[1], use_bias=False)
    model = keras.Model(inputs, keras.layers.Dense(outputs, use_bias=False)(layer(hidden(inputs))))
    hidden.set_weights([weights])
    model.layers[-1].set_weights([np.linspace(-1, 1, model.layers[-1].kernel.shape[0] * outputs).reshape(-1, outputs)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class OwnReLU(keras.layers.ReLU):
    """A layer of the user's, with which a model has no float64 twin."""


class Folded(keras.layers.Layer):
    """A ReLU of the units of all examples in one axis."""

    def call(self, x):
        return keras.ops.reshape(keras.ops.relu(keras.ops.reshape(x, (-1,))), (-1, x.shape[1]))


def test_a_unit_at_its_kink_is_undecided_in_float32_and_decided_in_float64():
    """The second example's second unit is 1e-8, which float32 may take below zero."""
    weights = np.array([[1.0, 0.5], [0.5, -1.0], [0.25, 1.0]], dtype="float32")
    x = np.array([[1, 0.5, 0.25], [1, 0.75, 0.25 + 3e-8], [0.25, 1, 0.5]], dtype="float32")
    y, every = np.array([0, 1, 0]), np.arange(3)
    assert 0 < abs(float(x[1] @ weights[:, 1])) < 1e-7
    model, without_twin = (linear_net(layer, weights) for layer in (keras.layers.ReLU(), OwnReLU()))
    double = reference.clone(model, "float64")

    def measured(model, estimator, eta=1e-6):
        return srel_tf.measure(model, srel_tf.ProbeSet(x, y), learning_rate=eta, estimator=estimator)

    for result in (measured(model, "limit"), measured(without_twin, "auto")):
        for name in ("kl", "l1"):
            valid = result.valid(name)
            assert valid[np.ix_([0, 2], [0, 2])].all()
            assert not valid[1, [0, 2]].any()
            assert not valid[[0, 2], 1].any()
    assert not measured(linear_net(Folded(), weights), "limit").valid("l1").any()  # Whose unit it is cannot be told.
    # Of steps that float64 resolves, and of smaller ones, whose limit is then that of the float64 twin.
    for eta, kind, resolved in ((1e-6, "finite_step_float64", 1e-6), (1e-14, "limit_float64", 1e-9)):
        decided = measured(model, "auto", eta)
        expected = reference.srels(double, x.astype("float64"), y, every, every, resolved, reference.MEASURES)
        assert decided.valid("kl").all()
        for name in ("kl", "l1") if eta == resolved else ("l1",):  # The naive KL of 1e-18 is itself rounding.
            np.testing.assert_allclose(decided.matrix(name), expected[name], rtol=1e-3)
            assert decided.matrices[name].method[1] == kind


def test_a_constant_background_under_max_pooling_leaves_the_limit_valid():
    """Windows over equal patches tie exactly; the signal may go to any of them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.MaxPooling2D(2)(keras.layers.Conv2D(4, 3, activation="relu", padding="same")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.full((6, 8, 8, 1), -0.4, dtype="float32")
    x[:, 2:5, 2:6] = np.random.default_rng(0).normal(size=(6, 3, 4, 1))
    result = srel_tf.measure(model, srel_tf.ProbeSet(x, np.arange(6) % 3), estimator="limit")
    assert result.valid("l1").all()
    assert result.valid("kl").all()
