"""Per-example gradients of one weight, in factored form: inner products without forming them, and forming one.

Back-propagation gives the gradient of a weight as a sum of outer products over positions (pixels, tokens): of what the
layer saw and of the signal that came back. n examples, M signals each (the C outputs, or one loss), G groups, T
positions, K inputs and O outputs of the map.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.gradients.batching import in_batches

ENTRIES = 2**26  # Of the largest intermediate tensor: 256 MB in float32.


class Outer(NamedTuple):
    """∇[g, k, o] = Σ_t seen[g, t, k] · signals[g, t, o].

    inputs [n, G, T, K]: what is seen; or, with windows [T, J], pixels [n, G, P, K/J]: position t sees those J that
    windows[t] names, where P names zeros. signals [n, M, G, T, O]. dims: the sizes of G, K and O as axes of the
    variable, each a tuple; order: the permutation of the axes (*G, *K, *O) that gives the variable's own.
    """

    inputs: tf.Tensor
    signals: tf.Tensor
    dims: tuple
    order: tuple
    windows: np.ndarray | None = None

    @property
    def seen(self):
        """What the map is applied to at each position, [n, G, T, K]."""
        return self.inputs if self.windows is None else under_windows(self.inputs, self.windows)

    def parts(self, targets):
        """(sources, targets) that one product takes at a time, so that no intermediate exceeds `ENTRIES`."""
        m, g, s, _ = targets.signals.shape[1:]
        if self._pairwise(targets):
            t, p, q = self.signals.shape[3], self.inputs.shape[2], targets.inputs.shape[2]
            pairs = max(1, ENTRIES // (g * max(t * s * (1 + 2 * m), p * q)))
            at_once = min(pairs, targets.inputs.shape[0])
            return max(1, pairs // at_once), at_once
        return max(1, ENTRIES // self._held(1)), max(1, ENTRIES // targets._held(m))

    def inner(self, targets):
        """⟨∇ of each source's first signal, ∇ of each target's M signals⟩: [n_s, n_t, M]."""
        return self._by_gram(targets) if self._pairwise(targets) else self._by_kernel(targets)

    @property
    def _size(self):
        return math.prod(math.prod(side) for side in self.dims)

    def _held(self, m):
        """Entries of what forming M gradients of an example holds: these, or what it sees at all positions."""
        return max(m * self._size, self.signals.shape[3] * math.prod(self.dims[0]) * math.prod(self.dims[1]))

    def _input_costs(self, targets):
        """Multiply-adds that one pair's products of inputs cost in a group: of all that is seen, and by pixels."""
        t, s, k = self.signals.shape[3], targets.signals.shape[3], math.prod(self.dims[1])
        if self.windows is None:
            return t * s * k, math.inf
        p, q = self.inputs.shape[2], targets.inputs.shape[2]
        return t * s * k, p * q * (self.inputs.shape[3] + t * s)

    def _gram_cost(self, targets):
        """Multiply-adds of one pair by products of positions, which pay an elementwise pass for each signal as well."""
        m, g, s, o = targets.signals.shape[1:]
        return g * (min(self._input_costs(targets)) + m * self.signals.shape[3] * s * (o + 4))

    def _pairwise(self, targets):
        """Whether products of positions cost fewer multiply-adds than forming the gradients."""
        n_s, n_t, m = self.signals.shape[0], *targets.signals.shape[:2]
        t, s = self.signals.shape[3], targets.signals.shape[3]
        return n_s * n_t * self._gram_cost(targets) <= (n_s * t + n_t * m * s + n_s * n_t * m) * self._size

    def _by_gram(self, targets):
        """Σ_{t,s} ⟨a_it, a_js⟩ ⟨b_it, b_js⟩: products of inputs times products of signals."""
        a = self._input_products(targets, "igtk,jgsk->ijgts")
        b = tf.einsum("igto,jmgso->ijmgts", self.signals[:, 0], targets.signals)
        return tf.reduce_sum(a[:, :, None] * b, axis=[3, 4, 5])

    def _input_products(self, targets, equation):
        """Products of what each two positions see, [..., G, T, S]."""
        seen, by_pixels = self._input_costs(targets)
        if seen <= by_pixels:
            return tf.einsum(equation, self.seen, targets.seen)
        products = tf.einsum(equation, self.inputs, targets.inputs)
        pairs = _pairs_under(self, targets)
        summed = tf.reshape(products, [-1, pairs.shape[0]]) @ pairs
        return tf.reshape(summed, [*products.shape[:-2], self.signals.shape[3], targets.signals.shape[3]])

    def _by_kernel(self, targets):
        """Both gradients formed."""
        n_t, m = targets.signals.shape[:2]
        kernels = targets.formed()
        rows = kernels[0] if self.signals is targets.signals else self.only(0).formed()[0]
        # A batch of one: TensorFlow's batched product is the faster for long rows.
        product = tf.matmul(rows[None], tf.reshape(kernels, [1, m * n_t, -1]), transpose_b=True)
        return tf.transpose(tf.reshape(product, [-1, m, n_t]), [0, 2, 1])

    def formed(self):
        """∇ as rows, [M, n, G·K·O]."""
        kernels = tf.matmul(self.seen[None], tf.transpose(self.signals, [1, 0, 2, 3, 4]), transpose_a=True)
        return tf.reshape(kernels, [*kernels.shape[:2], -1])

    def along(self, direction):
        """⟨∇ of each signal, a tensor of the variable's shape⟩, [n, M]."""
        dims = [d for side in self.dims for d in side]
        inverse = [self.order.index(i) for i in range(len(dims))]
        g, k, o = (math.prod(side) for side in self.dims)
        kernel = tf.reshape(direction, [dims[i] for i in self.order])
        kernel = tf.reshape(tf.transpose(kernel, inverse), [g, k, o])
        return tf.reduce_sum((self.seen @ kernel)[:, None] * self.signals, axis=[2, 3, 4])

    def gradient(self, i):
        """∇ of example i's first signal, in the variable's shape."""
        kernel = tf.matmul(self.example(i).seen[0], self.signals[i, 0], transpose_a=True)
        return tf.transpose(tf.reshape(kernel, [d for side in self.dims for d in side]), self.order)

    @property
    def is_rank_one(self):
        """Whether each gradient is one outer product, so that applying it to inputs is cheaper than forming it."""
        return self.signals.shape[2:4] == [1, 1]

    def example(self, i):
        """Example i alone."""
        return self._replace(inputs=self.inputs[i, None], signals=self.signals[i, None])

    def applied_to(self, other):
        """What a map changes by at the inputs of another `Outer`, if its weight changes by this one of one example."""
        k, o = math.prod(self.dims[1]), self.signals.shape[-1]
        along = tf.matmul(tf.reshape(other.seen, [-1, k]), tf.reshape(self.seen, [1, k]), transpose_b=True)
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
    """⟨∇ of each source's first signal, ∇ of each target's M signals⟩, [n_s, n_t, M], in parts if it is large."""
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


def under_windows(pixels, windows):
    """What each window lies over, [n, G, T, J·k], of pixels [n, G, P, k]; windows [T, J] names them, P names zeros."""
    n, g, p, _ = pixels.shape
    if (windows == p).any():
        pixels = tf.pad(pixels, [[0, 0], [0, 0], [0, 1], [0, 0]])
    return tf.reshape(tf.gather(pixels, windows, axis=2), [n, g, len(windows), -1])


def _pairs_under(sources, targets):
    """[P·Q, T·S]: how often one entry of the kernel lies over pixels p and q when it is at positions t and s."""
    sides = [(f.windows, f.inputs.shape[2]) for f in (sources, targets)]
    over = [tf.one_hot(windows, size, dtype=sources.inputs.dtype) for windows, size in sides]
    (t, _, p), (s, _, q) = (side.shape for side in over)
    return tf.reshape(tf.einsum("tjp,sjq->pqts", *over), [p * q, t * s])
