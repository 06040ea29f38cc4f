"""The three estimators: exact tends to limit, limit agrees with the theory, and auto keeps the numerics contract."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.measures.registry import MEASURES
from srel_tf.theory import DiagonalQuadratic, HomogeneousPredictor
from srel_tf.theory.keras_models import homogeneous_network
from tests import reference
from tests.engines.test_limit import jacobian_times_gradient
from tests.nets import classifier, digits, double_precision, each_of_both
from tests.numerics.test_resolution import stages

L = keras.layers
DEFINITIONS = ("kl", "l1", "l2")
double = pytest.mark.usefixtures("in_double_precision")


@pytest.fixture(scope="module")
def data():
    return digits(per_class=4)


@pytest.fixture(scope="module")
def probe(data):
    return srel_tf.ProbeSet(*data, sources=[0, 5, 7, 2], targets=[5, 1, 2, 9, 11])


def limit(model, probe, **options):
    options = {"measures": DEFINITIONS, "learning_rate": 0.1, **options}
    return srel_tf.measure(model, probe, estimator="limit", **options)


def compiled(inputs, outputs, loss=None, model_class=keras.Model, **options):
    model = model_class(inputs, outputs)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, **options)
    return model


def net(*layers, **options):
    keras.utils.set_random_seed(3)
    inputs = x = keras.Input((8, 8, 1))
    for layer in (*layers, L.Flatten(), L.Dense(3)):
        x = layer(x)
    return compiled(inputs, x, **options)


# --- the limit is a limit ----------------------------------------------------------------------------------------


@double
@pytest.mark.parametrize("softmax", [pytest.param(False, marks=pytest.mark.slow), True])
def test_exact_tends_to_limit_with_an_error_in_proportion_to_the_step(softmax, probe):
    model = net(
        L.Conv2D(3, 3, activation="tanh"),
        *([L.Flatten(), L.Dense(3), L.Softmax()] if softmax else []),
    )
    if softmax:  # Without the last layer of `net`, which would follow the softmax.
        model = compiled(
            model.inputs,
            model.layers[-3].output,
            keras.losses.SparseCategoricalCrossentropy(),
        )
    s = limit(model, probe)
    errors = []
    for eta in (4e-4, 2e-4, 1e-4):
        exact = srel_tf.measure(model, probe, measures=DEFINITIONS, learning_rate=eta)
        errors.append(
            [np.abs(exact.matrix(name) - s.matrix(name)) for name in DEFINITIONS]
        )
        for name in DEFINITIONS:
            degree = MEASURES[name].degree
            scaled = exact.numerator(name) / eta**degree  # Per unit of η (KL: of η²).
            np.testing.assert_allclose(scaled, s.numerator(name), rtol=0.05)
    for wide, narrow in itertools.pairwise(np.array(errors)):
        outside = s.matrix("l1") != 1  # S_rel(x, x) is 1 in both.
        np.testing.assert_allclose(
            np.median(wide[:, outside] / narrow[:, outside], axis=-1), 2, rtol=0.02
        )
        np.testing.assert_allclose(
            wide.sum(axis=(1, 2)) / narrow.sum(axis=(1, 2)), 2, rtol=0.02
        )


@double
def test_limit_is_a_contraction_of_the_empirical_kernel(data, probe):
    x, y = data
    model = classifier("resnet")
    theta = srel_tf.empirical_kernel(
        model, x[probe.targets], x[probe.sources]
    )  # [n_t, n_s, C, C]
    by_output = (
        tf.nn.softmax(model(x[probe.sources])).numpy() - np.eye(3)[y[probe.sources]]
    )
    moved = -np.einsum("jicd,id->ijc", theta, by_output)
    result = limit(model, probe, measures=("l1", "l2"), predictions="raw")
    for name, order in (("l1", 1), ("l2", 2)):
        np.testing.assert_allclose(
            result.numerator(name), np.linalg.norm(moved, order, axis=-1), rtol=1e-9
        )


def pairs(function, x):
    """Return function(x_target, x_source) for all pairs, [n_s, n_t]."""
    sources, targets = np.divmod(np.arange(len(x) ** 2), len(x))
    return np.asarray(function(x[targets], x[sources])).reshape(len(x), len(x))


MIX = np.random.default_rng(5).normal(size=(2, 3, 4))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_theorem_5_1(degree):
    rng = np.random.default_rng(1)
    h = HomogeneousPredictor(
        lambda x: tf.reduce_sum(x, -1),
        lambda x: tf.tanh(tf.einsum("rni,bi->brn", tf.constant(MIX), x)),
        degree,
    )
    w, x, y = rng.normal(size=(2, 3)), rng.normal(size=(6, 4)), rng.normal(size=(6, 1))
    model = homogeneous_network(h, w, (4,), 0.1)
    with pytest.warns(UserWarning, match="HomogeneousLayer"):
        result = limit(model, srel_tf.ProbeSet(x, y), measures="l2")
    assert result.valid("l2").all()
    np.testing.assert_allclose(
        result.matrix("l2"), pairs(lambda t, s: h.srel_limit(w, t, s), x), rtol=1e-9
    )


@pytest.mark.parametrize("t", [0.0, 40.0])
def test_theorem_5_2(t):
    w_star, start, x = (
        np.array([1.0, 2.0, 3.0]),
        np.sqrt([0.5, 2.0, 4.0]),
        np.random.default_rng(3).normal(size=(7, 3)),
    )
    flow = DiagonalQuadratic(w_star**2, np.ones(3), 0.001)
    predictor = HomogeneousPredictor(lambda x: 0 * x[:, 0], lambda x: x[:, None, :], 2)
    model = homogeneous_network(
        predictor, flow.weights(start, t)[0].numpy()[None], (3,), 0.1
    )
    with pytest.warns(UserWarning, match="HomogeneousLayer"):
        result = limit(
            model, srel_tf.ProbeSet(x, (x @ w_star**2)[:, None]), measures="l2"
        )
    expected = pairs(lambda target, source: flow.srel(start, t, target, source), x)
    np.testing.assert_allclose(result.matrix("l2"), expected, rtol=1e-9)


# --- models whose layers cannot be observed ----------------------------------------------------------------------


class Tied(keras.Model):
    """A model whose decoder uses the encoder's kernel outside of the layer that owns it."""

    def __init__(self):
        super().__init__()
        self.flatten, self.encoder = L.Flatten(), L.Dense(3, activation="tanh")

    def call(self, x):
        return (
            self.encoder(self.flatten(x))
            @ keras.ops.transpose(self.encoder.kernel)[:, :3]
        )


def tied():
    model = Tied()
    model(np.zeros((1, 8, 8, 1)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class OwnLoss(keras.Model):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        target = keras.ops.one_hot(keras.ops.cast(y, "int32"), 3)
        return keras.ops.mean((y_pred - target) ** 2) + keras.ops.mean(
            x
        ) * keras.ops.mean(y_pred**2)


class AcrossExamples(L.Layer):
    """A dense layer that is called with examples on the second axis."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x):
        x = keras.ops.reshape(x, (-1, 8, 8))
        return keras.ops.transpose(
            self.dense(keras.ops.transpose(x, (1, 0, 2))), (1, 0, 2)
        )


class PairsOfPositions(L.Layer):
    """A bias for pairs of positions, initialised to zeros: [8, 8] is added to each of two heads in [n, 2, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.bias = L.Embedding(8, 8, embeddings_initializer="zeros")

    def call(self, x):
        x = keras.ops.reshape(x, (-1, 1, 8, 8)) * np.array([1.0, 2.0])[:, None, None]
        return keras.ops.softmax(x + self.bias(keras.ops.arange(8)))


WITHOUT_CAPTURE = {
    "the same for all examples, but not one for each": (
        lambda: net(PairsOfPositions()),
        "shared inputs cannot be copied for each example",
    ),
    "examples on another axis": (
        lambda: net(AcrossExamples()),
        "shared inputs cannot be copied for each example",
    ),
    "a weight used outside its layer": (tied, "used outside"),
    "a loss of its own": (
        lambda: net(L.Conv2D(2, 3), model_class=OwnLoss),
        "computes its loss itself",
    ),
    "a penalty on activities": (
        lambda: net(L.Dense(2, activity_regularizer="l2")),
        "adds losses",
    ),
    "eager execution": (lambda: net(L.Conv2D(2, 3), run_eagerly=True), "runs eagerly"),
}


@double
@pytest.mark.parametrize("name", WITHOUT_CAPTURE)
def test_models_whose_layers_cannot_be_watched_go_source_by_source(name, data):
    make, reason = WITHOUT_CAPTURE[name]
    model, x, y = make(), data[0][:5].astype("float64"), data[1][:5]
    probe = srel_tf.ProbeSet(x, y, sources=[4, 0], targets=[1, 0, 3])
    with pytest.warns(UserWarning, match=rf"{reason}.*forward-mode"):
        result = limit(model, probe, measures="l2", predictions="raw")
    moved = np.linalg.norm(
        jacobian_times_gradient(model, tf.constant(x), tf.constant(y)), axis=-1
    )
    np.testing.assert_allclose(
        result.numerator("l2"), moved[np.ix_([4, 0], [1, 0, 3])], rtol=1e-9
    )
    np.testing.assert_allclose(
        result.denominator("l2"), moved[[4, 0], [4, 0]], rtol=1e-9
    )
    assert result.valid("l2").all()


class Scaled(L.Layer):
    """A layer without a rule, which can be made to fail."""

    fail = False

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        if self.fail:
            raise ArithmeticError("on purpose")
        return keras.ops.sin(x * self.scale)


class Positions(L.Layer):
    """A layer that adds another layer's output for the row numbers, which are the same for all examples."""

    def __init__(self, layer, numbers):
        super().__init__()
        self.layer, self.numbers = layer, numbers

    def call(self, x):
        return keras.ops.reshape(x, (-1, 8, 8)) + self.layer(self.numbers())


POSITIONS = {
    "with no axis of examples": lambda: Positions(
        L.Embedding(8, 8), lambda: keras.ops.arange(8)
    ),
    "with an axis of one": lambda: Positions(
        L.Embedding(8, 8), lambda: keras.ops.arange(8)[None]
    ),
    "one position": lambda: Positions(
        L.Dense(8, activation="tanh"), lambda: keras.ops.ones((1, 1, 3))
    ),
    "without a rule": lambda: Positions(Scaled(), lambda: keras.ops.ones((8, 8))),
}


@double
@pytest.mark.filterwarnings("ignore:srel_tf has no gradient rule")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind == "with an axis of one"))
        for kind in POSITIONS
    ],
)
def test_layers_called_on_the_same_for_all_examples(kind, data):
    """Such a layer is, for instance, the position embedding of a transformer.

    A warning that the limit is taken source by source would be an error.
    """
    model, x, y = (
        net(POSITIONS[kind](), L.Dense(4, activation="tanh")),
        data[0][:5].astype("float64"),
        data[1][:5],
    )
    probe = srel_tf.ProbeSet(x, y)
    moved = np.linalg.norm(
        jacobian_times_gradient(model, tf.constant(x), tf.constant(y)), axis=-1
    )
    result = limit(model, probe, measures="raw_l2")
    np.testing.assert_allclose(result.numerator("raw_l2"), moved, rtol=1e-9)
    unwatched = keras.Model(model.inputs, model.outputs)  # Measured source by source.
    unwatched.compile("sgd", model.loss, run_eagerly=True)
    finite, expected = (
        srel_tf.measure(m, probe, measures="raw_l2", learning_rate=0.1)
        for m in (model, unwatched)
    )
    np.testing.assert_allclose(
        finite.numerator("raw_l2"), expected.numerator("raw_l2"), rtol=1e-9
    )


def test_layers_without_a_rule_are_said_once(data):
    model = net(Scaled(), L.Dense(2), Scaled())
    with pytest.warns(
        UserWarning, match="no gradient rule for layers of type Scaled:"
    ) as caught:
        instrument = srel_tf.Instrument(
            model, srel_tf.ProbeSet(*data), srel_tf.Settings(estimator="limit")
        )
    assert len([w for w in caught if "no gradient rule" in str(w.message)]) == 1
    assert instrument().valid("l1").any()  # A warning here would be an error.


# --- the form of the model and of the probe does not matter ------------------------------------------------------


@double
def test_logits_and_probabilities_agree(probe):
    logits, softmax = (
        limit(classifier("cnn", softmax=s), probe) for s in (False, True)
    )
    for name in DEFINITIONS:
        np.testing.assert_allclose(softmax.matrix(name), logits.matrix(name), rtol=1e-9)
        np.testing.assert_allclose(
            softmax.numerator(name), logits.numerator(name), rtol=1e-9
        )


@double
def test_raw_outputs_of_probabilities_are_the_probabilities(probe):
    model = classifier("cnn", softmax=True)
    raw, read = (
        limit(model, probe, measures=("l1", "l2"), predictions=p)
        for p in ("raw", "softmax")
    )
    for name in ("l1", "l2"):
        np.testing.assert_allclose(raw.matrix(name), read.matrix(name), rtol=1e-9)


@double
def test_sources_targets_and_batches_do_not_matter(data):
    model = classifier("cnn")
    whole = limit(model, srel_tf.ProbeSet(*data))
    sources, targets = [0, 3, 7, 11, 2], [5, 3, 1]
    for batch_size in (128, 4, 1):
        part = limit(
            model,
            srel_tf.ProbeSet(*data, sources=sources, targets=targets),
            batch_size=batch_size,
        )
        for name in DEFINITIONS:
            np.testing.assert_allclose(
                part.matrix(name),
                whole.matrix(name)[np.ix_(sources, targets)],
                rtol=1e-9,
            )


# --- the model does not change -----------------------------------------------------------------------------------


def state(model):
    layers = model._flatten_layers()
    return [
        (layer, sorted(vars(layer)), getattr(layer, "activation", None))
        for layer in layers
    ]


@pytest.mark.parametrize("estimator", ["limit", "auto"])  # Auto is exact, too.
def test_the_model_is_left_as_it_was(estimator, probe):
    model = net(L.Conv2D(3, 3, activation="relu"), L.Dense(2, activation="tanh"))
    before, weights = state(model), model.get_weights()
    srel_tf.measure(model, probe, learning_rate=1e-6, estimator=estimator)
    assert state(model) == before
    assert not [layer for layer in model.layers if "call" in vars(layer)]
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.filterwarnings("ignore:srel_tf has no gradient rule")
def test_the_model_is_left_as_it_was_by_an_exception(probe):
    layer = Scaled()
    model = net(L.Conv2D(3, 3, activation="relu"), layer)
    before = state(model)
    layer.fail = True
    instrument = pytest.raises(ArithmeticError, match="on purpose")
    with instrument:
        srel_tf.measure(model, probe, estimator="limit")
    layer.fail = False
    ready = srel_tf.Instrument(
        model, probe, srel_tf.Settings(estimator="limit")
    )  # The error is raised while the instrument traces its graph.
    layer.fail = True
    with pytest.raises(ArithmeticError, match="on purpose"):
        ready()
    del layer.fail
    assert state(model) == before


@pytest.mark.parametrize(
    "estimator", ["limit", pytest.param("auto", marks=pytest.mark.slow)]
)
def test_training_does_not_notice(estimator, data, probe):
    weights = []
    for attached in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        hidden = L.Dropout(0.3)(L.Conv2D(3, 3, activation="relu")(inputs))
        model = compiled(
            inputs, L.Dense(3)(L.Flatten()(hidden)), model_class=srel_tf.SRelModel
        )
        if attached:
            model.attach_probe(probe, every=1, estimator=estimator, learning_rate=1e-6)
        model.fit(*data, batch_size=6, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    frame = model.srel_frame()
    assert set(frame["estimator"]) == {estimator}
    assert (
        set(frame["method"])
        <= {"limit": {"limit_float64"}, "auto": {"finite_step", "finite_step_float64"}}[
            estimator
        ]
    )
    assert frame["step"].nunique() == 5
    for with_probe, without in zip(*weights, strict=True):
        np.testing.assert_array_equal(with_probe, without)


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp():
    return net(L.Flatten(), L.Dense(64, activation="relu"))


@pytest.fixture(scope="module")
def at(mlp, data):
    """Return a function of η that returns the results of exact in float32, exact in float64, and auto."""
    settings = (
        {"estimator": "exact"},
        {"estimator": "exact", "precision": "float64"},
        {"estimator": "auto"},
    )
    probe = srel_tf.ProbeSet(*data)
    instruments = [
        srel_tf.Instrument(mlp, probe, srel_tf.Settings(measures=DEFINITIONS, **s))
        for s in settings
    ]

    def measured(eta):
        mlp.optimizer.learning_rate = eta
        return [instrument() for instrument in instruments]

    return measured


def test_auto_takes_the_rows_that_float32_resolves_and_the_others_from_float64(at):
    seen = set()
    for eta in (1e-8, 1e-4, 1.3e-4, 1.6e-4, 1e-1):
        single, double, auto = at(eta)
        for name in DEFINITIONS:
            rows = auto.matrices[name].method
            seen.add(frozenset(rows))
            for method, other in (
                ("finite_step", single),
                ("finite_step_float64", double),
            ):
                assert set(other.matrices[name].method) == {method}
                for of in ("matrix", "numerator", "denominator"):
                    ours, theirs = (
                        getattr(result, of)(name)[rows == method]
                        for result in (auto, other)
                    )
                    np.testing.assert_allclose(
                        ours, theirs, rtol=1e-9 if method.endswith("float64") else 0
                    )
            assert auto.valid(name).all()
            assert single.valid(name)[rows == "finite_step"].all()
    assert {frozenset({"finite_step"}), frozenset({"finite_step_float64"})} <= seen


def test_frame_says_what_was_asked_and_how_each_row_was_computed(at):
    for result in at(1e-4):
        for _, rows in result.to_frame().groupby(["measure", "source_id"]):
            assert set(rows["estimator"]) == {result.estimator}
            assert rows["method"].nunique() == 1


def in_float64(model, probe, eta, dtype="float64"):
    """Return S_rel of the ℓ1 norm from the naive reference in float64."""
    with double_precision():
        every = np.arange(len(probe))
        copy = reference.clone(model, dtype)
        return reference.srel(
            copy, probe.x, probe.y, every, every, eta, reference.norm(1)
        )


class Own(keras.Model):
    """A subclass with a custom layer and a custom activation, which its configuration does not describe."""

    def __init__(self):
        super().__init__()
        self.first = L.Dense(16, activation=lambda x: x * keras.ops.sigmoid(1.7 * x))
        self.inner = keras.Sequential([L.Dense(8), Scaled()])
        self.last = L.Dense(3)

    def call(self, x):
        return self.last(self.inner(self.first(keras.ops.reshape(x, (-1, 64)))))


@pytest.mark.filterwarnings("ignore:srel_tf has no gradient rule")
@pytest.mark.parametrize(
    ("policy", "estimator"),
    each_of_both(
        ["float32", "mixed_float16", "mixed_bfloat16"], ["auto", "exact", "limit"]
    ),
)
def test_models_of_ones_own_are_run_in_float64_as_they_are(policy, estimator, data):
    """The results are compared with those of the same class, built in float64 with the same weights."""
    x, y = data
    models = []
    for name in (policy, "float64"):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(name)
        try:
            models.append(Own())
            models[-1](x)
        finally:
            keras.config.set_dtype_policy(before)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=name)
        models[-1].compile(keras.optimizers.SGD(1e-6), loss)
    models[1].set_weights(models[0].get_weights())
    probe = srel_tf.ProbeSet(x, y)
    ours, expected = (
        srel_tf.measure(
            model, probe, DEFINITIONS, estimator=estimator, precision="float64"
        )
        for model in models
    )
    for name in DEFINITIONS:
        assert ours.valid(name).all()
        np.testing.assert_allclose(ours.matrix(name), expected.matrix(name), rtol=1e-7)
    assert {layer.compute_dtype for layer in models[0].layers} == {
        keras.DTypePolicy(policy).compute_dtype
    }


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_measured_in_float32_with_the_weights_it_holds(policy, data):
    x, y = data
    results = []
    for name in (policy, "float32"):
        keras.utils.set_random_seed(1)
        keras.config.set_dtype_policy(name)
        try:
            results.append(
                srel_tf.measure(
                    net(L.Conv2D(3, 3)), srel_tf.ProbeSet(x, y), learning_rate=0.1
                )
            )
        finally:
            keras.config.set_dtype_policy("float32")
    for name in ("kl", "l1"):
        np.testing.assert_array_equal(results[0].matrix(name), results[1].matrix(name))


class Casting(L.Layer):
    """A layer that computes in a fixed precision, whatever its dtype policy is."""

    def __init__(self, dtype):
        super().__init__()
        self.own = dtype

    def call(self, x):
        return keras.ops.cast(keras.ops.tanh(keras.ops.cast(x, self.own)), x.dtype)


def test_layers_that_compute_in_float32_by_themselves_are_refused_or_said(data):
    model, probe = net(L.Dense(4), Casting("float32")), srel_tf.ProbeSet(*data)
    for estimator in ("exact", "limit", "auto"):
        with pytest.raises(
            srel_tf.ModelError, match=r"casting.*lower precision than float64"
        ):
            srel_tf.measure(model, probe, estimator=estimator, precision="float64")
    with pytest.warns(
        UserWarning, match=r"limit is computed in float32: operation .*casting"
    ):
        assert set(limit(model, probe).matrices["l1"].method) == {"limit"}
    with pytest.warns(UserWarning, match=r"stay invalid: operation .*casting"):
        auto = srel_tf.measure(model, probe, learning_rate=1e-9, estimator="auto")
    assert not auto.valid("l1").all()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "limit", "auto"])
def test_half_precision_within_a_layer_is_refused(nested, estimator, data):
    layer = Casting("float16")
    model = net(L.Dense(4), keras.Sequential([layer]) if nested else layer)
    with pytest.raises(
        srel_tf.ModelError, match=r"casting.*lower precision than float32"
    ):
        srel_tf.measure(model, srel_tf.ProbeSet(*data), estimator=estimator)


def test_casts_that_no_weight_reaches_are_no_fault(data):
    model = net(Casting("float32"), L.Dense(4))
    result = srel_tf.measure(
        model, srel_tf.ProbeSet(*data), learning_rate=1e-7, precision="float64"
    )
    assert result.valid("l1").all()


class Mapped(L.Layer):
    """A layer with an operation that TensorFlow's forward mode does not support."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inner = kind, L.Dense(4, activation="tanh")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        if self.kind == "map_fn":
            return tf.map_fn(lambda row: self.inner(row[None])[0], x)
        return tf.ensure_shape(self.inner(tf.reshape(x, [-1, 64])), [None, 4])

    def compute_output_shape(self, shape):
        return (shape[0], 4)


@double
@pytest.mark.filterwarnings("ignore:.*forward-mode")
@pytest.mark.parametrize("kind", ["map_fn", "ensure_shape"])
def test_limit_of_what_forward_mode_cannot_differentiate(kind, data):
    penalty = {} if kind == "map_fn" else {"activity_regularizer": "l2"}
    model = net(L.Flatten(), Mapped(kind), L.Dense(4, **penalty))
    probe = srel_tf.ProbeSet(*data, sources=[0, 5], targets=[0, 4, 5, 9])
    exact = srel_tf.measure(model, probe, DEFINITIONS, learning_rate=1e-7)
    result = limit(model, probe)
    for name in DEFINITIONS:
        np.testing.assert_allclose(
            result.matrix(name), exact.matrix(name), rtol=1e-4, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore:.*forward-mode")
def test_a_fallback_leaves_the_variable_scope_of_tensorflow_alone(data):
    """If forward mode fails, `tf.map_fn` does not reset its caching device. Later `tf.distribute` scopes would fail."""
    model = net(L.Flatten(), Mapped("map_fn"), L.Dense(4))
    limit(model, srel_tf.ProbeSet(*data))
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert tf.Variable(1.0).numpy() == 1


class Masked(L.Layer):
    def call(self, x):
        return x * tf.cast(x > 0, tf.float32)


def squared(y, outputs):
    return tf.reduce_mean(tf.square(tf.cast(y, tf.float32)[:, None] - outputs), axis=-1)


@pytest.mark.parametrize("kind", ["layer", "loss"])
def test_numbers_in_float32_of_ones_own_are_said_and_measured_in_float32(kind, data):
    """TensorFlow cannot multiply float64 by float32, so that such a model does not run in float64 at all."""
    model = net(Masked()) if kind == "layer" else net(L.Dense(4), loss=squared)
    probe, measures = srel_tf.ProbeSet(*data), ("raw_l1",)
    with pytest.raises(srel_tf.ModelError, match=r"does not run in float64.*float32"):
        srel_tf.measure(model, probe, measures, precision="float64")
    with pytest.warns(UserWarning, match=r"limit is computed in float32.*float64"):
        result = limit(model, probe, measures=measures)
    assert set(result.matrices["raw_l1"].method) == {"limit"}
    with pytest.warns(UserWarning, match=r"stay invalid.*float64"):
        srel_tf.measure(model, probe, measures, learning_rate=1e-9, estimator="auto")


class Sampling(L.Layer):
    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


class Noisy(L.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x), dtype=x.dtype)


class Sorting(L.Layer):
    """A layer that draws classes."""

    def call(self, x):
        logits = tf.reshape(x, [-1, 2])
        drawn = keras.random.categorical(logits, 64, seed=2, dtype="int32")
        return x + tf.cast(tf.reduce_max(drawn), x.dtype)


class OfNumpy(L.Layer):
    """A layer that draws in NumPy, where TensorFlow cannot see it."""

    def call(self, x):
        drawn = tf.numpy_function(lambda: np.float32(np.random.normal()), [], "float32")
        return x + tf.cast(tf.ensure_shape(drawn, []), x.dtype)


DRAWING = {
    "keras": Sampling,
    "tensorflow": Noisy,
    "classes": Sorting,
    "dropout": lambda: L.Lambda(lambda x: tf.nn.dropout(x, 0.5)),
}


@pytest.mark.parametrize("estimator", ["exact", "limit", "auto"])
@pytest.mark.parametrize("kind", DRAWING)
def test_layers_that_draw_in_inference_mode_are_refused_by_name(kind, estimator, data):
    layer = DRAWING[kind]()
    with pytest.raises(srel_tf.ModelError, match=f"random numbers.*{layer.name}"):
        srel_tf.measure(
            net(layer, L.Dense(3)), srel_tf.ProbeSet(*data), estimator=estimator
        )


@pytest.mark.parametrize("sources", [None, [0]])
def test_draws_that_tensorflow_does_not_see_are_refused(sources, data):
    probe = srel_tf.ProbeSet(*data, sources=sources)
    with pytest.raises(srel_tf.ModelError, match="another prediction each time"):
        srel_tf.measure(net(OfNumpy(), L.Dense(3)), probe, estimator="exact")


class InNumpy(L.Layer):
    """A layer that only runs eagerly, and whose derivative TensorFlow cannot see."""

    def call(self, x):
        return x + keras.ops.convert_to_tensor(np.tanh(3 * np.asarray(x)), x.dtype)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Stopped(L.Layer):
    def call(self, x):
        return x + keras.ops.stop_gradient(keras.ops.tanh(3 * x))


@pytest.mark.filterwarnings("ignore:.*forward-mode")
@pytest.mark.parametrize(
    ("layer", "eager"), [(InNumpy, True), (Stopped, True), (Stopped, False)]
)
def test_a_derivative_that_does_not_see_all_is_refused_and_the_finite_step_is_not(
    layer, eager, data
):
    x, y = data
    model = net(L.Flatten(), L.Dense(4), layer(), run_eagerly=eager)
    probe = srel_tf.ProbeSet(x, y)
    with pytest.raises(srel_tf.ModelError, match="do not follow their derivative"):
        limit(model, probe)
    before = model(x, training=False).numpy()
    result = srel_tf.measure(model, probe, "raw_l1", learning_rate=0.1)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=None, y=y[:1], y_pred=model(x[:1], training=False))
    weights = model.get_weights()
    for v, g in zip(
        model.trainable_variables,
        tape.gradient(loss, model.trainable_variables),
        strict=True,
    ):
        v.assign_sub(0.1 * g)
    moved = np.abs(model(x, training=False).numpy() - before).sum(axis=1)
    model.set_weights(weights)
    np.testing.assert_allclose(result.matrix("raw_l1")[0], moved / moved[0], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*forward-mode")
@pytest.mark.parametrize("penalty", [None, pytest.param("l2", marks=pytest.mark.slow)])
def test_auto_takes_the_finite_step_where_the_function_is_not_differentiable(penalty):
    """Some units are at their kink, because the background and the bias are zero.

    Any step moves these units off their kink, so that the finite step is far from the limit. With a penalty on
    activities, the sources are measured one by one.
    """
    model = net(L.Conv2D(3, 3, activation="relu", activity_regularizer=penalty))
    x, y = digits(per_class=2)
    x[:, :, 6:] = 0
    probe = srel_tf.ProbeSet(x, y)
    result = srel_tf.measure(
        model, probe, DEFINITIONS, learning_rate=1e-7, estimator="auto"
    )
    expected = in_float64(model, probe, 1e-7)
    apart = np.abs(expected - limit(model, probe).matrix("l1"))
    assert (apart > 1e-3 * (1 + expected)).any()
    assert check_contract("l1", result, expected, True) == 1


def test_precision_is_checked(data):
    model, probe = net(L.Dense(2)), srel_tf.ProbeSet(*data)
    with pytest.raises(
        srel_tf.OptionError,
        match="unknown precision 'half': choose from auto, float32, float64",
    ):
        srel_tf.measure(model, probe, precision="half")
    with (
        double_precision(),
        pytest.raises(srel_tf.OptionError, match="weights are in float64"),
    ):
        srel_tf.measure(net(L.Dense(2)), probe, precision="float32")


def test_what_has_no_limit_is_refused(probe):
    model = classifier("mlp")
    for update in ("optimizer", "fresh_adam"):
        with pytest.raises(
            srel_tf.OptionError, match=f"update='{update}'.*estimator='exact'"
        ):
            srel_tf.measure(model, probe, update=update, estimator="limit")
    with pytest.raises(
        srel_tf.OptionError, match=r"published_kl.*use estimator='exact'"
    ):
        srel_tf.measure(
            model, probe, measures=("kl", "published_kl"), estimator="limit"
        )


@pytest.mark.parametrize(
    "update", ["optimizer", pytest.param("fresh_adam", marks=pytest.mark.slow)]
)
def test_auto_serves_every_rule_and_measure(update, mlp, data):
    names = ("kl", "published_l2")
    probe, settings = srel_tf.ProbeSet(*data), {"update": update, "learning_rate": 1e-9}
    auto = srel_tf.measure(mlp, probe, names, estimator="auto", **settings)
    double = srel_tf.measure(mlp, probe, names, precision="float64", **settings)
    assert set(auto.matrices["kl"].method) == {"finite_step_float64"}
    for name in names:
        np.testing.assert_array_equal(auto.matrix(name), double.matrix(name))
    assert auto.valid("kl").all()


# --- the contract ------------------------------------------------------------------------------------------------


def check_contract(name, result, expected, resolved):
    """Assert that all valid entries are within tolerance of `expected`, and return the share of valid entries.

    Entries of `expected` that are not `resolved` are not compared.
    """
    valid = result.valid(name) & resolved
    error = np.abs(result.matrix(name) - expected)[valid]
    assert (error <= MEASURES[name].tolerance * (1 + expected[valid])).all()
    return result.valid(name).mean()


@pytest.mark.parametrize(
    ("body", "softmax"),
    [("mlp", True), pytest.param("resnet", False, marks=pytest.mark.slow)],
)
def test_limit_and_auto_in_float32_keep_the_contract_at_every_stage(body, softmax):
    data = digits(4, per_class=10)
    probe, eta = srel_tf.ProbeSet.sample(*data, per_class=3), 1e-7

    def ready(model, estimator):
        return srel_tf.Instrument(
            model,
            probe,
            srel_tf.Settings(DEFINITIONS, learning_rate=eta, estimator=estimator),
        )

    singles = None
    for stage, model in stages(body, softmax, data):
        with double_precision():
            if singles is None:  # `model` is the same object at every stage.
                twin = reference.clone(model, "float64")
                doubles = [ready(twin, "limit"), ready(twin, "exact")]
            twin.set_weights(model.get_weights())
            there, exact = (instrument() for instrument in doubles)
        singles = singles or [ready(model, "limit"), ready(model, "auto")]
        single, auto = (instrument() for instrument in singles)
        for name in DEFINITIONS:
            assert there.valid(name).all()
            assert check_contract(name, single, there.matrix(name), True) > 0.97, (
                stage,
                name,
            )
            share = check_contract(name, auto, exact.matrix(name), exact.valid(name))
            assert share >= 0.99, (stage, name)


def saturated():
    """Return a model that ends in a sigmoid, with probabilities from 1e-7 to 1 − 1e-7."""
    inputs = keras.Input((2,))
    model = compiled(
        inputs,
        L.Dense(1, activation="sigmoid")(inputs),
        keras.losses.BinaryCrossentropy(),
    )
    model.set_weights([np.array([[1.0], [0.25]]), np.array([0.0])])
    return model


def sure_softmax(model_class=keras.Model):
    """Return a model that ends in a softmax under a squared loss, with probabilities up to 1 − 1e-6."""
    inputs = keras.Input((3,))
    model = compiled(
        inputs,
        L.Dense(3, activation="softmax")(inputs),
        keras.losses.MeanSquaredError(),
        model_class,
    )
    model.set_weights(
        [np.array([[1, 0, 0], [0.3, -0.2, 0.1], [-0.1, 0.4, 0.2]]), np.zeros(3)]
    )
    return model


class SourceBySource(keras.Model):
    """A model that computes its loss itself, so that its limit is taken source by source."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return self.loss(y, y_pred)


@pytest.mark.filterwarnings("ignore:.*forward-mode")
@pytest.mark.parametrize("model_class", [keras.Model, SourceBySource])
def test_limit_of_a_sure_softmax_keeps_the_contract_under_any_loss(model_class):
    rng = np.random.default_rng(0)
    x = np.stack([np.linspace(-14, 14, 12), *rng.normal(size=(2, 12))], axis=1).astype(
        "float32"
    )
    probe = srel_tf.ProbeSet(x, np.eye(3)[np.arange(12) % 3])
    single = limit(sure_softmax(model_class), probe)
    with double_precision():
        double = limit(sure_softmax(model_class), probe)
    least = (
        0.9 if model_class is keras.Model else 0.2
    )  # Source by source, the digits of 1 − p are lost, and the rows that need them are not valid.
    for name in DEFINITIONS:
        assert (
            check_contract(name, single, double.matrix(name), double.valid(name))
            > least
        )


@pytest.mark.filterwarnings(
    "ignore:the update of .* changes nothing"
)  # Some gradients are exactly zero.
@pytest.mark.filterwarnings("ignore:model .*forward-mode")
@pytest.mark.parametrize(
    ("estimator", "own"),
    each_of_both(["exact", "limit", "auto"], [keras.losses.mean_absolute_error, None]),
)
def test_a_gradient_that_is_zero_but_for_rounding_is_no_gradient(estimator, own):
    """The loss is the mean absolute error to targets of zero. It is constant, because the probabilities sum to one."""
    inputs = keras.Input((3,))
    model = compiled(
        inputs,
        L.Dense(3, activation="softmax")(inputs),
        keras.losses.MeanAbsoluteError(),
    )
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    probe = srel_tf.ProbeSet(x, np.zeros((6, 3)))
    result = srel_tf.measure(
        model, probe, DEFINITIONS, learning_rate=0.1, estimator=estimator, loss=own
    )
    for name in DEFINITIONS:
        assert not result.valid(name).any()


def test_limit_of_a_sure_sigmoid_keeps_the_contract():
    """If f is close to one, float32 has lost the digits of 1 − f, on which df depends."""
    x = np.stack([np.linspace(-16, 16, 12), np.arange(12) % 5], axis=1).astype(
        "float32"
    )
    probe = srel_tf.ProbeSet(x, (x[:, 0] > 3).astype("int64"))
    single = limit(saturated(), probe, measures="l1")
    with double_precision():
        double = limit(saturated(), probe, measures="l1")
    assert check_contract("l1", single, double.matrix("l1"), double.valid("l1")) > 0.9


@double
@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
def test_limit_of_raw_outputs_is_what_exact_tends_to(softmax, probe):
    """The gap between exact and limit shrinks in proportion to η. For raw logits, a common shift counts, too."""
    model, names = classifier("mlp", softmax=softmax), ("l1", "raw_l1", "raw_l2")
    at_zero = limit(model, probe, measures=names)
    steps = [
        srel_tf.measure(model, probe, names, learning_rate=eta) for eta in (1e-4, 1e-5)
    ]
    for name in names:
        gaps = [
            np.abs(step.matrix(name) - at_zero.matrix(name)).max() for step in steps
        ]
        assert gaps[0] < 1e-2, name
        assert gaps[1] < 0.15 * gaps[0], name
    assert (
        np.abs(at_zero.matrix("raw_l1") - at_zero.matrix("l1")).max() < 1e-9
    ) == softmax
