"""Nets on which `train.numerics` tests S_rel: keras.applications, small nets, ill-conditioned nets.

Each `Net` holds a constructor, images, labels and the stages of its training. The constructor uses Keras's current
dtype policy. All nets are trained on scikit-learn's digits.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

from train.models import build_model

# {stage: loss (nats)}. A stage is reached if the loss on the whole training set is below the given value. None means
# that the net is not trained.
LOSSES = {"initialisation": None, "mid-training": 0.3, "converged": 1e-4}
UNTRAINED, STATISTICS, TRAINED = "untrained", "statistics", "accuracy 1.0"


@dataclass(frozen=True)
class Net:
    """One net of the zoo.

    Attributes:
        build: () -> uncompiled model that returns logits, or probabilities if `softmax`.
        data: () -> images float32 [n, ...], labels int64 [n].
        stages: Names of the stages, in the order of training.
        per_class: Number of probe points of each class.
        etas: Learning rates of the finite steps.
        learning_rate: Learning rate of Adam in training.
        softmax: Whether the model returns probabilities.
        weights_of: Name of another net whose trained weights are used. None means that this net is trained.
    """

    build: Callable
    data: Callable
    stages: tuple
    per_class: int
    etas: tuple
    learning_rate: float = 1e-3
    softmax: bool = False
    weights_of: str | None = None

    def compiled(
        self, optimizer: str | keras.optimizers.Optimizer = "sgd"
    ) -> keras.Model:
        """Make and compile a new net. The net and the loss get the current precision of Keras."""
        net = self.build()
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=not self.softmax, dtype=keras.config.floatx()
        )
        net.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
        return net


@functools.cache
def digits(classes: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Load digits 0 .. classes-1.

    Args:
        classes: Number of classes.
        per_class: Number of images of each class.

    Returns:
        Images float32 [n, 8, 8, 1] in [0, 1], and labels int64 [n].
    """
    images, labels = load_digits(return_X_y=True)
    chosen = np.concatenate(
        [np.flatnonzero(labels == label)[:per_class] for label in range(classes)]
    )
    return (images[chosen].reshape(-1, 8, 8, 1) / 16).astype("float32"), labels[
        chosen
    ].astype("int64")


def resized(size: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Load 150 images of five digits as colour images.

    Args:
        size: Height and width to which the images are resized.
        low: Lowest intensity.
        high: Highest intensity.

    Returns:
        Images [n, size, size, 3] and labels [n].
    """
    x, y = digits(5, 30)
    x = tf.image.resize(x, (size, size)).numpy().repeat(3, axis=-1)
    return (low + (high - low) * x).astype("float32"), y


def shifted() -> tuple[np.ndarray, np.ndarray]:
    """Load 90 images of three digits as 64 numbers in 1000 ± 0.1, [n, 64], and their labels [n]."""
    x, y = digits(3, 30)
    return (1000 + 0.1 * (2 * x.reshape(-1, 64).astype("float64") - 1)).astype(
        "float32"
    ), y


def batch_norm() -> keras.Model:
    """Make a net of dense layers with batch normalisation, for `shifted`: data of large mean and small spread."""
    inputs = keras.Input((64,))
    x = inputs
    for units in (256, 64):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(x)))
    return keras.Model(inputs, layers.Dense(3)(x))


def residual() -> keras.Model:
    """Make a net of two residual blocks without normalisation."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same")(inputs)
    for _ in range(2):
        inner = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        x = layers.ReLU()(
            layers.Add()([x, layers.Conv2D(16, 3, padding="same")(inner)])
        )
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


class Positions(layers.Layer):
    """Layer that adds a trained vector to each token."""

    def build(self, input_shape: tuple) -> None:
        """Make the table [tokens, width] for an input of shape [n, tokens, width]."""
        self.table = self.add_weight(
            shape=input_shape[1:],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        """Return tokens + table, [n, tokens, width]."""
        return tokens + self.table


def vit() -> keras.Model:
    """Make a vision transformer: 16 patches of 2×2, two blocks of width 32."""
    inputs = keras.Input((8, 8, 1))
    x = Positions()(layers.Reshape((16, 32))(layers.Conv2D(32, 2, strides=2)(inputs)))
    for _ in range(2):
        normed = layers.LayerNormalization()(x)
        x = layers.Add()(
            [x, layers.MultiHeadAttention(num_heads=4, key_dim=8)(normed, normed)]
        )
        hidden = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(32)(hidden)])
    return keras.Model(
        inputs,
        layers.Dense(10)(
            layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
        ),
    )


def lstm() -> keras.Model:
    """Make a net of two LSTM layers. An image is a sequence of its 8 rows."""
    inputs = keras.Input((8, 8, 1))
    x = layers.LSTM(32, return_sequences=True)(layers.Reshape((8, 8))(inputs))
    return keras.Model(inputs, layers.Dense(10)(layers.LSTM(32)(x)))


def _with_softmax(build: Callable[[], keras.Model]) -> keras.Model:
    """Add a softmax to the net that `build` makes."""
    net = build()
    return keras.Model(net.inputs, layers.Softmax()(net.outputs[0]))


def _application(name: str, size: int) -> keras.Model:
    """Make a net of keras.applications for 5 classes of images [size, size, 3], without trained weights."""
    return getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=5, classifier_activation=None
    )


def _powers(*exponents: int) -> tuple[float, ...]:
    """Return 10ᵏ for each exponent k. The results are equal to the literals 1e-8, 1e-7, …"""
    return tuple(float(f"1e{k}") for k in exponents)


def _deep(
    name: str,
    size: int = 32,
    low: float = -1,
    high: float = 1,
    normalised: bool = True,
    learning_rate: float = 1e-3,
) -> Net:
    """Make the `Net` of a constructor in keras.applications.

    Args:
        name: Name of the constructor in keras.applications.
        size: Height and width of the images.
        low: Lowest intensity that the net expects.
        high: Highest intensity that the net expects.
        normalised: Whether the net has batch normalisation.
        learning_rate: Learning rate of Adam in training.

    Returns:
        The net.
    """
    return Net(
        build=functools.partial(_application, name, size),
        data=functools.partial(resized, size, low, high),
        stages=(UNTRAINED, STATISTICS, TRAINED) if normalised else (UNTRAINED, TRAINED),
        per_class=2,
        etas=_powers(-6, -4, -3, -2, -1),
        learning_rate=learning_rate,
    )


def _small(build: Callable[[], keras.Model], **options: Any) -> Net:
    """Make the `Net` of a small net that is measured at all stages of `LOSSES`.

    `options` are the fields of `Net` that are not set here.
    """
    return Net(
        build=build,
        data=functools.partial(digits, 10, 30),
        stages=tuple(LOSSES),
        per_class=6,
        etas=_powers(*range(-8, 0)),
        **options,
    )


_BODIES: dict[str, Callable[[], keras.Model]] = {
    "mlp": functools.partial(build_model, "mlp", (8, 8, 1), 10),
    "cnn": functools.partial(build_model, "cnn", (8, 8, 1), 10),
    "residual": residual,
}
SMALL = {name: _small(build) for name, build in _BODIES.items()} | {
    f"{name}-softmax": _small(
        functools.partial(_with_softmax, build), softmax=True, weights_of=name
    )
    for name, build in _BODIES.items()
}
NETS = SMALL | {
    "batch_norm": Net(
        batch_norm,
        shifted,
        (UNTRAINED, STATISTICS, TRAINED),
        per_class=20,
        etas=_powers(*range(-8, 0)),
    ),
    "vit": _small(vit),
    "lstm": _small(lstm),
    "resnet18": Net(
        functools.partial(build_model, "resnet18", (32, 32, 3), 5),
        functools.partial(resized, 32, -1, 1),
        tuple(LOSSES),
        per_class=2,
        etas=_powers(*range(-6, 0)),
        learning_rate=3e-4,
    ),
    "MobileNetV2": _deep("MobileNetV2"),
    "EfficientNetB0": _deep("EfficientNetB0", low=0, high=255),
    "EfficientNetV2B0": _deep("EfficientNetV2B0", low=0, high=255),
    "DenseNet121": _deep("DenseNet121"),
    "InceptionV3": _deep("InceptionV3", size=75),
    "ResNet50": _deep("ResNet50"),
    "NASNetMobile": _deep("NASNetMobile"),
    "ConvNeXtTiny": _deep(
        "ConvNeXtTiny", low=0, high=255, normalised=False, learning_rate=3e-4
    ),
    "VGG16": _deep("VGG16", normalised=False, learning_rate=1e-4),
}
