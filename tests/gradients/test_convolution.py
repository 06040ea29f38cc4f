"""Convolutions of few pixels as matrix products have the same outputs and derivatives as those of Keras."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from srel_tf.gradients.convolution import convolutions_of, quick_convolutions

L = keras.layers
operations = sys.modules[
    L.Conv2D.__mro__[1].__module__
].ops  # The module from which Keras's convolutional layers take their operations.
CASES = {
    "one pixel": (lambda: L.Conv2D(4, 3, padding="same"), (1, 1)),
    "2 × 2": (lambda: L.Conv2D(4, 3, padding="same", activation="relu"), (2, 2)),
    "3 × 3, every kernel entry meets padding": (
        lambda: L.Conv2D(4, 3, padding="same"),
        (3, 3),
    ),
    "stride": (
        lambda: L.Conv2D(4, 3, strides=2, padding="same", use_bias=False),
        (2, 3),
    ),
    "valid": (lambda: L.Conv2D(4, 3, padding="valid"), (3, 3)),
    "dilation": (
        lambda: L.Conv2D(4, (3, 5), dilation_rate=(2, 1), padding="same"),
        (3, 4),
    ),
    "unequal sides": (lambda: L.Conv2D(4, (5, 1), padding="same"), (1, 4)),
    "three dimensions": (
        lambda: L.Conv3D(4, 3, strides=(1, 2, 1), padding="same"),
        (2, 3, 2),
    ),
    "few patches": (lambda: L.Conv2D(60, 3, padding="same"), (5, 4)),
    "few patches, stride": (
        lambda: L.Conv2D(64, (3, 5), strides=2, padding="same", use_bias=False),
        (7, 6),
    ),
    "few patches, valid, dilation": (
        lambda: L.Conv2D(80, 3, dilation_rate=(1, 2), padding="valid"),
        (6, 7),
    ),
}


def derivatives(layer, x, seed):
    with tf.GradientTape() as tape:
        tape.watch(x)
        kernel = layer.kernel.value
        z = layer(x)
    return z, *tape.gradient(z, [x, kernel], seed)


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_derivatives_are_those_of_keras(name, monkeypatch):
    make, pixels = CASES[name]
    layer, x = make(), tf.random.normal([3, *pixels, 2], dtype=tf.float64)
    z = layer(x)
    seed = tf.random.normal(z.shape, dtype=tf.float64)
    expected = derivatives(layer, x, seed)
    monkeypatch.setattr(operations, "conv", None)  # A call of it would fail.
    with quick_convolutions(convolutions_of([layer])):
        found = derivatives(layer, x, seed)
    assert "convolution_op" not in vars(layer)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_what_is_replaced():
    """Only convolutions of few pixels are replaced.

    Subclasses, grouped convolutions, and layers with the user's own convolution are left alone.
    """

    class Own(L.Conv2D):
        pass

    layers = [
        L.Conv2D(4, 3),
        L.Conv2D(4, 3, groups=2),
        L.Conv2D(4, 3, data_format="channels_first"),
        Own(4, 3),
    ]
    assert convolutions_of([*layers, L.Conv1D(4, 3), L.Dense(3)]) == layers[:1]
    layer, calls = L.Conv2D(4, 3, padding="same"), []
    layer.build((None, None, None, 2))
    original = layer.convolution_op

    def noted(x, kernel):
        calls.append(tuple(x.shape))
        return original(x, kernel)

    layer.convolution_op = noted
    with quick_convolutions([layer]):
        layer(tf.ones([1, 2, 2, 2]))
    assert calls == [(1, 2, 2, 2)]
    assert layer.convolution_op is noted


def test_many_pixels_and_single_examples_are_left_to_keras(monkeypatch):
    seen, conv = [], operations.conv

    def noted(x, *rest, **options):
        seen.append(x.shape)
        return conv(x, *rest, **options)

    monkeypatch.setattr(operations, "conv", noted)
    layer = L.Conv2D(4, 3, padding="same")
    layer.build((None, None, None, 2))
    with quick_convolutions([layer]):
        layer(tf.ones([1, 3, 3, 2]))
        layer(tf.ones([1, 4, 3, 2]))
    assert seen == [(1, 4, 3, 2)]
    layer = L.Conv2D(24, 3, padding="same")
    layer.build((None, None, None, 2))
    with quick_convolutions([layer]):
        for n in (1, 2, 3):  # 12 patches of each example, 24 outputs.
            layer(tf.ones([n, 4, 3, 2]))
    assert seen[1:] == [(1, 4, 3, 2), (3, 4, 3, 2)]
