"""Watching layers while a model runs: their `call` is replaced by an observer's, and put back at the end."""

import contextlib
import functools

import keras

from srel_tf.layer_rules import rule_of


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


class Watched(keras.StatelessScope):
    """Notes a trainable weight that is read while the layer that owns it is not being called."""

    def __init__(self, owner):
        super().__init__(collect_losses=True)
        self._owner = owner
        self.active = []
        self.stray = None

    def get_current_value(self, variable):
        owner = self._owner.get(id(variable))
        if owner is not None and not any(owner is layer for layer in self.active):
            self.stray = variable.path
        return super().get_current_value(variable)
