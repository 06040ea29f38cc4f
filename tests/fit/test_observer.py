"""Measuring has no effect on training: `fit` with a probe equals `fit` without a probe, bit for bit."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from tests.nets import digits

pytestmark = pytest.mark.usefixtures("deterministic_operations")


def plain(x):
    return keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(x))


def with_dropout(x):
    return keras.layers.Dropout(0.3)(plain(keras.layers.GaussianNoise(0.1)(x)))


def with_batch_norm(x):
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    return keras.layers.Flatten()(keras.layers.SpatialDropout2D(0.2)(x))


def with_added_losses(x):
    x = keras.layers.ActivityRegularization(l2=0.01)(plain(x))
    return keras.layers.Dense(8, kernel_regularizer="l2")(x)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
}


def trained(body, optimizer, update, **fit):
    """Train a net. Return its variables, the history, and the next random draws."""
    x, y = digits(per_class=20)
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 8, 1))
    model = srel_tf.SRelModel(inputs, keras.layers.Dense(3)(body(inputs)))
    model.compile(
        OPTIMIZERS[optimizer](),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    if update:
        probe = srel_tf.ProbeSet.sample(x, y, per_class=3)
        model.attach_probe(
            probe, every=2, measures=("kl", "l1", "published_kl"), update=update
        )
    history = model.fit(
        x, y, epochs=3, batch_size=16, verbose=0, validation_split=0.2, **fit
    ).history
    if update:
        assert model.srel_frame()["step"].unique().tolist() == [0, 2, 4, 6, 8]
    variables = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    draws = [
        tf.random.uniform([3]).numpy(),
        np.random.random(3),
        keras.random.uniform([3]).numpy(),
    ]
    return variables, history, draws


@functools.cache
def trained_without(body, optimizer):
    return trained(body, optimizer, None)


@pytest.mark.filterwarnings("ignore:.*batch normalisation.*")
@pytest.mark.parametrize(
    ("body", "optimizer", "update"),
    [
        # Each net, each optimizer and each update rule occurs. The slow cases are further combinations.
        (plain, "momentum", "fresh_adam"),
        (with_dropout, "adam", "optimizer"),
        (with_batch_norm, "momentum", "sgd"),
        (with_added_losses, "adam", "sgd"),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                (plain, "adam", "sgd"),
                (with_dropout, "momentum", "sgd"),
                (with_batch_norm, "adam", "sgd"),
                (with_batch_norm, "momentum", "optimizer"),
            )
        ),
    ],
)
def test_training_with_a_probe_is_bit_identical(body, optimizer, update):
    without = trained_without(body, optimizer)
    observed = trained(body, optimizer, update)
    for part, (a, b) in enumerate(zip(without[0], observed[0], strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"variable {part}")
    assert without[1] == observed[1]
    for a, b in zip(without[2], observed[2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_comparison_notices_another_order_of_the_data():
    shuffled = trained_without(plain, "momentum")
    ordered = trained(plain, "momentum", None, shuffle=False)
    assert not np.array_equal(shuffled[0][1], ordered[0][1])


def test_measuring_leaves_the_model_and_the_random_state_alone():
    x, y = digits(per_class=5)
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Dense(3)(with_dropout(inputs)))
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, verbose=0)

    def state():
        return [
            v.numpy()
            for v in [
                *model.variables,
                *model.optimizer.variables,
                *model.metrics_variables,
            ]
        ]

    before, losses = state(), len(model.losses)
    tf.random.set_global_generator(tf.random.Generator.from_seed(1))
    generator = tf.random.get_global_generator().state.numpy()
    srel_tf.measure(model, srel_tf.ProbeSet(x, y), update="optimizer")
    for a, b in zip(before, state(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(model.losses) == losses
    np.testing.assert_array_equal(
        generator, tf.random.get_global_generator().state.numpy()
    )
