"""Run a model in another precision than it was built in, without making it again.

The layers' dtype policies are replaced while the model runs, and put back. The weights are cast where the model reads
them (`srel_tf.gradients.network.Network.scope`). So layers, activations, losses and subclasses of the user's own are
served, too.
"""

import contextlib
from typing import NamedTuple

import keras
import tensorflow as tf

COARSER_THAN = {
    tf.float64: (tf.float32, tf.float16, tf.bfloat16),
    tf.float32: (tf.float16, tf.bfloat16),
}


def layers_within(layer):
    """A layer and all the layers that it holds, each once: those of lists, of dicts and of models within it, too."""
    found, waiting = {}, [layer]
    while waiting:
        layer = waiting.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            waiting += _layers_among(vars(layer).values())
    return list(found.values())


def _layers_among(values):
    for value in values:
        if isinstance(value, keras.Layer):
            yield value
        elif isinstance(value, dict):
            yield from _layers_among(value.values())
        elif isinstance(value, (list, tuple, set)):
            yield from _layers_among(value)


class Switch(NamedTuple):
    """Where an object holds the precision that it computes in: an entry of its `vars`, and the other value for it."""

    owner: object
    name: str
    value: object


def switches_to(dtype, model):
    """The `Switch`es that make all layers, variables and symbolic inputs of a model be of `dtype`.

    Quantised layers are left out: their policy chooses what they compute, not only in which precision.
    """
    name = tf.as_dtype(dtype).name
    policy = keras.DTypePolicy(name)
    found = []
    for layer in layers_within(model):
        floating = keras.backend.is_float_dtype(layer.compute_dtype)
        if floating and {layer.compute_dtype, layer.variable_dtype} != {name} and layer.quantization_mode is None:
            # The setter of `dtype_policy` would write into a `DTypePolicyMap`, which is saved with the model.
            found.append(Switch(layer, "_dtype_policy", policy))
    found += [Switch(holder, "_dtype", name) for holder in _typed(model) if _is_other_float(holder.dtype, name)]
    return found


def _typed(model):
    """What has a type of its own: variables, and symbolic inputs, to whose type a functional model casts its data."""
    yield from model.variables
    for layer in layers_within(model):
        if isinstance(layer, keras.layers.InputLayer):
            yield layer
        if isinstance(layer, keras.Model):
            yield from keras.tree.flatten(getattr(layer, "inputs", None) or [])


def _is_other_float(dtype, name):
    return keras.backend.is_float_dtype(dtype) and dtype != name


@contextlib.contextmanager
def computing_in(dtype, switches):
    """While it is open, what has these switches, and all of Keras's losses, compute in `dtype`."""
    name = tf.as_dtype(dtype).name
    before = [vars(switch.owner)[switch.name] for switch in switches]
    loss_dtype = keras.losses.Loss.dtype
    try:
        for owner, attribute, value in switches:
            vars(owner)[attribute] = value
        keras.losses.Loss.dtype = property(lambda loss: name)
        yield
    finally:
        keras.losses.Loss.dtype = loss_dtype
        for switch, value in zip(switches, before, strict=True):
            vars(switch.owner)[switch.name] = value


class Inspection(NamedTuple):
    """What stands in the graph of a forward pass. Each is the name of the first such operation, or None.

    coarse: it casts what depends on the weights to less than the network's precision. Only that makes an error: the
        rest is the same before and after an update.
    random: it draws random numbers. opaque: a derivative does not see what it does (stop_gradient, Python functions).
    """

    coarse: str | None
    random: str | None
    opaque: str | None


def inspection(graph, weights, dtype):
    """The `Inspection` of a graph whose tensors `weights` are the trainable weights."""
    coarse_types = COARSER_THAN.get(tf.as_dtype(dtype), ())
    bodies = {body.signature.name: body.node_def for body in graph.as_graph_def().library.function}

    def first(operations, kind):
        """The name of the first operation that is of a kind, or calls a function, loop or branch with one."""
        return next((op.name for op in operations if any(map(kind, _with_called(op.node_def, bodies)))), None)

    return Inspection(
        coarse=first(_depending_on(weights), lambda node: _is_coarse(node, coarse_types)),
        random=first(graph.get_operations(), _is_random),
        opaque=first(graph.get_operations(), _is_opaque),
    )


def _depending_on(tensors):
    """The operations of a graph that depend on some of its tensors."""
    reached, waiting = {}, [op for t in tensors for op in t.consumers()]
    while waiting:
        op = waiting.pop()
        if op.name not in reached:
            reached[op.name] = op
            waiting += [user for t in op.outputs for user in t.consumers()]
    return list(reached.values())


def _with_called(node, bodies):
    """A node of a graph and those of the functions that it calls; bodies: {name of a function: its nodes}."""
    yield node
    for attribute in node.attr.values():
        for function in (attribute.func, *attribute.list.func):
            for inner in bodies.get(function.name, ()):
                yield from _with_called(inner, bodies)


def _is_coarse(node, types):
    """Whether a node casts floating-point numbers to one of these types. Casts of whole numbers are exact."""
    from_floating = node.op == "Cast" and tf.as_dtype(node.attr["SrcT"].type).is_floating
    return from_floating and tf.as_dtype(node.attr["DstT"].type) in types


def _is_random(node):
    return "Random" in node.op or node.op in ("Multinomial", "TruncatedNormal", "ParameterizedTruncatedNormal")


def _is_opaque(node):
    # TensorFlow's variance stops the gradient of the mean, by which its derivative is zero.
    of_variance = node.name.endswith("moments/StopGradient")
    opaque = ("StopGradient", "PreventGradient", "PyFunc", "PyFuncStateless", "EagerPyFunc")
    return node.op in opaque and not of_variance
