"""S_rel measures the step that `fit` takes, or there is a warning or an error.

Cases: optimizers, losses, example weights and frozen layers.
"""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf import ModelError, OptionError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5)).astype(np.float32)
Y = RNG.normal(size=(24, 2)).astype(np.float32)
STEPS = 6  # Steps per epoch.
PROBE = srel_tf.ProbeSet(X[:3], Y[:3])
MSE = keras.losses.MeanSquaredError()
# Functions that make the two layers of a net, so that nets share no layers.
LAYERS = [
    functools.partial(keras.layers.Dense, 4, "tanh", name="first"),
    functools.partial(keras.layers.Dense, 2),
]


def layers():
    return [layer() for layer in LAYERS]


def net(
    cls=srel_tf.SRelSequential,
    optimizer="sgd",
    attach=True,
    estimator="limit",
    **options,
):
    model = cls([keras.Input((5,)), *layers()])
    model.compile(optimizer, MSE, jit_compile=False, **options)
    if attach:
        model.attach_probe(PROBE, every=1, measures="l1", estimator=estimator)
    return model


def fit(model, epochs=1, shuffle=False, **options):
    model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, shuffle=shuffle, **options)
    return model


def steps_of(model):
    return list(dict.fromkeys(model.srel_frame()["step"]))


thermometer = pytest.mark.usefixtures("thermometer")


class Call(keras.callbacks.Callback):
    """Calls act(model) at the beginning of `epoch`, or after its batch `batch`."""

    def __init__(self, act, epoch=1, batch=None):
        super().__init__()
        self._act, self._epoch, self._batch, self._now = act, epoch, batch, None

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch
        if self._batch is None and epoch == self._epoch:
            self._act(self.model)

    def on_train_batch_end(self, batch, logs=None):
        if (self._now, self._batch) == (self._epoch, batch):
            self._act(self.model)


class Own(srel_tf.SRelSequential):
    """Trains with another optimizer than the compiled one, as GANs do, once every `period` batches."""

    period, twice = 1, False

    def compile(self, *arguments, **options):
        super().compile(*arguments, **options)
        self.own = keras.optimizers.SGD(0.1)
        self.batches = tf.Variable(0)

    def optimizer_of_step(self):
        return self.own

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        variables, optimizer = self.trainable_variables, self.optimizer_of_step()
        gradients = tape.gradient(loss, variables)
        if not optimizer.built:
            optimizer.build(variables)

        def update():
            for _ in range(2 if self.twice else 1):
                optimizer.apply(gradients, variables)

        tf.cond(self.batches.assign_add(1) % self.period == 0, update, lambda: None)
        return {"loss": loss}


class Compiled(Own):
    """Trains with the compiled optimizer, as a `train_step` should."""

    def optimizer_of_step(self):
        return self.optimizer


class Seldom(Compiled):
    period = 4


class Twice(Compiled):
    twice = True


OWN_STEP = "ignore:.* defines its own train_step"


@thermometer
@pytest.mark.filterwarnings(OWN_STEP)
def test_an_optimizer_that_fit_does_not_know_is_refused():
    model = net(Own)
    with pytest.raises(
        ModelError,
        match=r"weights of model .* changed.*\(SGD\) has made no update.*srel_tf\.Instrument",
    ):
        fit(model)
    assert steps_of(model) == [0]


@thermometer
@pytest.mark.filterwarnings(OWN_STEP)
def test_a_train_step_that_collects_gradients_itself_is_measured():
    """In the first batches the optimizer makes no update and the weights do not change, which is not an error."""
    model = net(Seldom)
    fit(model, epochs=2)
    assert steps_of(model) == [0, 1, 2, 3]
    epochs = model.srel_frame().groupby("step")["epoch"].first()
    np.testing.assert_allclose(epochs, epochs.index * 4 / STEPS)


@thermometer
@pytest.mark.filterwarnings(OWN_STEP)
def test_several_updates_in_a_batch_are_named():
    model = net(Twice)
    with pytest.warns(
        UserWarning,
        match=r"made 2 updates in one batch.*steps within a batch are not measured",
    ) as caught:
        fit(model, epochs=2)
    assert sum("updates in one batch" in str(w.message) for w in caught) == 1
    assert steps_of(model) == list(range(0, 4 * STEPS + 1, 2))


def test_no_optimizer():
    model = net()
    model.compile(None, MSE)
    with pytest.raises(
        ModelError, match=r"without an optimizer.*model\.compile\(optimizer, loss\)"
    ):
        fit(model)


def accumulated_by_hand(model, batches, rate):
    """Compute the weights after each update in a plain loop. An update uses the mean gradient of `batches` batches."""
    states, total = [model.get_weights()], None
    for k in range(STEPS):
        x, y = X[4 * k : 4 * k + 4], Y[4 * k : 4 * k + 4]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_weights)
        total = (
            gradients
            if total is None
            else [a + b for a, b in zip(total, gradients, strict=True)]
        )
        if (k + 1) % batches == 0:
            for w, g in zip(model.trainable_weights, total, strict=True):
                w.assign_sub(rate * g / batches)
            states.append(model.get_weights())
            total = None
    return states


def test_step_n_is_n_updates_of_accumulated_gradients():
    model = net(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    twin = net(attach=False)
    twin.set_weights(model.get_weights())
    states = accumulated_by_hand(twin, 2, 0.1)
    fit(model)
    frame = model.srel_frame()
    assert steps_of(model) == [0, 1, 2, 3]
    for step, weights in enumerate(states):
        rows = frame[frame["step"] == step]
        assert rows["epoch"].unique() == pytest.approx([2 * step / STEPS])
        twin.set_weights(weights)
        expected = srel_tf.measure(twin, PROBE, "l1", estimator="limit").to_frame()
        np.testing.assert_allclose(rows["numerator"], expected["numerator"], rtol=1e-4)


def test_the_optimizers_own_step_with_accumulated_gradients():
    """The step uses the example's gradient as the mean gradient. Gradients accumulated so far are not used."""
    model = net(
        attach=False, optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    )
    weights = model.get_weights()
    assert srel_tf.measure(model, PROBE, "l1", update="optimizer").valid("l1").all()
    model.attach_probe(PROBE, every=10, measures="l1", update="optimizer")
    fit(model)
    model.set_weights(weights)
    with tf.GradientTape(persistent=True) as tape:
        losses = [tf.reduce_mean((model(X[i, None]) - Y[i]) ** 2) for i in range(3)]
    own = [tape.gradient(loss, model.trainable_weights) for loss in losses]
    before = model(X[:3])
    expected = []
    for gradients in own:
        model.set_weights(
            [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
        )
        expected.append(np.abs(model(X[:3]) - before).sum(axis=-1))
    frame = model.srel_frame()
    assert frame["valid"].all()
    np.testing.assert_allclose(frame["numerator"], np.ravel(expected), rtol=1e-3)


@thermometer
def test_a_checkpoint_counts_updates_of_accumulated_gradients(tmp_path):
    class Counting(srel_tf.FrameStore):
        def commit(self, frame, arrays, about):
            super().commit(frame, arrays, about)
            saved.append((about["step"], about["batch"]))

    saved = []
    with Counting(tmp_path, write=True) as store:
        model = net(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
        fit(model, callbacks=[srel_tf.Checkpoint(store, every=2)])
    assert saved == [(2, 4), (3, 0)]


def recompile(model, rate=0.5, loss=None):
    model.compile(keras.optimizers.SGD(rate), loss or model.loss, jit_compile=False)
    model.make_train_function()  # After `compile` in a callback, `fit` has no training step without this call.


@pytest.mark.parametrize("batch", [None, 2])
def test_compile_in_a_callback(batch):
    """The model gets another optimizer and loss, at the beginning of an epoch or within it. The steps continue."""
    model = net(optimizer=keras.optimizers.SGD(0.1))
    other = keras.losses.MeanAbsoluteError()
    fit(
        model,
        epochs=2,
        callbacks=[Call(lambda model: recompile(model, loss=other), batch=batch)],
    )
    frame = model.srel_frame()
    assert steps_of(model) == list(range(2 * STEPS + 1))
    np.testing.assert_allclose(frame["epoch"], frame["step"].astype(float) / STEPS)
    first = (
        STEPS if batch is None else STEPS + batch + 1
    )  # The new optimizer makes the update after this step.
    assert frame.groupby("step")["learning_rate"].first().tolist() == pytest.approx(
        [0.1] * first + [0.5] * (2 * STEPS + 1 - first)
    )
    expected = srel_tf.measure(model, PROBE, "l1", estimator="limit").to_frame()
    np.testing.assert_allclose(
        frame[frame["step"] == 2 * STEPS]["numerator"], expected["numerator"], rtol=1e-5
    )


@pytest.mark.filterwarnings(OWN_STEP)
def test_compile_in_a_callback_with_an_optimizer_that_trains_nothing():
    model = net(Compiled, optimizer=keras.optimizers.SGD(0.1))

    def compile_own(model):
        model.__class__ = Own
        recompile(model)

    with pytest.raises(ModelError, match="has made no update"):
        fit(model, epochs=2, callbacks=[Call(compile_own)])
    assert steps_of(model) == list(range(STEPS + 1))


STALE = r"`trainable` of layers .*first was changed after Keras had traced.*call model\.compile"


def freeze(model, trainable=False):
    model.get_layer("first").trainable = trainable


def moved(model, train):
    before = model.get_layer("first").kernel.numpy()
    train()
    return not np.array_equal(before, model.get_layer("first").kernel.numpy())


def srel(model, step):
    return model.srel_frame().query("step == @step")["srel"].to_numpy()


@pytest.mark.parametrize("within", [False, True])
def test_a_layer_frozen_too_late_is_named(within):
    """Keras continues to train the layer, and S_rel is measured with this layer trained."""
    model = net()
    fit(model)
    if not within:
        freeze(model)
    callbacks = [Call(freeze, epoch=0, batch=1)] if within else []
    with pytest.warns(UserWarning, match=STALE) as caught:
        assert moved(model, lambda: fit(model, callbacks=callbacks))
    assert sum("trainable" in str(w.message) for w in caught) == 1
    freeze(model, True)
    expected = (
        srel_tf.measure(model, PROBE, "l1", estimator="limit").matrix("l1").ravel()
    )
    np.testing.assert_allclose(srel(model, 2 * STEPS), expected, rtol=1e-5)


def test_a_layer_unfrozen_too_late_is_named():
    model = net(attach=False)
    freeze(model)
    fit(model)
    freeze(model, True)
    model.attach_probe(PROBE, every=1, measures="l1", estimator="limit")
    with pytest.warns(UserWarning, match=STALE):
        assert not moved(model, lambda: fit(model))


def test_a_layer_frozen_for_one_shape_of_batches_is_named():
    """Keras makes a new trace for batches of another size. Only this trace does not train the layer."""
    model = net()
    fit(model)
    freeze(model)
    with pytest.warns(UserWarning, match=STALE):
        model.fit(X[:22], Y[:22], batch_size=4, verbose=0, shuffle=False)
    assert moved(model, lambda: fit(model))


@pytest.mark.parametrize("when", ["before", "in a callback", "compiled"])
def test_a_layer_frozen_in_time_is_left_out(when):
    model = net()
    if when == "compiled":
        fit(model)
        freeze(model)
        model.compile("sgd", MSE, jit_compile=False)
    elif when == "before":
        freeze(model)
    callbacks = [Call(freeze, epoch=0)] if when == "in a callback" else []
    assert not moved(model, lambda: fit(model, callbacks=callbacks))
    expected = (
        srel_tf.measure(model, PROBE, "l1", estimator="limit").matrix("l1").ravel()
    )
    np.testing.assert_allclose(
        srel(model, model.srel_frame()["step"].max()), expected, rtol=1e-5
    )


def test_a_layer_frozen_in_a_model_that_runs_eagerly():
    """Keras stops to train the layer at once, and the measurement treats it as frozen."""
    model = net(run_eagerly=True, attach=False)
    model.attach_probe(PROBE, every=2 * STEPS, measures="l1")
    assert not moved(
        model, lambda: fit(model, epochs=2, callbacks=[Call(freeze, epoch=0)])
    )
    expected = srel_tf.measure(model, PROBE, "l1").matrix("l1").ravel()
    np.testing.assert_allclose(srel(model, 2 * STEPS), expected, rtol=1e-5)


def test_a_schedule_set_too_late_is_named():
    """Keras's traced step continues with the former rate."""
    model = net()
    fit(model)
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
        1e-9, 1, 1.0
    )
    with pytest.warns(
        UserWarning,
        match=r"another schedule after Keras had traced.*call model\.compile",
    ):
        assert moved(model, lambda: fit(model))


class OwnLoss(srel_tf.SRelSequential):
    """Minimises |f − y| with the compiled optimizer, and ignores the compiled loss."""

    def train_step(self, data):
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = absolute(y, self(x, training=True)) + sum(self.losses)
        self.optimizer.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


class CallsSuper(srel_tf.SRelSequential):
    def train_step(self, data):
        return super().train_step(data)


def absolute(y, f):
    return tf.reduce_mean(tf.abs(f - y))


def one_each(y, f):
    return tf.reduce_mean(tf.abs(f - y), axis=-1)


OWN = r"defines its own train_step: S_rel is measured with the compiled loss; .* pass loss="


@pytest.mark.parametrize("cls", [OwnLoss, CallsSuper])
def test_a_train_step_of_its_own_is_named(cls):
    model = net(cls)
    with pytest.warns(UserWarning, match=f"^{cls.__name__} {OWN}") as caught:
        fit(model, epochs=2)
    assert sum("train_step" in str(w.message) for w in caught) == 1
    with pytest.warns(UserWarning, match=OWN):
        srel_tf.measure(model, PROBE, "l1")


def with_penalties(cls, loss):
    model = cls(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, "tanh", kernel_regularizer="l2"),
            keras.layers.ActivityRegularization(l2=0.01),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", loss, jit_compile=False)
    return model


@pytest.mark.filterwarnings("ignore:.*one source after the other, by forward-mode")
@pytest.mark.parametrize(
    ("loss", "estimator"),
    [
        (absolute, "limit"),
        pytest.param(one_each, "exact", marks=pytest.mark.slow),
        (one_each, "auto"),
        (keras.losses.MeanAbsoluteError(), "exact"),
    ],
)
def test_a_loss_of_the_users(loss, estimator):
    """A model measured with loss=... has the same S_rel as a model compiled with this loss, penalties included."""
    model, twin = (
        with_penalties(OwnLoss, MSE),
        with_penalties(keras.Sequential, keras.losses.MeanAbsoluteError()),
    )
    twin.set_weights(model.get_weights())
    options = {"learning_rate": 0.1, "estimator": estimator}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*train_step")
        result = srel_tf.measure(model, PROBE, "l1", loss=loss, **options)
    expected = srel_tf.measure(twin, PROBE, "l1", **options)
    assert result.valid("l1").all()
    np.testing.assert_allclose(result.matrix("l1"), expected.matrix("l1"), rtol=1e-3)


def test_a_loss_of_the_users_is_what_fit_minimises():
    """The measured step equals the model's training step on a batch of one example."""
    model = net(OwnLoss, optimizer=keras.optimizers.SGD(0.1), attach=False)
    result = srel_tf.measure(model, PROBE, "l1", loss=absolute)
    before, weights = model.predict(X[:3], verbose=0), model.get_weights()
    for i in range(3):
        model.set_weights(weights)
        model.train_on_batch(X[i : i + 1], Y[i : i + 1])
        change = np.abs(model.predict(X[:3], verbose=0) - before).sum(axis=-1)
        np.testing.assert_allclose(result.numerator("l1")[i], change, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*one source after the other, by forward-mode")
def test_a_loss_of_the_users_in_fit():
    """The model is compiled without a loss. The saved state contains the function's name, but no memory address."""
    model = OwnLoss([keras.Input((5,)), *layers()])
    model.compile("sgd", jit_compile=False)
    with pytest.raises(ModelError, match=r"compiled without a loss: .*pass loss="):
        srel_tf.measure(model, PROBE, "l1", learning_rate=0.1)
    options = {"measures": "l1", "loss": absolute, "estimator": "limit"}
    model.attach_probe(PROBE, every=STEPS, **options)
    fit(model)
    expected = srel_tf.measure(model, PROBE, **options).matrix("l1").ravel()
    np.testing.assert_allclose(srel(model, STEPS), expected, rtol=1e-5)
    (callback,) = model._srel_callbacks
    assert callback.state["about"]["loss"] == f"{__name__}.absolute"


def test_a_loss_that_is_none():
    for loss in ("mse", 3):
        with pytest.raises(OptionError, match=rf"loss={loss!r}: give a function"):
            srel_tf.Settings(loss=loss)
    for loss, returned in (
        (lambda y, f: f, r"\(1, 2\)"),
        (lambda y, f: None, "NoneType"),
    ):
        with pytest.raises(OptionError, match=rf"returned {returned}: give a function"):
            srel_tf.measure(net(attach=False), PROBE, "l1", loss=loss)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self._arrays = arrays

    def __len__(self):
        return STEPS

    def __getitem__(self, k):
        return tuple(a[4 * k : 4 * k + 4] for a in self._arrays)


def generator(*arrays):
    batches = Batches(*arrays)
    for k in range(2 * STEPS):
        yield batches[k % STEPS]


W = np.ones(24, np.float32)
WEIGHTED = {
    "sample_weight": {"x": X, "y": Y, "sample_weight": W},
    "class_weight": {"x": X, "y": np.arange(24) % 2, "class_weight": {0: 1.0, 1: 2.0}},
    "dataset": {"x": tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(4)},
    "PyDataset": {"x": Batches(X, Y, W)},
    "generator": {"x": generator(X, Y, W), "steps_per_epoch": STEPS},
}
PLAIN = {
    "arrays": {"x": X, "y": Y, "sample_weight": None, "batch_size": 4},
    "dataset": {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)},
    "PyDataset": {"x": Batches(X, Y)},
}
WEIGHS = "fit weighs the examples"


@thermometer
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.parametrize(
    "data", [*[*WEIGHTED][:-1], pytest.param("generator", marks=pytest.mark.slow)]
)
def test_weights_of_examples_are_named(data):
    """There is one warning for all probes."""
    options = WEIGHTED[data]
    model, probe = net(attach=False), PROBE
    if data == "class_weight":
        model.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        probe = srel_tf.ProbeSet(X[:3], [0, 1, 0])
    for run in ("a", "b") if data == "sample_weight" else ("a",):
        model.attach_probe(probe, every=100, measures="l1", estimator="limit", run=run)
    with pytest.warns(UserWarning, match=WEIGHS) as caught:
        model.fit(**options, epochs=2, verbose=0)
    assert sum(WEIGHS in str(w.message) for w in caught) == 1


@thermometer
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.parametrize(
    "data", ["arrays", *(pytest.param(d, marks=pytest.mark.slow) for d in [*PLAIN][1:])]
)
def test_examples_without_weights_are_not(data):
    model = net()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=WEIGHS)
        model.fit(**PLAIN[data], verbose=0)
    assert len(steps_of(model)) == STEPS + 1
