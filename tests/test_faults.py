"""Faults while measuring: they stay where they are, are named, and cost nothing that was measured."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf import ChunkError
from srel_tf.exact import FiniteStep
from tests.nets import double_precision

SPARSE = keras.losses.SparseCategoricalCrossentropy
BAD = 3  # the source whose gradient is not a number
FINITE_ELSEWHERE = [i for i in range(6) if i != BAD]


@tf.custom_gradient
def broken_backwards(x, value):
    """The identity; the gradient of an example whose first feature is above 9 is `value`."""

    def gradient(upstream):
        bad = tf.reshape(x, [tf.shape(x)[0], -1])[:, :1] > 9
        return tf.where(bad, tf.cast(value, upstream.dtype), upstream), None

    return x, gradient


class BrokenBackwards(keras.layers.Layer):
    def __init__(self, value, **kwargs):
        super().__init__(**kwargs)
        self._value = value

    def call(self, x):
        # The first feature is passed on, so that the layer knows its example.
        return tf.concat([broken_backwards(x[:, :1], self._value), broken_backwards(x, self._value)[:, 1:]], axis=1)


def examples():
    x = np.random.default_rng(0).normal(size=(6, 5))
    x[BAD, 0] = 9.5
    return x, np.arange(6) % 3


def net(value, softmax=False):
    """Dense layers behind one that breaks the gradient of the bad example; the first feature reaches no weight."""
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
    [(np.nan, "sgd", True), (np.inf, "sgd", False), (np.nan, "optimizer", False), (np.inf, "fresh_adam", False)],
)
def test_a_gradient_that_is_no_number_breaks_its_own_row_alone(value, update, softmax):
    x, y = examples()
    with double_precision():
        model, sound = net(value, softmax), net(0.0, softmax)
        sound.set_weights(model.get_weights())
        ids = [f"image-{i}" for i in range(6)]
        with pytest.warns(UserWarning, match=r"1 of 6 sources \(ids 'image-3'\) have a NaN"):
            result = srel_tf.measure(model, srel_tf.ProbeSet(x, y, ids=ids), update=update, learning_rate=0.01)
        expected = srel_tf.measure(
            sound, srel_tf.ProbeSet(x, y, sources=FINITE_ELSEWHERE), update=update, learning_rate=0.01
        )
    for measure in ("kl", "l1"):
        assert np.isnan(result.matrix(measure)[BAD]).all()
        assert not result.valid(measure)[BAD].any()
        np.testing.assert_allclose(result.matrix(measure)[FINITE_ELSEWHERE], expected.matrix(measure), rtol=1e-9)
        assert expected.valid(measure).all()


def test_a_prediction_that_is_no_number_breaks_its_own_column_alone():
    """Nor does it change how the outputs of the others are read: as probabilities."""
    x, y = examples()
    x[BAD] = 1e308
    with double_precision():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(8, "relu")(keras.layers.Rescaling(1e5)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model.compile("sgd", SPARSE())
        with pytest.warns(UserWarning, match="1 of 6 sources"):
            result = srel_tf.measure(model, srel_tf.ProbeSet(x, y), learning_rate=1e-12)
        good = srel_tf.ProbeSet(x[FINITE_ELSEWHERE], y[FINITE_ELSEWHERE])
        expected = srel_tf.measure(model, good, learning_rate=1e-12)
    for measure in ("kl", "l1"):
        assert not result.valid(measure)[:, BAD].any()
        others = np.ix_(FINITE_ELSEWHERE, FINITE_ELSEWHERE)
        np.testing.assert_allclose(result.matrix(measure)[others], expected.matrix(measure), rtol=1e-9)


def fit_with_memory_for(chunk, monkeypatch, batch_size=128):
    """A fit in which chunks larger than `chunk` do not fit: the sizes that were tried, and the frame."""
    tried, run = [], FiniteStep.__call__

    def limited(self, *arguments):
        tried.append(self._batch_size)
        if self._batch_size > chunk:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return run(self, *arguments)

    monkeypatch.setattr(FiniteStep, "__call__", limited)
    x, y = examples()
    with double_precision():  # In which chunks of other sizes round alike, but for the last places.
        model = net(0.0)
        model.attach_probe(srel_tf.ProbeSet(x, y), every=2, batch_size=batch_size)
        model.fit(x, y, batch_size=2, epochs=2, verbose=0, shuffle=False)
    return tried, model.srel_frame()


def test_memory_that_runs_out_reduces_the_chunk(monkeypatch):
    with pytest.warns(UserWarning, match=r"set attach_probe\(batch_size=[13]\)"):
        tried, frame = fit_with_memory_for(2, monkeypatch)
    assert tried == [128, 3, 1, 1, 1, 1]  # 6 targets: half of them, and so on; then it stays
    assert frame["step"].unique().tolist() == [0, 2, 4, 6]
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, plenty = fit_with_memory_for(128, monkeypatch)
    np.testing.assert_allclose(frame["srel"], plenty["srel"], rtol=1e-9)


def test_memory_that_does_not_hold_one_example_is_a_named_error(monkeypatch):
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(ChunkError, match="even with batch_size=1"):
        fit_with_memory_for(0, monkeypatch)
