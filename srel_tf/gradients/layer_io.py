"""Record the inputs and outputs of layers in a forward pass, and replace the layers' weights.

The method `call` of each layer that owns trainable weights is replaced while the model runs, then restored. A graph of
the model's layers is not needed. Functional, subclassed and nested models, shared layers and layers within layers are
therefore supported.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from srel_tf.errors import reason_of
from srel_tf.gradients.factored import FactoredGradient, OuterProductGradient
from srel_tf.gradients.layer_gradients import LayerCall, gradients_of_call
from srel_tf.gradients.model_layers import observed, weight_owners, without_activation
from srel_tf.gradients.network import Network, Scope, agree

TRIAL_SIZES = (
    7,
    5,
)  # Two batch sizes, because one may by chance be the size of another axis.


class NotSeparable(Exception):
    """Layer inputs and outputs do not determine the gradients of single examples."""


class LayerIO:
    """Records the layer calls of a network's forward pass.

    If all examples share a layer's input (for example position ids), this input and the layer's output are repeated for
    each example after the call. Each example then has a separate output gradient.

    Raises:
        NotSeparable: if the layers' inputs and outputs do not determine the gradients of single examples. This is so,
            for example, if a weight is used outside of its layer, if a weight belongs to two layers, or if the first
            axis of a layer's input is not the batch axis.
    """

    def __init__(self, network: Network, x: tf.Tensor) -> None:
        self._network = network
        self.layers = weight_owners(network.model)
        self._owner: dict[
            int, keras.Layer
        ] = {}  # The layer that owns each trainable variable, by the variable's id.
        for layer in self.layers:
            for v in layer.trainable_variables:
                if id(v) in self._owner:
                    raise NotSeparable(f"the weight {v.path} belongs to two layers")
                self._owner[id(v)] = layer
        if network.model in self.layers or {id(v) for v in network.variables} - set(
            self._owner
        ):
            raise NotSeparable("the model itself owns weights")
        self._trained = {id(v): k for k, v in enumerate(network.variables)}
        self._batched: list[tuple] = []  # `LayerCall.batched` of each call, in order.
        self._shared: set[int] = (
            set()
        )  # Indices of calls whose inputs all examples share.
        self._shared = _calls_with_shared_inputs(
            {size: self._traced_calls(x, size) for size in TRIAL_SIZES}
        )
        if self._shared:
            self._check_copies(x)

    def _traced_calls(self, x: tf.Tensor, size: int) -> list[LayerCall]:
        """Trace a forward pass of a batch of this size and return its calls."""
        calls = []

        @tf.function(autograph=False)
        def forward(batch: tf.Tensor) -> tf.Tensor:
            predictions, recorded = self.forward(batch)
            calls.extend(recorded)
            return predictions

        with _not_separable("a batch of another size cannot be traced"):
            forward.get_concrete_function(tf.TensorSpec([size, *x.shape[1:]], x.dtype))
        return calls

    def _check_copies(self, x: tf.Tensor) -> None:
        """Raise `NotSeparable` if the outputs change when shared inputs are copied for each example.

        The weights are perturbed for this check, because a table of positions may be initialised to zeros.
        """
        weights = [
            w + tf.random.stateless_normal(w.shape, [k, 0], 0.0, 0.1, w.dtype)
            for k, w in enumerate(self._network.weights)
        ]

        @tf.function(autograph=False)
        def with_copies(batch: tf.Tensor) -> tf.Tensor:
            return self._network.as_outputs(self.forward(batch, weights=weights)[0])

        for size in TRIAL_SIZES:
            batch = tf.gather(x, tf.range(size) % x.shape[0])
            with _not_separable("shared inputs cannot be copied for each example"):
                ours = with_copies(batch)
            if not agree(ours.numpy(), self._network.outputs(batch, weights).numpy()):
                raise NotSeparable(
                    "outputs change if shared inputs are copied for each example"
                )

    def forward(
        self,
        x: tf.Tensor,
        tape: tf.GradientTape | None = None,
        weights: list | None = None,
    ) -> tuple[tf.Tensor, list[LayerCall]]:
        """Run the model on x [n, ...] and record its layer calls.

        Args:
            x: inputs.
            tape: a tape that will watch each layer's output before its activation, or None.
            weights: the trainable weights; None means the current weights of the network.

        Returns:
            The predictions of the model, and the calls in order.
        """
        calls: list[LayerCall] = []
        graph = tf.compat.v1.get_default_graph()

        def observer(
            layer: keras.Layer, call: Callable, arguments: tuple, keywords: dict
        ) -> tf.Tensor:
            scope.active.append(layer)
            with without_activation(layer) as activation:
                output = call(*arguments, **keywords)
            scope.active.pop()
            self._check(layer, arguments, output, graph)
            if len(calls) in self._shared:
                arguments = (_copied(arguments[0], x.shape[0]), *arguments[1:])
                output = _copied(output, x.shape[0])
            if tape is not None:
                tape.watch(output)
            batched = self._with_batch_axis(
                len(calls), (arguments, keywords), x.shape[0]
            )
            calls.append(LayerCall(layer, call, arguments, keywords, output, batched))
            return output if activation is None else activation(output)

        kind = functools.partial(OwnerScope, owner=self._owner)
        with (
            self._network.scope(weights, kind) as scope,
            observed(self.layers, observer),
        ):
            predictions = self._network.model(x, training=False)
        if scope.stray:
            raise NotSeparable(
                f"the weight {scope.stray} is used outside the layer that owns it"
            )
        return predictions, calls

    def _with_batch_axis(self, k: int, arguments: tuple, n: int) -> tuple:
        """Return one flag per leaf of the k-th call's arguments: True if its first axis always was the batch axis.

        The flag is also True for a first input that all examples share, because it is copied for each example.
        """
        leaves = keras.tree.flatten(arguments)
        batched = tuple(
            tf.is_tensor(t) and len(t.shape) > 0 and t.shape[0] == n for t in leaves
        )
        if k == len(self._batched):
            self._batched.append(batched)
        self._batched[k] = tuple(
            a and b for a, b in zip(self._batched[k], batched, strict=True)
        )
        return (True, *self._batched[k][1:]) if k in self._shared else self._batched[k]

    def _check(
        self, layer: keras.Layer, arguments: tuple, output: Any, graph: Any
    ) -> None:
        """Raise `NotSeparable` unless a call takes and returns tensors of the graph in which the model is called."""
        for t in (_first(arguments), output):
            if not tf.is_tensor(t) or not len(t.shape):
                raise NotSeparable(
                    f"layer {layer.name!r} does not receive or return a tensor with an axis"
                )
            if tf.is_symbolic_tensor(t) and t.graph is not graph:
                raise NotSeparable(
                    f"layer {layer.name!r} is called inside a loop or a branch"
                )

    def outputs(
        self,
        x: tf.Tensor,
        new_weight: Callable[[int], tf.Tensor],
        rank_one_step: Callable[[int], OuterProductGradient | None],
        weights: list | None = None,
    ) -> tf.Tensor:
        """Return f(x) [n, C] with other weights. Each new weight is formed when its layer is called.

        Args:
            x: inputs [n, ...].
            new_weight: a function k -> the tensor that replaces the k-th weight.
            rank_one_step: a function k -> the decrease of the k-th weight if it is a single outer product, else None.
                Such a decrease is applied to the layer's inputs, and the new weight is not formed.
            weights: the weights from which the steps start; None means the current weights of the network.
        """
        formed = set()

        def observer(
            layer: keras.Layer, call: Callable, arguments: tuple, keywords: dict
        ) -> tf.Tensor:
            steps = []
            for v in layer.trainable_variables:
                k = self._trained.get(id(v))
                if k is None:
                    continue
                # Other weights than `kernel` are always formed. For example, a separable convolution applies two
                # kernels in sequence, so that a step cannot be applied to the layer's inputs.
                step = rank_one_step(k) if v is getattr(layer, "kernel", None) else None
                if step is not None:
                    steps.append((v, step))
                elif k not in formed:
                    formed.add(k)
                    scope.add_update((v, new_weight(k)))
            if not steps:
                return call(*arguments, **keywords)
            with without_activation(layer) as activation:
                output = call(*arguments, **keywords)
            layer_call = LayerCall(layer, call, arguments, keywords, output)
            # Of these gradients, only the layer's inputs that they contain are used.
            by_variable = gradients_of_call(
                layer_call, output[:, None], lambda: self._network.scope(weights)
            )
            for v, step in steps:
                layer_inputs = next(
                    gradient for variable, gradient in by_variable if variable is v
                )
                assert isinstance(layer_inputs, OuterProductGradient)
                # Subtract the step: if its negative were added, TensorFlow's graph optimizer would turn a ReLU of the
                # sum into an invalid node.
                output = output - tf.reshape(
                    step.applied_to(layer_inputs), output.shape
                )
            return output if activation is None else activation(output)

        with self._network.scope(weights) as scope, observed(self.layers, observer):
            return self._network.as_outputs(self._network.model(x, training=False))

    def gradients(
        self,
        calls: list[LayerCall],
        output_grads: list[tf.Tensor],
        weights: list | None = None,
    ) -> list[list[FactoredGradient]]:
        """Return the per-example gradients of the network's weights: one list per weight, one entry per call.

        Args:
            calls: layer calls of a forward pass of n examples.
            output_grads: for each call, gradients of M functions at its output, [n, M, ...].
            weights: the weights of that pass; None means the current weights of the network.
        """

        def scope() -> contextlib.AbstractContextManager[Scope]:
            return self._network.scope(weights)

        by_weight: list[list[FactoredGradient]] = [[] for _ in self._network.variables]
        for call, grads in zip(calls, output_grads, strict=True):
            for variable, gradient in gradients_of_call(call, grads, scope):
                if id(variable) in self._trained:
                    by_weight[self._trained[id(variable)]].append(gradient)
        return by_weight


class OwnerScope(Scope):
    """A `Scope` that records whether a trainable weight is read outside of the calls of the layer that owns it.

    Attributes:
        active: the layers that are being called, outermost first.
        stray: path of a weight that was read outside of its layer, or None.
    """

    def __init__(self, network: Network, owner: dict[int, keras.Layer]) -> None:
        super().__init__(network)
        self._owner = owner
        self.active: list[keras.Layer] = []
        self.stray: str | None = None

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor:
        owner = self._owner.get(id(variable))
        if owner is not None and not any(owner is layer for layer in self.active):
            self.stray = variable.path
        return super().get_current_value(variable)


def _first(arguments: tuple) -> Any:
    """Return a layer's first input tensor, or None."""
    return next(iter(keras.tree.flatten(arguments)), None)


@contextlib.contextmanager
def _not_separable(what: str) -> Iterator[None]:
    """Turn any exception of a user's layer into `NotSeparable`. The caller then loops over the sources instead."""
    try:
        yield
    except NotSeparable as error:
        raise NotSeparable(reason_of(error)) from error
    except Exception as error:
        raise NotSeparable(
            f"{what} ({type(error).__name__}: {reason_of(error)})"
        ) from error


def _calls_with_shared_inputs(calls: dict[int, list[LayerCall]]) -> set[int]:
    """Return the indices of calls in which the first axes of input and output do not depend on the batch size.

    Args:
        calls: the calls of one pass for each batch size.

    Raises:
        NotSeparable: if a first axis varies and is not the batch axis.
    """
    shared = set()
    for k, of_passes in enumerate(zip(*calls.values(), strict=True)):
        first_axes = [
            (_first(call.arguments).shape[0], call.output.shape[0])
            for call in of_passes
        ]
        if len(set(first_axes)) == 1:
            shared.add(k)
        elif first_axes != [(n, n) for n in calls]:
            name = of_passes[0].layer.name
            raise NotSeparable(
                f"the first axis of an input or output of layer {name!r} is not the batch axis"
            )
    return shared


def _copied(tensor: tf.Tensor, n: int) -> tf.Tensor:
    """Return n copies, along the batch axis, of a tensor whose batch axis has size 1 or is missing."""
    with_batch_axis = tensor if tensor.shape[0] == 1 else tensor[None]
    return tf.repeat(with_batch_axis, n, axis=0)
