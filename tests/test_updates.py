"""Fictitious update rules against really stepping a clone with a real optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.network import Network
from srel_tf.updates import FreshAdam, OptimizerStep
from tests import reference
from tests.nets import classifier, digits, double_precision

Opt = keras.optimizers
SOURCES, TARGETS = [0, 5], [1, 5, 8, 11]
ETA = 0.01


def decaying():
    return Opt.schedules.ExponentialDecay(0.02, 2, 0.5)


# Every optimizer of Keras, and every option of them, each at least once.
OPTIMIZERS = {
    "SGD": lambda: Opt.SGD(ETA),
    "SGD momentum, clipnorm": lambda: Opt.SGD(ETA, momentum=0.9, clipnorm=0.01),
    "SGD nesterov, weight decay": lambda: Opt.SGD(ETA, momentum=0.9, nesterov=True, weight_decay=0.5),
    "Adam": lambda: Opt.Adam(ETA),
    "Adam amsgrad, schedule": lambda: Opt.Adam(decaying(), amsgrad=True),
    "Adam moving average": lambda: Opt.Adam(ETA, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "AdamW": lambda: Opt.AdamW(ETA, weight_decay=0.5),
    "Adamax global_clipnorm": lambda: Opt.Adamax(ETA, global_clipnorm=0.01),
    "Nadam clipvalue": lambda: Opt.Nadam(ETA, clipvalue=1e-3),
    "Lion": lambda: Opt.Lion(ETA),
    "Lamb weight decay": lambda: Opt.Lamb(ETA, weight_decay=0.5),
    "Adafactor": lambda: Opt.Adafactor(2.0),
    "Adafactor schedule": lambda: Opt.Adafactor(lambda: 2.0),  # It is limited by relative_step unless it is callable.
    "Adagrad": lambda: Opt.Adagrad(ETA),
    "Adadelta": lambda: Opt.Adadelta(ETA),
    "RMSprop": lambda: Opt.RMSprop(ETA, momentum=0.5, centered=True),
    "Ftrl": lambda: Opt.Ftrl(ETA, l1_regularization_strength=1e-3, l2_shrinkage_regularization_strength=0.1),
    "Muon": lambda: Opt.Muon(ETA),  # A layer of the net below has the name "embedding".
    "Muon excluded layer": lambda: Opt.Muon(ETA, exclude_layers=["head"], exclude_embeddings=False),
    "ScheduleFreeAdamW": lambda: Opt.ScheduleFreeAdamW(ETA, warmup_steps=10),
}


def small_net(optimizer, dtype="float32"):
    """A net with weights of 1, 2 and 4 axes, a constraint, and a layer whose name Muon looks at."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(2, 2, dtype=dtype, name="conv"),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(5, "tanh", kernel_constraint=keras.constraints.MaxNorm(0.5), dtype=dtype, name="embedding"),
        keras.layers.Dense(4, "tanh", dtype=dtype, name="middle"),
        keras.layers.Dense(3, dtype=dtype, name="head"),
    ]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers], name="net")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def gradients(model, example):
    x = np.random.default_rng(example).normal(size=(1, 4, 4, 1))
    with tf.GradientTape() as tape:
        loss = model.loss(np.array([example % 3]), model(x.astype(model.compute_dtype)))
    return tape.gradient(loss, model.trainable_variables)


def trained(make, steps=3):
    """A small net after a few updates, and its gradients of two other examples."""
    model = small_net(make())
    for step in range(steps):
        model.optimizer.apply_gradients(zip(gradients(model, step), model.trainable_variables, strict=True))
    return model, [gradients(model, example) for example in (10, 11)]


def copy_of(model, make, dtype="float32"):
    """Another net with another optimizer of the same kind, in the same state."""
    copy = small_net(make(), dtype)
    copy.set_weights(model.get_weights())
    if model.optimizer.built:
        copy.optimizer.build(copy.trainable_variables)
        for ours, theirs in zip(copy.optimizer.variables, model.optimizer.variables, strict=True):
            ours.assign(theirs.numpy())
    return copy


def really_stepped(copy, gradient):
    """The weights of a copy after one real step of its optimizer."""
    copy.optimizer.apply_gradients(zip(gradient, copy.trainable_variables, strict=True))
    return [v.numpy() for v in copy.trainable_variables]


def by_rule(model, gradient, dtype=tf.float32):
    """The same of `update="optimizer"`, which gets weights, gradients and η in `dtype`."""
    rule = OptimizerStep(Network(model))
    weights = [tf.cast(v.value, dtype) for v in model.trainable_variables]
    eta = tf.constant(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)), dtype)
    return [w.numpy() for w in rule.updated(weights, [g if g is None else tf.cast(g, dtype) for g in gradient], eta)]


def state_of(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_same(ours, theirs, rtol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_rule_is_the_real_step_bit_for_bit_and_leaves_the_model_alone(name):
    model, (gradient, _) = trained(OPTIMIZERS[name])
    before = state_of(model)
    ours = by_rule(model, gradient)
    assert_same(ours, really_stepped(copy_of(model, OPTIMIZERS[name]), gradient))
    assert_same(state_of(model), before)
    assert not np.array_equal(ours[0], before[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_rule_in_float64_is_the_step_of_a_float64_copy(name):
    model, (gradient, _) = trained(OPTIMIZERS[name])
    gradient = [tf.cast(g, tf.float64) * (1 + 1e-9) for g in gradient]  # No float32 numbers.
    ours = by_rule(model, gradient, tf.float64)
    with double_precision():
        theirs = really_stepped(copy_of(model, OPTIMIZERS[name], "float64"), gradient)
    assert_same(ours, theirs, rtol=1e-13)
    assert all(v.dtype == "float32" for v in [*model.variables, *model.optimizer.variables] if "iter" not in v.path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_rule_before_training_is_the_first_step_of_a_new_optimizer(name):
    model, (gradient, _) = trained(OPTIMIZERS[name], steps=0)
    ours = by_rule(model, gradient)
    assert_same(ours, really_stepped(copy_of(model, OPTIMIZERS[name]), gradient))
    assert not model.optimizer.built
    assert len(model.optimizer.variables) <= 2
