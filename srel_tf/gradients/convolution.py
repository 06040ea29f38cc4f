"""Convolutions: which pixels the kernel lies over, and a product of matrices in the place of a slow convolution."""

import contextlib
import functools
import math

import keras
import numpy as np
import tensorflow as tf

LAYERS = (keras.layers.Conv2D, keras.layers.Conv3D)  # Conv1D does not call its `convolution_op`.


def windows(layer, x):
    """Which pixels the kernel lies over at each position, int32 [T, J] into the P pixels of x [n, …, channels].

    Entries that lie over padding are P.
    """
    index = np.arange(math.prod(x.shape[1:-1]), dtype=np.int32).reshape(x.shape[1:-1])
    spans = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    sides = zip(index.shape, spans, layer.strides, strict=True)
    index = np.pad(index, [_padding(layer.padding, *side) for side in sides], constant_values=index.size)
    under = np.lib.stride_tricks.sliding_window_view(index, spans)
    under = under[tuple(slice(None, None, step) for step in (*layer.strides, *layer.dilation_rate))]
    return under.reshape(-1, math.prod(layer.kernel_size))


def convolutions_of(layers):
    """The layers whose convolutions `quick_convolutions` may replace: Keras's own, without groups."""
    return [v for v in layers if type(v) in LAYERS and v.groups == 1 and v.data_format == "channels_last"]


@contextlib.contextmanager
def quick_convolutions(layers):
    """While it is open, layers that convolve few pixels multiply matrices instead; only rounding differs.

    TensorFlow's kernels for a CPU then take several times as long, and up to 100 times backwards in float64.
    """
    layers = [v for v in layers if "convolution_op" not in vars(v)]
    if tf.config.list_physical_devices("GPU"):
        layers = []
    for layer in layers:
        layer.convolution_op = functools.partial(_convolved, layer, layer.convolution_op)
    try:
        yield
    finally:
        for layer in layers:
            del layer.convolution_op


def _convolved(layer, convolution_op, x, kernel):
    """x ⋆ W; by a product of matrices if x has no more pixels than the kernel has entries."""
    if 1 < math.prod(layer.kernel_size) >= math.prod(x.shape[1:-1]):
        return _product(layer, x, kernel)
    return convolution_op(x, kernel)


def _product(layer, x, kernel):
    """z[n, t, o] = Σ_{p, k} x[n, p, k] M[p, k, t, o]; M is the kernel's entry that lies over pixel p at position t."""
    *pixels, k = x.shape[1:]
    under, o = windows(layer, x), kernel.shape[-1]
    t, j = under.shape
    entries = np.full([math.prod(pixels) + 1, t], j)  # The last row is that of the padding.
    entries[under, np.arange(t)[:, None]] = np.arange(j)
    entries, kernel = entries[:-1], tf.reshape(kernel, [j, k, o])
    if (entries == j).any():
        kernel = tf.pad(kernel, [(0, 1), (0, 0), (0, 0)])
    matrix = tf.transpose(tf.gather(kernel, entries), [0, 2, 1, 3])
    z = tf.reshape(x, [x.shape[0], -1]) @ tf.reshape(matrix, [-1, t * o])
    return tf.reshape(z, [x.shape[0], *layer.compute_output_shape(x.shape)[1:-1], o])


def _padding(padding, size, span, step):
    """Zeros before and after an axis, as TensorFlow pads it."""
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return span - 1, 0
    total = max((math.ceil(size / step) - 1) * step + span - size, 0)
    return total // 2, total - total // 2
