"""Trainings that go back to an earlier state: rows of later steps are dropped, and steps and epochs go back."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import srel_tf
from srel_tf import StorageError
from tests.fit.conftest import Thermometer

pytestmark = pytest.mark.usefixtures("thermometer")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(28, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 28)
STEPS = 7  # Steps per epoch.
PROBE = srel_tf.ProbeSet(X[:4], Y[:4])


def net(every=1, **optimizer):
    keras.utils.set_random_seed(3)
    model = srel_tf.SRelSequential(
        [keras.Input((5,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.5, **optimizer), loss, jit_compile=False
    )
    model.attach_probe(PROBE, every=every)
    return model


def known():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def unknown():
    """Return the data of `known` without a known length. Then Keras counts one update too many in each epoch."""
    return known().filter(lambda x, y: True)


def fit(model, data_of=known, epochs=3, callbacks=(), **options):
    model.fit(data_of(), epochs=epochs, verbose=0, callbacks=list(callbacks), **options)


class Act(keras.callbacks.Callback):
    """Calls act(model) once, after `batch` batches of `epoch`. This call may raise."""

    def __init__(self, epoch, batch, act):
        super().__init__()
        self._at, self._act, self._epoch = (epoch, batch - 1), act, None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            self._at = None
            self._act(self.model)


def interrupt(model):
    raise KeyboardInterrupt


class State:
    """Saves and loads the variables of a model and its optimizer."""

    def save(self, model):
        self.values = [
            v.numpy() for v in [*model.variables, *model.optimizer.variables]
        ]

    def load(self, model):
        for v, value in zip(
            [*model.variables, *model.optimizer.variables], self.values, strict=True
        ):
            v.assign(value)


def epochs_of(model):
    by_step = model.srel_frame().groupby("step")["epoch"].agg(["min", "max", "size"])
    assert (by_step["size"] == 2 * 16).all()
    assert by_step["min"].equals(by_step["max"])
    return by_step["min"].to_dict()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("data_of", [known, unknown])
@pytest.mark.parametrize("accumulated", [None, 3])
def test_backup_and_restore(data_of, accumulated, tmp_path):
    """Keras's callback goes back to the end of an epoch. The frame then equals that of an uninterrupted training."""
    whole = net(gradient_accumulation_steps=accumulated)
    fit(whole, data_of)
    model = net(gradient_accumulation_steps=accumulated)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data_of, callbacks=[backup, Act(1, 5, interrupt)])
    assert model.srel_frame()["step"].max() == (3 if accumulated else 11)
    fit(model, data_of, callbacks=[backup])
    assert model.srel_frame()["step"].max() == 3 * STEPS // (accumulated or 1)
    pd.testing.assert_frame_equal(
        model.srel_frame(), whole.srel_frame(), check_exact=True
    )


def test_backup_within_an_epoch(tmp_path):
    """Keras repeats the epoch from its first batch. The column `epoch` continues from the restored state."""
    model = net()
    backup = keras.callbacks.BackupAndRestore(
        tmp_path, save_freq=3
    )  # Save after 3, 6, 9, ... batches.
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[backup, Act(1, 4, interrupt)])
    assert epochs_of(model) == pytest.approx({n: n / STEPS for n in range(11)})
    fit(model, epochs=2, callbacks=[backup])
    assert epochs_of(model) == pytest.approx(
        {n: n / STEPS for n in range(9 + STEPS + 1)}
    )


@pytest.mark.parametrize("between", [True, False])
def test_a_state_that_is_loaded_back(between):
    """A state is loaded between two fits, or by a callback within a fit. Its own step is measured again, too."""
    model, state = net(every=2), State()
    save, load = Act(0, 4, state.save), Act(1, 3, state.load)
    if between:
        fit(model, epochs=2, callbacks=[save])
        state.load(model)
        fit(model, epochs=1)
        last = 4 + STEPS
    else:
        fit(model, epochs=2, callbacks=[save, load])
        last = 4 + STEPS - 3
    steps = [n for n in range(last + 1) if n % 2 == 0]
    assert epochs_of(model) == pytest.approx({n: n / STEPS for n in steps})
    expected = Thermometer(model, PROBE, srel_tf.Settings())().to_frame()
    fit(model, epochs=1)
    measured = model.srel_frame()
    assert measured["step"].max() == (last + STEPS) // 2 * 2
    if last % 2 == 0:
        at_last = measured[measured["step"] == last]
        np.testing.assert_array_equal(at_last["srel"], expected["srel"])


def test_back_to_the_beginning():
    """The initial weights and a count of 0 are loaded. Then all steps are measured again, as in a new training."""
    model, state = net(), State()
    state.save(model)
    model.optimizer.build(model.trainable_variables)
    state.save(model)
    fit(model, epochs=1)
    first = model.srel_frame()
    state.load(model)
    fit(model, epochs=1)
    pd.testing.assert_frame_equal(model.srel_frame(), first, check_exact=True)


def test_two_probes_and_one_attached_later():
    model, state = net(), State()
    model.attach_probe(PROBE, every=3, run="other")
    fit(model, epochs=2, callbacks=[Act(0, 7, state.save)])
    model.attach_probe(PROBE, every=1, run="later")
    state.load(model)
    fit(model, epochs=1)
    frame = model.srel_frame()
    steps = {run: sorted(set(rows["step"])) for run, rows in frame.groupby("run")}
    assert steps == {
        "": list(range(15)),
        "other": [0, 3, 6, 9, 12],
        "later": list(range(7, 15)),
    }
    np.testing.assert_allclose(frame["epoch"], frame["step"].astype(float) / STEPS)


def test_a_new_optimizer_does_not_go_back():
    """The new optimizer counts from 0, but the steps count the updates of both optimizers."""
    model = net()
    fit(model, epochs=1)
    model.compile("sgd", model.loss)
    fit(model, epochs=1)
    assert epochs_of(model) == pytest.approx(
        {n: n / STEPS for n in range(2 * STEPS + 1)}
    )


def test_the_last_step_of_a_store_is_not_saved_twice(tmp_path):
    with srel_tf.FrameStore(tmp_path / "store", write=True) as store:
        model, state = net(every=2), State()
        checkpoint = srel_tf.Checkpoint(store)
        fit(model, epochs=2, callbacks=[checkpoint, Act(1, 6, state.save)])
        state.load(model)
        with pytest.raises(StorageError, match=r"at step 13, .* rows up to step 14"):
            fit(model, epochs=1, callbacks=[checkpoint])


def test_a_store_that_holds_later_rows_gets_none_of_them_again(tmp_path):
    """`fit` refuses if the training went back before it or within it. The saved rows stay, and can be restored."""
    with srel_tf.FrameStore(tmp_path / "store", write=True) as store:
        model, state = net(), State()
        checkpoint = srel_tf.Checkpoint(store)
        fit(model, epochs=2, callbacks=[checkpoint, Act(0, 4, state.save)])
        rows, weights = store.read(), model.get_weights()
        state.load(model)
        with pytest.raises(
            StorageError,
            match=r"is at step 4, and .* holds rows up to step 14: call restore",
        ):
            fit(model, epochs=1, callbacks=[checkpoint])
        assert int(model.optimizer.iterations) == 4
        assert checkpoint.restore(model) == (2, 0)
        with pytest.raises(
            StorageError, match=r"is at step 10, and .* rows up to step 14"
        ):
            fit(model, initial_epoch=2, callbacks=[checkpoint, Act(2, 1, state.load)])
        pd.testing.assert_frame_equal(store.read(), rows)
        assert checkpoint.restore(model) == (2, 0)
        for a, b in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
        fit(model, initial_epoch=2, callbacks=[checkpoint])
        assert sorted(set(store.read()["step"])) == list(range(3 * STEPS + 1))
        assert (
            not store.read()
            .duplicated(["step", "measure", "source_id", "target_id"])
            .any()
        )


def test_a_store_that_holds_earlier_rows_goes_on(tmp_path):
    """Both callbacks save at the end of an epoch, so only rows in memory are dropped."""
    whole = net()
    fit(whole)
    with srel_tf.FrameStore(tmp_path / "store", write=True) as store:
        model, checkpoint = net(), srel_tf.Checkpoint(store)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        with pytest.raises(KeyboardInterrupt):
            fit(model, callbacks=[checkpoint, backup, Act(1, 4, interrupt)])
        fit(model, callbacks=[checkpoint, backup])
        pd.testing.assert_frame_equal(
            store.read(), whole.srel_frame(), check_exact=True
        )
