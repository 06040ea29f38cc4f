"""The η of step n in `fit` is the rate of update n+1, even if callbacks or schedules change the rate at any time.

The model has one weight w and the loss w, so each update changes w by −η. Differences of w give the η of each update.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf

pytestmark = pytest.mark.usefixtures("thermometer")

STEPS = 4  # Steps per epoch.
X = np.ones((STEPS, 1), np.float32)
Y = np.zeros((STEPS, 1), np.float32)
PROBE = srel_tf.ProbeSet(X[:1], Y[:1])


def output(y, f):
    return keras.ops.mean(f, axis=-1)


def net(learning_rate=0.5, accumulated=None, estimator="limit", **compile_options):
    model = srel_tf.SRelSequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    optimizer = keras.optimizers.SGD(
        learning_rate, gradient_accumulation_steps=accumulated
    )
    model.compile(optimizer, loss=output, jit_compile=False, **compile_options)
    model.attach_probe(PROBE, every=1, measures="l1", estimator=estimator)
    return model


class Weights(keras.callbacks.Callback):
    """Records w at the beginning and after each batch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_begin(self, logs=None):
        self.values.append(self._w())

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(self._w())

    def _w(self):
        return float(self.model.layers[-1].kernel.numpy()[0, 0])

    @property
    def rates(self):
        """η of each update. Batches whose gradients are only accumulated do not change w."""
        moved = -np.diff(self.values)
        return moved[moved != 0]


class SetRate(keras.callbacks.Callback):
    """Sets another rate at each call of the method `method`."""

    def __init__(self, method):
        super().__init__()
        self._calls = 0
        setattr(self, method, self._set)

    def _set(self, *_, **__):
        self._calls += 1
        self.model.optimizer.learning_rate = 1 / (3 + self._calls)


def fit(model, data=None, epochs=3, callbacks=(), **options):
    weights = Weights()
    data = {"x": X, "y": Y, "batch_size": 1} if data is None else {"x": data}
    model.fit(
        **data, epochs=epochs, verbose=0, callbacks=[weights, *callbacks], **options
    )
    return weights.rates


def measured(model):
    by_step = model.srel_frame().groupby("step")["learning_rate"].agg(list)
    assert (by_step.map(len) == 1).all()
    assert by_step.index.tolist() == list(range(len(by_step)))
    return by_step.map(lambda rates: rates[0]).to_numpy()


def check(model, taken, updates):
    rates = measured(model)
    assert len(taken) == updates
    assert len(np.unique(taken.round(6))) > 1
    assert len(rates) == updates + 1  # Step 0, and one step after each update.
    np.testing.assert_allclose(rates[:-1], taken, rtol=1e-5)


METHODS = ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end"]
KERAS = {
    "LearningRateScheduler": lambda: keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate / (2 + epoch)
    ),
    "ReduceLROnPlateau": lambda: keras.callbacks.ReduceLROnPlateau(
        "loss", 0.5, patience=1, mode="max", min_delta=0
    ),
}


@pytest.mark.parametrize(
    "callback", [*METHODS, pytest.param("on_test_end", marks=pytest.mark.slow), *KERAS]
)
def test_rates_that_a_callback_sets(callback):
    model = net()
    callbacks = [KERAS[callback]() if callback in KERAS else SetRate(callback)]
    check(model, fit(model, callbacks=callbacks, validation_data=(X, Y)), 3 * STEPS)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "method", ["on_epoch_begin", "on_epoch_end", "on_train_batch_begin"]
)
def test_rates_in_epochs_of_unknown_length(method):
    """At the end of each epoch Keras begins a batch for which it finds no data, and counts an update for it."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(1).filter(lambda x, y: True)
    model = net()
    check(model, fit(model, data, callbacks=[SetRate(method)]), 3 * STEPS)
    epochs = model.srel_frame().groupby("step")["epoch"].first()
    np.testing.assert_allclose(epochs, epochs.index / STEPS)


SCHEDULES = {
    "decay": lambda: keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.7),
    "pieces": lambda: keras.optimizers.schedules.PiecewiseConstantDecay(
        [3, 5], [0.5, 0.25, 0.125]
    ),
}


@pytest.mark.parametrize("accumulated", [None, 3])
@pytest.mark.parametrize(
    "schedule", ["decay", pytest.param("pieces", marks=pytest.mark.slow)]
)
def test_schedules(schedule, accumulated):
    """Keras's schedules count batches. With accumulated gradients, the rate of the last batch of an update is used."""
    model = net(SCHEDULES[schedule](), accumulated)
    check(model, fit(model), 3 * STEPS // (accumulated or 1))


def test_rates_of_accumulated_gradients_that_a_callback_sets():
    model = net(accumulated=3)
    check(model, fit(model, callbacks=[SetRate("on_train_batch_begin")]), STEPS)


@pytest.mark.usefixtures("real_instrument")
def test_rates_of_a_model_that_runs_eagerly():
    model = net(run_eagerly=True, estimator="exact")
    check(
        model,
        fit(model, epochs=2, callbacks=[SetRate("on_train_batch_begin")]),
        2 * STEPS,
    )


def test_another_rate_in_the_next_fit():
    """The last step of a fit has the current rate. If the next fit begins with another rate, it is measured again."""
    model = net()
    first = fit(model, epochs=1)
    assert measured(model)[-1] == 0.5
    model.optimizer.learning_rate = 0.125
    second = fit(model, epochs=1)
    check(model, np.concatenate([first, second]), 2 * STEPS)


def test_another_optimizer_in_the_next_fit():
    model = net()
    first = fit(model, epochs=1)
    model.compile(keras.optimizers.SGD(0.125), model.loss, jit_compile=False)
    second = fit(model, epochs=1)
    check(model, np.concatenate([first, second]), 2 * STEPS)


def test_the_last_step_when_a_callback_stops_training():
    """Keras's EarlyStopping stops at the end of an epoch, other callbacks within an epoch."""

    class StopAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.optimizer.iterations) == STEPS + 2

    for stop, updates in (
        (StopAt(), STEPS + 2),
        (keras.callbacks.EarlyStopping("loss", mode="max", patience=1), 2 * STEPS),
    ):
        model = net()
        check(model, fit(model, callbacks=[SetRate("on_epoch_begin"), stop]), updates)


def test_a_store_has_the_rates_that_updates_take(tmp_path):
    """Each step is saved once, even at the end of an epoch, where the next rate is not known yet."""
    with srel_tf.FrameStore(tmp_path, write=True) as store:
        model = net()
        taken = fit(
            model,
            callbacks=[srel_tf.Checkpoint(store, every=3), SetRate("on_epoch_begin")],
        )
        frame = store.read()
    assert len(model.srel_frame()) == 0
    assert frame["step"].tolist() == list(range(3 * STEPS + 1))
    np.testing.assert_allclose(frame["learning_rate"][:-1], taken, rtol=1e-5)


def test_a_store_keeps_the_last_step_of_a_fit_as_it_is(tmp_path):
    with srel_tf.FrameStore(tmp_path, write=True) as store:
        model, checkpoint = net(), srel_tf.Checkpoint(store)
        fit(model, epochs=1, callbacks=[checkpoint])
        model.optimizer.learning_rate = 0.125
        fit(model, epochs=1, callbacks=[checkpoint])
        frame = store.read()
    assert frame["step"].tolist() == list(range(2 * STEPS + 1))
    assert frame["learning_rate"].tolist() == [0.5] * (STEPS + 1) + [0.125] * STEPS


@pytest.mark.usefixtures("real_instrument")
def test_a_rate_of_zero_is_named():
    """The rate is 0 at the first step of a warm-up. There is one warning per fit."""
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 2 * STEPS, 0.5)
    model = net(warm_up, estimator="exact")
    with pytest.warns(
        UserWarning, match=r"changes nothing.*rate is 0 at step 0.*learning_rate="
    ) as caught:
        rates = fit(model, epochs=1)
    assert sum("rate is 0" in str(warning.message) for warning in caught) == 1
    frame = model.srel_frame()
    assert frame["valid"].tolist() == [False] + [True] * STEPS
    np.testing.assert_allclose(frame["learning_rate"][1:STEPS], rates, rtol=1e-5)


@pytest.mark.parametrize("update", ["sgd", "optimizer", "fresh_adam"])
def test_a_rate_of_zero_outside_fit(update):
    model = net(keras.optimizers.schedules.PolynomialDecay(0.0, 9, 0.5))
    with pytest.warns(UserWarning, match=r"rate is 0 at step 0.*learning_rate="):
        assert not srel_tf.measure(model, PROBE, "l1", update=update).valid("l1").any()
    assert (
        srel_tf.measure(model, PROBE, "l1", update=update, learning_rate=0.1)
        .valid("l1")
        .all()
    )


class SetWeights(keras.callbacks.Callback):
    """Halves the kernel at each call of the method `method`, and measures."""

    def __init__(self, method):
        super().__init__()
        self.measured = {}
        setattr(self, method, self._set)

    def _set(self, *_, **__):
        kernel = self.model.layers[-1].kernel
        kernel.assign(kernel / 2)
        result = srel_tf.measure(self.model, PROBE, "l1", estimator="limit")
        self.measured[int(self.model.optimizer.iterations)] = result.numerator("l1")[0]


@pytest.mark.usefixtures("real_instrument")
@pytest.mark.parametrize("method", ["on_epoch_begin", "on_epoch_end"])
def test_weights_that_a_callback_sets_between_epochs(method):
    """Step n is measured with the weights from which update n+1 starts, even if they changed between epochs or fits."""
    model = net(learning_rate=0.05)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    callback = SetWeights(method)
    for _ in range(2):
        fit(model, epochs=2, callbacks=[callback])
    rows = model.srel_frame().set_index("step")["numerator"]
    assert rows.index.tolist() == list(range(4 * STEPS + 1))
    begun = [STEPS, 2 * STEPS, 3 * STEPS]
    np.testing.assert_allclose(
        rows[begun], [callback.measured[step][0] for step in begun], rtol=1e-5
    )
