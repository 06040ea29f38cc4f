"""The measured network in float64, for what float32 resolves neither as a finite step nor by its limit.

Layers are made again from their configurations, so that only models of Keras's own layers have a twin; and only those
that compute nothing in float32 of their own accord, which the bounds of a float64 measurement would not see.
"""

import random
import types
import warnings

import keras
import tensorflow as tf

from srel_tf.network import Network, agree
from srel_tf.resolution import precision
from srel_tf.watching import parts_of

COARSE = (tf.float32, tf.float16, tf.bfloat16)
EXAMPLES = 8  # On which the two are compared.
AGREEMENT = 1024  # Last places of the largest output: far above rounding, far below another function.
AT_MOST = 0.01  # Of the largest output: TensorFloat-32 has few places.


class NoTwin(Exception):
    """The network has no float64 copy that is known to be the same function."""


class Twin:
    """A float64 copy of a functional or sequential model in float32.

    original: the `Network` of the model. x: examples [n, …] as it takes them. loss: one of Keras's. Raises `NoTwin`.
    network: the `Network` of the copy.
    """

    def __init__(self, original, x, loss):
        if original.dtype == tf.float64:
            raise NoTwin("it is in float64 itself")
        self._original, self._x = original, x[:: max(1, x.shape[0] // EXAMPLES)]
        state = random.getstate()  # Keras draws seeds from it for initialisers; training must not notice.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of a lambda: here nothing is saved.
                self._model = _made_again(original.model)
            _check_same_weights(original, self._model)
            self._take_weights()
            _check_all_in_float64(self._model, self._x)
            self._model.compile(optimizer=None, loss=loss, jit_compile=False)
            self.network = Network(self._model)
        except NoTwin:
            raise
        except Exception as error:  # Whatever may be raised by a layer that its configuration does not describe.
            raise NoTwin(f"it cannot be made again from its configuration ({type(error).__name__}: {error})") from error
        finally:
            random.setstate(state)

    def follow(self):
        """Take the original's weights as they are now. Raises `NoTwin` where outputs differ then."""
        self._take_weights()
        theirs, ours = self._original.outputs(self._x).numpy(), self.network.outputs(as_float64(self._x)).numpy()
        if not agree(ours, theirs, min(AGREEMENT * precision(self._original.dtype), AT_MOST)):
            raise NoTwin("its copy returns other outputs")

    def _take_weights(self):
        for ours, theirs in zip(self._model.weights, self._original.model.weights, strict=True):
            ours.assign(tf.cast(theirs.value, ours.dtype))
        for layer in _layers_within(self._model):
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # It works with constants made of its weights.


def as_float64(array):
    """Floating-point data in float64; integers as they are."""
    return tf.cast(array, tf.float64) if array.dtype.is_floating else array


def _made_again(model):
    """An uncompiled float64 copy of a functional or sequential model, with weights of its own."""
    graph = keras.Model(model.inputs, model.outputs, name=model.name)  # Without loss and optimizer.
    inputs = [keras.Input(batch_shape=x.shape, dtype=_finer(x.dtype), name=x.name) for x in model.inputs]
    copy = keras.models.clone_model(graph, input_tensors=inputs, clone_function=_layer_made_again)
    if type(model).call not in (type(copy).call, keras.Sequential.call):
        raise NoTwin("it has a method `call` of its own")
    for theirs, ours in zip(_layers_within(graph), _layers_within(copy), strict=True):
        if _functions(theirs) != _functions(ours):  # Keras saves a user's `relu` by that name, and finds its own by it.
            raise NoTwin(f"layer {theirs.name!r} has a function that is not Keras's own")
    return copy


def _layers_within(layer):
    """A layer and all that it is made of, each once, in an order that depends on their classes alone."""
    found, waiting = [], [layer]
    while waiting:
        layer = waiting.pop()
        if not any(layer is other for other in found):
            found.append(layer)
            waiting += parts_of(layer)
    return found


def _functions(layer):
    """Activations and the like, but for the methods that Keras wraps for each layer."""
    wrapped = ("build", "quantize")
    return {k: v for k, v in vars(layer).items() if isinstance(v, types.FunctionType) and k not in wrapped}


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


def _check_same_weights(original, copy):
    """`NoTwin` unless a `Network`'s model and its copy have weights of the same shapes and penalties in the same order,
    and the same ones are trained.
    """

    def described(weights, trained):
        place = {id(v): k for k, v in enumerate(trained)}
        return [(tuple(v.shape), place.get(id(v)), _penalty(v)) for v in weights]

    theirs = described(original.model.weights, original.variables)
    if theirs != described(copy.weights, copy.trainable_variables):
        raise NoTwin("its copy has other weights or penalties, or trains others")


def _penalty(variable):
    """The configuration of a weight's regulariser, which need not be that of its layer's."""
    regularizer = getattr(variable, "regularizer", None)
    config = None if regularizer is None else keras.saving.serialize_keras_object(regularizer)
    _check_own(config)
    return config


def _check_all_in_float64(model, x):
    """`NoTwin` where anything within a forward pass or a penalty is computed in less than float64."""

    @tf.function(autograph=False)
    def computed(x):
        penalties = [v.regularizer(v.value) for v in model.trainable_variables if v.regularizer is not None]
        return model(x, training=False), penalties

    graph = computed.get_concrete_function(as_float64(x)).graph.as_graph_def()
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
