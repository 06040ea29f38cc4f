"""How each kind of layer forms the gradient of its weights from what it saw and the signal that came back.

A rule is one function: (layer, call, x, signals) -> [(variable, its gradient for each example, in factored form)], with
`x` the layer's input [n, …], `signals` [n, M, …] = ∂(M functions)/∂(the layer's output before its activation), and
`call` the layer as it was called, to be called again: call(x), or call(x, replaced=[(variable, value)]) with other
values of some weights. Above each stands the identity that it fulfils. To add a layer, add one function here; layers
without one take the generic path, which is right for any of them, and slower.
"""

import math

import keras
import tensorflow as tf

from srel_tf.gradients.convolution import windows
from srel_tf.gradients.factored import Formed, Lookup, Outer, under_windows

RULES = {}


# What a subclass may define anew without another relation of output and weights.
_HARMLESS = {"build", "get_config", "compute_output_shape", "compute_output_spec", "compute_mask"}


def rule(*layer_classes):
    """Register a function for these classes, and for subclasses that override nothing of what they compute."""

    def register(function):
        RULES.update(dict.fromkeys(layer_classes, function))
        return function

    return register


def rule_of(layer):
    """The rule of a layer, or None where it has none."""
    for layer_class, function in RULES.items():
        if isinstance(layer, layer_class) and not _overridden(type(layer), layer_class) and not _is_altered(layer):
            return function
    return None


def _overridden(subclass, layer_class):
    """What a subclass defines anew, `call`, `convolution_op` or the property `kernel` say: {names}."""
    own = subclass.__mro__[: subclass.__mro__.index(layer_class)]
    names = {name for one in own for name in vars(one) if hasattr(layer_class, name)}
    return {name for name in names if not name.startswith("__") or name == "__call__"} - _HARMLESS


def _is_altered(layer):
    """Whether low-rank adaptation or quantisation has put other weights in place of the layer's own."""
    return getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) is not None


# z = x W + b at each position t:  ∇W = Σ_t x_t ⊗ s_t,  ∇b = Σ_t s_t.
@rule(keras.layers.Dense)
def dense(layer, call, x, signals):
    k, o = layer.kernel.shape
    n, m = signals.shape[:2]
    x = tf.cast(x, signals.dtype)  # Keras multiplies whole numbers, too.
    kernel = Outer(tf.reshape(x, [n, 1, -1, k]), tf.reshape(signals, [n, m, 1, -1, o]), ((), (k,), (o,)), (0, 1))
    return [(layer.kernel, kernel), *_bias(layer, signals)]


# z = einsum(x, W) + b: letters of x and W only are inputs K, of W and z only outputs O, of x and z only positions T,
# of all three groups G:  ∇W[g, k, o] = Σ_t x[g, t, k] s[g, t, o].
@rule(keras.layers.EinsumDense)
def einsum_dense(layer, call, x, signals):
    letters = _letters(layer.equation, len(x.shape))
    if letters is None:
        return None
    of_x, of_w, of_z = letters
    groups = [c for c in of_w if c in of_x and c in of_z]
    ins = [c for c in of_w if c not in groups and c in of_x]
    outs = [c for c in of_z if c not in groups and c in of_w]  # In the order in which the layer returns them.
    positions = [c for c in of_x[1:] if c in of_z and c not in of_w]
    size = dict(zip(of_w, layer.kernel.shape, strict=True))
    dims = [tuple(size[c] for c in side) for side in (groups, ins, outs)]
    g, k, o = (math.prod(side) for side in dims)
    n, m = signals.shape[:2]
    x = tf.cast(x, signals.dtype)
    a = tf.einsum(f"{''.join(of_x)}->{''.join([of_x[0], *groups, *positions, *ins])}", x)
    free = next(c for c in _ALPHABET if c not in {*of_x, *of_w, *of_z})
    by = [of_z[0], free]
    b = tf.einsum(f"{''.join(by + of_z[1:])}->{''.join(by + groups + positions + outs)}", signals)
    axes = [*groups, *ins, *outs]
    kernel = Outer(
        tf.reshape(a, [n, g, -1, k]), tf.reshape(b, [n, m, g, -1, o]), tuple(dims), tuple(axes.index(c) for c in of_w)
    )
    return [(layer.kernel, kernel), *_bias(layer, signals)]


_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _letters(equation, rank):
    """(letters of x, of W, of z) with "..." written out; None where a letter does not fit the rule."""
    equation = equation.replace(" ", "")
    if "..." in equation:
        used = len(equation.split(",")[0].replace("...", ""))
        spare = [c for c in _ALPHABET if c not in equation][: rank - used]
        equation = equation.replace("...", "".join(spare))
    of_x, rest = equation.split(",")
    of_w, of_z = rest.split("->")
    sides = [list(of_x), list(of_w), list(of_z)]
    once = all(len(set(side)) == len(side) for side in sides)
    batch_first = of_x[0] == of_z[0] and of_x[0] not in of_w
    joined = all(c in of_x or c in of_z for c in of_w) and all(c in of_x or c in of_w for c in of_z)
    return sides if once and batch_first and joined else None


# z = x ⋆ W + b: a dense map of the patch under the kernel, at each position; with groups, one of each group's channels.
@rule(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def conv(layer, call, x, signals):
    x, signals = _channels_last(layer, x, signals)
    *window, k, channels = layer.kernel.shape
    n, m, g, o = *signals.shape[:2], layer.groups, channels // layer.groups
    pixels = tf.transpose(tf.reshape(x, [n, -1, g, k]), [0, 2, 1, 3])
    back = tf.transpose(tf.reshape(signals, [n, m, -1, g, o]), [0, 1, 3, 2, 4])
    dims = ((g,), (*window, k), (o,))
    kernel = Outer(pixels, back, dims, _groups_before_outputs(window), windows(layer, x))
    return [(layer.kernel, kernel), *_bias(layer, signals)]


# Each channel c is a group of its own: z[c, q] = x[c] ⋆ W[c, q] + b.
@rule(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def depthwise_conv(layer, call, x, signals):
    x, signals = _channels_last(layer, x, signals)
    return [(layer.kernel, _depthwise(layer, layer.kernel, x, signals)), *_bias(layer, signals)]


# z = u P + b with u = x ⋆ W depthwise, one after the other: the signal at u is s Pᵀ.
@rule(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def separable_conv(layer, call, x, signals):
    x, signals = _channels_last(layer, x, signals)
    u = keras.ops.depthwise_conv(
        x, layer.depthwise_kernel, layer.strides, layer.padding, "channels_last", layer.dilation_rate
    )
    pointwise = tf.convert_to_tensor(layer.pointwise_kernel.value)
    k, o = pointwise.shape[-2:]
    n, m = signals.shape[:2]
    window = pointwise.shape[:-2]
    seen, back = tf.reshape(u, [n, 1, -1, k]), tf.reshape(signals, [n, m, 1, -1, o])
    at_u = tf.tensordot(signals, tf.reshape(pointwise, [k, o]), [[-1], [1]])
    return [
        (layer.depthwise_kernel, _depthwise(layer, layer.depthwise_kernel, x, at_u)),
        (layer.pointwise_kernel, Outer(seen, back, ((1,), (*window, k), (o,)), _groups_before_outputs(window))),
        *_bias(layer, signals),
    ]


# z_t = W[id_t]: ∇W[v] = Σ_t [id_t = v] s_t.
@rule(keras.layers.Embedding)
def embedding(layer, call, x, signals):
    n, m, o = *signals.shape[:2], signals.shape[-1]
    ids = tf.reshape(tf.cast(x, tf.int32), [n, -1])
    return [(layer.embeddings, Lookup(ids, tf.reshape(signals, [n, m, -1, o]), tuple(layer.embeddings.shape)))]


# z = γ x̂ + β: ∇γ = Σ_t s_t x̂_t,  ∇β = Σ_t s_t;  x̂ is what the layer returns with γ = 1 and β = 0.
@rule(keras.layers.LayerNormalization, keras.layers.GroupNormalization, keras.layers.BatchNormalization)
def normalization(layer, call, x, signals):
    gamma, beta = getattr(layer, "gamma", None), getattr(layer, "beta", None)
    plain = [(v, f(v.shape, signals.dtype)) for v, f in ((gamma, tf.ones), (beta, tf.zeros)) if v is not None]
    normalized = call(x, replaced=plain)
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    kept = sorted(axis % len(x.shape) + 1 for axis in axes)  # `signals` have one axis more.
    summed = [axis for axis in range(2, len(signals.shape)) if axis not in kept]
    by_weight = ((gamma, signals * normalized[:, None]), (beta, signals))
    return [(v, Formed(tf.reduce_sum(terms, axis=summed))) for v, terms in by_weight if v is not None]


def _bias(layer, signals):
    """[(b, Σ of the signals over the axes along which b is broadcast)]."""
    if getattr(layer, "bias", None) is None:
        return []
    spread = (1,) * (len(signals.shape) - 2 - len(layer.bias.shape)) + tuple(layer.bias.shape)
    summed = [2 + axis for axis, size in enumerate(spread) if size == 1]
    summed = tf.reduce_sum(signals, axis=summed) if summed else signals
    return [(layer.bias, Formed(tf.reshape(summed, [*signals.shape[:2], *layer.bias.shape])))]


def _depthwise(layer, kernel, x, signals):
    *window, c, q = kernel.shape
    n, m = signals.shape[:2]
    pixels = tf.reshape(x, [n, 1, -1, c])
    seen = tf.reshape(under_windows(pixels, windows(layer, x)), [n, -1, math.prod(window), c])
    seen = tf.transpose(seen, [0, 3, 1, 2])
    back = tf.transpose(tf.reshape(signals, [n, m, -1, c, q]), [0, 1, 3, 2, 4])
    return Outer(seen, back, ((c,), tuple(window), (q,)), _groups_before_outputs(window[:-1]))


def _groups_before_outputs(window):
    """Axes (G, *window, k, O) as a convolution's kernel has them: (*window, k, G, O)."""
    last = len(window) + 1
    return (*range(1, last + 1), 0, last + 1)


def _channels_last(layer, x, signals):
    if layer.data_format == "channels_last":
        return x, signals
    return _last(x, 1), _last(signals, 2)


def _last(t, axis):
    """The tensor with one of its axes moved to the end."""
    return tf.transpose(t, [*(a for a in range(len(t.shape)) if a != axis), axis])
