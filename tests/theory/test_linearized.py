"""The linearised network of Lee et al., the case d = 1 of Definition 6: Taylor expansion, NTK and wide networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory import linearized_network


def float64_network(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((2,), dtype="float64")
    hidden = keras.layers.Dense(5, "tanh", dtype="float64")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, dtype="float64")(hidden))


def test_linearized_network_is_the_first_order_taylor_expansion():
    model, x = float64_network(), np.random.default_rng(1).normal(size=(4, 2))
    h, w0 = linearized_network(model)
    np.testing.assert_allclose(h(w0, x), model(x)[:, 0], rtol=1e-12)
    direction = np.random.default_rng(2).normal(size=w0.shape)
    start = [v.numpy().copy() for v in model.trainable_variables]
    values = []
    for sign in (1, -1):
        moved, offset = w0.numpy() + sign * 1e-5 * direction, 0
        for variable in model.trainable_variables:
            size = int(np.prod(variable.shape))
            variable.assign(moved[0, offset : offset + size].reshape(variable.shape))
            offset += size
        values.append(model(x)[:, 0].numpy())
    np.testing.assert_allclose(
        (h(w0 + direction, x) - h(w0, x)).numpy(),
        (values[0] - values[1]) / 2e-5,
        rtol=1e-7,
    )
    assert not np.allclose(
        start[0], model.trainable_variables[0].numpy(), rtol=0, atol=1e-9
    )  # The weights of the network have changed.
    for variable, value in zip(model.trainable_variables, start, strict=True):
        variable.assign(value)
    np.testing.assert_allclose(h(w0, x), model(x)[:, 0], rtol=1e-12)


def wide_network(width):
    """Build a network with outputs and gradients of order one at every width: hidden units are scaled by 1/√width."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,), dtype="float64")
    first, second = (
        keras.initializers.RandomNormal(stddev=1.0, seed=seed) for seed in (1, 2)
    )
    hidden = keras.layers.Dense(
        width, "tanh", kernel_initializer=first, dtype="float64"
    )(inputs)
    scaled = keras.layers.Rescaling(width**-0.5, dtype="float64")(hidden)
    return keras.Model(
        inputs,
        keras.layers.Dense(1, kernel_initializer=second, dtype="float64")(scaled),
    )


def train(model, x, y, step, count):
    @tf.function
    def descend():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((y - model(x)[:, 0]) ** 2) / 2
        slopes = tape.gradient(loss, model.trainable_variables)
        for variable, slope in zip(model.trainable_variables, slopes, strict=True):
            variable.assign_sub(step * slope)

    for _ in range(count):
        descend()


def test_gradient_descent_on_a_wide_network_follows_the_flow_of_its_linearisation():
    """Lee et al.: the gap to the flow with d = 1, relative to the change in training, falls as 1/√width or faster."""
    x, y = np.random.default_rng(5).normal(size=(6, 2)), np.linspace(-1, 1, 6)
    gaps = []
    for width in (16, 1024):
        model = wide_network(width)
        h, w0 = linearized_network(model)
        flow = h(h.flow(w0, [5.0], x, y, theta=1.0)[0], x).numpy()
        start = model(x).numpy()[:, 0]
        train(model, x, y, 0.01, 500)
        trained = model(x).numpy()[:, 0]
        gaps.append(np.linalg.norm(trained - flow) / np.linalg.norm(trained - start))
    assert gaps[0] > 8 * gaps[1]  # √(1024/16)


def test_linearized_network_is_frozen_at_initialisation():
    model, x = float64_network(), np.ones((1, 2))
    h, w0 = linearized_network(model)
    before = h(w0, x).numpy()
    model.trainable_variables[0].assign_add(tf.ones_like(model.trainable_variables[0]))
    np.testing.assert_array_equal(h(w0, x).numpy(), before)
    assert abs(model(x).numpy()[0, 0] - before[0]) > 1e-3


def test_linearized_srel_is_a_ratio_of_tangent_kernels():
    model, generator = float64_network(3), np.random.default_rng(1)
    x_target, x_source = generator.normal(size=(2, 4, 2))
    h, w0 = linearized_network(model)

    def gradient(x):
        with tf.GradientTape() as tape:
            value = model(x[None])[0, 0]
        return np.concatenate(
            [g.numpy().ravel() for g in tape.gradient(value, model.trainable_variables)]
        )

    targets, sources = (
        np.array([gradient(x) for x in batch]) for batch in (x_target, x_source)
    )
    naive = np.abs(np.sum(targets * sources, 1)) / np.sum(sources**2, 1)
    np.testing.assert_allclose(h.srel_limit(w0, x_target, x_source), naive, rtol=1e-11)


def test_bad_networks_are_named():
    inputs = keras.Input((2,))
    three_outputs, start = linearized_network(
        keras.Model(inputs, keras.layers.Dense(3)(inputs))
    )
    with pytest.raises(ShapeError, match="one output"):
        three_outputs(start, np.ones((1, 2)))
    with pytest.raises(ShapeError, match="no weights yet"):
        linearized_network(keras.Sequential([keras.layers.Dense(1)]))
