"""The first-order engine: how fast each prediction moves as η → 0, from one forward and a few backward passes.

    δ_ij = −J(x_j) ∇ℓ(w, x_i)

J the Jacobian of the outputs by the trainable weights. Both factors are sums over the layers of products of what a
layer saw and of the signal that came back to it, for all examples of a batch at once (`srel_tf.gradients.capture`).
δ is contracted layer by layer (`srel_tf.gradients.factored`), so that neither J nor a gradient of all weights is held.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.gradients.batching import in_batches
from srel_tf.gradients.factored import inner


class FirstOrder(NamedTuple):
    """First-order changes per unit of η; n_s sources, n_t targets, C outputs.

    head: what was differentiated, a name of `loss_signals.HEADS`; the changes are those of u.
    before [n_t, C], own_before [n_s, C]: outputs f at targets and sources.
    moved [n_s, n_t, C], own_moved [n_s, C]: δ of u.
    slope [n_t, C], own_slope [n_s, C]: df/du.
    """

    head: str
    before: tf.Tensor
    moved: tf.Tensor
    own_before: tf.Tensor
    own_moved: tf.Tensor
    slope: tf.Tensor | float = 1.0
    own_slope: tf.Tensor | float = 1.0


class Limit:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, weights) -> FirstOrder`.

    weights: the network's, or others of the same shapes. passes: the network's `LossPasses`.
    own: int array [n_s], the column of each source among the targets, −1 where it is not one of them.
    differences: whether only differences of outputs count, and those to the last one are all that is looked at.
    batch_size: examples whose layer inputs and signals are held at a time.
    """

    def __init__(self, passes, own, batch_size, differences):
        self._passes, self._network = passes, passes.network
        self._own, self._batch_size, self._differences = own, batch_size, differences
        self._compiled = tf.function(self._run, jit_compile=False, autograph=False)

    def __call__(self, x_sources, y_sources, x_targets, weights):
        head = "log_odds" if self._passes.head == "log_odds" else "outputs"  # `read` gives logits for "log".
        return FirstOrder(head, *self._compiled(x_sources, y_sources, x_targets, weights))

    def _run(self, x_sources, y_sources, x_targets, weights):
        # A source that is no target is read as if it were one.
        n_t, outside = x_targets.shape[0], self._own < 0
        x = tf.concat([x_targets, tf.gather(x_sources, np.flatnonzero(outside))], axis=0)
        column = np.where(outside, n_t + np.cumsum(outside) - 1, self._own)
        one_batch = x.shape[0] <= self._batch_size and np.array_equal(column, np.arange(x.shape[0]))
        of_all = self._square(x, y_sources, weights) if one_batch else self._pairs(x_sources, y_sources, x, weights)
        outputs, slope, moved = of_all
        own_moved = tf.gather(moved, column, axis=1, batch_dims=1)
        outputs, own_outputs, slope, own_slope = (
            tf.gather(t, i) for t in (outputs, slope) for i in (np.arange(n_t), column)
        )
        return outputs, moved[:, :n_t], own_outputs, own_moved, slope, own_slope

    def _square(self, x, y, weights):
        """Sources that are the targets, in one batch: the loss's signal of each is the first of its outputs' own."""
        seen = self._passes.forward(x, weights)
        r, size = self._loss_signal(seen, y)
        directions = turned_to(r, self._basis(seen))
        targets = self._targets(seen, directions)
        size *= tf.einsum("nc,nc->n", r, directions[:, 0])  # Its sign: the first direction is ±r.
        return *self._outputs(seen.outputs), self._contract(targets, size, targets, directions, weights)

    def _pairs(self, x_sources, y_sources, x, weights):
        """Batches of sources against batches of targets."""

        def rows(x_batch, y_batch):
            seen = self._passes.forward(x_batch, weights)
            r, size = self._loss_signal(seen, y_batch)
            sources = self._passes.factors(seen, self._passes.backward(seen, [r]))

            def columns(x_batch):
                seen = self._passes.forward(x_batch, weights)
                directions = tf.tile(self._basis(seen)[None], [x_batch.shape[0], 1, 1])
                targets = self._targets(seen, directions)
                moved = self._contract(sources, size, targets, directions, weights)
                return (tf.transpose(moved, [1, 0, 2]),)

            moved = in_batches(columns, (tf.float64,), self._batch_size, x)[0]
            return (tf.transpose(moved, [1, 0, 2]),)

        types = (self._network.dtype, tf.float64)
        outputs = in_batches(lambda b: self._outputs(self._network.outputs(b, weights)), types, self._batch_size, x)
        return *outputs, *in_batches(rows, (tf.float64,), self._batch_size, x_sources, y_sources)

    def _outputs(self, outputs):
        return self._passes.read(outputs), self._passes.slope(outputs)

    def _basis(self, seen):
        """Orthonormal directions of u, rows [M, C]: a basis of all, or of those that sum to zero, as differences do."""
        c = seen.u.shape[-1]
        rows = np.linalg.qr(np.eye(c)[:, :-1] - 1 / c)[0].T if self._differences else np.eye(c)
        return tf.constant(rows)

    def _targets(self, seen, directions):
        """Factored gradients of the functions ⟨direction, u⟩ of each example; directions [n, M, C]."""
        return self._passes.factors(seen, self._passes.backward(seen, tf.unstack(directions, axis=1)))

    def _loss_signal(self, seen, y):
        """∂ℓ/∂u of each example as a unit vector [n, C]; its length [n], which float32 may not hold."""
        r = self._passes.loss_signal(seen, y)
        size = tf.norm(r, axis=-1)
        return tf.math.divide_no_nan(r, size[:, None]), size

    def _contract(self, sources, size, targets, directions, weights):
        """δ, float64 [n_s, n_t, C]; the first signal of a source counts, times its size."""
        products = [inner(s, t) for a, b in zip(sources, targets, strict=True) for s in a for t in b]
        moved = -tf.cast(tf.add_n(products), tf.float64) * size[:, None, None]
        penalty = self._passes.penalty(weights)
        if penalty is not None:
            along = [f.along(r) for one, r in zip(targets, penalty, strict=True) for f in one]
            moved -= tf.cast(tf.add_n(along), tf.float64)
        if self._differences:
            directions -= directions[:, :, -1:]
        return tf.einsum("ijm,jmc->ijc", moved, directions)


def turned_to(r, basis):
    """Orthonormal rows [M, C] turned so that the first is ±r, for each of n unit vectors r in their span: [n, M, C].

    By a reflection. Where r [n, C] is zero or not finite, any turn will do.
    """
    r = r @ tf.transpose(basis)
    r = tf.where(tf.reduce_all(tf.math.is_finite(r), axis=-1, keepdims=True), r, tf.zeros_like(r))
    first = tf.one_hot(0, r.shape[-1], dtype=r.dtype)
    v = r + tf.where(r[:, :1] < 0, -first, first)
    v /= tf.norm(v, axis=-1, keepdims=True)
    return basis - 2 * v[:, :, None] * (v @ basis)[:, None]
