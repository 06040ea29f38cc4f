"""Where rounding may decide a derivative: units so close to a kink that float32 cannot tell on which side they are.

A ReLU whose input is within rounding of zero passes its signal in one precision and blocks it in another, and no
precision of the outputs would tell. The operations with kinks are found in the graph of the forward pass; each gives
the share of the signal that hangs on such units.
"""

import numpy as np
import tensorflow as tf

ROUNDING = 4.0  # Units in the last place by which a typical pre-activation may be wrong.


def kink_operations(graph, first, x):
    """The operations with a kink that a forward pass of x [n, …] has added to a graph of `first` operations.

    Two lists: those whose first axis is that of examples, and those that mix it with others. What weights and constants
    are clipped to is in neither, for no rounding decides it.
    """
    found = [op for op in graph.get_operations()[first:] if op.type in _NEAR and op.outputs[0].dtype.is_floating]
    of_examples = [op for op in found if op.outputs[0].shape[:1] == x.shape[:1]]
    return of_examples, [op for op in found if op not in of_examples and _depends_on(op, x)]


def _depends_on(op, x):
    waiting, seen = [op], set()
    while waiting:
        op = waiting.pop()
        if op is x.op:
            return True
        if op not in seen:
            seen.add(op)
            waiting += [t.op for t in op.inputs]
    return False


def has_untold_kinks(graph):
    """Whether there are operations with a kink in `graph` whose units cannot be looked at: those within loops and
    functions (of a recurrent layer with ReLUs), and pools of volumes.
    """
    nodes = [node for function in graph.as_graph_def().library.function for node in function.node_def]
    within = any(n.op in _NEAR and tf.as_dtype(n.attr["T"].type).is_floating for n in nodes if n.attr["T"].type)
    return within or any(n.op in _UNTOLD for n in [*nodes, *graph.as_graph_def().node])


def undecided_share(op, signals, epsilon, zeros=False):
    """‖signal through undecided units‖² / ‖signal‖² of each example, [n]; signals: M tensors at its output.

    zeros: whether units exactly at their kink count. They are there in any precision, so that derivatives agree; but
    a finite step, however small, takes them off it.

    Squared, for what such a unit adds to J g is the product of its parts of J and of g.
    """
    near = tf.cast(_NEAR[op.type](op, epsilon, zeros), signals[0].dtype)
    squares = tf.add_n([s * s for s in signals])
    touched, whole = (tf.reduce_sum(tf.reshape(t, [t.shape[0], -1]), axis=-1) for t in (squares * near, squares))
    return tf.math.divide_no_nan(touched, whole)


def any_undecided(op, epsilon, zeros=False):
    """1 where any unit is undecided, else 0: of an operation that does not tell which example a unit is of."""
    return tf.cast(tf.reduce_any(_NEAR[op.type](op, epsilon, zeros)), op.outputs[0].dtype)


def _sum_again(x):
    """A sum, formed anew: TensorFlow's graph optimiser stumbles over a second reader of a sum before a ReLU."""
    if x.op.type in ("Add", "AddV2"):
        a, b = (tf.cast(t, tf.float64) for t in x.op.inputs)
        return tf.cast(a + b, x.dtype)
    return x


def _near(distance, epsilon, zeros, scale=None):
    """Whether values are zero but for rounding; those that are exactly zero only if `zeros`."""
    size = distance if scale is None else scale
    rank = len(size.shape)
    axes = list(range(1, rank)) or list(range(rank))  # Of one axis alone a value would be compared with itself.
    typical = tf.sqrt(tf.reduce_mean(size * size, axis=axes, keepdims=True))
    return (tf.abs(distance) <= ROUNDING * epsilon * typical) & (zeros | (distance != 0))


def _at_zero(op, epsilon, zeros):
    return _near(_sum_again(op.inputs[0]), epsilon, zeros)


def _at_zero_or_six(op, epsilon, zeros):
    x = op.inputs[0]
    return _near(x, epsilon, zeros) | _near(x - 6, epsilon, zeros, scale=x)


def _at_equality(op, epsilon, zeros):
    a, b = op.inputs
    a, b = tf.broadcast_to(a, op.outputs[0].shape), tf.broadcast_to(b, op.outputs[0].shape)
    return _near(a - b, epsilon, zeros, scale=a)


def _at_ties(op, epsilon, zeros):
    """The largest of a window: another entry takes its signal if rounding puts that in front.

    Exact ties are not counted: they come from windows over patches that are the same, a constant background or units
    that are all zero, which no precision tells apart and which move together.
    """
    x = op.inputs[0]
    near = _near_ties(_channels_last(op, x), _channels_last(op, op.outputs[0]), op, epsilon)
    return tf.transpose(near, [0, 3, 1, 2]) if _is_channels_first(op) else near


def _at_the_largest(op, epsilon, zeros):
    """The same of the largest over whole axes, as global pooling takes it."""
    x, axes = op.inputs[0], tf.get_static_value(op.inputs[1])
    axes = tuple(np.atleast_1d(axes) % len(x.shape))
    largest = tf.reduce_max(x, axis=axes, keepdims=True)
    others = tuple(range(1, len(x.shape)))
    typical = tf.sqrt(tf.reduce_mean(x * x, axis=others, keepdims=True))
    near = tf.reduce_any((x != largest) & (largest - x <= ROUNDING * epsilon * typical), axis=axes)
    return tf.reshape(near, op.outputs[0].shape)


def _near_ties(x, largest, op, epsilon):
    """Whether the largest entry of each window has another within rounding, [n, h, w, C]."""
    size, step = (op.get_attr(name) for name in ("ksize", "strides"))
    h, w = (2, 3) if _is_channels_first(op) else (1, 2)
    window = {
        "sizes": [1, size[h], size[w], 1],
        "strides": [1, step[h], step[w], 1],
        "rates": [1, 1, 1, 1],
        "padding": op.get_attr("padding").decode(),
    }
    shape = [-1, *largest.shape[1:3], size[h] * size[w]]

    def windows(t):
        return tf.reshape(tf.image.extract_patches(t, **window), [*shape, t.shape[3]])

    entries, inside = windows(x), windows(tf.ones_like(x[:1, :, :, :1])) > 0  # Padding is no entry.
    typical = tf.sqrt(tf.reduce_mean(x * x, axis=[1, 2, 3]))[:, None, None, None, None]
    behind = largest[:, :, :, None] - entries
    return tf.reduce_any(inside & (behind != 0) & (behind <= ROUNDING * epsilon * typical), axis=3)


def _is_channels_first(op):
    return op.get_attr("data_format") == b"NCHW"


def _channels_last(op, t):
    return tf.transpose(t, [0, 2, 3, 1]) if _is_channels_first(op) else t


_NEAR = {  # Which units are within rounding of a kink.
    "Relu": _at_zero,
    "LeakyRelu": _at_zero,
    "Selu": _at_zero,
    "Abs": _at_zero,
    "Relu6": _at_zero_or_six,
    "Maximum": _at_equality,
    "Minimum": _at_equality,
    "MaxPool": _at_ties,
    "Max": _at_the_largest,
}
_UNTOLD = {"MaxPool3D", "MaxPoolWithArgmax"}
