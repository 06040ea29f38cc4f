"""A checkpoint continues the training from which it was saved, and refuses any other training."""

import os
import shutil
import signal

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import srel_tf
from srel_tf import Checkpoint, FrameStore, StorageError
from srel_tf.fit import callback
from tests.fit.conftest import Thermometer
from tests.made_up import probe, result

pytestmark = pytest.mark.usefixtures("thermometer")

X, Y = np.arange(24, dtype="float32").reshape(8, 3) / 24, np.arange(8) % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(probe=None, optimizer="adam", activation=None, loss=LOSS, **options):
    """Make a net with a probe. Each call gives equal weights, but other automatic layer names."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(3, activation)(inputs)
    model = srel_tf.SRelModel(
        inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.1)(hidden))
    )
    model.compile(keras.optimizers.get(optimizer), loss, metrics=["accuracy"])
    options = {"every": 1, "seed": np.int64(3), **options}
    model.attach_probe(probe or srel_tf.ProbeSet(X[:2], Y[:2]), **options)
    return model


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "frame"
    with (
        pytest.MonkeyPatch.context() as patch,
        FrameStore(path, write=True) as store,
    ):
        patch.setattr(callback, "Instrument", Thermometer)
        net().fit(X, Y, batch_size=4, verbose=0, callbacks=[Checkpoint(store)])
    return store.path


@pytest.fixture
def saved(once, tmp_path):
    """Yield the store of a training of one epoch."""
    shutil.copytree(once, tmp_path / "frame")
    with FrameStore(tmp_path / "frame", write=True) as store:
        yield store


def test_the_same_training_goes_on(saved):
    assert Checkpoint(saved).restore(net()) == (1, 0)


def test_a_damaged_part_is_told_before_training(saved):
    (saved.path / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=r"part-000000\.parquet has 4 of its"):
        Checkpoint(saved).restore(net())
    saved.check(skip_damaged=True)
    assert Checkpoint(saved).restore(net()) == (1, 0)


def test_a_learning_rate_that_training_changed_is_no_difference(saved):
    checkpoint = Checkpoint(saved)
    model = net()
    checkpoint.restore(model)
    model.optimizer.learning_rate = 0.5
    model.fit(
        X, Y, batch_size=4, verbose=0, callbacks=[checkpoint], initial_epoch=1, epochs=2
    )
    again = net()
    assert Checkpoint(saved).restore(again) == (2, 0)
    assert float(again.optimizer.learning_rate) == 0.5


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ({"probe": srel_tf.ProbeSet(X[:2] + 1, Y[:2])}, "probe 0, probe: '"),
        ({"probe": srel_tf.ProbeSet(X[:2], Y[:2][::-1])}, "probe 0, probe: '"),
        (
            {"probe": srel_tf.ProbeSet(X[:2], Y[:2], ids=["a", "b"])},
            "probe 0, probe: '",
        ),
        ({"probe": srel_tf.ProbeSet(X[:2], Y[:2], sources=[1])}, "probe 0, probe: '"),
        ({"update": "fresh_adam"}, "probe 0, update: 'sgd' saved, 'fresh_adam' now"),
        ({"learning_rate": 0.1}, "probe 0, learning_rate: None saved, 0.1 now"),
        (
            {"measures": ["l1"]},
            r"probe 0, measures: \['kl', 'l1'\] saved, \['l1'\] now",
        ),
        (
            {"probe": srel_tf.ProbeSet(X[:2], Y[:2], name="a")},
            "probe 0, name: '' saved, 'a' now",
        ),
        ({"every": 2}, "probe 0, every: 1 saved, 2 now"),
        ({"run": "b"}, "probe 0, run: '' saved, 'b' now"),
        ({"seed": 4}, "probe 0, seed: 3 saved, 4 now"),
        ({"activation": "relu"}, "architecture: "),
        (
            {"optimizer": keras.optimizers.Adam(0.1)},
            "optimizer learning_rate: 0.001.* saved, 0.1.* now",
        ),
        (
            {"optimizer": keras.optimizers.Adam(beta_1=0.5)},
            "optimizer beta_1: 0.9 saved, 0.5 now",
        ),
        (
            {
                "loss": keras.losses.SparseCategoricalCrossentropy(
                    from_logits=True, reduction="sum"
                )
            },
            "loss: ",
        ),
    ],
)
def test_another_training_is_refused_with_the_difference(saved, other, shown):
    model = net(**other)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(
        StorageError, match=rf"belongs to another training.*\n  {shown}"
    ):
        Checkpoint(saved).restore(model)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)
    assert int(model.optimizer.iterations) == 0


class Own(srel_tf.SRelMixin, keras.Model):
    """A subclass without `get_config`, so that its config does not describe its layers."""

    def __init__(self, activation, rate):
        super().__init__()
        self.hidden, self.drop = (
            keras.layers.Dense(3, activation),
            keras.layers.Dropout(rate),
        )
        self.out = keras.layers.Dense(2)

    def call(self, x, training=None):
        return self.out(self.drop(self.hidden(x), training=training))


def test_another_layer_in_a_model_of_the_users_own_is_refused(tmp_path):
    def own(activation=keras.activations.relu, rate=0.1):
        model = Own(activation, rate)
        model.compile("adam", LOSS)
        model.attach_probe(srel_tf.ProbeSet(X[:2], Y[:2]), every=1)
        return model

    with FrameStore(tmp_path / "frame", write=True) as store:
        own().fit(X, Y, batch_size=4, verbose=0, callbacks=[Checkpoint(store)])
        assert Checkpoint(store).restore(own()) == (1, 0)
        for other in (own(keras.activations.tanh), own(rate=0.5)):
            with pytest.raises(
                StorageError, match=r"another training.*\n  architecture: "
            ):
                Checkpoint(store).restore(other)


def test_a_probe_more_or_less_is_refused(saved):
    model = net()
    model.attach_probe(srel_tf.ProbeSet(X[:2], Y[:2]))
    with pytest.raises(StorageError, match="does not belong to model"):
        Checkpoint(saved).restore(model)


class Interrupted(FrameStore):
    """A store that simulates Ctrl-C just after the commit at step 4."""

    def commit(self, *arguments):
        super().commit(*arguments)
        if self.about["step"] == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("anew", "restored"), [(True, False), (False, True)])
def test_an_interrupt_after_saving_writes_no_row_twice(tmp_path, anew, restored):
    """Continue from the state in memory with a new callback, or from the saved state with the same callback."""
    with Interrupted(tmp_path / "frame", write=True) as store:
        model, checkpoint = net(), Checkpoint(store)
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[checkpoint])
        assert len(checkpoint.unsaved(model)) == 0
        store.__class__ = FrameStore
        checkpoint = Checkpoint(store) if anew else checkpoint
        assert not restored or checkpoint.restore(model) == (2, 0)
        model.fit(
            X,
            Y,
            batch_size=4,
            initial_epoch=2,
            epochs=3,
            verbose=0,
            callbacks=[checkpoint],
        )
        assert store.read().groupby("step").size().to_dict() == dict.fromkeys(
            range(7), 2 * 2 * 2
        )


def test_what_was_not_saved_is_measured_again(tmp_path):
    """If a model returns to an earlier state, the rows of later steps are dropped."""
    with FrameStore(tmp_path / "frame", write=True) as store:
        model, checkpoint = net(), Checkpoint(store, every=100)
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[checkpoint])
        model.fit(X, Y, batch_size=4, initial_epoch=1, epochs=2, verbose=0)
        assert checkpoint.unsaved(model)["step"].unique().tolist() == [3, 4]
        assert checkpoint.restore(model) == (1, 0)
        model.fit(
            X,
            Y,
            batch_size=4,
            initial_epoch=1,
            epochs=2,
            verbose=0,
            callbacks=[checkpoint],
        )
        assert store.read().groupby("step").size().to_dict() == dict.fromkeys(
            range(5), 2 * 2 * 2
        )


def test_a_training_that_was_not_restored_is_not_mixed_with(saved):
    model, rows = net(), saved.read()
    with pytest.raises(
        StorageError,
        match=r"holds 24 rows and a state of a training that has not been restored: call",
    ):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Checkpoint(saved)])
    assert int(model.optimizer.iterations) == 0
    pd.testing.assert_frame_equal(saved.read(), rows)
    assert saved.about["step"] == 2


def test_two_probes_of_the_same_settings_in_one_store(tmp_path):
    """The rows of a measurement are contiguous, so a stored frame has the same statistics as the frame in memory."""
    model = net(measures=("l1", "kl"))
    other = srel_tf.ProbeSet(X[4:7], Y[4:7], ids=[4, 5, 6])
    model.attach_probe(other, every=1, measures=("l1", "kl"), seed=np.int64(3))
    with FrameStore(tmp_path / "frame", write=True) as store:
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Checkpoint(store, every=1)])
        stored = store.scan()
    frame = stored.read()
    assert frame.groupby(["step", "measure"], sort=False).size().to_dict() == {
        (step, measure): 2 * 2 + 3 * 3 for step in range(3) for measure in ("l1", "kl")
    }
    for statistic in (srel_tf.smooth, srel_tf.separation):
        pd.testing.assert_frame_equal(
            statistic(stored), statistic(frame), check_exact=True
        )
    assert [len(piece) for piece in stored.pieces(rows=5)] == [13] * 6


def test_what_no_column_holds_is_told(tmp_path):
    frames = [
        result(probe(2, 2, ids=ids)).to_frame(run="", seed=0, epoch=0.0)
        for ids in (range(4), list("abcd"))
    ]
    with FrameStore(tmp_path / "frame", write=True) as store:
        with pytest.raises(
            srel_tf.FrameError, match=r"give ProbeSet\(ids=...\) of one type to all"
        ):
            store.append(srel_tf.frames.schema.merged(frames))
        store.append(frames[0])
        with pytest.raises(srel_tf.FrameError, match="with other columns or types"):
            store.append(frames[1])
        with pytest.raises(
            srel_tf.FrameError, match=r"give ProbeSet\(ids=...\) of one type to all"
        ):
            store.export(tmp_path / "frame.parquet", frames[1])
    assert [path.name for path in tmp_path.iterdir()] == ["frame"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("last_step", ["x", 100, 1.5, -1, True, [], 3]),
        ("count_offset", ["x", 100, 1.5, None, True, 10**400, 3]),
        ("batch_size", ["x", 0, 1.5, None, True, 129]),
        ("epoch", ["x", -1, 1.5, None, True, 10**400]),
        ("batch", ["x", -1, 1.5, None, True, 10**400]),
    ],
)
def test_numbers_that_no_training_can_have_left_are_refused(saved, name, values):
    """The saved state has 2 measured updates. Its metadata are changed, but its checksums are correct."""
    arrays, about = saved.state()
    model = net()
    for value in values:
        changed = {**about, "probes": [dict(about["probes"][0])]}
        (changed if name in changed else changed["probes"][0])[name] = value
        saved.commit(arrays=arrays, about=changed)
        with pytest.raises(
            StorageError,
            match=r"does not belong to model .*: start again without this state",
        ):
            Checkpoint(saved).restore(model)
    saved.commit(arrays=arrays, about=about)
    assert Checkpoint(saved).restore(model) == (1, 0)


class AtUpdate(keras.callbacks.Callback):
    def __init__(self, update, act):
        super().__init__()
        self._waiting, self._act = update, act

    def on_train_batch_end(self, batch, logs=None):
        self._waiting -= 1
        if not self._waiting:
            self._act(self.model)


def train(store, data_of, act=None, epochs=3):
    """Train as in the docstring of `srel_tf.fit.checkpoint`. Epochs have 4 updates. `act` is called after update 6."""
    model, checkpoint = net(optimizer="sgd"), Checkpoint(store)
    more = [AtUpdate(6, lambda model: act(model, checkpoint))] if act else []
    options = {
        "callbacks": [checkpoint, *more],
        "validation_data": (X, Y),
        "verbose": 0,
    }
    epoch, batch = checkpoint.restore(model)
    histories = []
    if batch:
        rest = data_of(epoch, batch)
        histories.append(
            model.fit(rest, initial_epoch=epoch, epochs=epoch + 1, **options).history
        )
        epoch += 1
    histories.append(
        model.fit(data_of(epoch), initial_epoch=epoch, epochs=epochs, **options).history
    )
    return model, checkpoint, histories


def known(epoch, skip=0):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).skip(skip)


def unknown(epoch, skip=0):
    """Return the data of `known`, but Keras cannot determine the number of batches."""
    return known(epoch, skip).filter(lambda x, y: True)


def stop_training(model, checkpoint):
    model.stop_training = True


def ask_to_stop(model, checkpoint):
    checkpoint.request_stop()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("data_of", "act"), [(known, stop_training), (unknown, ask_to_stop)]
)
def test_an_epoch_that_was_stopped_within_is_gone_on_with(data_of, act, tmp_path):
    """The continued training gives the weights, metrics and rows of an uninterrupted training."""
    with (
        FrameStore(tmp_path / "whole", write=True) as whole,
        FrameStore(tmp_path / "two", write=True) as two,
    ):
        expected, _, (history,) = train(whole, data_of)
        if act is stop_training:
            train(two, data_of, act)
        else:
            with pytest.raises(KeyboardInterrupt):
                train(two, data_of, act)
        assert (two.about["epoch"], two.about["batch"]) == (1, 2)
        model, _, histories = train(two, data_of)
        frames = whole.read(), two.read()
    for a, b in zip(expected.variables, model.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert [h for one in histories for h in one["loss"]] == history["loss"][1:]
    assert [h for one in histories for h in one["val_loss"]] == history["val_loss"][1:]
    if data_of is unknown:  # Step 5 was saved before the length of its epoch was known.
        epoch = frames[1]["epoch"]
        assert frames[1][epoch.isna()]["step"].unique().tolist() == [5]
        frames[1]["epoch"] = epoch.fillna(frames[0]["epoch"])
    pd.testing.assert_frame_equal(*frames)


def test_an_epoch_that_was_stopped_at_its_last_batch_is_done(tmp_path):
    with FrameStore(tmp_path, write=True) as store:
        model = net()
        last = AtUpdate(2, lambda model: stop_training(model, None))
        model.fit(
            X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[Checkpoint(store), last]
        )
        assert (store.about["epoch"], store.about["batch"]) == (1, 0)


def test_averaged_weights_are_saved_at_the_ends_of_epochs(tmp_path):
    """`fit` replaces the weights by their averages when it ends, so another `fit` could not finish the epoch."""
    with FrameStore(tmp_path, write=True) as store:
        model, checkpoint = (
            net(optimizer=keras.optimizers.SGD(use_ema=True)),
            Checkpoint(store, every=3),
        )
        ask = AtUpdate(3, lambda model: ask_to_stop(model, checkpoint))
        with pytest.raises(KeyboardInterrupt):
            model.fit(
                X, Y, batch_size=2, epochs=3, verbose=0, callbacks=[checkpoint, ask]
            )
        assert (store.about["epoch"], store.about["batch"], store.about["step"]) == (
            1,
            0,
            4,
        )


def test_averaged_weights_are_not_saved_where_training_stops_within_an_epoch(tmp_path):
    """No state is saved within the epoch. The epoch is repeated, with the result of an uninterrupted training."""

    def train(path, act=None):
        model = net(optimizer=keras.optimizers.SGD(0.5, use_ema=True))
        with FrameStore(path, write=True) as store:
            checkpoint = Checkpoint(store)
            epoch, batch = checkpoint.restore(model)
            assert batch == 0
            more = (
                [AtUpdate(6, lambda model: stop_training(model, None))] if act else []
            )
            options = {"callbacks": [checkpoint, *more], "epochs": 3, "verbose": 0}
            model.fit(known(epoch), initial_epoch=epoch, **options)
            return model, store.about["step"]

    expected, _ = train(tmp_path / "whole")
    assert train(tmp_path / "two", act=stop_training)[1] == 4
    again, step = train(tmp_path / "two")
    assert step == 12
    for a, b in zip(expected.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@keras.saving.register_keras_serializable(package="tests")
class AlwaysDropout(keras.layers.Layer):
    """Dropout that draws random numbers in inference, too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return keras.random.dropout(x, 0.5, seed=self.seeds)


@pytest.mark.parametrize("within", [False, True])
def test_seeds_that_inference_draws_from_go_on(within, tmp_path):
    """Within an epoch, `restore` calls the model to create its metrics. This call must not change the seeds."""
    with FrameStore(tmp_path / "frame", write=True) as store:
        models = []
        for _ in range(2):
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [
                    keras.Input((3,)),
                    keras.layers.Dense(3),
                    AlwaysDropout(),
                    keras.layers.Dense(2),
                ]
            )
            model.compile("sgd", LOSS, metrics=["accuracy"])
            models.append(model)
        first, second = models
        stop = [AtUpdate(6, lambda model: stop_training(model, None))] if within else []
        first.fit(known(0), epochs=2, verbose=0, callbacks=[*stop, Checkpoint(store)])
        assert Checkpoint(store).restore(second, example=(X[:1], Y[:1])) == (
            (1, 2) if within else (2, 0)
        )
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_signal_after_the_last_step_is_not_lost(tmp_path):
    """It raises KeyboardInterrupt at the end of the block, and does not stop the next `fit`."""
    with FrameStore(tmp_path, write=True) as store:
        model, checkpoint = net(every=100), Checkpoint(store)
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[checkpoint])
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            with pytest.raises(KeyboardInterrupt), checkpoint.stop_after_step():
                os.kill(os.getpid(), number)
            assert signal.getsignal(number) == before
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[checkpoint])
        assert store.about["step"] == 4


def test_batches_of_several_steps_an_execution_are_counted(tmp_path):
    """A model without probes may run several steps per execution. Here the 8 updates of an epoch run as 3, 3 and 2."""

    class Counting(FrameStore):
        def commit(self, frame, arrays, about):
            super().commit(frame, arrays, about)
            saved.append((about["epoch"], about["batch"], about["step"]))

    saved = []
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", LOSS, steps_per_execution=3, jit_compile=False)
    with Counting(tmp_path, write=True) as store:
        callbacks = [Checkpoint(store, every=5)]
        model.fit(X, Y, batch_size=1, epochs=2, verbose=0, callbacks=callbacks)
    assert saved == [(0, 6, 6), (1, 3, 11), (2, 0, 16)]
