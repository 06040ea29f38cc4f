"""The limit η → 0 for any model: each source's gradient is pushed forward through the targets, one after the other.

δ_i = −J ∇ℓ(w, x_i) is the derivative of the outputs along −∇ℓ: forward-mode differentiation gives it for all targets in
one pass, with nothing known of the model's layers.
"""

import numpy as np
import tensorflow as tf

from srel_tf.engines.first_order import FirstOrder
from srel_tf.gradients.batching import in_batches
from srel_tf.gradients.output_gradients import HEADS, head_of, slope


class Tangents:
    """Callable engine: `engine(x_sources, y_sources, x_targets, weights) -> FirstOrder`; as `limit.Limit`."""

    def __init__(self, network, x, own, batch_size):
        self._network, self._own, self._batch_size = network, own, batch_size
        self._head = _head(network, x)
        self._compiled = tf.function(self._run, jit_compile=False, autograph=False)

    def __call__(self, *arguments):
        run = self._run if self._network.model.run_eagerly else self._compiled
        return FirstOrder(self._head, *run(*arguments))

    def _run(self, x_sources, y_sources, x_targets, weights):
        n_t, outside = x_targets.shape[0], self._own < 0
        x = tf.concat([x_targets, tf.gather(x_sources, np.flatnonzero(outside))], axis=0)
        column = np.where(outside, n_t + np.cumsum(outside) - 1, self._own)
        weights = [tf.convert_to_tensor(w) for w in weights]
        moved = self._moved(x_sources, y_sources, x, weights)
        own_moved = tf.gather(moved, column, axis=1, batch_dims=1)
        outputs, own_outputs, slope, own_slope = (
            tf.gather(t, i) for t in self._outputs(x, weights) for i in (np.arange(n_t), column)
        )
        return outputs, moved[:, :n_t], own_outputs, own_moved, slope, own_slope

    def _outputs(self, x, weights):
        """Outputs f and df/du at x, [n, C] each."""

        def one_batch(batch):
            outputs = self._network.outputs(batch, weights)
            return outputs, slope(self._head, outputs)

        return in_batches(one_batch, (self._network.dtype, tf.float64), self._batch_size, x)

    def _moved(self, x_sources, y_sources, x, weights):
        """δ of u, float64 [n_s, n, C], at these weights."""
        network = self._network

        def one_source(i):
            gradients, _ = network.loss_gradient(x_sources[i, None], y_sources[i, None], 1.0, weights)
            return -tf.cast(along(network, self._head, weights, gradients, x, self._batch_size), tf.float64)

        sources = tf.range(x_sources.shape[0])
        return tf.map_fn(one_source, sources, fn_output_signature=tf.float64, parallel_iterations=1)


def _head(network, x):
    """What is differentiated: the logits where the outputs are a softmax or a sigmoid of some, else the outputs."""
    if network.model.run_eagerly:
        return "outputs"
    found = []
    tf.function(lambda b: found.append(head_of(network.outputs(b))), autograph=False).get_concrete_function(x)
    return found[-1]


def along(network, head, weights, direction, x, batch_size):
    """The derivative of u at x along a direction in weight space, [n, C]."""

    def derivative(batch):
        with tf.autodiff.ForwardAccumulator(weights, [tf.convert_to_tensor(d) for d in direction]) as forward:
            u = HEADS[head].of_outputs(network.outputs(batch, weights))
        return (forward.jvp(u, tf.UnconnectedGradients.ZERO),)

    return in_batches(derivative, (network.dtype,), batch_size, x)[0]
