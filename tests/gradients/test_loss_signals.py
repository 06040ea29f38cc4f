"""The limit under losses of every kind: the changes equal J g from a tape, with the loss as it is compiled."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.gradients.backprop import LossBackprop
from srel_tf.gradients.network import Network
from srel_tf.gradients.output_gradients import OutputGradients
from tests.engines.test_limit import jacobian_times_gradient
from tests.nets import classifier, digits

L, losses = keras.layers, keras.losses
double = pytest.mark.usefixtures("in_double_precision")

LABELS = np.array([0, 2, 1, 1, 0, 2])
BINARY = np.array([0, 1, 1, 0, 1, 0])
VALUES = np.linspace(-2, 3, 6)
PAIRS = np.stack([VALUES, VALUES**2], axis=1)
ONE_HOT = np.eye(3)[LABELS]
SEVERAL = np.array(
    [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=float
)  # Several labels in a row.
SOFT = np.random.default_rng(3).dirichlet([1, 1, 1], 6)
REAL = np.random.default_rng(4).normal(size=(6, 3))


def quartic(y, f):
    """A user's own loss."""
    return keras.ops.mean(
        (f - keras.ops.one_hot(keras.ops.cast(y, "int32"), 3)) ** 4, axis=-1
    )


class Pinball(losses.Loss):
    def call(self, y, f):
        d = keras.ops.cast(y, f.dtype) - f
        return keras.ops.mean(keras.ops.maximum(0.3 * d, -0.7 * d), axis=-1)


# (loss, y, outputs, activation of the last layer, further options of compile). They are functions, because a loss
# takes its dtype from floatx when it is made.
SPARSE, CATEGORICAL = (
    losses.SparseCategoricalCrossentropy,
    losses.CategoricalCrossentropy,
)
CASES = {
    "sparse, logits": lambda: (SPARSE(from_logits=True), LABELS, 3, None),
    "sparse, softmax": lambda: (SPARSE(), LABELS, 3, "softmax"),
    "sparse by name, softmax": lambda: (
        "sparse_categorical_crossentropy",
        LABELS,
        3,
        "softmax",
    ),
    "categorical, logits": lambda: (CATEGORICAL(from_logits=True), ONE_HOT, 3, None),
    "categorical, softmax": lambda: (CATEGORICAL(), ONE_HOT, 3, "softmax"),
    "smoothed labels": lambda: (
        CATEGORICAL(from_logits=True, label_smoothing=0.2),
        ONE_HOT,
        3,
        None,
    ),
    "smoothed labels, softmax": lambda: (
        CATEGORICAL(label_smoothing=0.2),
        ONE_HOT,
        3,
        "softmax",
    ),
    "an ignored class": lambda: (
        SPARSE(from_logits=True, ignore_class=2),
        LABELS,
        3,
        None,
    ),
    "binary, logits": lambda: (
        losses.BinaryCrossentropy(from_logits=True),
        BINARY,
        1,
        None,
    ),
    "binary, sigmoid": lambda: (losses.BinaryCrossentropy(), BINARY, 1, "sigmoid"),
    "binary by name, sigmoid": lambda: ("binary_crossentropy", BINARY, 1, "sigmoid"),
    "binary, several": lambda: (
        losses.BinaryCrossentropy(from_logits=True),
        np.eye(3)[LABELS],
        3,
        None,
    ),
    "categorical, rows of several labels": lambda: (
        CATEGORICAL(from_logits=True),
        SEVERAL,
        3,
        None,
    ),
    "squares, y [n, 1]": lambda: ("mse", VALUES[:, None], 1, None),
    "squares, y [n]": lambda: ("mse", VALUES, 1, None),
    "squares of a sigmoid": lambda: ("mse", VALUES[:, None], 1, "sigmoid"),
    "squares of two": lambda: (losses.MeanSquaredError(), PAIRS, 2, None),
    "absolute values": lambda: ("mae", PAIRS, 2, None),
    "huber": lambda: (losses.Huber(0.7), PAIRS, 2, None),
    "a user's function": lambda: (quartic, LABELS, 3, None),
    "a user's class": lambda: (Pinball(), VALUES, 1, None),
    "a sum over the batch": lambda: (
        SPARSE(from_logits=True, reduction="sum"),
        LABELS,
        3,
        None,
    ),
    "loss weights": lambda: (
        losses.MeanSquaredError(),
        PAIRS,
        2,
        None,
        {"loss_weights": [0.25]},
    ),
}


@functools.cache
def make_net(outputs, activation, precision):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((5,))
    hidden = L.Dense(7, activation="tanh")(inputs)
    return keras.Model(inputs, L.Dense(outputs, activation=activation)(hidden))


def make(loss, outputs, activation, options):
    model = make_net(outputs, activation, keras.config.floatx())
    model.compile("sgd", loss, **options)
    return model


@double
@pytest.mark.parametrize("name", CASES)
def test_changes_are_those_of_the_tape(name):
    loss, y, outputs, activation, *options = CASES[name]()
    model, x = (
        make(loss, outputs, activation, *(options or [{}])),
        np.random.default_rng(0).normal(size=(6, 5)),
    )
    probe = srel_tf.ProbeSet(x, y, sources=[3, 0, 4, 2], targets=[1, 4, 5, 0, 2])
    result = srel_tf.measure(
        model, probe, measures=("l1", "l2"), estimator="limit", predictions="raw"
    )
    moved = jacobian_times_gradient(model, tf.constant(x), tf.constant(y))
    for measure, order in (("l1", 1), ("l2", 2)):
        expected = np.linalg.norm(moved, order, axis=-1)
        numerator, denominator = result.numerator(measure), result.denominator(measure)
        np.testing.assert_allclose(
            numerator,
            expected[np.ix_(probe.sources, probe.targets)],
            rtol=1e-9,
            atol=1e-15,
        )
        np.testing.assert_allclose(
            denominator, np.diag(expected)[probe.sources], rtol=1e-9, atol=1e-15
        )


@double
@pytest.mark.usefixtures("deterministic_operations")
def test_rows_of_several_labels_with_deterministic_operations():
    """The gradient is p Σ y − y by the deterministic operation, and p − y by the usual one."""
    loss, y, outputs, activation = CASES["categorical, rows of several labels"]()
    signals = check_signals(loss, y, outputs, activation)
    assert np.allclose(signals.sum(axis=1), 0)


@double
@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("sparse, logits", "identity"),
        ("sparse, softmax", "softmax"),
        ("sparse by name, softmax", "softmax"),
        ("categorical, softmax", "softmax"),
        ("binary, sigmoid", "sigmoid"),
        ("binary by name, sigmoid", "sigmoid"),
        ("squares of a sigmoid", "sigmoid"),
        ("a user's function", "identity"),
    ],
)
def test_derivatives_are_taken_of_what_keras_computes_the_loss_from(name, link):
    loss, y, outputs, activation = CASES[name]()
    model = make(loss, outputs, activation, {})
    backprop = LossBackprop(
        Network(model), tf.zeros([2, 5], tf.float64), tf.constant(y[:2])
    )
    assert backprop.link == link


@double
@pytest.mark.parametrize(
    ("loss", "activation"),
    [("binary_crossentropy", "softmax"), ("categorical_crossentropy", "sigmoid")],
)
def test_a_loss_that_takes_the_logits_of_another_activation(loss, activation):
    """Keras passes the logits of any softmax or sigmoid to both cross-entropies."""
    model, x = (
        make(loss, 3, activation, {}),
        np.random.default_rng(0).normal(size=(6, 5)),
    )
    result = srel_tf.measure(
        model, srel_tf.ProbeSet(x, ONE_HOT), "l2", estimator="limit", predictions="raw"
    )
    moved = jacobian_times_gradient(model, tf.constant(x), tf.constant(ONE_HOT))
    np.testing.assert_allclose(
        result.numerator("l2"), np.linalg.norm(moved, axis=-1), rtol=1e-9
    )


def forms(name, tried, options):
    """Yield (loss, y, outputs, activation) for a loss of Keras.

    An object of its class is tried on all cases. The name, the function, and other options are tried on one case.
    """
    make = getattr(losses, name)
    yield from ((make(), *one) for one in tried)
    if (
        name != "CategoricalGeneralizedCrossEntropy"
    ):  # The function of this loss has an option without a default.
        yield from ((loss, *tried[0]) for loss in (make().fn, make().fn.__name__))
    yield from (
        (make(**o), *tried[-1])
        for o in ({"reduction": "sum"}, {"reduction": "none"}, *options)
    )


HINGES = [
    (BINARY, 1, None),
    (2 * BINARY[:, None] - 1, 1, "tanh"),
    (SEVERAL, 3, None),
    (2 * SEVERAL - 1, 3, None),
]
BINARIES = [
    (BINARY, 1, "sigmoid"),
    (BINARY[:, None], 1, "sigmoid"),
    (SEVERAL, 3, "sigmoid"),
    (ONE_HOT, 3, "softmax"),
]
ROWS = [
    (ONE_HOT, 3, "softmax"),
    (SOFT, 3, "softmax"),
    (SEVERAL, 3, "softmax"),
    (ONE_HOT.astype(int), 3, "sigmoid"),
]
INDICES = [
    (LABELS, 3, "softmax"),
    (LABELS[:, None], 3, "softmax"),
    (LABELS.astype(float), 3, "softmax"),
]
REGRESSIONS = [
    (VALUES, 1, None),
    (VALUES[:, None], 1, None),
    (REAL, 3, None),
    (VALUES, 3, None),
    (SOFT, 3, "softmax"),
]
OVERLAPS = [(SEVERAL, 3, "sigmoid"), (ONE_HOT, 3, "softmax"), (BINARY, 1, "sigmoid")]
OF_LOGITS = {"from_logits": True}
EVERY = {  # {name of a loss: (its cases, options to try in addition to the reductions)}
    "MeanSquaredError": (REGRESSIONS, []),
    "MeanAbsoluteError": (REGRESSIONS, []),
    "MeanAbsolutePercentageError": (REGRESSIONS, []),
    "MeanSquaredLogarithmicError": (
        [(np.abs(y), c, a or "softplus") for y, c, a in REGRESSIONS],
        [],
    ),
    "Huber": (REGRESSIONS, [{"delta": 0.3}]),
    "LogCosh": (REGRESSIONS, []),
    "CosineSimilarity": ([(REAL, 3, None), (ONE_HOT, 3, "softmax")], [{"axis": 1}]),
    "Poisson": ([(np.abs(VALUES), 1, "softplus"), (np.abs(REAL), 3, "softplus")], []),
    "KLDivergence": ([(SOFT, 3, "softmax"), (ONE_HOT, 3, "softmax")], []),
    "Hinge": (HINGES, []),
    "SquaredHinge": (HINGES, []),
    "CategoricalHinge": ([(ONE_HOT, 3, None), (ONE_HOT, 3, "softmax")], []),
    "BinaryCrossentropy": (
        BINARIES,
        [OF_LOGITS, {"label_smoothing": 0.2}, {"axis": 1}, {"axis": 0}],
    ),
    "BinaryFocalCrossentropy": (
        BINARIES,
        [OF_LOGITS, {"gamma": 1.5, "apply_class_balancing": True}],
    ),
    "CategoricalCrossentropy": (
        ROWS,
        [OF_LOGITS, {"label_smoothing": 0.2}, {"axis": 1}],
    ),
    "CategoricalFocalCrossentropy": (
        ROWS,
        [OF_LOGITS, {"gamma": 1.5, "alpha": [0.2, 0.3, 0.5]}],
    ),
    "SparseCategoricalCrossentropy": (
        INDICES,
        [OF_LOGITS, {"ignore_class": 1}, {"axis": 1}],
    ),
    "CategoricalGeneralizedCrossEntropy": (INDICES, [{"q": 0.7}]),
    "Dice": (OVERLAPS, [{"axis": 1}]),
    "Tversky": (OVERLAPS, [{"alpha": 0.3, "beta": 0.7, "axis": -1}]),
    "Circle": ([(LABELS, 3, None)], []),  # For a single example it is constant.
}
EVERY = {
    k: v for k, v in EVERY.items() if hasattr(losses, k)
}  # Older versions of Keras have fewer losses.


def signals_of_keras(model, u, y, activation, mask=None):
    """Return ∂ℓ_i/∂u_i [n, C] from the compiled loss of each example alone."""
    rows = []
    for i in range(len(u)):
        one = tf.constant(u[i : i + 1])
        with tf.GradientTape() as tape:
            tape.watch(one)
            outputs = (
                tf.identity(one)
                if activation is None
                else keras.activations.get(activation)(one)
            )
            if mask is not None:
                outputs._keras_mask = tf.constant(mask[i : i + 1])
            loss = model.compute_loss(
                x=None, y=tf.constant(y[i : i + 1]), y_pred=outputs, sample_weight=None
            )
        rows.append(
            tape.gradient(
                loss, one, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )[0]
        )
    return np.array(rows)


def check_signals(loss, y, outputs, activation, mask=None):
    """Assert that our output gradients are those of Keras, and return them."""
    model = make(loss, outputs, activation, {})
    u = np.random.default_rng(1).normal(size=(len(y), outputs))
    expected = signals_of_keras(model, u, y, activation, mask)
    link = {"softmax": "softmax", "sigmoid": "sigmoid"}.get(activation, "identity")
    if link == "identity" and activation is not None:  # Then u is the output itself.
        u = keras.activations.get(activation)(tf.constant(u))
        expected = signals_of_keras(model, u.numpy(), y, None, mask)
    mask = None if mask is None else tf.constant(mask)
    signals = OutputGradients(Network(model))(
        tf.constant(u), tf.constant(y), link, mask
    ).numpy()
    np.testing.assert_allclose(signals, expected, rtol=1e-12, atol=1e-15)
    return signals


@double
@pytest.mark.filterwarnings("ignore:.*received `from_logits=True`")
@pytest.mark.parametrize("name", EVERY)
def test_signals_of_every_loss_of_keras_are_those_of_its_examples_alone(name):
    """There are as many examples as outputs, so that a confusion of the two axes would show."""
    some = [0, 1, 3]
    signals = [
        check_signals(loss, y[some], *rest)
        for loss, y, *rest in forms(name, *EVERY[name])
    ]
    assert all(s.any() for s in signals) != (name == "Circle")


@double
@pytest.mark.parametrize(
    ("loss", "y", "outputs", "activation"),
    [
        ("crossentropy", BINARY, 1, "sigmoid"),
        ("ce", LABELS, 3, "softmax"),
        ("crossentropy", ONE_HOT, 3, "softmax"),
        (["mse"], VALUES, 1, None),
        (
            functools.partial(losses.categorical_crossentropy, from_logits=True),
            ONE_HOT,
            3,
            None,
        ),
    ],
)
def test_signals_of_losses_that_keras_looks_up(loss, y, outputs, activation):
    assert check_signals(loss, y, outputs, activation).any()


@double
@pytest.mark.parametrize(
    "loss",
    [SPARSE, lambda **o: SPARSE(ignore_class=1, **o)],
    ids=["batch", "one by one"],
)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none"])
def test_an_example_that_is_masked_has_no_signal(loss, reduction):
    """This holds for masks [n] and [n, 1]. Keras averages over the unmasked entries of an example."""
    left = np.array([True, False, True, True, False, True])
    for mask in (left, left[:, None]):
        signals = check_signals(loss(reduction=reduction), LABELS, 3, "softmax", mask)
        assert not signals[~left].any()
        assert signals[[0, 5]].all()


def passes_of(model, x, y):
    return LossBackprop(Network(model), tf.constant(x[:2]), tf.constant(y[:2]))


def test_a_converged_float32_net_keeps_the_digits_of_its_signal():
    """In float32, p − y would be zero for the likeliest class. Ours is that of the same logits in float64."""
    x, y = digits(per_class=2)
    model = classifier("mlp")
    logits = np.array([[40.0, 3.0, 1.0], [1.5, 39.0, -2.0]], dtype="float32")
    backprop = passes_of(model, x, y)
    signal = backprop.loss(
        tf.constant(logits, tf.float64), tf.constant([0, 1]), "identity"
    ).numpy()
    others = np.exp(logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True))
    p = others / others.sum(axis=1, keepdims=True)
    p[[0, 1], [0, 1]] = -(p.sum(axis=1) - p.max(axis=1))
    np.testing.assert_allclose(signal, p.astype(float), rtol=2e-3, atol=0)
