"""Per-example gradients of a layer's weights, computed from the layer's input and the gradients at its output.

A rule is one function, `(layer, call, x, output_grads) -> [(variable, gradients), ...]`:

    layer         the Keras layer
    call          repeats the layer's call: call(x), or call(x, replaced=[(variable, value)]) with other weights
    x             the layer's input [n, ...]
    output_grads  ∂(M functions)/∂(the layer's output before its activation), [n, M, ...]
    gradients     the gradients of all examples, in one of the forms of `srel_tf.gradients.factored`

Each rule implements the equation in the comment above it. `register_layer_rule` adds a rule. A layer without a rule is
differentiated example by example (`layer_gradients.by_differentiation`), which is equally exact but slower.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import keras
import tensorflow as tf

from srel_tf.errors import OptionError
from srel_tf.gradients.convolution import windows
from srel_tf.gradients.factored import (
    EmbeddingGradient,
    ExplicitGradient,
    FactoredGradient,
    OuterProductGradient,
    under_windows,
)

WeightGradients: TypeAlias = list[tuple[keras.Variable, FactoredGradient]]
LayerRule: TypeAlias = Callable[
    [keras.Layer, Callable, tf.Tensor, tf.Tensor], WeightGradients | None
]

RULES: dict[type[keras.Layer], LayerRule] = {}

# A subclass may override these methods: they do not change how the output depends on the weights.
_HARMLESS = {
    "build",
    "get_config",
    "compute_output_shape",
    "compute_output_spec",
    "compute_mask",
}


def register_layer_rule(
    *layer_classes: type[keras.Layer],
) -> Callable[[LayerRule], LayerRule]:
    """Register the gradient rule of one or more layer classes. Use it as a decorator.

    The rule also applies to subclasses, unless they override methods that compute the output. A rule may return None
    for a layer that it does not cover.

    Args:
        layer_classes: subclasses of `keras.Layer`.

    Returns:
        A decorator that returns the rule unchanged.

    Raises:
        OptionError: if an argument is not a layer class.

    Example:
        z = x ∘ w, so that ∂f/∂w = Σ_t x_t ∘ ∂f/∂z_t:

        >>> import keras, tensorflow as tf, srel_tf
        >>> class Scale(keras.layers.Layer):
        ...     def build(self, input_shape):
        ...         self.w = self.add_weight(shape=input_shape[-1:])
        ...     def call(self, x):
        ...         return x * self.w
        >>> @srel_tf.register_layer_rule(Scale)
        ... def scale(layer, call, x, output_grads):
        ...     return [(layer.w, srel_tf.ExplicitGradient(x[:, None] * output_grads))]
    """
    for layer_class in layer_classes:
        if not (isinstance(layer_class, type) and issubclass(layer_class, keras.Layer)):
            raise OptionError(
                f"register_layer_rule({layer_class!r}): give subclasses of keras.Layer"
            )

    def register(rule: LayerRule) -> LayerRule:
        RULES.update(dict.fromkeys(layer_classes, rule))
        return rule

    return register


def rule_of(layer: keras.Layer) -> LayerRule | None:
    """Return the rule of a layer, or None for a layer without a rule."""
    if _is_altered(layer):
        return None
    for layer_class in type(layer).__mro__:
        if layer_class in RULES and not _overridden(type(layer), layer_class):
            return RULES[layer_class]
    return None


def has_registered_rule(layer: keras.Layer) -> bool:
    """Return whether the rule of a layer is not one of this module, but was registered by a user."""
    rule = rule_of(layer)
    return rule is not None and getattr(rule, "__module__", None) != __name__


def _overridden(subclass: type, layer_class: type) -> set[str]:
    """Return the names that a subclass redefines, such as `call`, `convolution_op` or the property `kernel`."""
    between = subclass.__mro__[: subclass.__mro__.index(layer_class)]
    names = {
        name for one in between for name in vars(one) if hasattr(layer_class, name)
    }
    public = {name for name in names if not name.startswith("__") or name == "__call__"}
    return public - _HARMLESS


def _is_altered(layer: keras.Layer) -> bool:
    """Return whether low-rank adaptation or quantisation has replaced the layer's own weights."""
    return (
        getattr(layer, "lora_enabled", False)
        or getattr(layer, "quantization_mode", None) is not None
    )


# z = x W + b at each position t:  ∇W = Σ_t x_t ⊗ s_t,  ∇b = Σ_t s_t.
@register_layer_rule(keras.layers.Dense)
def dense(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients:
    inputs, outputs = layer.kernel.shape
    n, m = output_grads.shape[:2]
    x = tf.cast(x, output_grads.dtype)  # Dense layers accept integers, too.
    kernel = OuterProductGradient(
        inputs=tf.reshape(x, [n, 1, -1, inputs]),
        output_grads=tf.reshape(output_grads, [n, m, 1, -1, outputs]),
        dims=((), (inputs,), (outputs,)),
        order=(0, 1),
    )
    return [(layer.kernel, kernel), *_bias(layer, output_grads)]


class EinsumAxes(NamedTuple):
    """The letters of an equation z = einsum(x, W).

    Attributes:
        of_x, of_w, of_z: all letters of x, W and z, in order.
        groups: letters in x, W and z.
        inputs: letters in x and W only.
        outputs: letters in W and z only.
        positions: letters in x and z only, except for the batch axis.
    """

    of_x: list[str]
    of_w: list[str]
    of_z: list[str]
    groups: list[str]
    inputs: list[str]
    outputs: list[str]
    positions: list[str]


# z = einsum(x, W) + b:  ∇W[g, k, o] = Σ_t x[g, t, k] s[g, t, o]  for groups g, inputs k, outputs o, positions t.
@register_layer_rule(keras.layers.EinsumDense)
def einsum_dense(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients | None:
    axes = _einsum_axes(layer.equation, len(x.shape))
    if axes is None:
        return None
    size = dict(zip(axes.of_w, layer.kernel.shape, strict=True))
    dims = tuple(
        tuple(size[c] for c in side)
        for side in (axes.groups, axes.inputs, axes.outputs)
    )
    group_size, input_size, output_size = (math.prod(side) for side in dims)
    n, m = output_grads.shape[:2]

    batch = axes.of_x[0]
    functions = next(
        c for c in _ALPHABET if c not in {*axes.of_x, *axes.of_w, *axes.of_z}
    )
    x_to = [batch, *axes.groups, *axes.positions, *axes.inputs]
    z_from = [batch, functions, *axes.of_z[1:]]
    z_to = [batch, functions, *axes.groups, *axes.positions, *axes.outputs]
    x = _rearranged(tf.cast(x, output_grads.dtype), axes.of_x, x_to)
    output_grads_by_group = _rearranged(output_grads, z_from, z_to)

    kernel_axes = [*axes.groups, *axes.inputs, *axes.outputs]
    kernel = OuterProductGradient(
        inputs=tf.reshape(x, [n, group_size, -1, input_size]),
        output_grads=tf.reshape(
            output_grads_by_group, [n, m, group_size, -1, output_size]
        ),
        dims=dims,
        order=tuple(kernel_axes.index(c) for c in axes.of_w),
    )
    return [(layer.kernel, kernel), *_bias(layer, output_grads)]


_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _rearranged(tensor: tf.Tensor, axes: list[str], wanted: list[str]) -> tf.Tensor:
    """Permute the axes of a tensor, which are named by letters, into the wanted order."""
    return tf.einsum(f"{''.join(axes)}->{''.join(wanted)}", tensor)


def _einsum_axes(equation: str, rank: int) -> EinsumAxes | None:
    """Parse the equation for an x with `rank` axes. Return None if the rule does not cover the equation.

    If the equation contains "...", the axes of x that "..." stands for get unused letters.
    """
    equation = equation.replace(" ", "")
    if "..." in equation:
        named = len(equation.split(",")[0].replace("...", ""))
        unused = [c for c in _ALPHABET if c not in equation]
        equation = equation.replace("...", "".join(unused[: rank - named]))
    x, rest = equation.split(",")
    w, z = rest.split("->")

    distinct = all(len(set(letters)) == len(letters) for letters in (x, w, z))
    batch_first = x[0] == z[0] and x[0] not in w
    no_sum_of_one = all(c in x or c in z for c in w) and all(
        c in x or c in w for c in z
    )
    if not (distinct and batch_first and no_sum_of_one):
        return None
    groups = [c for c in w if c in x and c in z]
    inputs = [c for c in w if c in x and c not in groups]
    outputs = [c for c in z if c in w and c not in groups]
    positions = [c for c in x[1:] if c in z and c not in w]
    return EinsumAxes(list(x), list(w), list(z), groups, inputs, outputs, positions)


# z = x ⋆ W + b: at each position, a dense map of the patch under the kernel. Each group of channels has its own map.
@register_layer_rule(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def conv(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients:
    x, output_grads = _channels_last(layer, x, output_grads)
    *window, inputs, channels = layer.kernel.shape
    groups, outputs = layer.groups, channels // layer.groups
    n, m = output_grads.shape[:2]

    pixels = tf.reshape(x, [n, -1, groups, inputs])
    grads_at_positions = tf.reshape(output_grads, [n, m, -1, groups, outputs])
    kernel = OuterProductGradient(
        inputs=tf.transpose(pixels, [0, 2, 1, 3]),
        output_grads=tf.transpose(grads_at_positions, [0, 1, 3, 2, 4]),
        dims=((groups,), (*window, inputs), (outputs,)),
        order=_groups_before_outputs(window),
        windows=windows(layer, x),
    )
    return [(layer.kernel, kernel), *_bias(layer, output_grads)]


# z[c, q] = x[c] ⋆ W[c, q] + b: each channel c is a separate group.
@register_layer_rule(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def depthwise_conv(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients:
    x, output_grads = _channels_last(layer, x, output_grads)
    return [
        (layer.kernel, _depthwise(layer, layer.kernel, x, output_grads)),
        *_bias(layer, output_grads),
    ]


# z = u P + b with u = x ⋆ W depthwise: the gradient at u is s Pᵀ.
@register_layer_rule(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def separable_conv(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients:
    x, output_grads = _channels_last(layer, x, output_grads)
    u = keras.ops.depthwise_conv(
        x,
        layer.depthwise_kernel,
        layer.strides,
        layer.padding,
        "channels_last",
        layer.dilation_rate,
    )
    pointwise = tf.convert_to_tensor(layer.pointwise_kernel.value)
    *window, inputs, outputs = pointwise.shape
    n, m = output_grads.shape[:2]
    grads_at_u = tf.tensordot(
        output_grads, tf.reshape(pointwise, [inputs, outputs]), [[-1], [1]]
    )
    of_pointwise = OuterProductGradient(
        inputs=tf.reshape(u, [n, 1, -1, inputs]),
        output_grads=tf.reshape(output_grads, [n, m, 1, -1, outputs]),
        dims=((1,), (*window, inputs), (outputs,)),
        order=_groups_before_outputs(window),
    )
    return [
        (
            layer.depthwise_kernel,
            _depthwise(layer, layer.depthwise_kernel, x, grads_at_u),
        ),
        (layer.pointwise_kernel, of_pointwise),
        *_bias(layer, output_grads),
    ]


# z_t = W[id_t]:  ∇W[v] = Σ_t [id_t = v] s_t.
@register_layer_rule(keras.layers.Embedding)
def embedding(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients:
    n, m = output_grads.shape[:2]
    table = EmbeddingGradient(
        ids=tf.reshape(tf.cast(x, tf.int32), [n, -1]),
        output_grads=tf.reshape(output_grads, [n, m, -1, output_grads.shape[-1]]),
        shape=tuple(layer.embeddings.shape),
    )
    return [(layer.embeddings, table)]


# z = γ x̂ + β:  ∇γ = Σ_t s_t x̂_t,  ∇β = Σ_t s_t;  x̂ is the layer's output for γ = 1 and β = 0.
@register_layer_rule(
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.BatchNormalization,
)
def normalization(
    layer: keras.Layer, call: Callable, x: tf.Tensor, output_grads: tf.Tensor
) -> WeightGradients:
    gamma, beta = getattr(layer, "gamma", None), getattr(layer, "beta", None)
    replaced = []
    if gamma is not None:
        replaced.append((gamma, tf.ones(gamma.shape, output_grads.dtype)))
    if beta is not None:
        replaced.append((beta, tf.zeros(beta.shape, output_grads.dtype)))
    normalized = call(x, replaced=replaced)

    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    weight_axes = [
        axis % len(x.shape) + 1 for axis in axes
    ]  # `output_grads` has one more axis than x.
    positions = [
        axis for axis in range(2, len(output_grads.shape)) if axis not in weight_axes
    ]
    gradients: WeightGradients = []
    if gamma is not None:
        gradients.append(
            (
                gamma,
                ExplicitGradient(
                    tf.reduce_sum(output_grads * normalized[:, None], positions)
                ),
            )
        )
    if beta is not None:
        gradients.append(
            (beta, ExplicitGradient(tf.reduce_sum(output_grads, positions)))
        )
    return gradients


def _bias(layer: keras.Layer, output_grads: tf.Tensor) -> WeightGradients:
    """Return [(b, ∇b)] with ∇b = Σ s over the axes along which b is broadcast; [] without a bias."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        return []
    rank = len(output_grads.shape) - 2
    broadcast_shape = (1,) * (rank - len(bias.shape)) + tuple(bias.shape)
    broadcast = [2 + axis for axis, size in enumerate(broadcast_shape) if size == 1]
    summed = tf.reduce_sum(output_grads, axis=broadcast) if broadcast else output_grads
    return [
        (
            bias,
            ExplicitGradient(
                tf.reshape(summed, [*output_grads.shape[:2], *bias.shape])
            ),
        )
    ]


def _depthwise(
    layer: keras.Layer, kernel: keras.Variable, x: tf.Tensor, output_grads: tf.Tensor
) -> OuterProductGradient:
    *window, channels, multiplier = kernel.shape
    n, m = output_grads.shape[:2]
    pixels = tf.reshape(x, [n, 1, -1, channels])
    patches = tf.reshape(
        under_windows(pixels, windows(layer, x)), [n, -1, math.prod(window), channels]
    )
    grads_at_positions = tf.reshape(output_grads, [n, m, -1, channels, multiplier])
    return OuterProductGradient(
        inputs=tf.transpose(patches, [0, 3, 1, 2]),
        output_grads=tf.transpose(grads_at_positions, [0, 1, 3, 2, 4]),
        dims=((channels,), tuple(window), (multiplier,)),
        order=_groups_before_outputs(window[:-1]),
    )


def _groups_before_outputs(window: Sequence[int]) -> tuple[int, ...]:
    """Return the permutation from (groups, *window, inputs, outputs) to (*window, inputs, groups, outputs).

    The second order is the order of a kernel's axes.
    """
    last = len(window) + 1
    return (*range(1, last + 1), 0, last + 1)


def _channels_last(
    layer: keras.Layer, x: tf.Tensor, output_grads: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    if layer.data_format == "channels_last":
        return x, output_grads
    return _axis_last(x, 1), _axis_last(output_grads, 2)


def _axis_last(tensor: tf.Tensor, axis: int) -> tf.Tensor:
    """Move one axis to the end."""
    others = [a for a in range(len(tensor.shape)) if a != axis]
    return tf.transpose(tensor, [*others, axis])
