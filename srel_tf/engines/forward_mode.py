"""The limit η → 0 for any model, by forward-mode differentiation, one source after the other.

δ_i = −J ∇ℓ(w, x_i) is the derivative of the outputs along −∇ℓ. Forward-mode differentiation computes δ_i for all
targets in one pass, and does not depend on the types of the model's layers.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from srel_tf.engines.joined import FirstOrder, JoinedExamples
from srel_tf.gradients.batching import map_batches
from srel_tf.gradients.network import Network
from srel_tf.gradients.output_gradients import LINKS, link_derivative, link_of

# Errors of TensorFlow's forward mode for operations that it does not support, such as `tf.map_fn`, `tf.ensure_shape`.
FORWARD_MODE_ERRORS = (LookupError, NotImplementedError, TypeError, ValueError)


class ForwardModeEngine:
    """Callable engine: `engine(x_sources, y_sources, x_targets, weights) -> FirstOrder`; see `FirstOrderEngine`.

    Args:
        network: the network.
        x: one example [1, ...].
        source_column: int [n_s], the column of each source among the targets, −1 if it is not a target.
        batch_size: number of targets per pass.
    """

    def __init__(
        self, network: Network, x: tf.Tensor, source_column: np.ndarray, batch_size: int
    ) -> None:
        self._network, self._source_column, self._batch_size = (
            network,
            source_column,
            batch_size,
        )
        self._link = _traced_link(network, x)
        self._compiled = network.compiled(self._run)

    def __call__(self, *arguments: tf.Tensor) -> FirstOrder:
        return FirstOrder(self._link, *self._compiled(*arguments))

    def _run(
        self,
        x_sources: tf.Tensor,
        y_sources: tf.Tensor,
        x_targets: tf.Tensor,
        weights: list,
    ) -> tuple[tf.Tensor, ...]:
        joined = JoinedExamples.of(x_sources, x_targets, self._source_column)
        weights = [tf.convert_to_tensor(w) for w in weights]
        moved = self._moved(x_sources, y_sources, joined.x, weights)
        outputs, derivative = self._outputs(joined.x, weights)
        return joined.split(outputs, derivative, moved)

    def _outputs(self, x: tf.Tensor, weights: list) -> tuple[tf.Tensor, ...]:
        """Return f and df/du at x, [n, C] each."""

        def of_batch(batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            outputs = self._network.outputs(batch, weights)
            return outputs, link_derivative(self._link, outputs)

        return map_batches(
            of_batch, (self._network.dtype, tf.float64), self._batch_size, x
        )

    def _moved(
        self, x_sources: tf.Tensor, y_sources: tf.Tensor, x: tf.Tensor, weights: list
    ) -> tf.Tensor:
        """Return δ, the first-order change of u, float64 [n_s, n, C]."""
        network = self._network

        def of_source(i: tf.Tensor) -> tf.Tensor:
            gradients, _ = network.loss_gradient(
                x_sources[i, None], y_sources[i, None], 1.0, weights
            )
            return -tf.cast(
                along(network, self._link, weights, gradients, x, self._batch_size),
                tf.float64,
            )

        sources = tf.range(x_sources.shape[0])
        return tf.map_fn(
            of_source, sources, fn_output_signature=tf.float64, parallel_iterations=1
        )


def _traced_link(network: Network, x: tf.Tensor) -> str:
    """Return the name of the link of the network's outputs; "identity" for a model that runs eagerly."""
    if network.model.run_eagerly:
        return "identity"
    links = []

    @tf.function(autograph=False)
    def trace(x: tf.Tensor) -> None:
        links.append(link_of(network.outputs(x)))

    trace.get_concrete_function(x)
    return links[-1]


def along(
    network: Network,
    link: str,
    weights: list,
    direction: list,
    x: tf.Tensor,
    batch_size: int,
) -> tf.Tensor:
    """Return the derivative of u at x along a direction in weight space, [n, C]."""
    tangents = [tf.convert_to_tensor(d) for d in direction]

    def u_at(batch: tf.Tensor) -> tf.Tensor:
        return LINKS[link].of_outputs(network.outputs(batch, weights))

    def of_batch(batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        try:
            with tf.autodiff.ForwardAccumulator(weights, tangents) as forward:
                u = u_at(batch)
            return (forward.jvp(u, tf.UnconnectedGradients.ZERO),)
        except FORWARD_MODE_ERRORS:
            return (_along_by_two_reverses(u_at, batch, weights, tangents),)

    return map_batches(of_batch, (network.dtype,), batch_size, x)[0]


def _along_by_two_reverses(
    u_at: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, weights: list, tangents: list
) -> tf.Tensor:
    """Return J t, the derivative of u_at(x) along the tangents t.

    Two reverse passes are used: J t is the gradient of ⟨Jᵀv, t⟩ with respect to v.
    """
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(weights)
            u = u_at(x)
        v = tf.zeros_like(u)
        outer.watch(v)
        pulled_back = inner.gradient(u, weights, v, zero)
        along = tf.add_n(
            [
                tf.reduce_sum(tf.convert_to_tensor(g) * t)
                for g, t in zip(pulled_back, tangents, strict=True)
            ]
        )
    return outer.gradient(along, v, unconnected_gradients=zero)
