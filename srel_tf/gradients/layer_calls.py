"""One call of a layer, and the per-example gradients of its weights: by the layer's rule, or by differentiation."""

from typing import NamedTuple

import keras
import tensorflow as tf

from srel_tf.gradients.factored import Formed
from srel_tf.gradients.layer_rules import rule_of
from srel_tf.gradients.watching import without_activation


class Call(NamedTuple):
    """One call of a layer: its original `call` and arguments, and its output before the activation.

    batched: which of the arguments' leaves have an entry for each example.
    """

    layer: keras.Layer
    call: callable
    arguments: tuple
    keywords: dict
    output: tf.Tensor
    batched: tuple = ()


def factors_of(call, signal, scope):
    """[(variable, its per-example gradients in factored form)] of a call with signals [n, M, …] at its output.

    scope: a function that opens `Network.scope` with the weights that the call was made with.
    """
    rule = rule_of(call.layer)

    def again(x, replaced=()):
        """What the call returns for x, with other values of some weights [(variable, value)]."""
        with scope() as within:
            for update in replaced:
                within.add_update(update)
            return call.call(x, *call.arguments[1:], **call.keywords)

    with scope():
        factors = rule(call.layer, again, call.arguments[0], signal) if rule else None
    told = {id(variable) for variable, _ in factors or ()}
    if told >= {id(v) for v in call.layer.trainable_variables}:
        return factors
    return by_differentiation(call, signal, scope)


def by_differentiation(call, signals, scope):
    """[(variable, Formed)] of any layer: it is called on each example alone and differentiated there."""
    variables = call.layer.trainable_variables
    n, m = signals.shape[:2]

    def one_example(i):
        given = call.arguments, call.keywords
        leaves = [t[i, None] if b else t for t, b in zip(keras.tree.flatten(given), call.batched, strict=True)]
        arguments, keywords = keras.tree.pack_sequence_as(given, leaves)
        with scope() as within, tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            weights = [tf.convert_to_tensor(v.value) for v in variables]
            tape.watch(weights)
            for update in zip(variables, weights, strict=True):
                within.add_update(update)
            with without_activation(call.layer):
                output = call.call(*arguments, **keywords)
        zero = tf.UnconnectedGradients.ZERO
        rows = [tape.gradient(output, weights, signals[i, k][None], zero) for k in range(m)]
        return tuple(tf.stack([tf.convert_to_tensor(r[v]) for r in rows]) for v in range(len(variables)))

    dtypes = (signals.dtype,) * len(variables)
    gradients = tf.map_fn(one_example, tf.range(n), fn_output_signature=dtypes, parallel_iterations=1)
    return [(v, Formed(g)) for v, g in zip(variables, gradients, strict=True)]
