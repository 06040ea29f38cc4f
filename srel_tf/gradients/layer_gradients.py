"""Per-example gradients of the weights of one layer call: by the layer's rule, or by differentiation."""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import keras
import tensorflow as tf

from srel_tf.gradients.factored import ExplicitGradient
from srel_tf.gradients.layer_rules import WeightGradients, rule_of
from srel_tf.gradients.model_layers import without_activation
from srel_tf.gradients.network import Scope

OpenScope: TypeAlias = Callable[[], contextlib.AbstractContextManager[Scope]]


class LayerCall(NamedTuple):
    """One call of a layer.

    Attributes:
        layer: the layer.
        call: the layer's original method `call`.
        arguments, keywords: positional and keyword arguments of the call.
        output: the layer's output before the activation, [n, ...].
        batched: one flag per leaf of the arguments. The flag is True if the leaf has one entry per example.
    """

    layer: keras.Layer
    call: Callable
    arguments: tuple
    keywords: dict
    output: tf.Tensor
    batched: tuple = ()


def gradients_of_call(
    call: LayerCall, output_grads: tf.Tensor, scope: OpenScope
) -> WeightGradients:
    """Return the per-example gradients of a call's weights: by the layer's rule, or by differentiation.

    Args:
        call: the layer call.
        output_grads: gradients of M functions at the call's output, [n, M, ...].
        scope: a function that opens `Network.scope` with the weights of the call.
    """
    rule = rule_of(call.layer)

    def call_again(x: tf.Tensor, replaced: Sequence[tuple] = ()) -> tf.Tensor:
        with scope() as opened:
            for update in replaced:
                opened.add_update(update)
            return call.call(x, *call.arguments[1:], **call.keywords)

    with scope():
        gradients = (
            rule(call.layer, call_again, call.arguments[0], output_grads)
            if rule
            else None
        )
    covered = {id(variable) for variable, _ in gradients or ()}
    if gradients is not None and covered >= {
        id(v) for v in call.layer.trainable_variables
    }:
        return gradients
    return by_differentiation(call, output_grads, scope)


def by_differentiation(
    call: LayerCall, output_grads: tf.Tensor, scope: OpenScope
) -> WeightGradients:
    """Call the layer on each example alone and differentiate this call. Returns [(variable, ExplicitGradient)]."""
    variables = call.layer.trainable_variables
    n, functions = output_grads.shape[:2]
    zero = tf.UnconnectedGradients.ZERO

    def of_example(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
        given = call.arguments, call.keywords
        leaves = [
            t[i, None] if b else t
            for t, b in zip(keras.tree.flatten(given), call.batched, strict=True)
        ]
        arguments, keywords = keras.tree.pack_sequence_as(given, leaves)
        with (
            scope() as opened,
            tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape,
        ):
            weights = [tf.convert_to_tensor(v.value) for v in variables]
            tape.watch(weights)
            for update in zip(variables, weights, strict=True):
                opened.add_update(update)
            with without_activation(call.layer):
                output = call.call(*arguments, **keywords)
        rows = [
            tape.gradient(output, weights, output_grads[i, k][None], zero)
            for k in range(functions)
        ]
        return tuple(
            tf.stack([tf.convert_to_tensor(row[v]) for row in rows])
            for v in range(len(variables))
        )

    dtypes = (output_grads.dtype,) * len(variables)
    gradients = tf.map_fn(
        of_example, tf.range(n), fn_output_signature=dtypes, parallel_iterations=1
    )
    return [(v, ExplicitGradient(g)) for v, g in zip(variables, gradients, strict=True)]
