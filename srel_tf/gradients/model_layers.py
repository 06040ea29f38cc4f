"""Find the layers of a model that own weights, and observe their calls."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from srel_tf.gradients.layer_rules import rule_of

# Layers that call other layers in loops or on slices of the batch. Each is treated as one layer.
CLOSED = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)

Observer: TypeAlias = Callable[[keras.Layer, Callable, tuple, dict], tf.Tensor]


def weight_owners(model: keras.Model) -> list[keras.Layer]:
    """Return the innermost layers that own trainable weights, each once. Nested models and layers are searched."""
    owners = {}

    def visit(layer: keras.Layer, outer_layers: list[keras.Layer]) -> None:
        own = {id(v) for v in layer.trainable_variables}
        if not own:
            return
        parts = [] if isinstance(layer, CLOSED) or rule_of(layer) else _parts_of(layer)
        parts = [
            part for part in parts if not any(part is outer for outer in outer_layers)
        ]
        if own <= {id(v) for part in parts for v in part.trainable_variables}:
            for part in parts:
                visit(part, [*outer_layers, layer])
        else:
            owners[id(layer)] = layer

    visit(model, [model])
    return list(owners.values())


def _parts_of(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers that a layer consists of."""
    if isinstance(layer, keras.Model):
        return layer.layers
    return [
        v
        for v in keras.tree.flatten(list(vars(layer).values()))
        if isinstance(v, keras.Layer)
    ]


@contextlib.contextmanager
def observed(layers: Sequence[keras.Layer], observer: Observer) -> Iterator[None]:
    """Within the context, replace every call of these layers by `observer(layer, call, arguments, keywords)`."""

    def through(
        layer: keras.Layer, call: Callable, *arguments: Any, **keywords: Any
    ) -> tf.Tensor:
        return observer(layer, call, arguments, keywords)

    own_calls = {id(layer): vars(layer).get("call") for layer in layers}
    for layer in layers:
        layer.call = functools.partial(through, layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            if own_calls[id(layer)] is None:
                del layer.call
            else:
                layer.call = own_calls[id(layer)]


@contextlib.contextmanager
def without_activation(layer: keras.Layer) -> Iterator[Callable | None]:
    """Within the context, make a layer that has a rule return its output before the activation.

    Yields the activation. Yields None, and changes nothing, if there is no rule or no activation.
    """
    activation = getattr(layer, "activation", None) if rule_of(layer) else None
    if activation is None:
        yield None
        return
    layer.activation = None
    try:
        yield activation
    finally:
        layer.activation = activation
