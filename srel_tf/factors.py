"""Per-example gradients of one weight, in factored form: inner products without forming them, and forming one.

Back-propagation gives the gradient of a weight as a sum of outer products over positions (pixels, tokens): of what the
layer saw and of the signal that came back. n examples, M signals each (the C outputs, or one loss), G groups, T
positions, K inputs and O outputs of the map.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from srel_tf.batches import in_batches

ENTRIES = 2**26  # Of the largest intermediate tensor: 256 MB in float32.


class Outer(NamedTuple):
    """∇[g, k, o] = Σ_t inputs[g, t, k] · signals[g, t, o].

    inputs [n, G, T, K]; signals [n, M, G, T, O]; dims: the sizes of G, K and O as axes of the variable, each a tuple;
    order: the permutation of the axes (*G, *K, *O) that gives the variable's own.
    """

    inputs: tf.Tensor
    signals: tf.Tensor
    dims: tuple
    order: tuple

    def parts(self, targets):
        """(sources, targets) that one product takes at a time, so that no intermediate exceeds `ENTRIES`."""
        m, _, s, _ = targets.signals.shape[1:]
        _, g, t, _ = self.inputs.shape
        if self._pairwise(targets):
            pairs = max(1, ENTRIES // (g * t * s * (1 + 2 * m)))
            at_once = min(pairs, targets.inputs.shape[0])
            return max(1, pairs // at_once), at_once
        size = math.prod(math.prod(side) for side in self.dims)
        return max(1, ENTRIES // size), max(1, ENTRIES // (m * size))

    def inner(self, targets):
        """⟨∇ of each source's one signal, ∇ of each target's M signals⟩: [n_s, n_t, M]."""
        return self._by_gram(targets) if self._pairwise(targets) else self._by_kernel(targets)

    def _pairwise(self, targets):
        """Whether products of positions cost fewer multiply-adds than forming the gradients; they pay a pass more."""
        n_s, g, t, k = self.inputs.shape
        n_t, m, _, s, o = targets.signals.shape
        pairwise = n_s * n_t * t * s * (k + m * o + 4 * m) * g
        formed = (n_s * t + n_t * m * s + n_s * n_t * m) * g * k * o
        return pairwise <= formed

    def _by_gram(self, targets):
        """Σ_{t,s} ⟨a_it, a_js⟩ ⟨b_it, b_js⟩: products of inputs times products of signals."""
        n_s, g, t, _ = self.inputs.shape
        n_t, m, _, s, o = targets.signals.shape
        a = tf.matmul(_rows(self.inputs), _rows(targets.inputs), transpose_b=True)  # [G, n_s·T, n_t·S]
        back = tf.reshape(tf.transpose(targets.signals, [1, 2, 0, 3, 4]), [m, g, n_t * s, o])
        b = tf.matmul(_rows(self.signals[:, 0])[None], back, transpose_b=True)  # [M, G, n_s·T, n_t·S]
        summed = tf.reduce_sum(tf.reshape(a * b, [m, g, n_s * t, n_t, s]), axis=-1)
        summed = tf.reduce_sum(tf.reshape(summed, [m, g, n_s, t, n_t]), axis=[1, 3])
        return tf.transpose(summed, [1, 2, 0])

    def _by_kernel(self, targets):
        """Both gradients formed."""
        n_t, m = targets.signals.shape[:2]
        # A batch of one: TensorFlow's batched product is the faster for long rows.
        product = tf.matmul(self.formed()[None], targets.formed()[None], transpose_b=True)
        return tf.reshape(product, [-1, n_t, m])

    def formed(self):
        """∇ as rows [n·M, G·K·O]."""
        kernels = tf.matmul(self.inputs[:, None], self.signals, transpose_a=True)
        return tf.reshape(kernels, [self.inputs.shape[0] * self.signals.shape[1], -1])

    def squared_norm(self):
        """‖∇‖² of each signal, [n, M]."""
        (_, _, t, k), o = self.inputs.shape, self.signals.shape[-1]
        if t * (k + o) <= k * o:
            a = self.inputs @ tf.linalg.matrix_transpose(self.inputs)
            b = self.signals @ tf.linalg.matrix_transpose(self.signals)
            return tf.reduce_sum(a[:, None] * b, axis=[2, 3, 4])
        m, size = self.signals.shape[1], math.prod(math.prod(side) for side in self.dims)

        def norms(part):
            return tf.reduce_sum(tf.reshape(part.formed() ** 2, [-1, m, size]), axis=-1)

        return in_parts(self, max(1, ENTRIES // (m * size)), norms)

    def along(self, direction):
        """⟨∇ of each signal, a tensor of the variable's shape⟩, [n, M]."""
        dims = [d for side in self.dims for d in side]
        inverse = [self.order.index(i) for i in range(len(dims))]
        g, k, o = (math.prod(side) for side in self.dims)
        kernel = tf.reshape(direction, [dims[i] for i in self.order])
        kernel = tf.reshape(tf.transpose(kernel, inverse), [g, k, o])
        return tf.reduce_sum((self.inputs @ kernel)[:, None] * self.signals, axis=[2, 3, 4])

    def gradient(self, i):
        """∇ of example i's first signal, in the variable's shape."""
        kernel = tf.matmul(self.inputs[i], self.signals[i, 0], transpose_a=True)
        return tf.transpose(tf.reshape(kernel, [d for side in self.dims for d in side]), self.order)

    @property
    def is_rank_one(self):
        """Whether each gradient is one outer product, so that applying it to inputs is cheaper than forming it."""
        return self.inputs.shape[1:3] == [1, 1]

    def example(self, i, factor):
        """Example i alone, multiplied by a factor."""
        return self._replace(inputs=self.inputs[i, None], signals=self.signals[i, None] * factor)

    def applied_to(self, other):
        """What a map changes by at the inputs of another `Outer`, if its weight changes by this one of one example."""
        (n, _, t, k), o = other.inputs.shape, self.signals.shape[-1]
        along = tf.matmul(tf.reshape(other.inputs, [n * t, k]), tf.reshape(self.inputs, [1, k]), transpose_b=True)
        return along * tf.reshape(self.signals, [1, o])

    def only(self, m):
        """The gradients of the m-th function alone."""
        return self._replace(signals=self.signals[:, m : m + 1])


class Lookup(NamedTuple):
    """∇[v, o] = Σ_t [ids_t = v] · signals[t, o]: rows of a table. ids [n, T], signals [n, M, T, O], shape [V, O]."""

    ids: tf.Tensor
    signals: tf.Tensor
    shape: tuple

    def parts(self, targets):
        pairs = max(1, ENTRIES // (self.ids.shape[1] * math.prod(targets.signals.shape[1:3])))
        at_once = min(pairs, targets.ids.shape[0])
        return max(1, pairs // at_once), at_once

    def inner(self, targets):
        same = tf.cast(self.ids[:, None, :, None] == targets.ids[None, :, None, :], self.signals.dtype)
        return tf.einsum("ijts,ito,jmso->ijm", same, self.signals[:, 0], targets.signals)

    def squared_norm(self):
        same = tf.cast(self.ids[:, :, None] == self.ids[:, None, :], self.signals.dtype)
        return tf.einsum("nts,nmto,nmso->nm", same, self.signals, self.signals)

    def along(self, direction):
        return tf.einsum("nto,nmto->nm", tf.gather(direction, self.ids), self.signals)

    def gradient(self, i):
        return tf.scatter_nd(self.ids[i][:, None], self.signals[i, 0], self.shape)

    def only(self, m):
        return self._replace(signals=self.signals[:, m : m + 1])


class Formed(NamedTuple):
    """∇ itself: gradients [n, M, *shape of the variable]."""

    gradients: tf.Tensor

    def parts(self, targets):
        return self.gradients.shape[0], targets.gradients.shape[0]  # Nothing is formed.

    def inner(self, targets):
        n_s, (n_t, m) = self.gradients.shape[0], targets.gradients.shape[:2]
        rows = tf.reshape(self.gradients[:, 0], [n_s, -1])
        columns = tf.reshape(targets.gradients, [n_t * m, -1])
        return tf.reshape(tf.matmul(rows, columns, transpose_b=True), [n_s, n_t, m])

    def squared_norm(self):
        return tf.reduce_sum(self._flat() ** 2, axis=-1)

    def along(self, direction):
        return tf.linalg.matvec(self._flat(), tf.reshape(direction, [-1]))

    def gradient(self, i):
        return self.gradients[i, 0]

    def only(self, m):
        return self._replace(gradients=self.gradients[:, m : m + 1])

    def _flat(self):
        n, m = self.gradients.shape[:2]
        return tf.reshape(self.gradients, [n, m, -1])


def inner(sources, targets):
    """⟨∇ of each source's one signal, ∇ of each target's M signals⟩, [n_s, n_t, M], in parts if it is large."""
    n_sources, n_targets = sources.parts(targets)

    def columns(part):
        return tf.transpose(in_parts(sources, n_sources, lambda rows: rows.inner(part)), [1, 0, 2])

    return tf.transpose(in_parts(targets, n_targets, columns), [1, 0, 2])


def in_parts(factor, at_once, function):
    """function(factor) [n, …], for a part of its examples at a time."""
    fields = [name for name in factor._fields if tf.is_tensor(getattr(factor, name))]

    def of_part(*tensors):
        return (function(factor._replace(**dict(zip(fields, tensors, strict=True)))),)

    tensors = [getattr(factor, name) for name in fields]
    return in_batches(of_part, (tensors[-1].dtype,), at_once, *tensors)[0]


def _rows(t):
    """[n, G, T, K] as [G, n·T, K]."""
    n, g, positions, k = t.shape
    return tf.reshape(tf.transpose(t, [1, 0, 2, 3]), [g, n * positions, k])
