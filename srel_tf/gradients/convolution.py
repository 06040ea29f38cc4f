"""Geometry of convolutions, and matrix products that replace slow convolutions."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from srel_tf.gradients.factored import under_windows

LAYERS = (
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)  # Conv1D is left out, because it does not call its `convolution_op`.


def windows(layer: keras.Layer, x: tf.Tensor) -> np.ndarray:
    """Return the index of the pixel under each of the J kernel entries at each of the T positions, int32 [T, J].

    The P pixels of x [n, ..., channels] are numbered in C order from 0. The index P stands for padding.
    """
    pixels = np.arange(math.prod(x.shape[1:-1]), dtype=np.int32).reshape(x.shape[1:-1])
    spans = [
        (size - 1) * step + 1
        for size, step in zip(layer.kernel_size, layer.dilation_rate, strict=True)
    ]
    padding = [
        _padding(layer.padding, size, span, stride)
        for size, span, stride in zip(pixels.shape, spans, layer.strides, strict=True)
    ]
    padded = np.pad(pixels, padding, constant_values=pixels.size)
    under_spans = np.lib.stride_tricks.sliding_window_view(padded, spans)
    steps = (*layer.strides, *layer.dilation_rate)
    under_entries = under_spans[tuple(slice(None, None, step) for step in steps)]
    return under_entries.reshape(-1, math.prod(layer.kernel_size))


def convolutions_of(layers: Iterable[keras.Layer]) -> list[keras.Layer]:
    """Return the layers that `quick_convolutions` can replace: Keras's own, channels last, without groups."""
    return [
        v
        for v in layers
        if type(v) in LAYERS and v.groups == 1 and v.data_format == "channels_last"
    ]


@contextlib.contextmanager
def quick_convolutions(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Within the context, replace convolutions of few pixels or examples by matrix products.

    TensorFlow's CPU kernels are slow for such convolutions, above all in float64 and in the backward pass. The results
    differ only by rounding.
    """
    replaced = [v for v in layers if "convolution_op" not in vars(v)]
    if tf.config.get_visible_devices("GPU"):
        replaced = []
    for layer in replaced:
        layer.convolution_op = functools.partial(
            _convolved, layer, layer.convolution_op
        )
    try:
        yield
    finally:
        for layer in replaced:
            del layer.convolution_op


def _convolved(
    layer: keras.Layer, convolution_op: Callable, x: tf.Tensor, kernel: tf.Tensor
) -> tf.Tensor:
    """Compute x ⋆ W, as a matrix product if x has few pixels, or if it has no more patches than W has outputs."""
    n, *pixels, _ = x.shape
    if math.prod(layer.kernel_size) == 1:
        return convolution_op(x, kernel)
    if math.prod(pixels) <= math.prod(layer.kernel_size):
        return _product(layer, x, kernel)
    if 1 < n <= kernel.shape[-1] / math.prod(_output_pixels(layer, x)):
        return _product_of_patches(layer, x, kernel)
    return convolution_op(x, kernel)


def _product_of_patches(
    layer: keras.Layer, x: tf.Tensor, kernel: tf.Tensor
) -> tf.Tensor:
    """Compute z[n, t, o] = Σ_k patch[n, t, k] W[k, o]."""
    n, inputs, outputs = x.shape[0], x.shape[-1], kernel.shape[-1]
    patches = under_windows(tf.reshape(x, [n, 1, -1, inputs]), windows(layer, x))
    z = tf.reshape(patches, [-1, patches.shape[-1]]) @ tf.reshape(kernel, [-1, outputs])
    return tf.reshape(z, [n, *_output_pixels(layer, x), outputs])


def _output_pixels(layer: keras.Layer, x: tf.Tensor) -> tuple:
    return layer.compute_output_shape(x.shape)[1:-1]


def _product(layer: keras.Layer, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Compute z[n, t, o] = Σ_{p, k} x[n, p, k] M[p, k, t, o].

    M[p, k, t, o] is the kernel entry that lies over pixel p at position t; 0 if no entry lies over this pixel.
    """
    n, *pixels, inputs = x.shape
    outputs = kernel.shape[-1]
    under = windows(layer, x)
    n_positions, n_entries = under.shape
    no_entry = n_entries
    entry_over = np.full(
        [math.prod(pixels) + 1, n_positions], no_entry
    )  # The last row belongs to the padding.
    entry_over[under, np.arange(n_positions)[:, None]] = np.arange(n_entries)
    entry_over = entry_over[:-1]

    entries = tf.reshape(kernel, [n_entries, inputs, outputs])
    if (entry_over == no_entry).any():
        entries = tf.pad(entries, [(0, 1), (0, 0), (0, 0)])
    matrix = tf.transpose(tf.gather(entries, entry_over), [0, 2, 1, 3])
    z = tf.reshape(x, [n, -1]) @ tf.reshape(matrix, [-1, n_positions * outputs])
    return tf.reshape(z, [n, *_output_pixels(layer, x), outputs])


def _padding(padding: str, size: int, span: int, stride: int) -> tuple[int, int]:
    """Return the numbers of zeros that TensorFlow pads before and after an axis."""
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return span - 1, 0
    total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2
