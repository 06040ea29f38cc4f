"""The first-order engine: how fast each prediction moves as η → 0, from one forward and a few backward passes.

    δ_ij = −J(x_j) ∇ℓ(w, x_i)

J the Jacobian of the outputs by the trainable weights. Both factors are sums over the layers of products of what a
layer saw and of the signal that came back to it, for all examples of a batch at once (`srel_tf.capture`); δ is
contracted layer by layer (`srel_tf.factors`), so that neither J nor a gradient of all weights is ever held.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.batches import in_batches
from srel_tf.factors import inner


class FirstOrder(NamedTuple):
    """First-order changes per unit of η; n_s sources, n_t targets, C outputs.

    head: what was differentiated, a name of `loss_signals.HEADS`; the changes are those of u.
    before [n_t, C], own_before [n_s, C]: outputs f at targets and sources.
    moved [n_s, n_t, C], own_moved [n_s, C]: δ of u.
    error, own_error: bounds of the rounding error of δ, of the same shapes.
    """

    head: str
    before: tf.Tensor
    moved: tf.Tensor
    own_before: tf.Tensor
    own_moved: tf.Tensor
    error: tf.Tensor
    own_error: tf.Tensor


class Limit:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets) -> FirstOrder`.

    passes: the network's `LossPasses`.
    own: int array [n_s], the column of each source among the targets, −1 where it is not one of them.
    differences: whether only differences of outputs count, and those to the last one are all that is looked at.
    batch_size: examples whose layer inputs and signals are held at a time.
    """

    def __init__(self, passes, own, batch_size, differences):
        self._passes, self._network = passes, passes.network
        self._own, self._batch_size, self._differences = own, batch_size, differences
        self._compiled = tf.function(self._run, jit_compile=False, autograph=False)

    def __call__(self, x_sources, y_sources, x_targets):
        head = "log_odds" if self._passes.head == "log_odds" else "outputs"  # `read` gives logits for "log".
        return FirstOrder(head, *self._compiled(x_sources, y_sources, x_targets))

    def _run(self, x_sources, y_sources, x_targets):
        # A source that is no target is read as if it were one.
        n_t, outside = x_targets.shape[0], self._own < 0
        x = tf.concat([x_targets, tf.gather(x_sources, np.flatnonzero(outside))], axis=0)
        column = np.where(outside, n_t + np.cumsum(outside) - 1, self._own)
        one_batch = x.shape[0] <= self._batch_size and np.array_equal(column, np.arange(x.shape[0]))
        outputs, moved, error = self._square(x, y_sources) if one_batch else self._pairs(x_sources, y_sources, x)
        own_moved, own_error = (tf.gather(t, column, axis=1, batch_dims=1) for t in (moved, error))
        return outputs[:n_t], moved[:, :n_t], tf.gather(outputs, column), own_moved, error[:, :n_t], own_error

    def _square(self, x, y):
        """Sources that are the targets, in one batch: their loss's signals are sums of the outputs' own."""
        seen = self._passes.forward(x)
        targets, signals = self._targets(seen)
        r, size, signal_error = self._loss_signal(seen, y)
        r = r[:, : signals[0].shape[1]]  # The others' differences to the last output tell its signal too.
        combined = [tf.reduce_sum(_along_second(r, s) * s, axis=1, keepdims=True) for s in signals]
        sources = self._side(seen, combined, targets.error + signal_error)
        return self._passes.read(seen.outputs), *self._contract(sources, size, targets)

    def _pairs(self, x_sources, y_sources, x):
        """Batches of sources against batches of targets."""
        dtypes = (tf.float64, tf.float64)

        def rows(x_batch, y_batch):
            seen = self._passes.forward(x_batch)
            r, size, signal_error = self._loss_signal(seen, y_batch)
            signals, error = self._passes.backward(seen, [r])
            sources = self._side(seen, signals, error + signal_error)

            def columns(targets):
                targets, _ = self._targets(self._passes.forward(targets))
                return tuple(tf.transpose(t, [1, 0, 2]) for t in self._contract(sources, size, targets))

            return tuple(tf.transpose(t, [1, 0, 2]) for t in in_batches(columns, dtypes, self._batch_size, x))

        outputs = in_batches(
            lambda b: (self._passes.read(self._network.outputs(b)),), (self._network.dtype,), self._batch_size, x
        )[0]
        return outputs, *in_batches(rows, dtypes, self._batch_size, x_sources, y_sources)

    def _targets(self, seen):
        n, c = seen.u.shape
        directions = np.eye(c)[:-1] - np.eye(c)[-1] if self._differences else np.eye(c)
        signals, error = self._passes.backward(seen, [tf.constant(np.tile(d, [n, 1])) for d in directions])
        return self._side(seen, signals, error), signals

    def _loss_signal(self, seen, y):
        """∂ℓ/∂u of each example as a unit vector [n, C]; its length [n], which float32 may not hold; its error [n]."""
        r = self._passes.loss_signal(seen, y)
        size = tf.norm(r, axis=-1)
        return tf.math.divide_no_nan(r, size[:, None]), size, self._passes.loss_signal_error(seen.u, y)

    def _side(self, seen, signals, error):
        factors = self._passes.capture.factors(seen.calls, signals)
        # A layer called k times: ‖Σ ∇‖² ≤ k Σ ‖∇‖².
        norms = tf.add_n([len(one) * f.squared_norm() for one in factors for f in one])
        return _Side(factors, tf.sqrt(tf.cast(norms, tf.float64)), error)

    def _contract(self, sources, size, targets):
        """δ and the bound of its error, float64 [n_s, n_t, C]."""
        products = [inner(s, t) for a, b in zip(sources.factors, targets.factors, strict=True) for s in a for t in b]
        moved = -tf.cast(tf.add_n(products), tf.float64) * size[:, None, None]
        share = sources.error[:, None] + targets.error
        error = (share * sources.norms * size[:, None])[:, :, None] * targets.norms
        penalty = self._passes.penalty()
        if penalty is not None:
            along = [f.along(r) for one, r in zip(targets.factors, penalty, strict=True) for f in one]
            moved -= tf.cast(tf.add_n(along), tf.float64)
            length = tf.cast(tf.linalg.global_norm(penalty), tf.float64)
            error += targets.error[:, None] * length * targets.norms
        return [tf.pad(t, [[0, 0], [0, 0], [0, int(self._differences)]]) for t in (moved, error)]


class _Side(NamedTuple):
    """Sources or targets: factored gradients of M functions, their norms [n, M] and relative errors [n]."""

    factors: list
    norms: tf.Tensor
    error: tf.Tensor


def _along_second(r, signals):
    """r [n, M] shaped to multiply signals [n, M, …]."""
    return tf.cast(tf.reshape(r, [*r.shape, *([1] * (len(signals.shape) - 2))]), signals.dtype)
