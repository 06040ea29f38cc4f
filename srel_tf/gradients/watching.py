"""Watching the layers that own weights while a model runs: their `call` is replaced by an observer's, and put back."""

import contextlib
import functools

import keras

from srel_tf.gradients.layer_rules import rule_of
from srel_tf.gradients.network import Scope

# Layers that call others in loops of their own, or in slices of the batch's axes: each is taken as one layer.
CLOSED = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)


def weight_owners(model):
    """The innermost layers that own trainable weights, each once; nested models and layers are looked into."""
    owners = {}

    def visit(layer, within):
        own = {id(v) for v in layer.trainable_variables}
        if not own:
            return
        parts = [] if isinstance(layer, CLOSED) or rule_of(layer) else parts_of(layer)
        parts = [part for part in parts if not any(part is outer for outer in within)]
        if own <= {id(v) for part in parts for v in part.trainable_variables}:
            for part in parts:
                visit(part, [*within, layer])
        else:
            owners[id(layer)] = layer

    visit(model, [model])
    return list(owners.values())


def parts_of(layer):
    """The layers that a layer is made of."""
    if isinstance(layer, keras.Model):
        return layer.layers
    return [v for v in keras.tree.flatten(list(vars(layer).values())) if isinstance(v, keras.Layer)]


@contextlib.contextmanager
def observed(layers, observer):
    """While it is open, every call of these layers goes through `observer(layer, call, arguments, keywords)`."""

    def through(layer, call, *arguments, **keywords):
        return observer(layer, call, arguments, keywords)

    own = {id(layer): vars(layer).get("call") for layer in layers}
    for layer in layers:
        layer.call = functools.partial(through, layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            if own[id(layer)] is None:
                del layer.call
            else:
                layer.call = own[id(layer)]


@contextlib.contextmanager
def without_activation(layer):
    """While it is open, a layer that has a rule returns its output before the activation, which is handed out."""
    activation = getattr(layer, "activation", None) if rule_of(layer) else None
    if activation is None:
        yield None
        return
    layer.activation = None
    try:
        yield activation
    finally:
        layer.activation = activation


class Watched(Scope):
    """Notes a trainable weight that is read while the layer that owns it is not being called.

    owner: {id of a trainable variable: the layer that owns it}.
    """

    def __init__(self, network, owner):
        super().__init__(network)
        self._owner = owner
        self.active = []
        self.stray = None

    def get_current_value(self, variable):
        owner = self._owner.get(id(variable))
        if owner is not None and not any(owner is layer for layer in self.active):
            self.stray = variable.path
        return super().get_current_value(variable)
