"""Fictitious update rules compared with a real step of a real optimizer on a clone."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.gradients.network import Network
from srel_tf.updates import FreshAdam, OptimizerStep, learning_rate_now
from tests import reference
from tests.nets import classifier, digits, double_precision

Opt = keras.optimizers
SOURCES, TARGETS = [0, 5], [1, 5, 8, 11]
ETA = 0.01


def decaying():
    return Opt.schedules.ExponentialDecay(0.02, 2, 0.5)


# Every optimizer of Keras, and every option of these optimizers, at least once.
OPTIMIZERS = {
    "SGD": lambda: Opt.SGD(ETA),
    "SGD momentum, clipnorm": lambda: Opt.SGD(ETA, momentum=0.9, clipnorm=0.01),
    "SGD nesterov, weight decay": lambda: Opt.SGD(
        ETA, momentum=0.9, nesterov=True, weight_decay=0.5
    ),
    "Adam": lambda: Opt.Adam(ETA),
    "Adam amsgrad, schedule": lambda: Opt.Adam(decaying(), amsgrad=True),
    "Adam moving average": lambda: Opt.Adam(
        ETA, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "AdamW": lambda: Opt.AdamW(ETA, weight_decay=0.5),
    "Adamax global_clipnorm": lambda: Opt.Adamax(ETA, global_clipnorm=0.01),
    "Nadam clipvalue": lambda: Opt.Nadam(ETA, clipvalue=1e-3),
    "Lion": lambda: Opt.Lion(ETA),
    "Lamb weight decay": lambda: Opt.Lamb(ETA, weight_decay=0.5),
    "Adafactor": lambda: Opt.Adafactor(2.0),
    "Adafactor schedule": lambda: Opt.Adafactor(
        lambda: 2.0
    ),  # Adafactor checks whether its learning rate is callable.
    "Adagrad": lambda: Opt.Adagrad(ETA),
    "Adadelta": lambda: Opt.Adadelta(ETA),
    "RMSprop": lambda: Opt.RMSprop(ETA, momentum=0.5, centered=True),
    "Ftrl": lambda: Opt.Ftrl(
        ETA, l1_regularization_strength=1e-3, l2_shrinkage_regularization_strength=0.1
    ),
    "Muon": lambda: Opt.Muon(ETA),  # A layer of the net below has the name "embedding".
    "Muon excluded layer": lambda: Opt.Muon(
        ETA, exclude_layers=["head"], exclude_embeddings=False
    ),
    "ScheduleFreeAdamW": lambda: Opt.ScheduleFreeAdamW(ETA, warmup_steps=10),
}


def small_net(optimizer, dtype="float32"):
    """Return a net with weights of 1, 2 and 4 axes, a constraint, and a layer whose name affects Muon."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(2, 2, dtype=dtype, name="conv"),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(
            5,
            "tanh",
            kernel_constraint=keras.constraints.MaxNorm(0.5),
            dtype=dtype,
            name="embedding",
        ),
        keras.layers.Dense(4, "tanh", dtype=dtype, name="middle"),
        keras.layers.Dense(3, dtype=dtype, name="head"),
    ]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers], name="net")
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def gradients(model, example):
    """Return random gradients: for the test of a rule it does not matter where a gradient comes from."""
    random = np.random.default_rng(example)
    return [
        tf.constant(random.normal(size=v.shape) * 0.1, v.dtype)
        for v in model.trainable_variables
    ]


@functools.cache
def trained(name, steps=2):
    """Return a small net after a few updates of an optimizer. It is cached, so no test may change it."""
    model = small_net(OPTIMIZERS[name]())
    for step in range(steps):
        model.optimizer.apply_gradients(
            zip(gradients(model, step), model.trainable_variables, strict=True)
        )
    return model


def copy_of(model, make, dtype="float32"):
    """Return another net with an optimizer of the same kind, both in the same state as `model`."""
    copy = small_net(make(), dtype)
    copy.set_weights(model.get_weights())
    if model.optimizer.built:
        copy.optimizer.build(copy.trainable_variables)
        for ours, theirs in zip(
            copy.optimizer.variables, model.optimizer.variables, strict=True
        ):
            ours.assign(theirs.numpy())
    return copy


def really_stepped(copy, gradient):
    """Return the weights of a copy after one real step of its optimizer."""
    copy.optimizer.apply_gradients(zip(gradient, copy.trainable_variables, strict=True))
    return [v.numpy() for v in copy.trainable_variables]


def by_rule(model, gradient, dtype=tf.float32):
    """Return the weights after a step of `update="optimizer"`, which gets weights, gradients and η in `dtype`."""
    rule = OptimizerStep(Network(model))
    weights = [tf.cast(v.value, dtype) for v in model.trainable_variables]
    eta = tf.constant(
        float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)), dtype
    )
    return [
        w.numpy()
        for w in rule.updated(
            weights, [g if g is None else tf.cast(g, dtype) for g in gradient], eta
        )
    ]


def state_of(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_same(ours, theirs, rtol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_rule_is_the_real_step_bit_for_bit_and_leaves_the_model_alone(name):
    model = trained(name)
    before, gradient = state_of(model), gradients(model, 10)
    ours = by_rule(model, gradient)
    assert_same(ours, really_stepped(copy_of(model, OPTIMIZERS[name]), gradient))
    assert_same(state_of(model), before)
    assert not np.array_equal(ours[0], before[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_rule_in_float64_is_the_step_of_a_float64_copy(name):
    model = trained(name)
    gradient = [
        tf.cast(g, tf.float64) * (1 + 1e-9) for g in gradients(model, 10)
    ]  # These numbers cannot be represented in float32.
    dtypes = [a.dtype for a in state_of(model)]
    ours = by_rule(model, gradient, tf.float64)
    with double_precision():
        theirs = really_stepped(copy_of(model, OPTIMIZERS[name], "float64"), gradient)
    assert_same(ours, theirs, rtol=1e-13)
    assert [v.dtype for v in [*model.variables, *model.optimizer.variables]] == dtypes
    assert keras.config.floatx() == "float32"


# State of a new optimizer: zeros, a constant, or the weights. Some options take effect when it is built.
@pytest.mark.parametrize(
    "name",
    [
        "Adam moving average",
        "Adagrad",
        "ScheduleFreeAdamW",
        "Muon",
        "Adafactor schedule",
    ],
)
def test_optimizer_rule_before_training_is_the_first_step_of_a_new_optimizer(name):
    model = small_net(OPTIMIZERS[name]())
    variables, gradient = model.optimizer.variables, gradients(model, 10)
    ours = by_rule(model, gradient)
    assert_same(ours, really_stepped(copy_of(model, OPTIMIZERS[name]), gradient))
    assert not model.optimizer.built
    assert model.optimizer.variables == variables


@pytest.mark.parametrize("name", ["Adam moving average", "Muon"])
def test_each_source_of_a_loop_in_a_graph_starts_from_the_same_state(name):
    model = trained(name)
    before, two = state_of(model), [gradients(model, example) for example in (10, 11)]
    rule, eta = OptimizerStep(Network(model)), tf.constant(ETA)
    stacked = [tf.stack(pair) for pair in zip(*two, strict=True)]

    @tf.function(autograph=False)
    def steps():
        def step(gradient):
            return tuple(
                rule.updated(
                    [v.value for v in model.trainable_variables], list(gradient), eta
                )
            )

        return tf.map_fn(
            step,
            tuple(stacked),
            fn_output_signature=(tf.float32,) * len(stacked),
            parallel_iterations=1,
        )

    ours = steps()
    for row, gradient in enumerate(two):
        theirs = really_stepped(copy_of(model, OPTIMIZERS[name]), gradient)
        assert_same(
            [w[row].numpy() for w in ours], theirs, rtol=1e-6
        )  # A graph may compute products in another order.
    assert_same(state_of(model), before)


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_with_gradient_accumulation_the_gradient_stands_for_the_mean_of_a_complete_accumulation(
    parts,
):
    """In the reference, Keras gets the same gradient k times, and updates once.

    Gradients that the model's optimizer has already collected do not count.
    """

    def make():
        return Opt.Adam(ETA, gradient_accumulation_steps=3, clipnorm=0.5)

    model = small_net(make())
    for step in range(3):
        model.optimizer.apply_gradients(
            zip(gradients(model, step), model.trainable_variables, strict=True)
        )
    reference, gradient = copy_of(model, make), gradients(model, 10)
    for _ in range(2):
        really_stepped(reference, gradient)
    theirs = really_stepped(reference, gradient)
    for part in range(parts):
        model.optimizer.apply_gradients(
            zip(gradients(model, 20 + part), model.trainable_variables, strict=True)
        )
    assert_same(by_rule(model, gradient), theirs, rtol=1e-6)


def test_a_loss_scale_does_not_change_the_step():
    def scaled():
        return Opt.SGD(ETA, momentum=0.9, loss_scale_factor=128.0)

    model = small_net(scaled())
    gradient = gradients(model, 10)
    for _ in range(2):
        really_stepped(model, gradient)
    theirs = really_stepped(copy_of(model, scaled), [g * 128.0 for g in gradient])
    assert_same(by_rule(model, gradient), theirs)
    wrapped = small_net(
        Opt.LossScaleOptimizer(Opt.SGD(ETA, momentum=0.9), initial_scale=128.0)
    )
    for _ in range(2):
        really_stepped(wrapped, gradient)
    assert_same(by_rule(wrapped, gradient), theirs)


def test_weights_without_a_gradient_and_rows_of_a_table_are_updated_as_in_training():
    """Keras does not change weights without a gradient, not even by decay. Adagrad squares each row that it gets."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Embedding(5, 3),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    ]
    model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
    model.compile(Opt.Adagrad(ETA, weight_decay=0.5), "mse")
    _, kernel, bias = model.trainable_variables
    rows = tf.IndexedSlices(
        tf.constant(np.random.default_rng(0).normal(size=(3, 3)), tf.float32),
        [1, 1, 2],
        [5, 3],
    )
    gradient = [rows, tf.ones_like(kernel), None]
    ours = by_rule(model, gradient)
    before = bias.numpy()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        theirs = really_stepped(model, gradient)
    assert_same(ours, theirs)
    np.testing.assert_array_equal(ours[2], before)


class TwoOptimizers(Opt.Optimizer):
    def __init__(self):
        super().__init__(learning_rate=ETA)
        self.inner = {"first": Opt.SGD(ETA), "second": Opt.Adam(ETA)}


class OwnRate(Opt.SGD):
    @property
    def learning_rate(self):
        return 2 * self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self._learning_rate.assign(value)


class Counting(Opt.SGD):
    def __init__(self):
        super().__init__(ETA)
        self.counter = tf.Variable(0)

    def update_step(self, gradient, variable, learning_rate):
        self.counter.assign_add(1)
        super().update_step(gradient, variable, learning_rate)


class Hidden(Opt.SGD):
    """An optimizer that writes to a Keras variable that the instrument cannot find."""

    def __init__(self):
        super().__init__(ETA)
        self.helper = type("Helper", (), {})()
        self.helper.counter = keras.Variable(0)

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.helper.counter, self.helper.counter + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "needs an optimizer: call model.compile"),
        (
            lambda: Opt.MultiOptimizer(lambda variable: Opt.SGD(ETA)),
            "MultiOptimizer.* compile the model with one of them",
        ),
        (TwoOptimizers, "TwoOptimizers.* compile the model with one of them"),
        (OwnRate, "cannot set the learning rate of .*OwnRate"),
        (Counting, "Counting.* holds the TensorFlow variable .* add_variable"),
        (Hidden, r"cannot run .*Hidden.* \(AttributeError.*use update='sgd'"),
    ],
)
def test_optimizers_that_cannot_be_run_on_copies_are_refused_by_name(make, message):
    model = small_net(make())
    with pytest.raises(srel_tf.ModelError, match=message):
        by_rule(model, gradients(model, 10)) if make is Hidden else OptimizerStep(
            Network(model)
        )


def test_a_layer_made_trainable_after_the_optimizer_was_built_is_named():
    model = small_net(Opt.Adam(ETA))
    model.layers[0].trainable = False
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = True
    with pytest.raises(
        srel_tf.ModelError,
        match=r"built before net/conv/kernel, .* 2 of 8 weights: .*compile",
    ):
        OptimizerStep(Network(model))


def test_a_layer_frozen_after_the_optimizer_was_built_keeps_its_weights():
    model = small_net(Opt.Adam(ETA))
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False
    gradient = gradients(model, 10)
    assert_same(by_rule(model, gradient), really_stepped(model, gradient))


def test_fresh_adam_is_its_formula_in_float64_too():
    random = np.random.default_rng(0)
    w, g, eta = random.normal(size=(5, 3)), random.normal(size=(5, 3)), 1e-3
    [ours] = FreshAdam(None).updated(
        [tf.constant(w)], [tf.constant(g)], tf.constant(eta, tf.float64)
    )
    np.testing.assert_allclose(ours, w - eta * g / (np.abs(g) + 1e-8), rtol=1e-15)


@pytest.fixture(scope="module")
def data():
    return digits(per_class=4)


def matrix_of(model, data, **settings):
    probe = srel_tf.ProbeSet(*data, sources=SOURCES, targets=TARGETS)
    return srel_tf.measure(model, probe, measures="kl", **settings).matrix("kl")


def naive_matrix(model, data):
    """Return S_rel by `train_on_batch` on the model itself, whose state is restored after each source."""
    (x, y), variables = data, [*model.variables, *model.optimizer.variables]
    state, after = [v.numpy() for v in variables], reference.clone(model)
    matrix = np.empty((len(SOURCES), len(TARGETS)))
    for row, i in enumerate(SOURCES):
        model.train_on_batch(x[[i]], y[[i]])
        after.set_weights(model.get_weights())
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        moved = [
            reference.kl(*(net(x[[j]]).numpy()[0] for net in (model, after)))
            for j in [*TARGETS, i]
        ]
        matrix[row] = np.array(moved[:-1]) / moved[-1]
    return matrix


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("loop", [False, True])
def test_a_word_that_occurs_twice_and_a_weight_outside_the_loss_are_updated_as_in_training(
    loop,
):
    """The loss has no gradient with respect to the weights of `fixed`. Their decay would change the predictions.

    If `loop` is True, there is one backward pass per source, because the model has an activity regulariser.
    """
    x, y = (
        np.array([[1, 1, 2, 1], [0, 2, 3, 3], [4, 0, 1, 2]]),
        np.array([0.3, -1.0, 2.0]),
    )
    inputs = keras.Input((4,), dtype="int32")
    regularizer = keras.regularizers.L2(1e-3) if loop else None
    hidden = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs))
    fixed = keras.layers.Lambda(tf.stop_gradient)(keras.layers.Dense(1, "tanh")(hidden))
    outputs = keras.layers.Dense(1, activity_regularizer=regularizer)(
        keras.layers.Concatenate()([hidden, fixed])
    )
    model = keras.Model(inputs, outputs)
    model.compile(Opt.Adagrad(0.1, weight_decay=0.5), "mse")
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        model.fit(x, y, verbose=0)
    ours = srel_tf.measure(
        model, srel_tf.ProbeSet(x, y), "l2", "optimizer", predictions="raw"
    ).matrix("l2")
    state, before, moved = state_of(model), model.predict(x, verbose=0), []
    for i in range(3):
        model.train_on_batch(x[[i]], y[[i]])
        moved.append(np.abs(model.predict(x, verbose=0) - before)[:, 0])
        for variable, value in zip(
            [*model.variables, *model.optimizer.variables], state, strict=True
        ):
            variable.assign(value)
    np.testing.assert_allclose(
        ours, np.array(moved) / np.diag(moved)[:, None], rtol=1e-9
    )


def excluding_muon(model):
    return Opt.Muon(ETA, exclude_layers=[f"^{model.layers[-1].name}/"])


def excluding_adamw(model):
    optimizer = Opt.AdamW(ETA, weight_decay=5.0)
    optimizer.exclude_from_weight_decay(
        var_names=["bias"], var_list=[model.layers[-1].kernel]
    )
    return optimizer


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("make", [excluding_muon, excluding_adamw])
def test_an_instrument_measures_the_step_of_a_new_optimizer_and_later_that_of_the_trained_one(
    make, data
):
    model = classifier("mlp")
    model.compile(make(model), model.loss)
    model.layers[-1].kernel.constraint = keras.constraints.MaxNorm(0.5)
    for layer in model.layers[2:]:
        layer.bias.assign_add(np.full(layer.bias.shape, 0.5))  # Its decay would show.
    probe = srel_tf.ProbeSet(*data, sources=SOURCES, targets=TARGETS)
    instrument = srel_tf.Instrument(
        model, probe, srel_tf.Settings("kl", update="optimizer")
    )
    first, weights = instrument(), model.get_weights()
    assert not model.optimizer.built
    model.optimizer.build(model.trainable_variables)
    np.testing.assert_allclose(first.matrix("kl"), naive_matrix(model, data), rtol=1e-9)
    for kept, now in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)
    for _ in range(3):
        model.train_on_batch(*data)
    before, later = state_of(model), instrument().matrix("kl")
    for kept, now in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(kept, now)
    np.testing.assert_allclose(later, naive_matrix(model, data), rtol=1e-9)
    assert not np.allclose(first.matrix("kl"), later, rtol=1e-3)


def test_a_schedule_gives_its_present_rate_unless_another_is_given():
    model = small_net(Opt.SGD(Opt.schedules.ExponentialDecay(0.05, 2, 0.5)))
    gradient = gradients(model, 10)
    for _ in range(2):
        really_stepped(model, gradient)
    assert learning_rate_now(model) == pytest.approx(0.025, rel=1e-6)
    assert learning_rate_now(model, 0.2) == 0.2
    weights = [tf.convert_to_tensor(v.value) for v in model.trainable_variables]
    free = slice(4, None)  # Leave out the weights up to the kernel with a constraint.
    ours = OptimizerStep(Network(model)).updated(weights, gradient, tf.constant(0.2))[
        free
    ]
    assert_same(
        [w.numpy() for w in ours],
        [(w - 0.2 * g).numpy() for w, g in zip(weights, gradient, strict=True)][free],
    )


@pytest.mark.usefixtures("in_double_precision")
def test_rows_of_an_optimizer_that_accumulates_gradients_are_those_of_its_updates(data):
    model = classifier("mlp", optimizer=Opt.SGD(0.1, gradient_accumulation_steps=4))
    model.train_on_batch(*data)
    expected = reference.srel(model, *data, SOURCES, TARGETS, 0.1, reference.kl)
    np.testing.assert_allclose(
        matrix_of(model, data, update="optimizer"), expected, rtol=1e-6
    )  # The learning rate 0.1 is rounded to float32.


@pytest.mark.usefixtures("in_double_precision")
def test_fresh_adam_is_the_first_step_of_a_new_adam(data):
    model = classifier("mlp")
    matrix = matrix_of(model, data, update="fresh_adam", learning_rate=1e-3)
    expected = reference.srel(
        model,
        *data,
        SOURCES,
        TARGETS,
        None,
        reference.kl,
        lambda: reference.fresh_adam(1e-3),
    )
    np.testing.assert_allclose(
        matrix, expected, rtol=1e-6
    )  # Keras computes 1 − β₂ᵗ in float32.


def test_learning_rate_defaults_to_the_optimizers_and_can_be_set(data):
    probe = srel_tf.ProbeSet(*data, sources=SOURCES, targets=TARGETS)
    model = classifier("mlp", optimizer=Opt.SGD(0.25))
    instrument = srel_tf.Instrument(model, probe, srel_tf.Settings("kl"))
    own, fixed = (
        instrument(),
        srel_tf.measure(model, probe, measures="kl", learning_rate=0.5),
    )
    assert (own.learning_rate, fixed.learning_rate) == (0.25, 0.5)
    model.optimizer.learning_rate = 0.5
    np.testing.assert_array_equal(instrument().matrix("kl"), fixed.matrix("kl"))
    assert not np.allclose(own.matrix("kl"), fixed.matrix("kl"), rtol=1e-3)


def test_an_optimizer_without_a_learning_rate_of_its_own_is_named():
    model = small_net(Opt.MultiOptimizer(lambda variable: Opt.SGD(ETA)))
    with pytest.raises(
        srel_tf.ModelError,
        match=r"MultiOptimizer.* no single learning rate .*pass learning_rate=",
    ):
        learning_rate_now(model)
    assert learning_rate_now(model, 0.1) == 0.1
