"""Where rounding may decide a derivative: units so close to a kink that float32 cannot tell on which side they are.

A ReLU whose input is within rounding of zero passes its signal in one precision and blocks it in another, and no
precision of the outputs would tell. The operations with kinks are found in the graph of the forward pass; each gives
the share of the signal that hangs on such units.
"""

import tensorflow as tf

ROUNDING = 4.0  # Units in the last place by which a typical pre-activation may be wrong.


def kink_operations(graph, first):
    """The operations with a kink that a forward pass has added to a graph which had `first` operations before."""
    return [op for op in graph.get_operations()[first:] if op.type in _SHARES]


def undecided_share(op, signals, epsilon):
    """‖signal through undecided units‖² / ‖signal‖² of each example, [n]; signals: M tensors at its output.

    Squared, for what such a unit adds to J g is the product of its parts of J and of g.
    """
    pairs = _SHARES[op.type](op, signals, epsilon)
    touched, whole = (tf.add_n([_square(t) for t in side]) for side in zip(*pairs, strict=True))
    return tf.math.divide_no_nan(touched, whole)


def _square(t):
    return tf.reduce_sum(tf.reshape(t * t, [t.shape[0], -1]), axis=-1)


def _sum_again(x):
    """A sum, formed anew: TensorFlow's graph optimiser stumbles over a second reader of a sum before a ReLU."""
    if x.op.type in ("Add", "AddV2"):
        a, b = (tf.cast(t, tf.float64) for t in x.op.inputs)
        return tf.cast(a + b, x.dtype)
    return x


def _near(distance, epsilon, scale=None):
    """Whether values are zero but for rounding; those that are exactly zero are so in any precision."""
    size = tf.abs(distance if scale is None else scale)
    axes = list(range(1, len(size.shape)))
    typical = tf.sqrt(tf.reduce_mean(size * size, axis=axes, keepdims=True))
    return (tf.abs(distance) <= ROUNDING * epsilon * typical) & (distance != 0)


def _at_zero(op, signals, epsilon):
    near = tf.cast(_near(_sum_again(op.inputs[0]), epsilon), signals[0].dtype)
    return [(s * near, s) for s in signals]


def _at_zero_or_six(op, signals, epsilon):
    x = op.inputs[0]
    near = tf.cast(_near(x, epsilon) | _near(x - 6, epsilon, scale=x), signals[0].dtype)
    return [(s * near, s) for s in signals]


def _at_equality(op, signals, epsilon):
    a, b = op.inputs
    a, b = tf.broadcast_to(a, op.outputs[0].shape), tf.broadcast_to(b, op.outputs[0].shape)
    near = tf.cast(_near(a - b, epsilon, scale=a), signals[0].dtype)
    return [(s * near, s) for s in signals]


def _at_ties(op, signals, epsilon):
    """The largest of a window: the signal goes another way when its entries are moved by rounding."""
    x = op.inputs[0]
    attributes = {name: op.get_attr(name) for name in ("ksize", "strides", "padding", "data_format")}
    attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    up = tf.random.stateless_uniform(x.shape, [0, 0]) < 0.5
    move = tf.where(up, tf.cast(ROUNDING * epsilon, x.dtype), tf.cast(-ROUNDING * epsilon, x.dtype))

    def routed(moved, s):
        return tf.raw_ops.MaxPoolGrad(
            orig_input=moved, orig_output=tf.raw_ops.MaxPool(input=moved, **attributes), grad=s, **attributes
        )

    return [(routed(x * (1 + move), s) - routed(x * (1 - move), s), s) for s in signals]


_SHARES = {
    "Relu": _at_zero,
    "LeakyRelu": _at_zero,
    "Selu": _at_zero,
    "Abs": _at_zero,
    "Relu6": _at_zero_or_six,
    "Maximum": _at_equality,
    "Minimum": _at_equality,
    "MaxPool": _at_ties,
}
