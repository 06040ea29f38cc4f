"""All kinds of models, losses and labels that Keras users have, and those that are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from tests import reference
from tests.nets import classifier, digits

SPARSE = keras.losses.SparseCategoricalCrossentropy


@pytest.fixture(scope="module")
def data():
    return digits(per_class=4)


@pytest.fixture
def probe(data):
    return srel_tf.ProbeSet(*data, sources=[0, 5, 7], targets=[5, 1, 2, 9])


def matrix(model, probe, **kwargs):
    return srel_tf.measure(
        model, probe, measures="kl", learning_rate=0.1, **kwargs
    ).matrix("kl")


def sparse_on_logits(y, logits):
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


def test_logits_and_softmax_models_agree(probe):
    logits, softmax = (classifier("cnn", softmax=s) for s in (False, True))
    a, b = (
        srel_tf.measure(m, probe, measures=("kl", "l1", "l2"), learning_rate=0.1)
        for m in (logits, softmax)
    )
    for measure in ("kl", "l1", "l2"):
        np.testing.assert_allclose(a.matrix(measure), b.matrix(measure), rtol=1e-3)
        assert a.valid(measure).all()
        assert b.valid(measure).all()


def test_string_object_and_callable_losses_agree(probe):
    on_logits = [
        classifier("mlp", loss=loss)
        for loss in (SPARSE(from_logits=True), sparse_on_logits)
    ]
    on_softmax = [
        classifier("mlp", softmax=True, loss=loss)
        for loss in (
            "sparse_categorical_crossentropy",
            SPARSE(),
            keras.losses.sparse_categorical_crossentropy,
        )
    ]
    expected = matrix(on_logits[0], probe)
    for model in [*on_logits[1:], *on_softmax]:
        np.testing.assert_allclose(matrix(model, probe), expected, rtol=1e-3)


def test_one_hot_labels_agree_with_integers(data, probe):
    x, y = data
    one_hot = srel_tf.ProbeSet(
        x, np.eye(3, dtype="float32")[y], sources=probe.sources, targets=probe.targets
    )
    model = classifier(
        "mlp", loss=keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    np.testing.assert_allclose(
        matrix(model, one_hot), matrix(classifier("mlp"), probe), rtol=1e-4
    )
    assert one_hot.classes.tolist() == probe.classes.tolist()


class Subclassed(srel_tf.SRelMixin, keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.out = keras.layers.Dense(3)

    def call(self, x):  # No `training` argument.
        return self.out(self.hidden(self.flatten(x)))


def sequential():
    return srel_tf.SRelSequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(3),
        ]
    )


def functional():
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(inputs))
    return srel_tf.SRelModel(inputs, keras.layers.Dense(3)(hidden))


@pytest.mark.parametrize(
    ("make", "eagerly"),
    [
        *((make, False) for make in (Subclassed, sequential, functional)),
        (
            functional,
            True,
        ),  # No layer is observed then, whatever the kind of the model is.
        *(
            pytest.param(make, True, marks=pytest.mark.slow)
            for make in (Subclassed, sequential)
        ),
    ],
)
def test_kinds_of_models_measure_the_same_inside_fit(make, eagerly, data, probe):
    x, y = data
    keras.utils.set_random_seed(5)
    model = make()
    model.compile("sgd", SPARSE(from_logits=True), run_eagerly=eagerly)
    model.attach_probe(
        probe, every=1, measures=("kl",), learning_rate=0.1
    )  # This also builds the model if it is not built.
    model.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    inside = model.srel_frame()
    assert inside["step"].unique().tolist() == [0, 1, 2]
    last = inside.loc[inside["step"] == 2, "srel"].to_numpy().reshape(3, 4)
    np.testing.assert_array_equal(last, matrix(model, probe))
    twin = functional()
    twin.compile("sgd", SPARSE(from_logits=True))
    twin.set_weights(model.get_weights())
    expected = reference.srel(
        twin, *data, probe.sources, probe.targets, 0.1, reference.kl
    )
    np.testing.assert_allclose(last, expected, rtol=2e-3)


@pytest.mark.parametrize("estimator", ["exact", "limit"])
def test_whole_numbers_into_a_dense_layer(estimator, data):
    x = np.round(16 * data[0]).astype("uint8")
    keras.utils.set_random_seed(5)
    model = Subclassed()
    model(x[:1])
    model.compile("sgd", SPARSE(from_logits=True))
    whole, real = (
        srel_tf.measure(
            model,
            srel_tf.ProbeSet(a, data[1]),
            "l1",
            learning_rate=1e-3,
            estimator=estimator,
        )
        for a in (x, x.astype("float32"))
    )
    np.testing.assert_allclose(whole.matrix("l1"), real.matrix("l1"), rtol=1e-5)


def test_a_loaded_model_is_measured_without_fit(probe, tmp_path):
    model = functional()
    model.compile("adam", SPARSE(from_logits=True))
    model.attach_probe(probe, every=1)  # A probe is not saved with the model.
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, srel_tf.SRelModel)
    assert loaded.srel_frame().empty
    np.testing.assert_array_equal(matrix(loaded, probe), matrix(model, probe))


def test_batch_norm_is_measured_in_inference_mode_with_one_warning(data, probe):
    x, y = data
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(3)(
        keras.layers.BatchNormalization()(keras.layers.Flatten()(inputs))
    )
    model = keras.Model(inputs, outputs)
    model.compile("sgd", SPARSE(from_logits=True))
    model.fit(x, y, verbose=0)
    with pytest.warns(
        UserWarning, match="batch normalisation.*inference mode"
    ) as caught:
        result = matrix(model, probe)
    assert len([w for w in caught if "batch normalisation" in str(w.message)]) == 1
    expected = reference.srel(
        model, *data, probe.sources, probe.targets, 0.1, reference.kl
    )
    np.testing.assert_allclose(result, expected, rtol=2e-3)


def test_frozen_layers_are_not_updated(data, probe):
    model = classifier("mlp")
    model.layers[-2].trainable = False
    model.compile("sgd", SPARSE(from_logits=True))
    frozen = matrix(model, probe)
    expected = reference.srel(
        model, *data, probe.sources, probe.targets, 0.1, reference.kl
    )
    np.testing.assert_allclose(frozen, expected, rtol=2e-3)


def test_a_custom_compute_loss_is_the_loss(data, probe):
    class Scaled(srel_tf.SRelModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return 10 * keras.ops.mean(sparse_on_logits(y, y_pred))

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    scaled, plain = Scaled(inputs, outputs), keras.Model(inputs, outputs)
    scaled.compile("sgd")
    plain.compile("sgd", SPARSE(from_logits=True))
    a = srel_tf.measure(scaled, probe, measures="kl", learning_rate=0.01).matrix("kl")
    np.testing.assert_allclose(a, matrix(plain, probe), rtol=1e-3)


def test_scalar_regression_and_a_model_that_returns_a_vector(data):
    x, _ = data
    y = x.sum((1, 2, 3))
    inputs = keras.Input((8, 8, 1))
    column = keras.layers.Dense(1)(keras.layers.Flatten()(inputs))
    flat = keras.layers.Reshape(())(column)
    results = []
    for outputs in (column, flat):
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse")
        results.append(
            srel_tf.measure(
                model, srel_tf.ProbeSet(x, y), measures=("l1", "l2"), learning_rate=1e-4
            )
        )
    np.testing.assert_array_equal(results[0].matrix("l1"), results[0].matrix("l2"))
    np.testing.assert_allclose(
        results[0].matrix("l1"), results[1].matrix("l1"), rtol=1e-6
    )
    assert set(results[0].to_frame()["source_class"]) == {""}


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size"])
def test_an_activity_penalty_beside_a_sum_over_the_batch(reduction):
    """The loss of a batch is not the sum of its examples' losses here. Only the losses of single examples count."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(
        8, activation="tanh", activity_regularizer=keras.regularizers.L2(0.1)
    )
    model = keras.Sequential([keras.Input((5,)), hidden, keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction))
    result = srel_tf.measure(
        model, srel_tf.ProbeSet(x, y), measures=("l1", "l2"), learning_rate=0.01
    )
    distances = {"l1": reference.raw_norm(1), "l2": reference.raw_norm(2)}
    expected = reference.srels(model, x, y, range(12), range(12), 0.01, distances)
    for measure in ("l1", "l2"):
        ratios = result.numerator(measure) / result.denominator(measure)[:, None]
        np.testing.assert_allclose(ratios, expected[measure], rtol=1e-9)
        assert result.valid(measure).all()


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, srel_tf.SRelError)


def test_models_that_are_not_ready_are_refused(probe):
    model = sequential()
    refused(srel_tf.ModelError, "not built", lambda: matrix(model, probe))
    refused(srel_tf.ModelError, "not compiled", lambda: matrix(functional(), probe))
    refused(
        srel_tf.ModelError,
        "expected a keras.Model, got str",
        lambda: matrix("net", probe),
    )
    frozen = classifier("mlp")
    frozen.trainable = False
    refused(srel_tf.ModelError, "no trainable weights", lambda: matrix(frozen, probe))


def test_models_that_are_not_supported_are_refused(data, probe):
    inputs = keras.Input((8, 8, 1))
    one = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    two = keras.Model(
        inputs, [one, keras.layers.Dense(3)(keras.layers.Flatten()(inputs))]
    )
    two.compile("sgd", [SPARSE(from_logits=True)] * 2)
    refused(srel_tf.ModelError, "one output", lambda: matrix(two, probe))
    image = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    image.compile("sgd", "mse")
    refused(srel_tf.ModelError, "one output of shape", lambda: matrix(image, probe))
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        distributed = classifier("mlp")
    refused(srel_tf.ModelError, "strategy", lambda: matrix(distributed, probe))


def test_options_that_do_not_exist_are_refused_with_the_choices(probe):
    model = classifier("mlp")
    for option, value in {
        "measures": ("kl", "js"),
        "update": "lbfgs",
        "estimator": "magic",
        "predictions": "hard",
        "learning_rate": -1.0,
        "batch_size": 0,
    }.items():
        expected = "js" if option == "measures" else str(value)
        refused(
            srel_tf.OptionError,
            expected,
            lambda o=option, v=value: srel_tf.measure(model, probe, **{o: v}),
        )
    refused(
        srel_tf.OptionError,
        "none twice",
        lambda: srel_tf.measure(model, probe, measures=("kl", "kl")),
    )
    refused(
        srel_tf.OptionError,
        "none twice",
        lambda: srel_tf.measure(model, probe, measures=()),
    )
    for options in (
        *({"measures": value} for value in (None, 3, [["kl"]], {"kl": 1}.values())),
        *(
            {name: ["sgd"]}
            for name in (
                "update",
                "estimator",
                "predictions",
                "learning_rate",
                "batch_size",
            )
        ),
        *(
            {"learning_rate": value}
            for value in (True, "1", 1j, np.complex64(1), np.nan)
        ),
        *({"batch_size": value} for value in (True, 1.0, None, "2")),
    ):
        refused(
            srel_tf.OptionError,
            "choose from|give a positive",
            lambda o=options: srel_tf.measure(model, probe, **o),
        )
    refused(
        srel_tf.OptionError,
        "expected srel_tf.Settings",
        lambda: srel_tf.Instrument(model, probe, {}),
    )
    refused(
        srel_tf.OptionError,
        "choose from kl, l1",
        lambda: srel_tf.measure(model, probe, measures="KL"),
    )
    result = srel_tf.measure(model, probe, measures="kl")
    refused(srel_tf.OptionError, "'l1' was not measured", lambda: result.matrix("l1"))


def test_measures_of_probabilities_need_probabilities(data, probe):
    model = classifier("mlp")
    refused(
        srel_tf.OptionError,
        "probability",
        lambda: srel_tf.measure(model, probe, predictions="raw"),
    )
    unnormalised = classifier(
        "mlp", loss=SPARSE(from_logits=False)
    )  # The model returns logits, but the loss takes probabilities.
    refused(srel_tf.ModelError, "from_logits", lambda: matrix(unnormalised, probe))
    x, y = data
    refused(
        srel_tf.ProbeError,
        "label 2 of example",
        lambda: matrix(classifier("mlp", 2), srel_tf.ProbeSet(x, y)),
    )


def test_probes_that_do_not_fit_the_model_are_refused(data, probe):
    x, y = data
    one_hot = srel_tf.ProbeSet(x, np.eye(3)[y])
    refused(
        srel_tf.ProbeError,
        "needs class indices",
        lambda: matrix(classifier("mlp"), one_hot),
    )
    model = classifier(
        "mlp", loss=keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    refused(srel_tf.ProbeError, "needs one-hot rows", lambda: matrix(model, probe))
    narrow = srel_tf.ProbeSet(x[:, :4], y)
    refused(
        srel_tf.ProbeError,
        r"examples of shape \(4, 8, 1\)",
        lambda: matrix(classifier("mlp"), narrow),
    )


def test_another_backend_is_refused(probe, monkeypatch):
    model = classifier("mlp")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    refused(
        srel_tf.BackendError, "KERAS_BACKEND=tensorflow", lambda: matrix(model, probe)
    )
