"""Faults while measuring: they affect only their own rows and columns, and there is a warning or an error."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf import ChunkError
from srel_tf.engines.finite_step import FiniteStepEngine
from srel_tf.engines.first_order import FirstOrderEngine
from srel_tf.engines.forward_mode import ForwardModeEngine
from tests.nets import double_precision

SPARSE = keras.losses.SparseCategoricalCrossentropy
BAD = 3  # The source whose gradient is not finite.
FINITE_ELSEWHERE = [i for i in range(6) if i != BAD]


@tf.custom_gradient
def broken_backwards(x, value):
    """Return x. The gradient of an example whose first feature is above 9 is `value`."""

    def gradient(upstream):
        bad = tf.reshape(x, [tf.shape(x)[0], -1])[:, :1] > 9
        return tf.where(bad, tf.cast(value, upstream.dtype), upstream), None

    return x, gradient


class BrokenBackwards(keras.layers.Layer):
    def __init__(self, value, **kwargs):
        super().__init__(**kwargs)
        self._value = value

    def call(self, x):
        # The first feature is part of every input, so that the layer recognizes the bad example.
        return tf.concat(
            [
                broken_backwards(x[:, :1], self._value),
                broken_backwards(x, self._value)[:, 1:],
            ],
            axis=1,
        )


def examples():
    x = np.random.default_rng(0).normal(size=(6, 5))
    x[BAD, 0] = 9.5
    return x, np.arange(6) % 3


def net(value, softmax=False):
    """Make a net with a layer that breaks the gradient of the bad example."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(8, "tanh", name="hidden")(inputs)
    hidden = keras.layers.Concatenate()([inputs[:, :1], hidden])
    hidden = BrokenBackwards(value)(hidden)
    outputs = keras.layers.Dense(3, "softmax" if softmax else None)(hidden)
    model = srel_tf.SRelModel(inputs, outputs)
    model.compile("adam", SPARSE(from_logits=not softmax))
    return model


@pytest.mark.parametrize(
    ("value", "update", "softmax"),
    [
        (np.inf, "sgd", False),
        (np.nan, "optimizer", True),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                (np.nan, "sgd", True),
                (np.inf, "optimizer", False),
                (np.inf, "fresh_adam", False),
            )
        ),
    ],
)
def test_a_gradient_that_is_no_number_breaks_its_own_row_alone(value, update, softmax):
    x, y = examples()
    with double_precision():
        model, sound = net(value, softmax), net(0.0, softmax)
        sound.set_weights(model.get_weights())
        ids = [f"image-{i}" for i in range(6)]
        with pytest.warns(
            UserWarning, match=r"1 of 6 sources \(ids 'image-3'\) have a NaN"
        ):
            result = srel_tf.measure(
                model,
                srel_tf.ProbeSet(x, y, ids=ids),
                update=update,
                learning_rate=0.01,
            )
        expected = srel_tf.measure(
            sound,
            srel_tf.ProbeSet(x, y, sources=FINITE_ELSEWHERE),
            update=update,
            learning_rate=0.01,
        )
    for measure in ("kl", "l1"):
        assert np.isnan(result.matrix(measure)[BAD]).all()
        assert not result.valid(measure)[BAD].any()
        np.testing.assert_allclose(
            result.matrix(measure)[FINITE_ELSEWHERE],
            expected.matrix(measure),
            rtol=1e-9,
        )
        assert expected.valid(measure).all()


def test_a_prediction_that_is_no_number_breaks_its_own_column_alone():
    """The outputs of the other examples are still read as probabilities."""
    x, y = examples()
    x[BAD] = 1e308
    with double_precision():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(8, "relu")(keras.layers.Rescaling(1e5)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model.compile("sgd", SPARSE())
        saturated = pytest.warns(
            UserWarning, match="changes nothing: the gradient is zero"
        )
        with (
            pytest.warns(UserWarning, match="1 of 6 sources .* have a NaN"),
            pytest.warns(UserWarning, match="1 of 6 targets"),
            saturated,
        ):
            result = srel_tf.measure(model, srel_tf.ProbeSet(x, y), learning_rate=1e-12)
        good = srel_tf.ProbeSet(x[FINITE_ELSEWHERE], y[FINITE_ELSEWHERE])
        with saturated:
            expected = srel_tf.measure(model, good, learning_rate=1e-12)
    for measure in ("kl", "l1"):
        assert not result.valid(measure)[:, BAD].any()
        others = np.ix_(FINITE_ELSEWHERE, FINITE_ELSEWHERE)
        np.testing.assert_allclose(
            result.matrix(measure)[others], expected.matrix(measure), rtol=1e-9
        )


class Poisoned(keras.layers.Layer):
    """Returns x, or NaN for an example whose first pixel is above 9."""

    def call(self, x):
        return x + tf.where(
            x[:, :1, :1, :1] > 9, tf.constant(np.nan, x.dtype), tf.zeros([], x.dtype)
        )


def convolutional():
    """Make a net with convolution, pooling and normalization after `Poisoned`. It has no ReLU: ReLU can hide a NaN."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(4, 3, padding="same")(Poisoned()(inputs))
    x = keras.layers.AveragePooling2D(2)(
        keras.activations.tanh(keras.layers.GroupNormalization(2)(x))
    )
    model = keras.Model(
        inputs,
        keras.layers.Dense(3)(
            keras.layers.LayerNormalization()(keras.layers.Flatten()(x))
        ),
    )
    model.compile("adam", SPARSE(from_logits=True))
    return model


@pytest.mark.parametrize(
    ("estimator", "update"),
    [
        ("exact", "optimizer"),
        ("limit", "sgd"),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (("exact", "sgd"), ("exact", "fresh_adam"), ("auto", "sgd"))
        ),
    ],
)
def test_an_example_that_is_no_number_breaks_its_own_row_and_column_alone(
    estimator, update, in_double_precision
):
    """The bad example has index 1. It is a source and a target, and also among the first examples of the probe."""
    x, y = np.random.default_rng(0).normal(size=(6, 4, 4, 2)), np.arange(6) % 3
    x[1, 0, 0, 0] = 10
    sources, targets = np.array([0, 1, 2]), np.array([0, 1, 3, 4])
    model, options = (
        convolutional(),
        {"update": update, "learning_rate": 0.01, "estimator": estimator},
    )
    with (
        pytest.warns(UserWarning, match=r"1 of 3 sources \(ids 1\) have a NaN"),
        pytest.warns(UserWarning, match=r"1 of 4 targets \(ids 1\) have a NaN"),
    ):
        result = srel_tf.measure(
            model, srel_tf.ProbeSet(x, y, sources=sources, targets=targets), **options
        )
    sound = srel_tf.ProbeSet(
        x, y, sources=sources[sources != 1], targets=targets[targets != 1]
    )
    expected = srel_tf.measure(model, sound, **options)
    for measure in ("kl", "l1"):
        others = np.ix_(sources != 1, targets != 1)
        assert expected.valid(measure).all()
        np.testing.assert_allclose(
            result.matrix(measure)[others], expected.matrix(measure), rtol=1e-9
        )
        assert result.valid(measure).sum() == expected.valid(measure).size


@pytest.fixture
def memory_for(monkeypatch):
    """Function memory_for(n): batch sizes above n then run out of memory. It returns the list of batch sizes tried."""

    def limit(chunk):
        tried = []
        for engine in (FiniteStepEngine, FirstOrderEngine, ForwardModeEngine):

            def limited(self, *arguments, run=engine.__call__):
                tried.append(self._batch_size)
                if self._batch_size > chunk:
                    raise tf.errors.ResourceExhaustedError(
                        None, None, "OOM when allocating tensor"
                    )
                return run(self, *arguments)

            monkeypatch.setattr(engine, "__call__", limited)
        return tried

    yield limit
    monkeypatch.undo()


def probed_net(**options):
    x, y = examples()
    model = net(0.0)
    model.attach_probe(srel_tf.ProbeSet(x, y), every=2, **options)
    return model


def fit(model, **options):
    x, y = examples()
    return model.fit(x, y, batch_size=2, verbose=0, shuffle=False, **options)


def test_memory_that_runs_out_in_fit_reduces_the_chunk_for_good(
    memory_for, in_double_precision
):
    """The test uses float64, so that chunks of different sizes agree up to a small rounding error."""
    expected = probed_net(estimator="limit")
    fit(expected, epochs=2)
    model, tried = probed_net(estimator="limit"), memory_for(2)
    with pytest.warns(
        UserWarning, match=r"batch_size=128: from now on batch_size is 1,"
    ) as said:
        fit(model, epochs=2)
    assert len([w for w in said if "out of memory" in str(w.message)]) == 1
    assert tried == [
        128,
        3,
        1,
        1,
        1,
        1,
    ]  # There are 6 targets: the size is halved to 3 and to 1, and then stays.
    frame = model.srel_frame()
    assert frame["step"].unique().tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(frame["srel"], expected.srel_frame()["srel"], rtol=1e-9)
    fit(model)
    assert tried[6:] == [1]


def test_a_resumed_fit_begins_with_the_reduced_chunk(
    memory_for, in_double_precision, tmp_path
):
    memory_for(3)
    with srel_tf.FrameStore(tmp_path, write=True) as store:
        with pytest.warns(UserWarning, match="out of memory"):
            fit(probed_net(estimator="limit"), callbacks=[srel_tf.Checkpoint(store)])
        model, checkpoint = probed_net(estimator="limit"), srel_tf.Checkpoint(store)
        checkpoint.restore(model)
        tried = memory_for(3)
        fit(model, initial_epoch=1, epochs=2, callbacks=[checkpoint])
        assert tried == [3, 3]


@pytest.mark.parametrize("estimator", ["limit", "auto"])  # Auto is exact, too.
def test_memory_that_runs_out_in_measure_reduces_the_chunk(
    estimator, memory_for, in_double_precision
):
    x, y = examples()
    model, probe = (
        net(0.0),
        srel_tf.ProbeSet(x, y, sources=[0, 1, 2], targets=[2, 3, 4, 5]),
    )
    expected = srel_tf.measure(model, probe, learning_rate=0.01, estimator=estimator)
    tried = memory_for(3)
    instrument = srel_tf.Instrument(
        model, probe, srel_tf.Settings(learning_rate=0.01, estimator=estimator)
    )
    with pytest.warns(UserWarning, match="from now on batch_size is 3,"):
        result = instrument()
    np.testing.assert_allclose(result.matrix("kl"), expected.matrix("kl"), rtol=1e-9)
    assert instrument.settings.batch_size == 3
    instrument()
    assert tried[0] == 128
    assert set(tried[1:]) == {3}


def test_memory_that_does_not_hold_one_example_is_a_named_error(memory_for):
    memory_for(0)
    with pytest.raises(
        ChunkError, match=r"even with batch_size=1.*fewer than 6 sources x 6 targets"
    ):
        fit(probed_net())
