"""Probes in `fit` measure each scheduled step exactly once, with its position in the training."""

import contextlib

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import srel_tf
from srel_tf import OptionError, ProbeError

pytestmark = pytest.mark.usefixtures("thermometer")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(28, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 28)
BATCH = 4
STEPS = 7  # Steps per epoch.
PROBE = srel_tf.ProbeSet(X[:4], Y[:4], targets=[0, 1, 3])


def net(**compile_options):
    model = srel_tf.SRelSequential(
        [keras.Input((5,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False, **compile_options)
    return model


def attach(model, every, probe=PROBE, **options):
    model.attach_probe(probe, every, **options)


def fit(model, epochs=2, verbose=0, **kwargs):
    return model.fit(X, Y, batch_size=BATCH, epochs=epochs, verbose=verbose, **kwargs)


def steps_of(frame):
    """Return the measured steps in order. Check that each measurement is complete and occurs once."""
    rows = len(PROBE.sources) * len(PROBE.targets) * frame["measure"].nunique()
    assert (frame.groupby(["step", "update"], sort=False).size() == rows).all()
    return list(dict.fromkeys(frame["step"]))


def epochs_of(frame):
    return frame.groupby("step")["epoch"].agg(["min", "max"])


@pytest.mark.parametrize(
    "every", [1, 3, 14, lambda n: n in (1, 5, 13), lambda n: False]
)
def test_measures_at_exactly_the_steps_of_the_schedule(every):
    model = net()
    attach(model, every)
    fit(model)
    is_due = every if callable(every) else lambda n: n % every == 0
    frame = model.srel_frame()
    assert steps_of(frame) == [n for n in range(2 * STEPS + 1) if is_due(n)]
    assert list(frame.columns) == list(srel_tf.frames.schema.COLUMNS)


@pytest.mark.usefixtures("real_instrument")
def test_step_n_is_the_model_after_n_updates():
    """A measurement in `fit` equals a measurement on a copy of the net after the same n updates outside `fit`."""
    model, twin = net(), net()
    twin.set_weights(model.get_weights())
    instrument = srel_tf.Instrument(twin, PROBE)
    model.attach_probe(PROBE, lambda n: n in (2, 7))
    fit(model, epochs=1, shuffle=False)
    frame = model.srel_frame()
    for step in range(STEPS + 1):
        if step in (2, 7):
            expected = instrument().to_frame()
            measured = frame[frame["step"] == step]
            assert (expected["step"] == step).all()
            np.testing.assert_allclose(measured["srel"], expected["srel"], rtol=1e-4)
        batch = slice(step * BATCH, (step + 1) * BATCH)
        if step < STEPS:
            twin.train_on_batch(X[batch], Y[batch])


@pytest.mark.usefixtures("real_instrument")
def test_the_optimizers_own_step_is_from_its_present_state():
    """The first `fit` begins before the optimizer has a state. Later steps must use Adam's moments of their time."""
    model = net()
    model.compile("adam", model.loss)
    model.attach_probe(PROBE, every=STEPS, measures="l1", update="optimizer")
    fit(model, epochs=1)
    last = model.srel_frame().query("step == @STEPS")
    expected = srel_tf.measure(model, PROBE, "l1", update="optimizer").to_frame()
    np.testing.assert_allclose(last["numerator"], expected["numerator"], rtol=1e-5)
    fresh = srel_tf.measure(model, PROBE, "l1", update="fresh_adam").to_frame()
    assert not np.allclose(last["numerator"], fresh["numerator"], rtol=0.1)


def test_epoch_is_the_number_of_epochs_done():
    model = net()
    attach(model, every=3)
    fit(model, validation_data=(X, Y))
    epochs = epochs_of(model.srel_frame())
    assert epochs["min"].to_dict() == pytest.approx(
        {n: n / STEPS for n in (0, 3, 6, 9, 12)}
    )
    assert (epochs["min"] == epochs["max"]).all()


def test_a_second_fit_goes_on_and_measures_no_step_twice():
    model = net()
    attach(model, every=7)
    fit(model, epochs=1)
    fit(model, epochs=2)
    frame = model.srel_frame()
    assert steps_of(frame) == [0, 7, 14, 21]
    assert epochs_of(frame)["min"].tolist() == [0, 1, 2, 3]


def test_initial_epoch():
    model = net()
    attach(model, every=7)
    fit(model, epochs=4, initial_epoch=2)
    frame = model.srel_frame()
    assert steps_of(frame) == [0, 7, 14]
    assert epochs_of(frame)["min"].tolist() == [2, 3, 4]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_data_of_unknown_length():
    """Keras's optimizer counts an update that it does not apply at the end of each epoch. `step` must not count it."""

    def examples():
        for i in range(0, 20, BATCH):
            yield X[i : i + BATCH], Y[i : i + BATCH]

    data = tf.data.Dataset.from_generator(
        examples,
        output_signature=(tf.TensorSpec([None, 5]), tf.TensorSpec([None], tf.int64)),
    )
    model = net()
    attach(model, every=2)
    model.fit(data, epochs=2, verbose=0)
    frame = model.srel_frame()
    assert steps_of(frame) == [0, 2, 4, 6, 8, 10]
    assert epochs_of(frame)["min"].to_dict() == pytest.approx(
        {n: n / 5 for n in range(0, 11, 2)}
    )


def test_two_probes_in_one_fit():
    model = net()
    model.attach_probe(PROBE, every=4, measures="l1", run="a", seed=1)
    model.attach_probe(
        PROBE,
        every=6,
        measures="kl",
        update="fresh_adam",
        learning_rate=1e-3,
        run="b",
        seed=2,
    )
    fit(model)
    frame = model.srel_frame()
    first, second = (
        frame[frame["update"] == update] for update in ("sgd", "fresh_adam")
    )
    assert len(first) + len(second) == len(frame)
    assert steps_of(first) == [0, 4, 8, 12]
    assert steps_of(second) == [0, 6, 12]
    for part, expected in (
        (first, ("l1", 0.01, "a", 1)),
        (second, ("kl", 1e-3, "b", 2)),
    ):
        found = part[["measure", "learning_rate", "run", "seed"]].drop_duplicates()
        assert tuple(found.iloc[0]) == pytest.approx(expected)
        assert len(found) == 1


def test_learning_rate_is_the_one_in_force_at_that_step():
    model = net()
    attach(model, every=7)
    fit(
        model,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: (0.5, 0.25)[epoch])
        ],
    )
    # The scheduler acts at the start of an epoch. No update follows step 14. See also `tests/fit/test_rates.py`.
    rates = model.srel_frame().groupby("step")["learning_rate"].unique()
    assert [list(r) for r in rates] == [[0.5], [0.25], [0.25]]


class Stop(keras.callbacks.Callback):
    def __init__(self, batch, error):
        super().__init__()
        self._batch, self._error = batch, error

    def on_train_batch_end(self, batch, logs=None):
        if batch == self._batch:
            raise self._error


def test_steps_go_on_after_a_new_compile():
    """The steps count the updates of both optimizers. No step occurs twice."""
    model = net()
    attach(model, every=5)
    fit(model, epochs=1)
    model.compile(keras.optimizers.SGD(0.5), model.loss)
    fit(model, epochs=1)
    frame = model.srel_frame()
    assert steps_of(frame) == [0, 5, 10]
    assert frame.groupby("step")["learning_rate"].first().tolist() == pytest.approx(
        [0.01, 0.01, 0.5]
    )


class StopTraining(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 4


@pytest.mark.parametrize("stop", [StopTraining(), Stop(4, RuntimeError("full disk"))])
def test_an_epoch_that_was_broken_off_counts_as_far_as_it_went(stop):
    model = net()
    attach(model, every=1)
    with contextlib.suppress(RuntimeError):
        fit(model, callbacks=[stop])
    done = (
        5 if isinstance(stop, StopTraining) else 4
    )  # `Stop` raises before the probe sees the step.
    assert steps_of(model.srel_frame()) == list(range(done + 1))
    fit(model, epochs=1)
    frame = epochs_of(model.srel_frame())
    assert (frame["min"] == frame["max"]).all()
    assert frame["min"].to_dict() == pytest.approx(
        {n: n / STEPS for n in range(5 + STEPS + 1)}
    )


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_an_epoch_of_unknown_length_that_was_broken_off_has_no_fractions():
    """The fractions of its steps are NaN. The next epoch may have other data, so its length does not help."""
    data = (
        tf.data.Dataset.from_tensor_slices((X, Y))
        .batch(BATCH)
        .filter(lambda x, y: True)
    )
    model = net()
    attach(model, every=2)
    model.fit(data, verbose=0, callbacks=[StopTraining()])
    model.fit(data, verbose=0)
    epochs = epochs_of(model.srel_frame())["min"]
    assert steps_of(model.srel_frame()) == [0, 2, 4, 6, 8, 10, 12]
    assert epochs.isna().to_dict() == {n: n in (2, 4) for n in epochs.index}
    assert epochs[6] == pytest.approx(1 / STEPS)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("detach", [False, True])
def test_a_probe_attached_later_counts_as_those_before_it(detach):
    """The first `fit` has data of unknown length, so Keras counts one update too many. Then follows a new `compile`."""
    data = (
        tf.data.Dataset.from_tensor_slices((X, Y))
        .batch(BATCH)
        .filter(lambda x, y: True)
    )
    model = net()
    attach(model, every=STEPS)
    model.fit(data, verbose=0)
    if detach:
        model.detach_probes()
    model.compile("sgd", model.loss)
    attach(model, every=STEPS, run="later")
    model.fit(data, verbose=0)
    frame = model.srel_frame()
    later = frame[frame["run"] == "later"]
    assert steps_of(later) == [7, 14]
    assert epochs_of(later)["min"].tolist() == [1, 2]
    if not detach:
        assert epochs_of(frame[frame["run"] == ""])["min"].to_dict() == {
            0: 0,
            7: 1,
            14: 2,
        }


@pytest.mark.parametrize("error", [RuntimeError("full disk"), KeyboardInterrupt()])
def test_what_was_measured_survives_the_end_of_fit(error):
    model = net()
    attach(model, every=2)
    with pytest.raises(type(error)):
        fit(
            model, callbacks=Stop(4, error)
        )  # Keras accepts a single callback in place of a list.
    assert steps_of(model.srel_frame()) == [0, 2, 4]


def test_a_line_says_what_measuring_costs(capsys):
    model = net()
    attach(model, every=3)
    fit(model, verbose=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "S_rel" in line]
    assert len(lines) == 2  # One line per epoch.
    assert "3 measurements, 4 sources x 3 targets" in lines[0]  # Steps 0, 3, 6.
    assert "2 measurements, 4 sources x 3 targets" in lines[1]  # Steps 9, 12.
    assert all(
        float(line.split(", ")[-1].removesuffix(" s each")) > 0 for line in lines
    )


def test_no_line_without_verbose(capsys):
    model = net()
    attach(model, every=3)
    fit(model, verbose=0)
    assert capsys.readouterr().out == ""


def test_several_steps_per_execution_are_refused():
    model = net(steps_per_execution=2)
    model.attach_probe(PROBE, every=2)
    with pytest.raises(OptionError, match="steps_per_execution=2"):
        fit(model)
    assert model.optimizer.iterations == 0


def test_attach_checks_what_it_is_given():
    with pytest.raises(ProbeError, match=r"srel_tf\.ProbeSet, got tuple"):
        net().attach_probe((X, Y))
    with pytest.raises(OptionError, match="every=0"):
        net().attach_probe(PROBE, every=0)
    with pytest.raises(OptionError, match=r"'kk'.*kl, l1"):
        net().attach_probe(PROBE, measures=["kk"])
    for seed in ("a", 1.5, True, 2**63):
        with pytest.raises(OptionError, match=f"seed={seed!r}"):
            net().attach_probe(PROBE, seed=seed)
    model = net()
    model.attach_probe(PROBE, seed=np.int32(3))
    with pytest.raises(OptionError, match="list of callbacks"):
        fit(model, callbacks=keras.callbacks.CallbackList())


def test_ids_of_two_types_are_refused():
    model = net()
    model.attach_probe(PROBE)
    with pytest.raises(ProbeError, match=r"integers and .* strings.*of one type"):
        model.attach_probe(srel_tf.ProbeSet(X[:2], Y[:2], ids=["a", "b"]), run="b")


OTHERS = srel_tf.ProbeSet(X[10:14], Y[10:14], targets=[0, 1, 3])  # Same ids as PROBE.


def test_a_probe_whose_rows_could_not_be_told_from_anothers_is_refused():
    """Schedules are not compared. A probe is accepted if it has a unique name, or another value in another column."""
    model = net()
    model.attach_probe(PROBE, measures=["kl", "l1"], seed=1)
    some = srel_tf.ProbeSet(X[:2], Y[:2], ids=[9, 3], sources=[1], targets=[0, 1])
    for other in (
        {},
        {"probe": OTHERS},
        {"every": 5},
        {"every": lambda step: step == 3},
        {"measures": "l1"},
        {"batch_size": 1},
        {"probe": some},
    ):
        with pytest.raises(
            ProbeError,
            match=r"a probe with name='' already.*give one of them a unique name",
        ):
            model.attach_probe(**{"probe": PROBE, "seed": 1, **other})
    model.attach_probe(PROBE, seed=1, learning_rate=0.5)
    with pytest.raises(
        ProbeError, match=r"name='η=0.5' already.*ProbeSet\(\.\.\., name"
    ):
        model.attach_probe(PROBE, seed=1, learning_rate=0.5)
    for other in (
        {"probe": PROBE.with_name("b")},
        {"probe": srel_tf.ProbeSet(X[:4], Y[:4], name="c")},
        {"probe": PROBE.with_name("d"), "learning_rate": 0.5},
        {"measures": "l2"},
        {"update": "fresh_adam"},
        {"estimator": "limit"},
        {"estimator": "auto"},
        {"run": "b"},
        {"seed": 2},
        {"probe": srel_tf.ProbeSet(X, Y, ids=np.arange(28) + 4)},
        {"probe": srel_tf.ProbeSet(X[:4], Y[:4], sources=[0, 1, 3], targets=[2])},
    ):
        model.detach_probes()
        model.attach_probe(PROBE, measures=["kl", "l1"], seed=1)
        model.attach_probe(**{"probe": PROBE, "seed": 1, **other})


def test_probes_of_all_estimators_share_a_frame_and_stay_apart():
    """The probes share examples and steps. Each row shows its estimator, and statistics do not mix estimators."""
    model = net()
    for estimator in ("exact", "limit", "auto"):
        model.attach_probe(
            PROBE, STEPS, measures="l1", estimator=estimator, learning_rate=1e-5
        )
    fit(model, epochs=1)
    frame = model.srel_frame()
    assert not frame.duplicated(
        [*srel_tf.frames.schema.MATRIX, "source_id", "target_id"]
    ).any()
    pairs = srel_tf.smooth(frame)
    for estimator, methods in (
        ("exact", {"finite_step"}),
        ("limit", {"limit"}),
        ("auto", {*srel_tf.frames.schema.METHODS}),
    ):
        rows = frame[frame["estimator"] == estimator]
        assert set(rows["method"]) <= methods
        assert steps_of(rows) == [0, STEPS]
        alone = pairs[pairs["estimator"] == estimator].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, srel_tf.smooth(rows))


def test_names_tell_apart_what_else_would_be_one_measurement():
    """The three probes share ids, steps and η (the second one is given the same η), and differ in their names."""
    model = net()
    attach(model, every=2)
    attach(model, every=lambda step: step in (3, 4), learning_rate=np.float32(0.01))
    attach(model, every=4, probe=OTHERS.with_name("others"))
    fit(model, epochs=1)
    frame = model.srel_frame()
    steps = {name: steps_of(rows) for name, rows in frame.groupby("name")}
    assert steps == {"": [0, 2, 4, 6], "η=0.01": [3, 4], "others": [0, 4]}
    pairs = srel_tf.smooth(frame)
    for name, rows in frame.groupby("name"):
        alone = pairs[pairs["name"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, srel_tf.smooth(rows))


def test_detached_probes_measure_no_more():
    model = net()
    attach(model, every=7)
    fit(model)
    model.detach_probes()
    assert len(model.srel_frame()) == 0
    fit(model)
    assert len(model.srel_frame()) == 0


def test_an_unbuilt_model_is_built():
    model = srel_tf.SRelSequential([keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    attach(model, every=100)
    assert model.built
    fit(model, epochs=1)
    assert steps_of(model.srel_frame()) == [0]


def test_a_mixin_behind_the_model_is_refused():
    """Keras's `fit` would be called in the place of the mixin's."""

    class Behind(keras.Model, srel_tf.SRelMixin):
        pass

    inputs = keras.Input((3,))
    model = Behind(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    probe = srel_tf.ProbeSet(np.eye(3), np.eye(3, 2))
    with pytest.raises(
        srel_tf.ModelError, match=r"class Behind\(SRelMixin, keras.Model\)"
    ):
        model.attach_probe(probe)
