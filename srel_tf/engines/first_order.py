"""The first-order engine: the derivative of each prediction along each source's step, for all pairs at once.

    δ_ij = −J(x_j) ∇ℓ(w, x_i)

J is the Jacobian of the outputs with respect to the trainable weights. For each layer, J and ∇ℓ are products of the
layer's inputs and the gradients at its outputs, which are computed for all examples of a batch at once
(`srel_tf.gradients.layer_io`). δ is contracted layer by layer (`srel_tf.gradients.factored`), so that neither J nor the
gradient of all weights is ever held in memory.
"""

import numpy as np
import tensorflow as tf

from srel_tf.engines.joined import FirstOrder, JoinedExamples
from srel_tf.gradients.backprop import ForwardPass, LossBackprop
from srel_tf.gradients.batching import map_batches
from srel_tf.gradients.factored import FactoredGradient, inner


class FirstOrderEngine:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, weights) -> FirstOrder`.

    `weights` are the network's trainable weights, or other tensors of the same shapes.

    Args:
        backprop: the forward and backward passes of the network.
        source_column: int [n_s], the column of each source among the targets, −1 if it is not a target.
        batch_size: number of examples whose layer inputs and output gradients are held at a time.
        differences: whether only differences between outputs matter. If so, the change of the last output is subtracted
            from all changes.
    """

    def __init__(
        self,
        backprop: LossBackprop,
        source_column: np.ndarray,
        batch_size: int,
        differences: bool,
    ) -> None:
        self._backprop, self._network = backprop, backprop.network
        self._source_column, self._batch_size = source_column, batch_size
        self._differences = differences
        self._compiled = self._network.compiled(self._run)

    def __call__(
        self,
        x_sources: tf.Tensor,
        y_sources: tf.Tensor,
        x_targets: tf.Tensor,
        weights: list,
    ) -> FirstOrder:
        # If the model ends in a softmax, `backprop.read` returns its logits, so the link is the identity.
        link = "sigmoid" if self._backprop.link == "sigmoid" else "identity"
        return FirstOrder(
            link, *self._compiled(x_sources, y_sources, x_targets, weights)
        )

    def _run(
        self,
        x_sources: tf.Tensor,
        y_sources: tf.Tensor,
        x_targets: tf.Tensor,
        weights: list,
    ) -> tuple[tf.Tensor, ...]:
        joined = JoinedExamples.of(x_sources, x_targets, self._source_column)
        if joined.are_the_sources and joined.x.shape[0] <= self._batch_size:
            return joined.split(*self._one_batch(joined.x, y_sources, weights))
        return joined.split(
            *self._pairs_of_batches(x_sources, y_sources, joined.x, weights)
        )

    def _one_batch(
        self, x: tf.Tensor, y: tf.Tensor, weights: list
    ) -> tuple[tf.Tensor, ...]:
        """Return f, df/du and δ for sources that are also the targets, in the same order.

        The first direction at each example is parallel to ∂ℓ/∂u. The gradient along this direction is therefore also
        the gradient of the loss, up to a factor. This saves one backward pass.
        """
        forward_pass = self._backprop.forward(x, weights)
        unit, length = self._unit_output_gradient(forward_pass, y)
        directions = directions_from(unit, self._basis(forward_pass))
        gradients = self._gradients_along(forward_pass, directions)
        sign = tf.einsum(
            "nc,nc->n", unit, directions[:, 0]
        )  # The first direction is ± the unit vector.
        moved = self._contract(gradients, sign * length, gradients, directions, weights)
        return *self._read(forward_pass.outputs), moved

    def _pairs_of_batches(
        self, x_sources: tf.Tensor, y_sources: tf.Tensor, x: tf.Tensor, weights: list
    ) -> tuple[tf.Tensor, ...]:
        """Return f, df/du and δ from batches of sources against batches of targets."""

        def rows(x_batch: tf.Tensor, y_batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            forward_pass = self._backprop.forward(x_batch, weights)
            unit, length = self._unit_output_gradient(forward_pass, y_batch)
            sources = self._backprop.gradients(forward_pass, [unit])

            def columns(x_batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
                forward_pass = self._backprop.forward(x_batch, weights)
                directions = tf.tile(
                    self._basis(forward_pass)[None], [x_batch.shape[0], 1, 1]
                )
                targets = self._gradients_along(forward_pass, directions)
                moved = self._contract(sources, length, targets, directions, weights)
                return (tf.transpose(moved, [1, 0, 2]),)

            moved = map_batches(columns, (tf.float64,), self._batch_size, x)[0]
            return (tf.transpose(moved, [1, 0, 2]),)

        def read(x_batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return self._read(self._network.outputs(x_batch, weights))

        outputs = map_batches(
            read, (self._network.dtype, tf.float64), self._batch_size, x
        )
        moved = map_batches(rows, (tf.float64,), self._batch_size, x_sources, y_sources)
        return *outputs, *moved

    def _read(self, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self._backprop.read(outputs), self._backprop.link_derivative(outputs)

    def _basis(self, forward_pass: ForwardPass) -> tf.Tensor:
        """Return orthonormal directions of u as rows [M, C].

        The rows are a basis of all directions. If only differences matter, they are a basis of the directions whose
        entries sum to zero.
        """
        n_outputs = forward_pass.u.shape[-1]
        identity = np.eye(n_outputs)
        if not self._differences:
            return tf.constant(identity)
        sums_to_zero, _ = np.linalg.qr(identity[:, :-1] - 1 / n_outputs)
        return tf.constant(sums_to_zero.T)

    def _gradients_along(
        self, forward_pass: ForwardPass, directions: tf.Tensor
    ) -> list[list[FactoredGradient]]:
        """Return the per-example gradients of ⟨direction, u⟩ for each of the directions [n, M, C]."""
        return self._backprop.gradients(forward_pass, tf.unstack(directions, axis=1))

    def _unit_output_gradient(
        self, forward_pass: ForwardPass, y: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Split ∂ℓ/∂u of each example into a unit vector [n, C] and a length [n].

        The length is in float64, because it may be too small for float32.
        """
        gradient = self._backprop.output_gradient(forward_pass, y)
        length = tf.norm(gradient, axis=-1)
        return tf.math.divide_no_nan(gradient, length[:, None]), length

    def _contract(
        self,
        sources: list[list[FactoredGradient]],
        length: tf.Tensor,
        targets: list[list[FactoredGradient]],
        directions: tf.Tensor,
        weights: list,
    ) -> tf.Tensor:
        """Return δ, float64 [n_s, n_t, C].

        Args:
            sources: gradients of each weight at the sources. Only the gradients of the first function are used.
            length: factor by which the gradients of each source are multiplied, [n_s].
            targets: gradients of each weight at the targets, along each direction.
            directions: directions of u at each target, [n_t, M, C].
            weights: weights at which the gradient of the regularisers' penalty is computed.
        """
        products = [
            inner(source, target)
            for of_sources, of_targets in zip(sources, targets, strict=True)
            for source in of_sources
            for target in of_targets
        ]
        moved_along = -tf.cast(tf.add_n(products), tf.float64) * length[:, None, None]
        penalty = self._backprop.penalty_gradient(weights)
        if penalty is not None:
            by_penalty = [
                target.along(gradient)
                for of_targets, gradient in zip(targets, penalty, strict=True)
                for target in of_targets
            ]
            moved_along -= tf.cast(tf.add_n(by_penalty), tf.float64)
        if self._differences:
            directions = directions - directions[:, :, -1:]
        return tf.einsum("ijm,jmc->ijc", moved_along, directions)


def directions_from(unit: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
    """Return n orthonormal bases [n, M, C] of the span of `basis` [M, C]; the first row of each is ± a unit vector.

    The unit vectors [n, C] lie in this span. Each basis is a Householder reflection of `basis`. For a vector that is
    zero or not finite, any of these reflections may be returned.
    """
    coordinates = unit @ tf.transpose(basis)
    finite = tf.reduce_all(tf.math.is_finite(coordinates), axis=-1, keepdims=True)
    coordinates = tf.where(finite, coordinates, tf.zeros_like(coordinates))
    first = tf.one_hot(0, coordinates.shape[-1], dtype=coordinates.dtype)
    normal = coordinates + tf.where(coordinates[:, :1] < 0, -first, first)
    normal /= tf.norm(normal, axis=-1, keepdims=True)
    return basis - 2 * normal[:, :, None] * (normal @ basis)[:, None]
