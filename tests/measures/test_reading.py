"""How targets and outputs are read. The compiled loss and the model's last operation decide, not the values."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.gradients.compiled_loss import CompiledLoss, compiled_loss
from srel_tf.gradients.network import Network
from srel_tf.measures.outputs import read_as
from tests import reference

L, losses = keras.layers, keras.losses
SPARSE, CATEGORICAL, BINARY = (
    losses.SparseCategoricalCrossentropy,
    losses.CategoricalCrossentropy,
    losses.BinaryCrossentropy,
)
double, slow = pytest.mark.usefixtures("in_double_precision"), pytest.mark.slow

ONE_LABEL = np.eye(3)[[0, 2, 1, 2]]
SEVERAL = np.array(
    [[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 1]]
)  # The second row and the last row have one label only.
X = np.random.default_rng(0).normal(size=(4, 3))


def net(loss, activation=None, outputs=3, seed=0, **options):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((3,)), L.Dense(outputs, activation=activation)]
    )
    model.compile("sgd", loss, **options)
    return model


def matrix(model, y, measure="l1", **options):
    """Measure S_rel, and assert that all entries are valid."""
    result = srel_tf.measure(
        model, srel_tf.ProbeSet(X, y), measures=measure, learning_rate=0.1, **options
    )
    assert result.valid(measure).all()
    return result.matrix(measure)


def naive(model, y, distance, x=X, still=()):
    """Return S_rel of real steps. The rows of the sources `still` are NaN: the steps on them must change nothing."""
    sources = np.setdiff1d(np.arange(len(x)), still)
    expected = np.full((len(x), len(x)), np.nan)
    expected[sources] = reference.srel(
        model, x, y, sources, np.arange(len(x)), 0.1, distance
    )
    for i in still:
        after = reference.stepped(model, x[i : i + 1], y[i : i + 1], 0.1)
        np.testing.assert_array_equal(after.get_weights()[0], model.get_weights()[0])
    return expected


def own(y, f):
    return losses.categorical_crossentropy(y, f, from_logits=True)


class Weighted(CATEGORICAL):
    """A user's class that is still a categorical cross-entropy."""

    def call(self, y, f):
        return 2 * super().call(y, f)


class Own(losses.Loss):
    def call(self, y, f):
        return own(y, f)


SPARSE_NAME, CATEGORICAL_NAME = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
)


@pytest.mark.parametrize(
    ("loss", "y_shape", "outputs", "expected"),
    [
        (SPARSE(), (4,), 3, CompiledLoss("sparse", SPARSE_NAME, False)),
        (
            SPARSE(from_logits=True, ignore_class=-1),
            (4,),
            3,
            CompiledLoss("sparse", SPARSE_NAME, True, -1),
        ),
        (SPARSE_NAME, (4,), 3, CompiledLoss("sparse", SPARSE_NAME, False)),
        (
            "SparseCategoricalCrossentropy",
            (4,),
            3,
            CompiledLoss("sparse", SPARSE_NAME, False),
        ),
        (
            losses.sparse_categorical_crossentropy,
            (4,),
            3,
            CompiledLoss("sparse", SPARSE_NAME, False),
        ),
        (
            CATEGORICAL(from_logits=True),
            (4, 3),
            3,
            CompiledLoss("categorical", CATEGORICAL_NAME, True),
        ),
        (
            Weighted(from_logits=True),
            (4, 3),
            3,
            CompiledLoss("categorical", CATEGORICAL_NAME, True),
        ),
        (
            [CATEGORICAL_NAME],
            (4, 3),
            3,
            CompiledLoss("categorical", CATEGORICAL_NAME, False),
        ),
        (
            functools.partial(losses.categorical_focal_crossentropy, from_logits=True),
            (4, 3),
            3,
            CompiledLoss("categorical", "categorical_focal_crossentropy", True),
        ),
        ("bce", (4,), 1, CompiledLoss("binary", "binary_crossentropy", False)),
        (
            losses.BinaryFocalCrossentropy(),
            (4, 3),
            3,
            CompiledLoss("binary", "binary_focal_crossentropy", False),
        ),
        ("crossentropy", (4,), 1, CompiledLoss("binary", "binary_crossentropy", False)),
        ("ce", (4, 1), 3, CompiledLoss("sparse", SPARSE_NAME, False)),
        (
            "crossentropy",
            (4, 3),
            3,
            CompiledLoss("categorical", CATEGORICAL_NAME, False),
        ),
        ("mse", (4, 3), 3, CompiledLoss("other", "mean_squared_error")),
        (losses.Huber(), (4, 3), 3, CompiledLoss("other", "huber")),
        (own, (4, 3), 3, CompiledLoss("own", "own")),
        (Own(), (4, 3), 3, CompiledLoss("own", "Own")),
    ],
)
def test_losses_are_known_in_every_form(loss, y_shape, outputs, expected):
    assert compiled_loss(net(loss, outputs=outputs), y_shape, outputs) == expected


def test_a_model_that_computes_its_loss_itself_may_be_compiled_with_another():
    class Computing(keras.Sequential):
        def compute_loss(self, *arguments, **keywords):
            return 2 * super().compute_loss(*arguments, **keywords)

    for loss, kind in ((SPARSE_NAME, "sparse"), (None, "own")):
        model = Computing([keras.Input((3,)), L.Dense(3)])
        model.compile("sgd", loss)
        assert compiled_loss(model, (4,), 3).kind == kind


class Nested(keras.Model):
    """A subclass whose last operation is inside a nested model."""

    def __init__(self, activation):
        super().__init__()
        self.inner = keras.Sequential(
            [L.Dense(3), L.Activation(activation), L.Dropout(0.5)]
        )

    def call(self, x):
        return self.inner(x)


def last_activation(model, outputs=3):
    network = Network(model)
    network.inspect(tf.constant(X[:1], tf.float32), tf.zeros([1, outputs]))
    return network.activation


@pytest.mark.parametrize(
    "activation", ["softmax", "log_softmax", "sigmoid", None, "relu"]
)
def test_the_last_activation_of_a_model(activation):
    nested = Nested(activation)
    nested(X)
    nested.compile("sgd", "mse")
    separate = keras.Sequential(
        [keras.Input((3,)), L.Dense(3), L.Activation(activation)]
    )
    separate.compile("sgd", "mse")
    known = activation if activation in ("softmax", "log_softmax", "sigmoid") else None
    for model in (net("mse", activation), nested, separate):
        assert last_activation(model) == known
    known = (
        None if known == "log_softmax" else known
    )  # In eager mode Keras keeps the logits of softmax and sigmoid only.
    assert last_activation(net("mse", activation, run_eagerly=True)) == known


def test_an_eager_activation_that_two_functions_give_is_not_known():
    """For two logits of zero, softmax and sigmoid give the same outputs."""
    model = net("mse", "softmax", outputs=2, run_eagerly=True)
    assert last_activation(model, outputs=2) == "softmax"
    model.layers[-1].set_weights([np.zeros((3, 2)), np.zeros(2)])
    assert last_activation(model, outputs=2) is None


INDICES, FLOATS = np.array([0, 2, 1, 2]), np.array([0.0, 2, 1, 2])
OF_LOGITS, OF_PROBABILITIES = (
    CompiledLoss("categorical", "", from_logits) for from_logits in (True, False)
)
ELEMENTWISE, REGRESSION, ONES_OWN = (
    CompiledLoss("binary", "", False),
    CompiledLoss("other", ""),
    CompiledLoss("own", ""),
)


@pytest.mark.parametrize(
    ("choice", "loss", "activation", "y", "outputs", "kind"),
    [
        *(
            ("raw", OF_LOGITS, activation, ONE_LABEL, 3, "raw")
            for activation in (None, "softmax")
        ),
        ("softmax", REGRESSION, None, ONE_LABEL, 3, "softmax"),
        ("softmax", ELEMENTWISE, "sigmoid", ONE_LABEL, 3, "logits"),
        ("softmax", ELEMENTWISE, "softmax", ONE_LABEL, 3, "probabilities"),
        ("auto", CompiledLoss("sparse", "", True), None, INDICES, 1, "raw"),
        *(
            ("auto", ELEMENTWISE, activation, y, 3, "raw")
            for activation in (None, "sigmoid", "softmax")
            for y in (ONE_LABEL, SEVERAL, INDICES)
        ),
        *(
            ("auto", loss, "sigmoid", ONE_LABEL, 3, "raw")
            for loss in (OF_LOGITS, OF_PROBABILITIES, REGRESSION)
        ),
        ("auto", OF_LOGITS, None, SEVERAL, 3, "logits"),
        ("auto", OF_LOGITS, "softmax", ONE_LABEL, 3, "probabilities"),
        ("auto", OF_PROBABILITIES, None, ONE_LABEL, 3, "softmax"),
        *(
            ("auto", REGRESSION, "softmax", y, 3, "probabilities")
            for y in (ONE_LABEL, SEVERAL, INDICES)
        ),
        ("auto", ONES_OWN, "log_softmax", SEVERAL, 3, "logits"),
        *(
            ("auto", REGRESSION, None, y, 3, "raw")
            for y in (ONE_LABEL, SEVERAL, INDICES)
        ),
        *(
            ("auto", ONES_OWN, None, y, 3, "softmax")
            for y in (INDICES, INDICES[:, None])
        ),
        *(("auto", ONES_OWN, None, y, 3, "raw") for y in (ONE_LABEL, SEVERAL, FLOATS)),
    ],
)
def test_how_outputs_are_read(choice, loss, activation, y, outputs, kind):
    found, reason = read_as(choice, loss, activation, y, outputs)
    assert found == kind
    assert bool(reason) == (kind == "raw")


@double
@pytest.mark.parametrize(
    ("loss", "activation"),
    [("binary_crossentropy", "sigmoid"), pytest.param(BINARY, None, marks=slow)],
)
def test_rows_of_one_label_and_of_several_are_read_alike(loss, activation):
    """A binary cross-entropy treats each output separately. Rows with one label keep the names of their classes."""
    model = net(loss if activation else loss(from_logits=True), activation)
    one, several = (
        srel_tf.ProbeSet(X, y, class_names=["a", "b", "c"])
        for y in (ONE_LABEL, SEVERAL)
    )
    of_one, of_several = (
        srel_tf.measure(model, probe, "l1", learning_rate=0.1)
        for probe in (one, several)
    )
    for result, y in ((of_one, ONE_LABEL), (of_several, SEVERAL)):
        np.testing.assert_allclose(
            result.matrix("l1"), naive(model, y, reference.raw_norm(1)), rtol=1e-9
        )
    np.testing.assert_array_equal(
        of_one.matrix("l1")[[1, 3]], of_several.matrix("l1")[[1, 3]]
    )
    frame = of_one.to_frame()
    assert frame["source_class"].unique().tolist() == ["a", "c", "b"]
    assert set(of_several.to_frame()["source_class"]) == {""}
    assert np.isfinite(srel_tf.separation(frame)["auc"]).all()


def test_why_there_is_no_kl_of_outputs_that_are_no_softmax():
    for loss, activation, y, reason in (
        (
            "bce",
            "sigmoid",
            ONE_LABEL,
            "the loss binary_crossentropy treats each output separately",
        ),
        (
            BINARY(from_logits=True),
            None,
            ONE_LABEL,
            "the loss binary_crossentropy treats each output separately",
        ),
        (CATEGORICAL(), "sigmoid", ONE_LABEL, "ends in a sigmoid"),
        (
            losses.sparse_categorical_crossentropy,
            "sigmoid",
            INDICES,
            "ends in a sigmoid",
        ),
        (CATEGORICAL_NAME, "sigmoid", ONE_LABEL, "ends in a sigmoid"),
        ("mse", None, ONE_LABEL, "mean_squared_error is not a classification loss"),
    ):
        with pytest.raises(srel_tf.OptionError, match=reason) as caught:
            srel_tf.measure(
                net(loss, activation, run_eagerly=True), srel_tf.ProbeSet(X, y)
            )
        assert "end the model" not in str(caught.value)
        assert "predictions='softmax'" in str(caught.value)


@double
def test_a_softmax_that_the_user_asks_for():
    model = net(BINARY(from_logits=True))
    found = matrix(model, SEVERAL, "kl", predictions="softmax")
    np.testing.assert_allclose(found, naive(model, SEVERAL, reference.kl), rtol=1e-7)


@double
@pytest.mark.parametrize(
    ("loss", "activation", "y"),
    [
        (
            CATEGORICAL(from_logits=True),
            None,
            SEVERAL / SEVERAL.sum(axis=1, keepdims=True),
        ),
        ("mse", "softmax", SEVERAL),
        ("kl_divergence", "softmax", ONE_LABEL),
    ],
)
def test_a_classifier_is_one_whatever_its_rows_are(loss, activation, y):
    model = net(loss, activation)
    found = matrix(model, y, "kl")
    distance = reference.of_probabilities(reference.kl) if activation else reference.kl
    np.testing.assert_allclose(found, naive(model, y, distance), rtol=1e-6)


@double
def test_logits_that_look_like_probabilities_are_logits():
    """At some moment of a training, the logits may by chance sum to one at all targets."""
    model = net(SPARSE(from_logits=True))
    model.layers[-1].set_weights([np.zeros((3, 3)), np.array([0.2, 0.3, 0.5])])
    np.testing.assert_allclose(
        matrix(model, INDICES, "kl"), naive(model, INDICES, reference.kl), rtol=1e-6
    )


class DividedBySum(L.Layer):
    def call(self, x):
        x = keras.ops.exp(x)
        return x / keras.ops.sum(x, axis=-1, keepdims=True)


@double
@pytest.mark.parametrize("eagerly", [False, True])
def test_probabilities_that_only_their_values_tell(eagerly):
    """The last operation does not show that the outputs are probabilities."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), L.Dense(3), DividedBySum()])
    model.compile("sgd", SPARSE(), run_eagerly=eagerly)
    expected = naive(model, INDICES, reference.of_probabilities(reference.kl))
    np.testing.assert_allclose(matrix(model, INDICES, "kl"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [SPARSE(), SPARSE_NAME, losses.sparse_categorical_crossentropy, "ce"]
)
def test_logits_under_a_loss_of_probabilities_are_refused(loss):
    with pytest.raises(
        srel_tf.ModelError, match=r"sparse_categorical_crossentropy.*from_logits=True"
    ):
        matrix(net(loss), INDICES, "kl")


@double
@pytest.mark.parametrize(
    "y", [pytest.param(FLOATS, marks=slow), FLOATS[:, None].astype("float32")]
)
def test_class_indices_may_be_floating_point_numbers(y):
    model = net(SPARSE(from_logits=True))
    probe = srel_tf.ProbeSet(X, y, class_names=["a", "b", "c"])
    result = srel_tf.measure(model, probe, learning_rate=0.1)
    for measure in ("kl", "l1"):
        distance = reference.MEASURES[measure]
        np.testing.assert_allclose(
            result.matrix(measure), naive(model, INDICES, distance), rtol=1e-7
        )
    assert result.to_frame()["target_class"].tolist() == ["a", "c", "b", "c"] * 8
    assert set(
        srel_tf.measure(net("mse", outputs=1), probe, "l1").to_frame()["source_class"]
    ) == {""}


def test_class_indices_that_no_loss_takes_are_refused_with_the_value():
    for y, message in (
        (np.array([0, 1, 1.5, 2]), r"y is 1\.5 for example 2"),
        (
            np.array([0, 1, 3.0, 2]),
            "label 3 of example 2 is out of range: the model has 3 outputs",
        ),
        (np.array([0, 1, 2, -1]), "label -1 of example 3"),
    ):
        for predictions in ("auto", "raw"):
            with pytest.raises(srel_tf.ProbeError, match=message):
                matrix(net(SPARSE_NAME, "softmax"), y, predictions=predictions)


@double
@pytest.mark.parametrize("ignored", [pytest.param(-1, marks=slow), 255])
def test_an_ignored_class_need_not_be_an_output(ignored):
    model, y = (
        net(SPARSE(from_logits=True, ignore_class=ignored)),
        np.array([0, ignored, 1, 2]),
    )
    with pytest.warns(
        UserWarning,
        match=r"the update of 1 of 4 sources \(ids 1\) changes nothing: the gradient is zero",
    ):
        result = srel_tf.measure(model, srel_tf.ProbeSet(X, y), "kl", learning_rate=0.1)
    np.testing.assert_array_equal(
        result.valid("kl").all(axis=1), [True, False, True, True]
    )
    np.testing.assert_allclose(
        result.matrix("kl"), naive(model, y, reference.kl, still=[1]), rtol=1e-7
    )


def test_a_loss_of_ones_own_that_may_be_a_classifiers_is_asked_about():
    for y in (ONE_LABEL, FLOATS):
        loss = (
            own
            if y.ndim == 2
            else lambda y, f: losses.sparse_categorical_crossentropy(
                y, f, from_logits=True
            )
        )
        with pytest.warns(
            UserWarning, match="the loss is custom.*give predictions='softmax'"
        ):
            matrix(net(loss, run_eagerly=True), y)
        for predictions in ("raw", "softmax"):  # A warning here would be an error.
            matrix(net(loss, run_eagerly=True), y, predictions=predictions)
    matrix(net(Own(), run_eagerly=True), np.random.default_rng(0).normal(size=(4, 3)))


@pytest.mark.parametrize("loss", ["mse", CATEGORICAL(from_logits=True), "bce"])
def test_targets_that_a_loss_does_not_take_are_refused_with_their_shape(loss):
    with pytest.raises(
        srel_tf.ProbeError,
        match=r"targets of shape \(4, 4\) .*outputs of shape \(1, 3\)",
    ):
        matrix(net(loss), np.eye(4), predictions="raw")


@double
@pytest.mark.parametrize(
    ("loss", "estimator"),
    [
        ("binary_crossentropy", "exact"),
        (losses.binary_crossentropy, "limit"),
        pytest.param("bce", "limit", marks=slow),
        *(
            pytest.param(BINARY, estimator, marks=slow)
            for estimator in ("exact", "limit")
        ),
    ],
)
def test_one_sigmoid_takes_targets_without_an_axis(loss, estimator):
    y = np.array([0, 1, 1, 0])
    model = net(loss() if loss is BINARY else loss, "sigmoid", outputs=1)
    found = matrix(model, y, estimator=estimator)
    if estimator == "exact":
        np.testing.assert_allclose(
            found, naive(model, y, reference.raw_norm(1)), rtol=1e-9
        )
    else:  # For f = σ(w·x + b), δ ∝ σ'(target) · (x·x' + 1). S_rel divides this by its value at the source.
        p = model.predict(X, verbose=0)[:, 0]
        rise = p * (1 - p) * (X @ X.T + 1)
        np.testing.assert_allclose(
            found, np.abs(rise) / np.diag(rise)[:, None], rtol=1e-9
        )


@double
@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "limit"])
def test_a_source_that_the_mask_leaves_out_of_the_loss_moves_nothing(
    estimator, eagerly
):
    x, y = X.copy(), INDICES
    x[2] = 0
    keras.utils.set_random_seed(0)
    layers = [
        L.Masking(),
        L.Dense(4, activation="tanh", bias_initializer="ones"),
        L.Dense(3),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", SPARSE(from_logits=True), run_eagerly=eagerly)
    with pytest.warns(UserWarning, match=r"sources \(ids 2\) changes nothing"):
        result = srel_tf.measure(
            model, srel_tf.ProbeSet(x, y), "l1", learning_rate=0.1, estimator=estimator
        )
    np.testing.assert_array_equal(
        result.valid("l1").all(axis=1), [True, True, False, True]
    )
    assert result.denominator("l1")[2] == 0
    if estimator == "exact":
        expected = naive(model, y, reference.norm(1), x, still=[2])
    else:  # Without the masking layer, the other rows are the same.
        bare = keras.Sequential([keras.Input((3,)), *layers[1:]])
        bare.compile("sgd", SPARSE(from_logits=True))
        probe = srel_tf.ProbeSet(x, y)
        expected = srel_tf.measure(
            bare, probe, "l1", learning_rate=0.1, estimator="limit"
        ).matrix("l1")
        assert np.isfinite(expected[2]).all()
        expected[2] = np.nan
    np.testing.assert_allclose(result.matrix("l1"), expected, rtol=1e-8)


@double
def test_a_source_with_a_zero_gradient_is_named_once():
    model, y = net("hinge", outputs=1), np.array([1, -1, 1, 1])
    model.layers[-1].set_weights([np.ones((3, 1)), np.zeros(1)])
    satisfied = y * X.sum(axis=1) > 1
    assert 0 < satisfied.sum() < 4
    instrument = srel_tf.Instrument(
        model, srel_tf.ProbeSet(X, y), srel_tf.Settings("l1", learning_rate=0.1)
    )
    ids = ", ".join(map(str, np.flatnonzero(satisfied)))
    with pytest.warns(
        UserWarning, match=rf"\(ids {ids}\) changes nothing: the gradient is zero"
    ):
        result = instrument()
    np.testing.assert_array_equal(result.valid("l1").any(axis=1), ~satisfied)
    instrument()  # A second warning would be an error.


def test_a_step_that_is_too_small_to_move_anything_is_not_said_to_have_a_zero_gradient():
    probe = srel_tf.ProbeSet(X, np.arange(4.0))
    result = srel_tf.measure(net("mse", outputs=1), probe, "l1", learning_rate=1e-30)
    assert not result.denominator("l1").any()
    assert not result.valid("l1").any()
