"""Small nets and data for the tests."""

import contextlib
import functools
import itertools

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits


@contextlib.contextmanager
def double_precision():
    """Compute layers, losses and penalties in float64 within the context."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def each_of_both(first, second):
    """Pairs of parameters for pytest: quick ones that contain each value, and the other combinations as slow ones."""
    n = max(len(first), len(second))
    quick = [(first[k % len(first)], second[k % len(second)]) for k in range(n)]
    others = [pair for pair in itertools.product(first, second) if pair not in quick]
    return quick + [pytest.param(*pair, marks=pytest.mark.slow) for pair in others]


@functools.cache
def all_digits():
    return load_digits(return_X_y=True)


def digits(classes=3, per_class=None):
    """scikit-learn's digits as float32 [n, 8, 8, 1] in [0, 1] and int64 labels."""
    images, labels = all_digits()
    chosen = labels < classes
    if per_class:
        rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
        chosen &= rank < per_class
    return (images[chosen].reshape(-1, 8, 8, 1) / 16).astype("float32"), labels[
        chosen
    ].astype("int64")


def _mlp(x):
    return keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))


def _cnn(x):
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    return keras.layers.Dense(32, activation="tanh")(keras.layers.Flatten()(x))


def _resnet(x):
    x = keras.layers.Conv2D(16, 3, padding="same")(x)
    for _ in range(2):
        inner = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        inner = keras.layers.Conv2D(16, 3, padding="same")(inner)
        x = keras.layers.ReLU()(keras.layers.Add()([x, inner]))
    return keras.layers.GlobalAveragePooling2D()(x)


BODIES = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet}


def classifier(
    body="mlp", classes=3, softmax=False, seed=0, optimizer="sgd", loss=None
):
    """Return a compiled net on 8×8 images that returns logits, or probabilities if `softmax` is True."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(classes)(BODIES[body](inputs))
    if softmax:
        outputs = keras.layers.Softmax()(outputs)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer,
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax),
    )
    return model
