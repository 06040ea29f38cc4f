"""One forward pass of a batch, and the signals that any function of its outputs sends back to every layer."""

from typing import NamedTuple

import keras
import tensorflow as tf

from srel_tf.capture import Capture, NotSeparable
from srel_tf.factors import Outer
from srel_tf.kinks import any_undecided, has_untold_kinks, kink_operations, undecided_share
from srel_tf.loss_signals import HEADS, LossSignals, slope
from srel_tf.network import as_matrix
from srel_tf.resolution import last_places_moved, precision

# Last places by which a gradient may be wrong, relative to its norm. J Jᵀ, a product of two, was wrong by at most 4.5
# of them in float32, in each of an MLP, a CNN and a residual net at every stage of training, and in ResNet-18.
ROUNDING = 8.0
KINK_MARGIN = 4.0  # On the share of a signal that hangs on units within rounding of a kink.
SIGNAL_MARGIN = 4.0  # Last places by which an output may be wrong.


class Seen(NamedTuple):
    """A forward pass of n examples: outputs and u [n, C], the layers' calls, operations with a kink (by example, and
    those that mix examples with other axes), and its tape.
    """

    outputs: tf.Tensor
    u: tf.Tensor
    calls: list
    kinks: list
    mixed: list
    tape: tf.GradientTape


class Passes:
    """Forward and backward passes of a network whose layers can be watched.

    x: two examples [2, …], on which this is tried. Raises `NotSeparable` where it is not so.
    """

    head = "outputs"
    _has_untold_kinks = False
    zeros_are_kinks = False  # Whether units exactly at a kink count as undecided.

    def __init__(self, network, x):
        if network.model.run_eagerly:
            raise NotSeparable("the model runs eagerly")
        if not network.keeps_examples_apart(x):
            raise NotSeparable("the outputs at an example depend on the others of the batch")
        self.network, self.capture = network, Capture(network, x)

    def forward(self, x):
        graph = tf.compat.v1.get_default_graph()
        first = len(graph.get_operations())
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            predictions, calls = self.capture.forward(x, tape)
            outputs = as_matrix(predictions, self.network.model)
            u = HEADS[self.head].of_outputs(outputs)
        return Seen(tf.cast(outputs, self.network.dtype), u, calls, *kink_operations(graph, first, x), tape)

    def backward(self, seen, seeds):
        """Signals [n, M, …] at the output of each call of M functions of u, given by their seeds ∂/∂u [n, C];
        and their relative error [n]: of rounding, and of units so close to a kink that rounding decides their side.
        """
        sources = [c.output for c in seen.calls] + [op.outputs[0] for op in seen.kinks]
        by_seed = [self._gradients(seen, sources, seed) for seed in seeds]
        by_source = list(zip(*by_seed, strict=True))
        signals = [tf.stack(s, axis=1) for s in by_source[: len(seen.calls)]]
        epsilon, n = precision(self.network.dtype), seen.u.shape[0]
        shares = zip(seen.kinks, by_source[len(seen.calls) :], strict=True)
        undecided = [undecided_share(*s, epsilon, self.zeros_are_kinks) for s in shares]
        undecided += [tf.fill([n], any_undecided(op, epsilon, self.zeros_are_kinks)) for op in seen.mixed]
        undecided = tf.add_n([tf.zeros([n], self.network.dtype), *undecided])
        if self._has_untold_kinks and self.zeros_are_kinks:
            undecided = tf.ones([n], self.network.dtype)  # All may be.
        return signals, ROUNDING * epsilon + KINK_MARGIN * tf.cast(undecided, tf.float64)

    def _gradients(self, seen, sources, seed):
        zero = tf.UnconnectedGradients.ZERO
        return [tf.convert_to_tensor(g) for g in seen.tape.gradient(seen.u, sources, tf.cast(seed, seen.u.dtype), zero)]


class LossPasses(Passes):
    """The same of a network whose compiled loss is a function of its outputs, penalties of the weights apart.

    x, y: two examples [2, …]. u, which derivatives are taken of, is what Keras computes the loss from.
    """

    def __init__(self, network, x, y):
        super().__init__(network, x)
        model = network.model
        if network.loss is not None:
            raise NotSeparable("the loss is a function of the user's own")
        if type(model).compute_loss is not keras.Model.compute_loss or model.loss is None:
            raise NotSeparable("the model computes its loss itself")
        if network.has_added_losses(x, but_penalties=True):
            raise NotSeparable("the model adds losses of its own")
        self.loss = LossSignals(network)
        self.head = self._find_head(x, y)

    def read(self, outputs):
        """Outputs [n, C] as D is to see them: a softmax by its logits, which resolve probabilities close to 0 and 1."""
        return HEADS["log"].of_outputs(outputs) if self.head == "log" else outputs

    def slope(self, outputs):
        """df/du, float64 [n, C]."""
        return slope(self.head, outputs)

    def _find_head(self, x, y):
        found = []

        @tf.function(autograph=False)
        def look(x, y):
            predictions, _ = self.capture.forward(x)
            found.append(self.loss.head(as_matrix(predictions, self.network.model), y))

        self._has_untold_kinks = has_untold_kinks(look.get_concrete_function(x, y).graph)
        return found[-1]

    def loss_signal(self, seen, y):
        """∂ℓ/∂u of each example, float64 [n, C]."""
        return self.loss(tf.cast(seen.u, tf.float64), y, self.head)

    def loss_signal_error(self, u, y):
        """Relative error of ∂ℓ/∂u of each example [n], from the last places of u [n, C].

        Of its direction alone: S_rel sees no length of a gradient, unless that is added to a penalty's. In a converged
        net a last place of the outputs changes all of p − y by the same share.
        """
        signal = self.loss(tf.cast(u, tf.float64), y, self.head)
        length = tf.norm(signal, axis=-1, keepdims=True)
        along = tf.math.divide_no_nan(signal, length) * (0.0 if self._has_penalty else 1.0)

        def error(u):
            moved = self.loss(tf.cast(u, tf.float64), y, self.head) - signal
            return tf.norm(moved - along * tf.reduce_sum(along * moved, axis=-1, keepdims=True), axis=-1)

        errors = tf.stack([error(u) for u in tf.unstack(last_places_moved(u))])
        return SIGNAL_MARGIN * tf.math.divide_no_nan(tf.reduce_max(errors, axis=0), length[:, 0])

    @property
    def _has_penalty(self):
        return any(v.regularizer is not None for v in self.network.variables)

    def penalty(self):
        """∇ of the regularisers' penalty, which all sources share, one tensor a weight; None where there is none."""
        variables = self.network.variables
        if not self._has_penalty:
            return None
        weights = [tf.convert_to_tensor(v.value) for v in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            terms = [v.regularizer(w) for v, w in zip(variables, weights, strict=True) if v.regularizer is not None]
            total = tf.add_n(terms)
        return tape.gradient(total, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)


class SourceGradients:
    """∇ℓ of each example of a batch, from one forward and one backward pass."""

    def __init__(self, passes, x, y, factor):
        """factor [n] multiplies the gradients: η enters where back-propagation starts."""
        self._variables = passes.network.variables
        seen = passes.forward(x)
        signal = passes.loss_signal(seen, y) * tf.cast(factor, tf.float64)[:, None]
        signals, error = passes.backward(seen, [signal])
        self._factors = passes.capture.factors(seen.calls, signals)
        self._penalty, self._factor = passes.penalty(), factor
        self.outputs = passes.read(seen.outputs)
        # Relative error [n] of each gradient.
        self.error = error + passes.loss_signal_error(seen.u, y) + _zero_where_finite(self._factors)

    def step(self, k, i):
        """factor · ∂ℓ_i/∂(the k-th weight) as an `Outer` of one position, or None where it is none."""
        one = self._factors[k][0] if len(self._factors[k]) == 1 else None
        if self._penalty is not None or not isinstance(one, Outer) or not one.is_rank_one:
            return None
        return one.example(i)

    def of_weight(self, k, i):
        """factor · ∂ℓ_i/∂(the k-th weight)."""
        shape, dtype = self._variables[k].shape, self._variables[k].dtype
        parts = [tf.reshape(f.gradient(i), shape) for f in self._factors[k]]
        if self._penalty is not None:
            parts.append(self._penalty[k] * tf.cast(self._factor[i], dtype))
        return tf.add_n(parts) if parts else tf.zeros(shape, dtype)


def _zero_where_finite(factors):
    """0 for examples whose gradient is finite, else NaN, [n]: a saturated net would hide it. float64."""
    tensors = [t for of_weight in factors for factor in of_weight for t in factor if tf.is_tensor(t)]
    sums = [tf.reduce_sum(tf.reshape(t, [t.shape[0], -1]), axis=-1) for t in tensors if t.dtype.is_floating]
    return 0.0 * tf.cast(tf.add_n(sums), tf.float64)
