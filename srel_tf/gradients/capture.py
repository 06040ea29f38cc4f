"""What each layer saw in one forward pass, and the signals that come back to it: per-example gradients of a batch.

Each layer that owns trainable weights is watched while the model runs (`srel_tf.gradients.watching`). That needs no
graph of the model, and works for functional, subclassed and nested models, for shared layers and for layers within
layers alike.
"""

import contextlib
import functools

import keras
import tensorflow as tf

from srel_tf.gradients.layer_calls import Call, factors_of
from srel_tf.gradients.network import agree
from srel_tf.gradients.watching import Watched, observed, weight_owners, without_activation


class NotSeparable(Exception):
    """The gradients of single examples cannot be told apart from what layers saw."""


class Capture:
    """Runs a network on a batch and takes down the calls of its layers.

    A layer that is called on the same for all examples, as one that embeds positions, is given a copy for each, so that
    each has a signal of its own.

    Raises `NotSeparable` for models in which a weight is used outside the layer that owns it, or by two of them, or in
    which a layer's first axis is not the batch's.
    """

    def __init__(self, network, x):
        self._network = network
        self.layers = weight_owners(network.model)
        self._owner = {}
        for layer in self.layers:
            for v in layer.trainable_variables:
                if id(v) in self._owner:
                    raise NotSeparable(f"the weight {v.path} belongs to two layers")
                self._owner[id(v)] = layer
        if network.model in self.layers or {id(v) for v in network.variables} - set(self._owner):
            raise NotSeparable("the model itself owns weights")
        self._trained = {id(v): k for k, v in enumerate(network.variables)}
        self._batched = []  # Of each call, in order.
        self._constant = set()  # Numbers of the calls on the same for all examples.
        self._constant = _constant_calls({size: self._try(x, size) for size in (7, 5)})
        if self._constant:
            self._check_copies(x)

    def _try(self, x, size):
        """The calls of a traced forward pass: what has an axis of the batch has it whatever the number of examples."""
        calls = []

        @tf.function(autograph=False)
        def forward(batch):
            predictions, seen = self.forward(batch)
            calls.extend(seen)
            return predictions

        with _not_separable("a batch of other size cannot be traced"):
            forward.get_concrete_function(tf.TensorSpec([size, *x.shape[1:]], x.dtype))
        return calls

    def _check_copies(self, x):
        """`NotSeparable` unless the network returns the same where each example has a copy of what all share.

        With other weights, for those of positions may begin as zeros; and for two numbers of examples, for one may be
        that of another axis by chance.
        """
        weights = [
            w + tf.random.stateless_normal(w.shape, [k, 0], 0.0, 0.1, w.dtype)
            for k, w in enumerate(self._network.weights)
        ]
        for size in (7, 5):
            some = tf.gather(x, tf.range(size) % x.shape[0])

            @tf.function(autograph=False)
            def copied(x):
                return self._network.as_outputs(self.forward(x, weights=weights)[0])

            with _not_separable("what is the same for all examples cannot be given to each"):
                ours = copied(some)
            if not agree(ours.numpy(), self._network.outputs(some, weights).numpy()):
                raise NotSeparable("what is the same for all examples is not the same when each has a copy")

    def forward(self, x, tape=None, weights=None):
        """(predictions, calls) of a batch; the tape watches each layer's output before its activation.

        weights: those of the network; None takes its own.
        """
        calls = []

        def observer(layer, call, arguments, keywords):
            scope.active.append(layer)
            with without_activation(layer) as activation:
                output = call(*arguments, **keywords)
            scope.active.pop()
            self._check(layer, arguments, output)
            if len(calls) in self._constant:
                arguments = (_for_each(arguments[0], x.shape[0]), *arguments[1:])
                output = _for_each(output, x.shape[0])
            if tape is not None:
                tape.watch(output)
            batched = self._with_batch_axis(len(calls), (arguments, keywords), x.shape[0])
            calls.append(Call(layer, call, arguments, keywords, output, batched))
            return output if activation is None else activation(output)

        kind = functools.partial(Watched, owner=self._owner)
        with self._network.scope(weights, kind) as scope, observed(self.layers, observer):
            predictions = self._network.model(x, training=False)
        if scope.stray:
            raise NotSeparable(f"the weight {scope.stray} is used outside the layer that owns it")
        return predictions, calls

    def _with_batch_axis(self, k, arguments, n):
        """Which leaves of the k-th call's arguments have had a first axis of the batch's size n in every pass."""
        found = [tf.is_tensor(t) and len(t.shape) > 0 and t.shape[0] == n for t in keras.tree.flatten(arguments)]
        if k == len(self._batched):
            self._batched.append(found)
        self._batched[k] = [a and b for a, b in zip(self._batched[k], found, strict=True)]
        return (True, *self._batched[k][1:]) if k in self._constant else tuple(self._batched[k])

    def _check(self, layer, arguments, output):
        for t in (_first(arguments), output):
            if not tf.is_tensor(t) or not len(t.shape):
                raise NotSeparable(f"layer {layer.name!r} does not see or return a tensor with an axis")
            if tf.is_symbolic_tensor(t) and t.graph is not tf.compat.v1.get_default_graph():
                raise NotSeparable(f"layer {layer.name!r} is called inside a loop or a branch")

    def outputs(self, x, weight, step, weights=None):
        """f(x) [n, C] with other weights, each formed when its layer is called.

        weight(k): what stands in place of the network's k-th weight; or None, where step(k) is an `Outer` of one
        position instead: what the k-th of `weights` (None: the network's own) is less by, which acts on what the layer
        sees without being formed.
        """
        formed = set()

        def observer(layer, call, arguments, keywords):
            steps = []
            for v in layer.trainable_variables:
                k = self._trained.get(id(v))
                # Of a separable convolution's two kernels the one acts on what the other returns: they are formed.
                if k is not None and v is getattr(layer, "kernel", None) and step(k) is not None:
                    steps.append((v, step(k)))
                elif k is not None and k not in formed:
                    formed.add(k)
                    scope.add_update((v, weight(k)))
            if not steps:
                return call(*arguments, **keywords)
            with without_activation(layer) as activation:
                output = call(*arguments, **keywords)
            seen = Call(layer, call, arguments, keywords, output)
            factors = factors_of(seen, output[:, None], lambda: self._network.scope(weights))
            for v, outer in steps:
                inputs = next(factor for variable, factor in factors if variable is v)
                # A difference: TensorFlow's graph optimiser makes an empty node of a ReLU of the sum, and gives up.
                output = output - tf.reshape(outer.applied_to(inputs), output.shape)
            return output if activation is None else activation(output)

        with self._network.scope(weights) as scope, observed(self.layers, observer):
            return self._network.as_outputs(self._network.model(x, training=False))

    def factors(self, calls, signals, weights=None):
        """Per-example gradients of each weight of the network, in factored form: a list of lists, one for each call.

        signals: for each call the tensor [n, M, …] of M functions' derivatives by its output.
        weights: those that the calls were made with; None stands for the network's own.
        """

        def scope():
            return self._network.scope(weights)

        found = [[] for _ in self._network.variables]
        for call, signal in zip(calls, signals, strict=True):
            for variable, factor in factors_of(call, signal, scope):
                if id(variable) in self._trained:
                    found[self._trained[id(variable)]].append(factor)
        return found


def _first(arguments):
    """What a layer sees, the first of several where it takes a list; None where it sees nothing."""
    return next(iter(keras.tree.flatten(arguments)), None)


@contextlib.contextmanager
def _not_separable(what):
    """Whatever the user's layers may raise becomes `NotSeparable`: the plain loop asks less of them."""
    try:
        yield
    except NotSeparable:
        raise
    except Exception as error:
        first_line = str(error).split("\n", 1)[0]
        raise NotSeparable(f"{what} ({type(error).__name__}: {first_line})") from error


def _constant_calls(calls):
    """The numbers of the calls that see and return the same first axis whatever the number of examples.

    calls: {number of examples: the calls of a pass}. `NotSeparable` where it varies and is not the batch's.
    """
    found = set()
    for k, of_passes in enumerate(zip(*calls.values(), strict=True)):
        axes = [(_first(call.arguments).shape[0], call.output.shape[0]) for call in of_passes]
        if len(set(axes)) == 1:
            found.add(k)
        elif axes != [(n, n) for n in calls]:
            name = of_passes[0].layer.name
            raise NotSeparable(f"the first axis of what layer {name!r} sees or returns is not the batch's")
    return found


def _for_each(t, n):
    """[n, …]: a copy for each example of a tensor that all share, with an axis of one for them or with none."""
    return tf.repeat(t if t.shape[0] == 1 else t[None], n, axis=0)
