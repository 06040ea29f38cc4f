"""Nets for the experiments. Each returns logits, from which srel_tf computes accurate log-probabilities.

`build_model(name, input_shape, num_classes)` makes an `srel_tf.SRelModel`. `resnet18` is the net of the published
experiments: ResNet-18 without normalisation layers, initialised and padded as in PyTorch. The paper removes
normalisation because a batch of one example has no batch statistics (footnote 3).
"""

import math

import keras
from keras import layers

import srel_tf
from srel_tf.errors import OptionError


def _he_fan_out() -> keras.initializers.Initializer:
    """Return He's initialiser: the untruncated N(0, 2 / fan_out), as in PyTorch's kaiming_normal_(mode="fan_out")."""
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )


def _conv(
    x: keras.KerasTensor, filters: int, size: int, strides: int = 1
) -> keras.KerasTensor:
    """Apply a convolution without bias.

    With strides, padding is symmetric as in PyTorch. TensorFlow's "same" would pad more at the right and the bottom.
    """
    padding = "same" if strides == 1 else "valid"
    if padding == "valid" and size > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=_he_fan_out(),
    )(x)


def _dense(x: keras.KerasTensor, units: int) -> keras.KerasTensor:
    """Apply a dense layer initialised as in PyTorch: weights and biases uniform in [−1/√fan_in, 1/√fan_in]."""
    limit = 1 / math.sqrt(x.shape[-1])
    return layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        bias_initializer=keras.initializers.RandomUniform(-limit, limit),
    )(x)


def _basic_block(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    """Apply two 3×3 convolutions and a shortcut, which is a 1×1 convolution if the shape changes (He et al., 2015)."""
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _conv(x, filters, 1, strides)
    x = layers.ReLU()(_conv(x, filters, 3, strides))
    x = _conv(x, filters, 3)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _resnet18(
    x: keras.KerasTensor, num_classes: int, cifar_stem: bool
) -> keras.KerasTensor:
    if cifar_stem:
        x = layers.ReLU()(_conv(x, 64, 3))
    else:
        x = layers.ReLU()(_conv(x, 64, 7, strides=2))
        # PyTorch pads with minus infinity. Zeros have the same effect, because outputs of a ReLU are not negative.
        x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    for stage, filters in enumerate((64, 128, 256, 512)):
        x = _basic_block(x, filters, strides=1 if stage == 0 else 2)
        x = _basic_block(x, filters, strides=1)
    return _dense(layers.GlobalAveragePooling2D()(x), num_classes)


def _resnet18_published(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    return _resnet18(x, num_classes, cifar_stem=False)


def _resnet18_cifar(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    return _resnet18(x, num_classes, cifar_stem=True)


def _cnn(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    return layers.Dense(num_classes)(
        layers.Dense(64, activation="relu")(layers.Flatten()(x))
    )


def _mlp(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dense(128, activation="relu")(x)
    return layers.Dense(num_classes)(x)


ARCHITECTURES = {
    "resnet18": _resnet18_published,
    "resnet18_cifar": _resnet18_cifar,
    "cnn": _cnn,
    "mlp": _mlp,
}


def build_model(
    name: str, input_shape: tuple[int, ...], num_classes: int
) -> srel_tf.SRelModel:
    """Build an uncompiled `srel_tf.SRelModel` that maps images [H, W, channels] to `num_classes` logits.

    Args:
        name: One of `resnet18` (the published net: 7×7 stem with stride 2, 3×3 max pooling with stride 2; 11,168,451
            parameters for RGB images and 3 classes), `resnet18_cifar` (3×3 stem, no pooling), `cnn` and `mlp`.
        input_shape: (H, W, channels).
        num_classes: Number of classes.

    Raises:
        OptionError: If the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise OptionError(
            f"unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}"
        )
    inputs = keras.Input(input_shape)
    return srel_tf.SRelModel(
        inputs, ARCHITECTURES[name](inputs, num_classes), name=name
    )
