"""Run a model in a precision other than the one that it was built in, without rebuilding the model.

The layers' dtype policies are replaced while the model runs, then restored. The weights are cast where the model reads
them (`srel_tf.gradients.network.Network.scope`). Layers, activations, losses and subclasses that a user has written are
supported, too.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

COARSER_THAN = {
    tf.float64: (tf.float32, tf.float16, tf.bfloat16),
    tf.float32: (tf.float16, tf.bfloat16),
}
# Parts of the names of TensorFlow's operations that draw random numbers, or that advance the state of a generator.
RANDOM = (
    "Random",
    "Rng",
    "Multinomial",
    "TruncatedNormal",
    "StatefulUniform",
    "StatefulStandardNormal",
    "NonDeterministicInts",
    "StatelessShuffle",
    "CandidateSampler",
    "SampleDistorted",
)


def own_precision(model: keras.Model) -> str:
    """Return "float64" for a model whose weights are all float64, else "float32".

    Models of half or mixed precision are measured in float32, the precision of their master weights.
    """
    return (
        "float64"
        if {v.dtype for v in model.trainable_variables} == {"float64"}
        else "float32"
    )


def layers_within(layer: keras.Layer) -> list[keras.Layer]:
    """Return a layer and all layers within it, each once. Lists, dicts and nested models are searched."""
    found: dict[int, keras.Layer] = {}
    waiting = [layer]
    while waiting:
        layer = waiting.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            waiting += _layers_among(vars(layer).values())
    return list(found.values())


def _layers_among(values: Iterable) -> Iterator[keras.Layer]:
    for value in values:
        if isinstance(value, keras.Layer):
            yield value
        elif isinstance(value, dict):
            yield from _layers_among(value.values())
        elif isinstance(value, (list, tuple, set)):
            yield from _layers_among(value)


class Switch(NamedTuple):
    """An object, its attribute that sets the precision, and a temporary value of this attribute."""

    owner: Any
    name: str
    value: Any


def switches_to(dtype: tf.DType, model: keras.Model) -> list[Switch]:
    """Return the `Switch`es that give all layers, variables and symbolic inputs of a model the type `dtype`.

    Quantised layers are left out, because their policy changes the computation, not only its precision.
    """
    name = tf.as_dtype(dtype).name
    policy = keras.DTypePolicy(name)
    found = []
    for layer in layers_within(model):
        floating = keras.backend.is_float_dtype(layer.compute_dtype)
        if (
            floating
            and {layer.compute_dtype, layer.variable_dtype} != {name}
            and layer.quantization_mode is None
        ):
            # The setter of `dtype_policy` would write into a `DTypePolicyMap`, which is saved with the model.
            found.append(Switch(layer, "_dtype_policy", policy))
    found += [
        Switch(holder, "_dtype", name)
        for holder in _typed(model)
        if _is_other_float(holder.dtype, name)
    ]
    return found


def _typed(model: keras.Model) -> Iterator[Any]:
    """Yield the objects with a dtype: variables and symbolic inputs. A model casts its data to the inputs' dtype."""
    yield from model.variables
    for layer in layers_within(model):
        if isinstance(layer, keras.layers.InputLayer):
            yield layer
        if isinstance(layer, keras.Model):
            yield from keras.tree.flatten(getattr(layer, "inputs", None) or [])


def _is_other_float(dtype: str, name: str) -> bool:
    return keras.backend.is_float_dtype(dtype) and dtype != name


@contextlib.contextmanager
def computing_in(dtype: tf.DType, switches: list[Switch]) -> Iterator[None]:
    """Within the context, make the owners of these switches and all of Keras's losses compute in `dtype`."""
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
    """Names of the first operation of each kind in the graph of a forward pass; None if there is no such operation.

    Attributes:
        coarse: an operation that casts a tensor to lower precision, if this tensor depends on the weights. Other
            tensors are the same before and after an update, so that a cast does no harm.
        random: an operation that draws random numbers.
        opaque: an operation without a derivative (stop_gradient, Python functions).
    """

    coarse: str | None
    random: str | None
    opaque: str | None


def inspection(graph: Any, weights: list[tf.Tensor], dtype: tf.DType) -> Inspection:
    """Inspect a graph in which the tensors `weights` are the trainable weights."""
    coarse_types = COARSER_THAN.get(tf.as_dtype(dtype), ())
    bodies = {
        body.signature.name: body.node_def
        for body in graph.as_graph_def().library.function
    }

    def first(operations: Iterable[Any], kind: Callable[[Any], bool]) -> str | None:
        """Name the first operation that `kind` accepts, or that calls a function with such an operation."""
        return next(
            (
                op.name
                for op in operations
                if any(map(kind, _with_called(op.node_def, bodies)))
            ),
            None,
        )

    return Inspection(
        coarse=first(
            _depending_on(weights), lambda node: _is_coarse(node, coarse_types)
        ),
        random=first(graph.get_operations(), _is_random),
        opaque=first(graph.get_operations(), _is_opaque),
    )


def _depending_on(tensors: list[tf.Tensor]) -> list[tf.Operation]:
    """Return the operations of a graph that depend on the given tensors."""
    reached, waiting = {}, [op for t in tensors for op in t.consumers()]
    while waiting:
        op = waiting.pop()
        if op.name not in reached:
            reached[op.name] = op
            waiting += [user for t in op.outputs for user in t.consumers()]
    return list(reached.values())


def _with_called(node: Any, bodies: dict) -> Iterator[Any]:
    """Yield a graph's node and the nodes of the functions that it calls; bodies: {name of a function: its nodes}."""
    yield node
    for attribute in node.attr.values():
        for function in (attribute.func, *attribute.list.func):
            for inner in bodies.get(function.name, ()):
                yield from _with_called(inner, bodies)


def _is_coarse(node: Any, types: tuple) -> bool:
    """Return whether a node casts floating-point numbers to one of these types. Casts of integers do not count."""
    from_floating = (
        node.op == "Cast" and tf.as_dtype(node.attr["SrcT"].type).is_floating
    )
    return from_floating and tf.as_dtype(node.attr["DstT"].type) in types


def _is_random(node: Any) -> bool:
    return any(part in node.op for part in RANDOM)


def _is_opaque(node: Any) -> bool:
    # TensorFlow's variance stops the gradient at the mean. Its derivative with respect to the mean is zero anyway.
    of_variance = node.name.endswith("moments/StopGradient")
    opaque = (
        "StopGradient",
        "PreventGradient",
        "PyFunc",
        "PyFuncStateless",
        "EagerPyFunc",
    )
    return node.op in opaque and not of_variance
