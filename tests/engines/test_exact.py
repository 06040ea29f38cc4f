"""measure() compared with the naive reference (tests/reference.py), and invariances of the matrix."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.engines.finite_step import FiniteStepEngine
from srel_tf.gradients.backprop import LossBackprop
from srel_tf.gradients.network import Network
from srel_tf.updates import RULES
from tests import reference
from tests.nets import classifier, digits, double_precision, each_of_both

pytestmark = pytest.mark.usefixtures("in_double_precision")

SOURCES, TARGETS = (
    [0, 3, 7, 11, 2],
    [5, 3, 1],
)  # Their numbers differ. Only example 3 is both a source and a target.


@pytest.fixture(scope="module")
def data():
    return digits(per_class=4)


@pytest.fixture(scope="module")
def all_pairs(data):
    """(net, result of all pairs), with which results of parts, other orders and repeated examples are compared."""
    with double_precision():
        net = classifier("cnn")
        yield (
            net,
            srel_tf.measure(
                net,
                srel_tf.ProbeSet(*data),
                measures=("kl", "l1", "l2"),
                learning_rate=0.1,
            ),
        )


SLOWER = [
    pytest.param(*net, marks=pytest.mark.slow)
    for net in (("cnn", "softmax"), ("resnet", "logits"))
]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("mlp", "logits"),
        ("mlp", "softmax"),
        ("cnn", "logits"),
        ("resnet", "softmax"),
        *SLOWER,
    ],
)
def test_equals_the_naive_version_in_float64(body, outputs, data):
    softmax = outputs == "softmax"
    x, y = data
    net = classifier(body, softmax=softmax)
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(net, probe, measures=("kl", "l1", "l2"), learning_rate=0.3)
    for name, distance in reference.MEASURES.items():
        if softmax:
            distance = reference.of_probabilities(distance)
        expected = reference.srel(net, x, y, SOURCES, TARGETS, 0.3, distance)
        np.testing.assert_allclose(result.matrix(name), expected, rtol=1e-10)


def at_one_position(*layers):
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((8, 8, 1))
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


ONE_POSITION = {  # Layers whose kernel changes by an outer product, which is applied to the layer's inputs.
    "einsum that turns its axes": lambda: [
        keras.layers.Flatten(),
        keras.layers.EinsumDense("ab,bcd->adc", (3, 2)),
    ],
    "convolution": lambda: [
        keras.layers.Conv2D(4, 3, strides=8, padding="same", activation="tanh")
    ],
    "dense": lambda: [
        keras.layers.Flatten(),
        keras.layers.Dense(4, use_bias=False, activation="gelu"),
    ],
    "separable": lambda: [keras.layers.SeparableConv2D(4, 8, activation="tanh")],
}


@pytest.mark.parametrize("name", ONE_POSITION)
def test_layers_at_one_position(name, data):
    x, y = data
    model = at_one_position(*ONE_POSITION[name]())
    result = srel_tf.measure(
        model,
        srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS),
        "l1",
        learning_rate=0.3,
    )
    expected = reference.srel(
        model, x, y, SOURCES, TARGETS, 0.3, reference.MEASURES["l1"]
    )
    np.testing.assert_allclose(result.matrix("l1"), expected, rtol=1e-10)


def test_numerators_and_denominators_are_the_changes_themselves(data):
    x, y = data
    net = classifier()
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(net, probe, measures="kl", learning_rate=0.3)
    assert result.numerator("kl").shape == (5, 3)
    assert result.denominator("kl").shape == (5,)
    for row, i in enumerate(SOURCES):
        after = reference.stepped(net, x[i : i + 1], y[i : i + 1], 0.3)
        moved = [
            reference.kl(net(x[[j]]).numpy()[0], after(x[[j]]).numpy()[0])
            for j in [*TARGETS, i]
        ]
        np.testing.assert_allclose(result.numerator("kl")[row], moved[:-1], rtol=1e-10)
        assert result.denominator("kl")[row] == pytest.approx(moved[-1], rel=1e-10)


def test_raw_outputs_of_a_regression_net(data):
    x, _ = data
    y = np.stack([x.sum((1, 2, 3)), x[:, 4, 4, 0]], axis=-1)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", keras.losses.MeanSquaredError())
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(model, probe, measures=("l1", "l2"), learning_rate=1e-3)
    for name, order in (("l1", 1), ("l2", 2)):
        expected = reference.srel(
            model, x, y, SOURCES, TARGETS, 1e-3, reference.raw_norm(order)
        )
        np.testing.assert_allclose(result.matrix(name), expected, rtol=1e-10)


def test_raw_outputs_of_a_classifier_can_be_chosen(data):
    x, y = data
    net = classifier()
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(
        net, probe, measures="l1", learning_rate=0.3, predictions="raw"
    )
    expected = reference.srel(net, x, y, SOURCES, TARGETS, 0.3, reference.raw_norm(1))
    np.testing.assert_allclose(result.matrix("l1"), expected, rtol=1e-10)


def test_penalties_of_the_loss_enter_the_fictitious_gradient(data):
    x, y = data
    inputs = keras.Input((8, 8, 1))
    dense = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    matrix = srel_tf.measure(model, probe, measures="kl", learning_rate=0.3).matrix(
        "kl"
    )
    expected = reference.srel(model, x, y, SOURCES, TARGETS, 0.3, reference.kl)
    np.testing.assert_allclose(matrix, expected, rtol=1e-10)
    dense.kernel_regularizer = None  # A clone is made without it.
    without = reference.srel(model, x, y, SOURCES, TARGETS, 0.3, reference.kl)
    assert not np.allclose(matrix, without, rtol=1e-3)


def test_diagonal_is_one(all_pairs):
    _, result = all_pairs
    for name in ("kl", "l1", "l2"):
        assert (np.diag(result.matrix(name)) == 1).all()


def test_permuting_the_probe_permutes_the_matrix(data, all_pairs):
    (x, y), (net, result) = data, all_pairs
    order = np.random.default_rng(0).permutation(len(x))
    permuted = srel_tf.measure(
        net, srel_tf.ProbeSet(x[order], y[order]), learning_rate=0.1
    ).matrix("kl")
    np.testing.assert_allclose(
        permuted, result.matrix("kl")[np.ix_(order, order)], rtol=1e-10
    )


def test_a_duplicated_example_repeats_a_row_and_a_column(data, all_pairs):
    (x, y), (net, _) = data, all_pairs
    twice = [0, 1, 2, 3, 1]
    matrix = srel_tf.measure(
        net, srel_tf.ProbeSet(x[twice], y[twice]), learning_rate=0.1
    ).matrix("kl")
    np.testing.assert_allclose(matrix[4], matrix[1], rtol=1e-10)
    np.testing.assert_allclose(matrix[:, 4], matrix[:, 1], rtol=1e-10)
    assert matrix[1, 4] == pytest.approx(1, rel=1e-10)


# There are 12 targets and 7 sources. A batch_size of 5 gives three batches of 4 targets, 11 gives two batches of 6.
# The sources do not fill their last batch.
@pytest.mark.parametrize(
    "batch_size", [1, 5, *(pytest.param(b, marks=pytest.mark.slow) for b in (11, 12))]
)
def test_batch_size_does_not_matter(batch_size, data, all_pairs):
    net, whole = all_pairs
    sources = [1, 4, 6, 0, 9, 11, 2]
    probe = srel_tf.ProbeSet(*data, sources=sources)
    parts = srel_tf.measure(
        net, probe, learning_rate=0.1, batch_size=batch_size
    ).matrix("kl")
    np.testing.assert_allclose(parts, whole.matrix("kl")[sources], rtol=1e-10)


def test_ridge_regression_as_a_keras_layer_gives_theorem_3_2(data):
    """Check eq. 4 for a one-hot target. The layer's own penalty is λ/2 ‖W‖², and λ takes the place of Nλ₁/K."""
    rng = np.random.default_rng(0)
    h, labels, penalty = rng.normal(size=(9, 6)), np.arange(9) % 3, 0.75
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(
        3, use_bias=False, kernel_regularizer=keras.regularizers.L2(penalty / 2)
    )
    model = keras.Sequential([keras.Input((6,)), dense])

    class HalfSquaredError(
        keras.losses.Loss
    ):  # ½ ‖e_k − W h‖². Keras's own loss divides by the number of classes.
        def call(self, y, f):
            return keras.ops.sum(keras.ops.square(y - f), axis=-1) / 2

    model.compile("sgd", HalfSquaredError())
    probe = srel_tf.ProbeSet(h, np.eye(3)[labels], sources=[0, 4, 8], targets=[1, 5])
    matrix = srel_tf.measure(
        model, probe, measures="l2", learning_rate=1e-2, predictions="raw"
    ).matrix("l2")
    w = dense.kernel.numpy().T  # rows w_q
    for row, i in enumerate([0, 4, 8]):
        k, t = labels[i], penalty * np.eye(6) + np.outer(h[i], h[i])
        h_tilde = penalty + h[i] @ h[i]
        for column, j in enumerate([1, 5]):
            inner = h[i] @ h[j]
            numerator = (
                inner**2
                - 2 * inner * (t @ h[j]) @ w[k]
                + sum(((t @ h[j]) @ wq) ** 2 for wq in w)
            )
            denominator = (h[i] @ h[i]) ** 2 - 2 * h_tilde * (h[i] @ h[i]) * (
                h[i] @ w[k]
            )
            denominator += h_tilde**2 * sum((h[i] @ wq) ** 2 for wq in w)
            assert matrix[row, column] == pytest.approx(
                np.sqrt(numerator / denominator), rel=1e-10
            )


def test_a_source_that_moves_nothing_is_undefined(data):
    x, y = data
    x = x.copy()
    x[0] = 0  # The gradient of a linear net without bias is zero for this image.
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(
        inputs, keras.layers.Dense(3, use_bias=False)(keras.layers.Flatten()(inputs))
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(
        UserWarning, match=r"\(ids 0\) changes nothing: the gradient is zero"
    ):
        result = srel_tf.measure(
            model,
            srel_tf.ProbeSet(x, y),
            measures=("kl", "l1", "l2"),
            learning_rate=0.1,
        )
    for name in ("kl", "l1", "l2"):
        assert np.isnan(result.matrix(name)[0]).all()
        assert not result.valid(name)[0].any()
        assert result.valid(name)[1:, 1:].all()
        assert (result.denominator(name)[0], result.matrix(name)[1, 0]) == (0, 0)


@pytest.mark.parametrize(
    ("wanted", "layerwise"), each_of_both([[2], [0, 1, 4], []], [True, False])
)
def test_sources_without_a_learning_rate_are_left_out(wanted, layerwise, data):
    """The outputs of the other sources are bit for bit the same. `auto` relies on this."""
    net = classifier("cnn")
    x, y = (tf.constant(a) for a in data)
    x = tf.cast(x, tf.float64)
    network = Network(net)
    backprop = LossBackprop(network, x[:2], y[:2]) if layerwise else None
    engine = FiniteStepEngine(
        network, RULES["sgd"](network), np.array([2, -1, -1, -1, 0]), 128, backprop
    )
    sources, targets = [1, 3, 7, 11, 2], [2, 5, 1]
    arguments = tf.gather(x, sources), tf.gather(y, sources), tf.gather(x, targets)
    every = engine(*arguments, tf.fill([5], tf.constant(0.3, tf.float64)))
    rates = np.full(5, np.nan)
    rates[wanted] = 0.3
    some = engine(*arguments, tf.constant(rates))
    for name in ("after", "after_at_source", "sampled", "sampled_at_source"):
        whole, part = (getattr(outputs, name).numpy() for outputs in (every, some))
        if name.startswith("sampled"):  # The first axis holds the two perturbations.
            whole, part = (np.moveaxis(a, 0, 1) for a in (whole, part))
        np.testing.assert_array_equal(part[wanted], whole[wanted])
        assert np.isnan(np.delete(part, wanted, axis=0)).all()
    for name in ("before", "noisy"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name))


def test_one_trace_serves_all_measurements(data):
    x, y = data
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, inputs):
            traces.append(1)  # This line runs only while a graph is traced.
            return inputs

    inputs = keras.Input((8, 8, 1))
    model = srel_tf.SRelModel(
        inputs, keras.layers.Dense(3)(keras.layers.Flatten()(Counting()(inputs)))
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=1, verbose=0)
    traces.clear()
    model.attach_probe(srel_tf.ProbeSet(x, y), every=1)
    model.fit(x, y, epochs=1, batch_size=12, verbose=0)
    assert traces
    traces.clear()
    model.fit(x, y, epochs=5, batch_size=12, verbose=0)
    assert model.srel_frame()["step"].nunique() == 7
    assert not traces


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
def test_measures_of_raw_outputs_come_beside_those_of_probabilities(softmax, data):
    x, y = data
    net = classifier(softmax=softmax)
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(
        net, probe, measures=("l1", "raw_l1", "raw_l2", "kl"), learning_rate=0.3
    )
    for order in (1, 2):
        expected = reference.srel(
            net, x, y, SOURCES, TARGETS, 0.3, reference.raw_norm(order)
        )
        np.testing.assert_allclose(result.matrix(f"raw_l{order}"), expected, rtol=1e-9)
    of_softmax = (
        reference.norm(1)
        if not softmax
        else reference.of_probabilities(reference.norm(1))
    )
    expected = reference.srel(net, x, y, SOURCES, TARGETS, 0.3, of_softmax)
    np.testing.assert_allclose(result.matrix("l1"), expected, rtol=1e-9)
