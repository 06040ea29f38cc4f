"""Per-example gradients of one weight in factored form, and their inner products without forming the gradients.

Back-propagation gives the gradient of a weight as a sum over positions (pixels, tokens). Each term is the outer product
of the layer's input and the gradient at its output. Letters in shapes: n examples, M functions of each example (the C
outputs, or one loss), G groups, T positions, K inputs and O outputs of the map.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from srel_tf.gradients.batching import map_batches, row
from srel_tf.gradients.pair_sizes import PairSizes

ENTRIES = 2**26  # Limit on the size of intermediate tensors: 256 MB in float32.


class OuterProductGradient(NamedTuple):
    """Gradients of a weight that maps K inputs to O outputs at T positions: ∇[g, k, o] = Σ_t a[g, t, k] · s[g, t, o].

    Attributes:
        inputs: a [n, G, T, K]; with `windows`, the P pixels [n, G, P, K/J] from which a is formed.
        output_grads: s [n, M, G, T, O], gradients of M functions at the layer's output.
        dims: three tuples, the sizes of the variable's axes that form G, K and O.
        order: the permutation that brings the axes (*G, *K, *O) into the order of the variable's axes.
        windows: int [T, J], the indices of the J pixels in the window at each position; the index P stands for zeros.
            None means that `inputs` is a itself.
    """

    inputs: tf.Tensor
    output_grads: tf.Tensor
    dims: tuple
    order: tuple
    windows: np.ndarray | None = None

    @property
    def patches(self) -> tf.Tensor:
        """Inputs a [n, G, T, K] of the map at each position."""
        return (
            self.inputs
            if self.windows is None
            else under_windows(self.inputs, self.windows)
        )

    def parts(self, targets: "OuterProductGradient") -> tuple[int, int]:
        """Return how many sources and targets to multiply at a time, so that intermediates stay below `ENTRIES`."""
        sizes = self._sizes(targets)
        if sizes.gram > sizes.explicit:
            return max(1, ENTRIES // self._entries(1)), max(
                1, ENTRIES // targets._entries(sizes.functions)
            )
        products = sizes.position_pairs * (1 + 2 * sizes.functions)
        pairs = max(1, ENTRIES // (sizes.groups * max(products, sizes.pixel_pairs)))
        n_targets = min(pairs, sizes.targets)
        return max(1, pairs // n_targets), n_targets

    def inner(self, targets: "OuterProductGradient") -> tf.Tensor:
        """Return the inner products ⟨∇ of each source's first function, ∇ of each target's M functions⟩, [n_s, n_t, M].

        The cheaper of two methods is used.
        """
        sizes = self._sizes(targets)
        return (
            self._by_gram(targets)
            if sizes.gram <= sizes.explicit
            else self._by_kernel(targets)
        )

    def _sizes(self, targets: "OuterProductGradient") -> PairSizes:
        n_t, functions, groups, target_positions, outputs = targets.output_grads.shape
        return PairSizes(
            sources=self.output_grads.shape[0],
            targets=n_t,
            functions=functions,
            groups=groups,
            source_positions=self.output_grads.shape[3],
            target_positions=target_positions,
            inputs=math.prod(self.dims[1]),
            outputs=outputs,
            weights=math.prod(math.prod(side) for side in self.dims),
            source_pixels=self.inputs.shape[2],
            target_pixels=targets.inputs.shape[2],
            channels=self.inputs.shape[3],
            has_windows=self.windows is not None,
        )

    def _entries(self, functions: int) -> int:
        """Return the number of array entries held per example while its gradients are computed.

        This is the number of entries of the gradients or of all patches, whichever number is larger.
        """
        groups, inputs, outputs = (math.prod(side) for side in self.dims)
        positions = self.output_grads.shape[3]
        return groups * inputs * max(functions * outputs, positions)

    def _by_gram(self, targets: "OuterProductGradient") -> tf.Tensor:
        """Return the inner products as Σ_{t,t'} ⟨a_it, a_jt'⟩ ⟨s_it, s_jt'⟩, without forming the gradients."""
        of_inputs = self._input_products(targets)
        of_output_grads = tf.einsum(
            "igto,jmgso->ijmgts", self.output_grads[:, 0], targets.output_grads
        )
        return tf.reduce_sum(of_inputs[:, :, None] * of_output_grads, axis=[3, 4, 5])

    def _input_products(self, targets: "OuterProductGradient") -> tf.Tensor:
        """Return ⟨a_it, a_jt'⟩ for each source i, target j and group, [n_s, n_t, G, T, T']."""
        sizes, equation = self._sizes(targets), "igtk,jgsk->ijgts"
        if sizes.patch_products <= sizes.pixel_products:
            return tf.einsum(equation, self.patches, targets.patches)
        of_pixels = tf.einsum(equation, self.inputs, targets.inputs)
        pairs = _pixel_pairs_of_positions(self, targets)
        of_positions = tf.reshape(of_pixels, [-1, sizes.pixel_pairs]) @ pairs
        return tf.reshape(
            of_positions,
            [*of_pixels.shape[:-2], sizes.source_positions, sizes.target_positions],
        )

    def _by_kernel(self, targets: "OuterProductGradient") -> tf.Tensor:
        """Return the inner products of explicitly formed gradients."""
        n_t, functions = targets.output_grads.shape[:2]
        columns = targets.materialize()
        same = self.output_grads is targets.output_grads
        rows = columns[0] if same else self.only(0).materialize()[0]
        # The product is computed as a batch of one, because TensorFlow is faster at batched products of long rows.
        product = tf.matmul(
            rows[None], tf.reshape(columns, [1, functions * n_t, -1]), transpose_b=True
        )
        return tf.transpose(tf.reshape(product, [-1, functions, n_t]), [0, 2, 1])

    def materialize(self) -> tf.Tensor:
        """Form the gradients as rows, [M, n, G·K·O]."""
        by_function = tf.transpose(self.output_grads, [1, 0, 2, 3, 4])
        kernels = tf.matmul(self.patches[None], by_function, transpose_a=True)
        return tf.reshape(kernels, [*kernels.shape[:2], -1])

    def along(self, direction: tf.Tensor) -> tf.Tensor:
        """Return the inner product of each gradient with `direction`, a tensor of the variable's shape, [n, M]."""
        sizes = [size for side in self.dims for size in side]
        inverse = [self.order.index(axis) for axis in range(len(sizes))]
        ordered = tf.transpose(
            tf.reshape(direction, [sizes[axis] for axis in self.order]), inverse
        )
        kernel = tf.reshape(ordered, [math.prod(side) for side in self.dims])
        outputs = self.patches @ kernel
        return tf.reduce_sum(outputs[:, None] * self.output_grads, axis=[2, 3, 4])

    def gradient(self, i: tf.Tensor | int) -> tf.Tensor:
        """Return the gradient of example i in the variable's shape. There must be one function (M = 1)."""
        one = self.example(i)
        grads = tf.squeeze(one.output_grads, 1)
        kernel = tf.matmul(one.patches, grads, transpose_a=True)
        kernel = tf.reshape(kernel, [size for side in self.dims for size in side])
        in_order = self.order == tuple(range(len(self.order)))
        return kernel if in_order else tf.transpose(kernel, self.order)

    @property
    def is_rank_one(self) -> bool:
        """Return whether each gradient is a single outer product.

        Applying such a gradient to inputs is cheaper than forming it.
        """
        return self.output_grads.shape[2:4] == [1, 1]

    def example(self, i: tf.Tensor | int) -> "OuterProductGradient":
        """Return example i alone."""
        return self._replace(
            inputs=row(self.inputs, i), output_grads=row(self.output_grads, i)
        )

    def applied_to(self, other: "OuterProductGradient") -> tf.Tensor:
        """Return the output [n·T, O] of the map whose weight is this gradient, at the inputs of `other`.

        This gradient must belong to one example, and be of rank one.
        """
        inputs, outputs = math.prod(self.dims[1]), self.output_grads.shape[-1]
        products = tf.matmul(
            tf.reshape(other.patches, [-1, inputs]),
            tf.reshape(self.patches, [1, inputs]),
            transpose_b=True,
        )
        return products * tf.reshape(self.output_grads, [1, outputs])

    def only(self, m: int) -> "OuterProductGradient":
        """Return the gradients of the m-th function alone."""
        return self._replace(output_grads=self.output_grads[:, m : m + 1])


class EmbeddingGradient(NamedTuple):
    """Gradients of a table of V rows that is looked up at T positions: ∇[v, o] = Σ_t [ids_t = v] · s[t, o].

    Attributes:
        ids: int [n, T], the rows that are looked up.
        output_grads: s [n, M, T, O].
        shape: (V, O).
    """

    ids: tf.Tensor
    output_grads: tf.Tensor
    shape: tuple

    def parts(self, targets: "EmbeddingGradient") -> tuple[int, int]:
        """See `OuterProductGradient.parts`."""
        pair = self.ids.shape[1] * math.prod(targets.output_grads.shape[1:3])
        pairs = max(1, ENTRIES // pair)
        n_targets = min(pairs, targets.ids.shape[0])
        return max(1, pairs // n_targets), n_targets

    def inner(self, targets: "EmbeddingGradient") -> tf.Tensor:
        """See `OuterProductGradient.inner`."""
        same_row = tf.cast(
            self.ids[:, None, :, None] == targets.ids[None, :, None, :],
            self.output_grads.dtype,
        )
        return tf.einsum(
            "ijts,ito,jmso->ijm",
            same_row,
            self.output_grads[:, 0],
            targets.output_grads,
        )

    def along(self, direction: tf.Tensor) -> tf.Tensor:
        """See `OuterProductGradient.along`."""
        return tf.einsum(
            "nto,nmto->nm", tf.gather(direction, self.ids), self.output_grads
        )

    def gradient(self, i: tf.Tensor | int) -> tf.Tensor:
        """See `OuterProductGradient.gradient`."""
        ids = tf.expand_dims(tf.gather(self.ids, i), -1)
        rows = tf.squeeze(tf.gather(self.output_grads, i), 0)
        return tf.scatter_nd(ids, rows, self.shape)

    def only(self, m: int) -> "EmbeddingGradient":
        """See `OuterProductGradient.only`."""
        return self._replace(output_grads=self.output_grads[:, m : m + 1])


class ExplicitGradient(NamedTuple):
    """Gradients in explicit form.

    Attributes:
        gradients: ∇, [n, M, *shape of the variable].
    """

    gradients: tf.Tensor

    def parts(self, targets: "ExplicitGradient") -> tuple[int, int]:
        """See `OuterProductGradient.parts`. There are no intermediates, so that all examples are multiplied at once."""
        return self.gradients.shape[0], targets.gradients.shape[0]

    def inner(self, targets: "ExplicitGradient") -> tf.Tensor:
        """See `OuterProductGradient.inner`."""
        n_s, (n_t, functions) = self.gradients.shape[0], targets.gradients.shape[:2]
        rows = tf.reshape(self.gradients[:, 0], [n_s, -1])
        columns = tf.reshape(targets.gradients, [n_t * functions, -1])
        return tf.reshape(
            tf.matmul(rows, columns, transpose_b=True), [n_s, n_t, functions]
        )

    def along(self, direction: tf.Tensor) -> tf.Tensor:
        """See `OuterProductGradient.along`."""
        rows = tf.reshape(self.gradients, [*self.gradients.shape[:2], -1])
        return tf.linalg.matvec(rows, tf.reshape(direction, [-1]))

    def gradient(self, i: tf.Tensor | int) -> tf.Tensor:
        """See `OuterProductGradient.gradient`."""
        return tf.squeeze(tf.gather(self.gradients, i), 0)

    def only(self, m: int) -> "ExplicitGradient":
        """See `OuterProductGradient.only`."""
        return self._replace(gradients=self.gradients[:, m : m + 1])


FactoredGradient: TypeAlias = (
    OuterProductGradient | EmbeddingGradient | ExplicitGradient
)


def inner(sources: FactoredGradient, targets: FactoredGradient) -> tf.Tensor:
    """Return the inner products ⟨∇ of each source's first function, ∇ of each target's M functions⟩, [n_s, n_t, M].

    Sources and targets must be of the same class, as the gradients of one layer are. Large products are computed in
    parts.
    """
    first: Any = sources
    n_sources, n_targets = first.parts(targets)

    def columns(some_targets: FactoredGradient) -> tf.Tensor:
        def rows(some_sources: Any) -> tf.Tensor:
            return some_sources.inner(some_targets)

        return tf.transpose(map_parts(sources, n_sources, rows), [1, 0, 2])

    return tf.transpose(map_parts(targets, n_targets, columns), [1, 0, 2])


def map_parts(
    factored: FactoredGradient, part_size: int, function: Callable[..., tf.Tensor]
) -> tf.Tensor:
    """Return function(factored), [n, ...], computed for `part_size` examples at a time."""
    fields = [
        name for name in factored._fields if tf.is_tensor(getattr(factored, name))
    ]
    tensors = [getattr(factored, name) for name in fields]

    def of_part(*part: tf.Tensor) -> tuple[tf.Tensor]:
        replaced: dict[str, Any] = dict(zip(fields, part, strict=True))
        return (function(factored._replace(**replaced)),)

    return map_batches(of_part, (tensors[-1].dtype,), part_size, *tensors)[0]


def under_windows(pixels: tf.Tensor, windows: np.ndarray) -> tf.Tensor:
    """Return the patches [n, G, T, J·k] that windows [T, J] select from pixels [n, G, P, k].

    `OuterProductGradient` describes the windows.
    """
    n, groups, n_pixels, _ = pixels.shape
    if (windows == n_pixels).any():
        pixels = tf.pad(pixels, [[0, 0], [0, 0], [0, 1], [0, 0]])
    return tf.reshape(tf.gather(pixels, windows, axis=2), [n, groups, len(windows), -1])


def _pixel_pairs_of_positions(
    sources: OuterProductGradient, targets: OuterProductGradient
) -> tf.Tensor:
    """Count the kernel entries that lie over pixel p at position t and over pixel q at position s, [P·Q, T·S]."""
    of_sources, of_targets = (
        tf.one_hot(f.windows, f.inputs.shape[2], dtype=sources.inputs.dtype)
        for f in (sources, targets)
    )
    (t, _, p), (s, _, q) = of_sources.shape, of_targets.shape
    return tf.reshape(
        tf.einsum("tjp,sjq->pqts", of_sources, of_targets), [p * q, t * s]
    )
