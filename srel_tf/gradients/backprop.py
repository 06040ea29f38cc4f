"""One forward pass of a batch, and the signals that any function of its outputs sends back to every layer."""

from typing import NamedTuple

import keras
import tensorflow as tf

from srel_tf.gradients.capture import Capture, NotSeparable
from srel_tf.gradients.factored import Outer
from srel_tf.gradients.network import as_matrix
from srel_tf.gradients.output_gradients import HEADS, LossSignals, slope


class Seen(NamedTuple):
    """A forward pass of n examples at some weights (None: the model's own): outputs and u [n, C], the layers' calls,
    its tape, and Keras's mask of the outputs or None.
    """

    outputs: tf.Tensor
    u: tf.Tensor
    calls: list
    tape: tf.GradientTape
    weights: list | None
    mask: tf.Tensor | None = None


class Passes:
    """Forward and backward passes of a network whose layers can be watched.

    x: two examples [2, …], on which this is tried. Raises `NotSeparable` where it is not so.
    """

    head = "outputs"

    def __init__(self, network, x):
        if network.model.run_eagerly:
            raise NotSeparable("the model runs eagerly")
        self.network, self.capture = network, Capture(network, x)

    def forward(self, x, weights=None):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            predictions, calls = self.capture.forward(x, tape, weights)
            outputs = as_matrix(predictions, self.network.model)
            u = HEADS[self.head].of_outputs(outputs)
        mask = getattr(predictions, "_keras_mask", None)
        return Seen(tf.cast(outputs, self.network.dtype), u, calls, tape, weights, mask)

    def backward(self, seen, seeds):
        """Signals [n, M, …] at the output of each call of M functions of u, given by their seeds ∂/∂u [n, C]."""
        sources, zero = [c.output for c in seen.calls], tf.UnconnectedGradients.ZERO
        by_seed = [seen.tape.gradient(seen.u, sources, tf.cast(seed, seen.u.dtype), zero) for seed in seeds]
        return [tf.stack(s, axis=1) for s in zip(*by_seed, strict=True)]

    def factors(self, seen, signals):
        """Per-example gradients of each weight in factored form (`Capture.factors`)."""
        return self.capture.factors(seen.calls, signals, seen.weights)


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

        look.get_concrete_function(x, y)
        return found[-1]

    def loss_signal(self, seen, y):
        """∂ℓ/∂u of each example, float64 [n, C]."""
        return self.loss(tf.cast(seen.u, tf.float64), y, self.head, seen.mask)

    @property
    def _has_penalty(self):
        return any(v.regularizer is not None for v in self.network.variables)

    def penalty(self, weights=None):
        """∇ of the regularisers' penalty, which all sources share, one tensor a weight; None where there is none."""
        variables = self.network.variables
        if not self._has_penalty:
            return None
        weights = [tf.convert_to_tensor(w) for w in weights or self.network.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            terms = [v.regularizer(w) for v, w in zip(variables, weights, strict=True) if v.regularizer is not None]
            total = tf.add_n(terms)
        return tape.gradient(total, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)


class SourceGradients:
    """∇ℓ of each example of a batch, from one forward and one backward pass."""

    def __init__(self, passes, x, y, factor, weights=None):
        """factor [n] multiplies the gradients: η enters where back-propagation starts."""
        self._variables, self._dtype = passes.network.variables, passes.network.dtype
        seen = passes.forward(x, weights)
        signal = passes.loss_signal(seen, y) * tf.cast(factor, tf.float64)[:, None]
        self._factors = passes.factors(seen, passes.backward(seen, [signal]))
        self._penalty, self._factor = passes.penalty(weights), factor
        self.outputs = passes.read(seen.outputs)
        self.zero = _zero_where_finite(self._factors)

    def step(self, k, i):
        """factor · ∂ℓ_i/∂(the k-th weight) as an `Outer` of one position, or None where it is none."""
        one = self._factors[k][0] if len(self._factors[k]) == 1 else None
        if self._penalty is not None or not isinstance(one, Outer) or not one.is_rank_one:
            return None
        return one.example(i)

    def of_weight(self, k, i):
        """factor · ∂ℓ_i/∂(the k-th weight)."""
        shape = self._variables[k].shape
        parts = [tf.reshape(f.gradient(i), shape) for f in self._factors[k]]
        if self._penalty is not None:
            parts.append(self._penalty[k] * tf.cast(self._factor[i], self._dtype))
        return tf.add_n(parts) if parts else tf.zeros(shape, self._dtype)


def _zero_where_finite(factors):
    """0 for examples whose gradient is finite, else NaN, [n]: a saturated net would hide it. float64."""
    tensors = [t for of_weight in factors for factor in of_weight for t in factor if tf.is_tensor(t)]
    sums = [tf.reduce_sum(tf.reshape(t, [t.shape[0], -1]), axis=-1) for t in tensors if t.dtype.is_floating]
    return 0.0 * tf.cast(tf.add_n(sums), tf.float64)
