"""The measured network in float64, for what float32 resolves neither as a finite step nor by its limit.

Layers are made again from their configurations, so that only models of Keras's own layers have a twin; and only those
that compute nothing in float32 of their own accord, which the bounds of a float64 measurement would not see.
"""

import random
import warnings

import keras
import tensorflow as tf

from srel_tf.network import Network, agree
from srel_tf.resolution import precision

COARSE = (tf.float32, tf.float16, tf.bfloat16)
EXAMPLES = 8  # On which the two are compared.
AGREEMENT = 1024  # Last places of the largest output: far above rounding, far below another function.


class NoTwin(Exception):
    """The network has no float64 copy that is known to be the same function."""


class Twin:
    """A float64 copy of a functional or sequential model in float32, with its loss.

    network: the `Network` of the copy. x: examples [n, …] as the original takes them. Raises `NoTwin`.
    """

    def __init__(self, original, x):
        self._original, self._x = original, x[:EXAMPLES]
        if original.dtype == tf.float64:
            raise NoTwin("it is in float64 itself")
        model = _made_again(original.model)
        _check_same_weights(original.model, model)
        _check_all_in_float64(model, self._x)
        model.compile(optimizer=None, loss=original.model.loss, jit_compile=False)
        self.network = Network(model)

    def follow(self):
        """Take the original's weights as they are now. Raises `NoTwin` where outputs differ then."""
        for ours, theirs in zip(self.network.model.weights, self._original.model.weights, strict=True):
            ours.assign(tf.cast(theirs.value, ours.dtype))
        theirs, ours = self._original.outputs(self._x).numpy(), self.network.outputs(as_float64(self._x)).numpy()
        if not agree(ours, theirs, AGREEMENT * precision(self._original.dtype)):
            raise NoTwin("its copy returns other outputs")


def as_float64(array):
    """Floating-point data in float64; integers as they are."""
    return tf.cast(array, tf.float64) if array.dtype.is_floating else array


def _made_again(model):
    """An uncompiled float64 copy of a functional or sequential model, with weights of its own."""
    state = random.getstate()  # Keras draws seeds from it for initialisers; training must not notice.
    try:
        with warnings.catch_warnings(action="ignore"):  # Of a lambda: here nothing is saved.
            graph = keras.Model(model.inputs, model.outputs, name=model.name)  # Without loss and optimizer.
            inputs = [keras.Input(batch_shape=x.shape, dtype=_finer(x.dtype), name=x.name) for x in model.inputs]
            copy = keras.models.clone_model(graph, input_tensors=inputs, clone_function=_layer_made_again)
    except NoTwin:
        raise
    except Exception as error:  # Whatever may be raised by a layer that its configuration does not describe.
        raise NoTwin(f"it cannot be made again from its configuration ({type(error).__name__}: {error})") from error
    finally:
        random.setstate(state)
    if type(model).call not in (type(copy).call, keras.Sequential.call):
        raise NoTwin("it has a method `call` of its own")
    return copy


def _layer_made_again(layer):
    _check_own(keras.saving.serialize_keras_object(layer))
    return type(layer).from_config(_in_float64(layer.get_config()))


def _check_own(config):
    """`NoTwin` where a configuration names an object that is not Keras's: nobody knows what it computes in."""
    if isinstance(config, dict):
        if "class_name" in config and not (config.get("module") or "").startswith("keras"):
            name = f"function {config['config']}" if config["class_name"] == "function" else config["class_name"]
            raise NoTwin(f"{name} is none of Keras's own")
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            _check_own(part)


def _in_float64(config):
    """A configuration with every dtype or dtype policy of float32 in it replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": _finer(config["config"]["name"])}}
        return {k: _finer(v) if k == "dtype" and isinstance(v, str) else _in_float64(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float64(part) for part in config)
    return config


def _finer(dtype):
    return "float64" if dtype == "float32" else dtype


def _check_same_weights(model, copy):
    """`NoTwin` unless both have weights of the same shapes in the same order, and train the same ones."""

    def described(m):
        trained = {id(v) for v in m.trainable_variables}
        return [(tuple(v.shape), id(v) in trained) for v in m.weights]

    def order(m):
        place = {id(v): k for k, v in enumerate(m.weights)}
        return [place[id(v)] for v in m.trainable_variables]

    if described(model) != described(copy) or order(model) != order(copy):
        raise NoTwin("its copy has other weights, or trains others")


def _check_all_in_float64(model, x):
    """`NoTwin` where anything within a forward pass is computed in less than float64."""
    call = tf.function(lambda x: model(x, training=False), autograph=False)
    graph = call.get_concrete_function(as_float64(x)).graph.as_graph_def()
    for node in [*graph.node, *(n for function in graph.library.function for n in function.node_def)]:
        if _is_coarse(node):
            raise NoTwin(f"its operation {node.name!r} computes in less than float64 whatever the model's precision")


def _is_coarse(node):
    """Whether a node of a graph gives or takes float32 or less. Constants, and what casts them up, are exact."""
    if node.op == "Const":
        return False
    if node.op == "Cast":
        return tf.as_dtype(node.attr["DstT"].type) in COARSE
    types = [t for attribute in node.attr.values() for t in (attribute.type, *attribute.list.type) if t]
    return any(tf.as_dtype(t) in COARSE for t in types)
