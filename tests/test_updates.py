"""Fictitious update rules against really stepping a clone with a real optimizer."""

import keras
import numpy as np
import pytest

import srel_tf
from tests import reference
from tests.nets import classifier, digits

pytestmark = pytest.mark.usefixtures("in_double_precision")

Opt = keras.optimizers
OPTIMIZERS = {
    "sgd": lambda: Opt.SGD(0.1),
    "momentum": lambda: Opt.SGD(0.05, momentum=0.9),
    "nesterov": lambda: Opt.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: Opt.Adam(0.01),
    "amsgrad": lambda: Opt.Adam(0.01, amsgrad=True),
    "adamw": lambda: Opt.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: Opt.RMSprop(0.01, momentum=0.5, centered=True),
    "schedule": lambda: Opt.Adam(Opt.schedules.ExponentialDecay(0.05, 2, 0.5)),
    "clipped": lambda: Opt.SGD(0.1, clipnorm=0.5),
    "ema": lambda: Opt.SGD(0.1, use_ema=True, ema_momentum=0.5),
}
# Plain, or of another one's kind: Keras's own code makes the step of each. Adam with decay has a test of its own.
SLOWER = ("sgd", "momentum", "amsgrad", "adamw")
SOURCES, TARGETS = [0, 5], [1, 5, 8, 11]


@pytest.fixture(scope="module")
def data():
    return digits(per_class=4)


def real_step(model, x, y, after):
    """Overwrite the clone `after` with what one real step of the model's own optimizer gives; the model is restored."""
    weights, state = model.get_weights(), [v.numpy() for v in model.optimizer.variables]
    model.train_on_batch(x, y)
    after.set_weights(model.get_weights())
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)


def naive_matrix(model, x, y):
    after, matrix = reference.clone(model), np.empty((len(SOURCES), len(TARGETS)))
    for row, i in enumerate(SOURCES):
        real_step(model, x[[i]], y[[i]], after)
        moved = [reference.kl(*(net(x[[j]]).numpy()[0] for net in (model, after))) for j in [*TARGETS, i]]
        matrix[row] = np.array(moved[:-1]) / moved[-1]
    return matrix


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOWER)) for name in OPTIMIZERS]
)
def test_optimizer_rule_is_the_live_optimizers_next_step(name, data):
    x, y = data
    model = classifier("mlp", optimizer=OPTIMIZERS[name]())
    model.fit(x, y, epochs=3, batch_size=4, verbose=0)
    before = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(model, probe, measures="kl", update="optimizer")
    for kept, variable in zip(before, [*model.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(kept, variable.numpy())
    np.testing.assert_allclose(result.matrix("kl"), naive_matrix(model, x, y), rtol=1e-9)
    assert result.learning_rate == pytest.approx(float(model.optimizer.learning_rate), rel=1e-6)


def test_optimizer_rule_respects_weight_decay_exclusions_and_constraints(data):
    x, y = data
    model = classifier("mlp", optimizer=Opt.AdamW(0.01, weight_decay=5.0))
    model.layers[-1].kernel.constraint = keras.constraints.MaxNorm(0.5)
    model.optimizer.exclude_from_weight_decay(var_names=["bias"], var_list=[model.layers[-1].kernel])
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign_add(np.full(layer.bias.shape, 0.5))  # So that decaying a bias would show.
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    matrix = srel_tf.measure(model, probe, measures="kl", update="optimizer").matrix("kl")
    np.testing.assert_allclose(matrix, naive_matrix(model, x, y), rtol=1e-9)


def test_optimizer_rule_before_any_training_is_a_new_optimizers_first_step(data):
    x, y = data
    model = classifier("mlp", optimizer=Opt.Adam(0.01))
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    matrix = srel_tf.measure(model, probe, measures="kl", update="optimizer").matrix("kl")
    assert not model.optimizer.built
    expected = reference.srel(model, x, y, SOURCES, TARGETS, None, reference.kl, lambda: Opt.Adam(0.01))
    np.testing.assert_allclose(matrix, expected, rtol=1e-9)


def test_an_instrument_made_before_training_sees_the_optimizers_later_state(data):
    x, y = data
    model = classifier("mlp", optimizer=Opt.Adam(0.01))
    instrument = srel_tf.Instrument(
        model, srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS), srel_tf.Settings("kl", update="optimizer")
    )
    instrument()
    for _ in range(3):
        model.train_on_batch(x, y)
    np.testing.assert_allclose(instrument().matrix("kl"), naive_matrix(model, x, y), rtol=1e-9)


def test_optimizer_rule_takes_another_learning_rate_even_from_a_schedule(data):
    x, y = data
    schedule = Opt.schedules.ExponentialDecay(0.05, 2, 0.5)
    model = classifier("mlp", optimizer=Opt.SGD(schedule))
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    result = srel_tf.measure(model, probe, measures="kl", update="optimizer", learning_rate=0.2)
    np.testing.assert_allclose(
        result.matrix("kl"), srel_tf.measure(model, probe, measures="kl", learning_rate=0.2).matrix("kl"), rtol=1e-10
    )
    assert result.learning_rate == 0.2


def test_fresh_adam_is_the_first_step_of_a_new_adam(data):
    x, y = data
    model = classifier("cnn")
    probe = srel_tf.ProbeSet(x, y, sources=SOURCES, targets=TARGETS)
    matrix = srel_tf.measure(model, probe, measures="kl", update="fresh_adam", learning_rate=1e-3).matrix("kl")
    expected = reference.srel(model, x, y, SOURCES, TARGETS, None, reference.kl, lambda: reference.fresh_adam(1e-3))
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)  # Keras forms 1 − β₂ᵗ in float32.


def test_learning_rate_defaults_to_the_optimizers_and_can_be_set(data):
    x, y = data
    probe = srel_tf.ProbeSet(x, y)
    model = classifier("mlp", optimizer=Opt.SGD(0.25))
    own, fixed = (srel_tf.measure(model, probe, measures="kl", learning_rate=eta) for eta in (None, 0.5))
    assert (own.learning_rate, fixed.learning_rate) == (0.25, 0.5)
    model.optimizer.learning_rate = 0.5
    np.testing.assert_array_equal(srel_tf.measure(model, probe, measures="kl").matrix("kl"), fixed.matrix("kl"))
    assert not np.allclose(own.matrix("kl"), fixed.matrix("kl"), rtol=1e-3)
