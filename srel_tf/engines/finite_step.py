"""The finite-step engine: outputs before and after each source's fictitious update (Definitions 1 and 2).

A loop over the sources runs inside one `tf.function`. For each source it computes the gradient, the updated weights as
tensors, and the outputs at all targets. Nothing is assigned to the model, and nothing returns to Python between
sources. Apart from the results, the memory does not depend on the number of sources.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.engines.fictitious_updates import LayerwiseUpdates, Updates, WholeUpdates
from srel_tf.gradients.backprop import LossBackprop
from srel_tf.gradients.batching import map_batches, row
from srel_tf.gradients.network import Network
from srel_tf.numerics.rounding import (
    SIGNS,
    PerturbedRounding,
    perturbed,
    perturbed_inputs,
)
from srel_tf.updates import UpdateRule

# Number of sources whose layer inputs and output gradients are held at a time.
SOURCE_BATCH = 32
# Number of loops that run in parallel, each over half of the sources. One loop can compute while the other one is in a
# serial part.
LANES = 2
SAMPLE = 2  # Smallest number of targets per source at which outputs after perturbed updates are computed.
SAMPLES = 32  # Smallest total number of such targets, over all sources.


class Outputs(NamedTuple):
    """Outputs f before and after each source's update, as `LossBackprop.read` returns them.

    There are n_s sources, n_t targets and C outputs.

    Attributes:
        before: at the targets before any update, [n_t, C].
        after: at the targets after each source's update, [n_s, n_t, C].
        before_at_source, after_at_source: at each source, before and after its own update, [n_s, C].
        noisy, noisy_at_source: at the targets and at the sources before any update, for two perturbations of weights
            and inputs that imitate rounding, [2, n_t, C] and [2, n_s, C].
        sample: the indices of m targets for each source, [n_s, m].
        sampled, sampled_at_source: at these targets and at the source, after an update that is computed with the same
            two perturbations, [2, n_s, m, C] and [2, n_s, C].
    """

    before: tf.Tensor
    after: tf.Tensor
    before_at_source: tf.Tensor
    after_at_source: tf.Tensor
    noisy: tf.Tensor
    noisy_at_source: tf.Tensor
    sample: tf.Tensor
    sampled: tf.Tensor
    sampled_at_source: tf.Tensor


class FiniteStepEngine:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, learning_rates) -> Outputs`.

    learning_rates [n_s] holds η of each source. A source whose η is NaN is left out, and its outputs are NaN.

    Args:
        network: the network.
        rule: the update rule.
        source_column: int [n_s], the column of each source among the targets, −1 if it is not a target. The outputs of
            a source that is a target are taken from its column, so that S_rel(x, x) is exactly 1.
        batch_size: number of examples per forward pass.
        backprop: the passes of the network; None means one forward and one backward pass per source.
    """

    def __init__(
        self,
        network: Network,
        rule: UpdateRule,
        source_column: np.ndarray,
        batch_size: int,
        backprop: LossBackprop | None = None,
    ) -> None:
        self._network = network
        self._backprop = backprop
        self._rule = rule
        self._source_column = source_column
        self._batch_size = batch_size
        self._compiled = network.compiled(self._run)

    def __call__(self, *arguments: tf.Tensor) -> Outputs:
        return self._compiled(*arguments)

    def _run(
        self,
        x_sources: tf.Tensor,
        y_sources: tf.Tensor,
        x_targets: tf.Tensor,
        learning_rates: tf.Tensor,
    ) -> Outputs:
        sources = x_sources, y_sources, learning_rates
        before = self._forward(self._unchanged, x_targets)
        after, before_at_source, after_at_source = self._around_updates(
            sources, x_targets
        )
        sample = self._sample(x_targets.shape[0])
        noisy, noisy_at_source, sampled = self._perturbed_outputs(
            sources, x_targets, sample, after_at_source
        )

        column = tf.constant(self._source_column.clip(min=0))
        is_target = tf.constant(self._source_column[:, None] >= 0)
        after_in_column = tf.gather(after, column, axis=1, batch_dims=1)
        return Outputs(
            before=before,
            after=after,
            before_at_source=tf.where(
                is_target, tf.gather(before, column), before_at_source
            ),
            after_at_source=tf.where(is_target, after_in_column, after_at_source),
            noisy=noisy,
            noisy_at_source=noisy_at_source,
            sample=tf.constant(sample),
            sampled=sampled[:, :, 1:],
            sampled_at_source=sampled[:, :, 0],
        )

    def _sample(self, n_t: int) -> np.ndarray:
        """Choose m evenly spaced targets per source, at which the noise of its update is estimated, int [n_s, m]."""
        n_s = len(self._source_column)
        m = min(n_t, max(SAMPLE, math.ceil(SAMPLES / n_s)))
        start = np.where(
            self._source_column >= 0, self._source_column + 1, np.arange(n_s)
        )
        spacing = max(1, n_t // m)
        return (start[:, None] + np.arange(m) * spacing) % n_t

    def _around_updates(self, sources: tuple, x_targets: tf.Tensor) -> list[tf.Tensor]:
        """Return `after`, `before_at_source` and `after_at_source` of `Outputs`.

        For sources that are targets, `_run` replaces the last two by the outputs in their columns.
        """

        def rows(
            x: tf.Tensor, y: tf.Tensor, learning_rates: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            updates = self._updates(x, y, learning_rates, self._network.weights)

            def of_source(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
                update = updates[i]
                after = self._forward(update.outputs, x_targets) + update.zero
                after_at_source = update.before
                if (self._source_column < 0).any():
                    after_at_source = update.outputs(row(x, i))[0] + update.zero
                return after, update.before, after_at_source

            return self._for_each_source(of_source, learning_rates, 3)

        n = sources[0].shape[0]
        # `parallel_iterations` stays 1: TensorFlow crashes on a CPU if it runs one convolution kernel twice at a time.
        lanes = LANES if self._rule.elementwise and n > 1 else 1
        rows = self._network.compiled(rows)  # Traced once for all lanes.
        batch_size = min(SOURCE_BATCH, self._batch_size)
        of_lanes = [
            map_batches(rows, (self._network.dtype,) * 3, batch_size, *lane)
            for lane in _lanes_of_equal_length(sources, lanes)
        ]
        return [tf.concat(parts, axis=0)[:n] for parts in zip(*of_lanes, strict=True)]

    def _perturbed_outputs(
        self, sources: tuple, x_targets: tf.Tensor, sample: np.ndarray, after: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return `noisy`, `noisy_at_source`, and the outputs after perturbed updates, [2, n_s, 1 + m, C].

        In the last array, the axis of length 1 + m holds the source, followed by its m sampled targets.
        """
        sources_are_targets = np.array_equal(
            self._source_column, np.arange(x_targets.shape[0])
        )

        def with_sign(sign: tf.Tensor) -> tuple[tf.Tensor, ...]:
            rounding = PerturbedRounding(sign, self._network.frozen_weights)
            with self._network.rounded_by(rounding):
                return at_weights(
                    perturbed(self._network.weights, sign),
                    perturbed_inputs(sources[0], sign),
                    perturbed_inputs(x_targets, sign),
                )

        def at_weights(
            weights: list, x_sources: tf.Tensor, x_targets: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:

            def after_updates(
                x: tf.Tensor,
                y: tf.Tensor,
                learning_rates: tf.Tensor,
                columns: tf.Tensor,
            ) -> tuple:
                x = tf.identity(x)  # `LayerIO` accepts only tensors of this loop.
                updates = self._updates(x, y, learning_rates, weights)

                def of_source(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
                    source_and_sample = tf.concat(
                        [row(x, i), tf.gather(x_targets, tf.gather(columns, i))], axis=0
                    )
                    return (self._forward(updates[i].outputs, source_and_sample),)

                return self._for_each_source(of_source, learning_rates, 1)

            def unchanged(x: tf.Tensor) -> tf.Tensor:
                return self._outputs(x, weights)

            noisy = self._forward(unchanged, x_targets)
            noisy_at_source = (
                noisy if sources_are_targets else self._forward(unchanged, x_sources)
            )
            batch_size = min(SOURCE_BATCH, self._batch_size)
            dtypes = (self._network.dtype,)
            sampled = map_batches(
                after_updates,
                dtypes,
                batch_size,
                x_sources,
                *sources[1:],
                tf.constant(sample),
            )[0]
            return noisy, noisy_at_source, sampled

        with tf.control_dependencies(
            [after]
        ):  # Start after the unperturbed updates, because both at once would need more memory.
            signs = tf.identity(tf.constant(SIGNS))
        signature = (self._network.dtype,) * 3
        return tf.map_fn(
            with_sign, signs, fn_output_signature=signature, parallel_iterations=1
        )

    def _updates(
        self,
        x: tf.Tensor,
        y: tf.Tensor,
        learning_rates: tf.Tensor,
        weights: list,
    ) -> Updates:
        if self._backprop is not None and self._rule.elementwise:
            return LayerwiseUpdates(
                self._backprop, self._rule, x, y, learning_rates, weights
            )
        return WholeUpdates(
            self._network,
            self._outputs,
            self._backprop,
            self._rule,
            x,
            y,
            learning_rates,
            weights,
        )

    def _for_each_source(
        self, function: Callable, learning_rates: tf.Tensor, num_outputs: int
    ) -> tuple:
        """Stack the tensors of function(i) for all sources i. A source whose η is NaN is left out, and gets NaN."""
        n = learning_rates.shape[0]
        wanted = tf.where(~tf.math.is_nan(learning_rates))
        if (
            tf.executing_eagerly()
        ):  # An eager map_fn over zero elements cannot infer the shape of a row.
            wanted = tf.range(n)[:, None]
        signature = (self._network.dtype,) * num_outputs
        stacked = tf.map_fn(
            function, wanted[:, 0], fn_output_signature=signature, parallel_iterations=1
        )
        return tuple(_placed(rows, wanted, n) for rows in stacked)

    def _forward(
        self, outputs: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor
    ) -> tf.Tensor:
        """Evaluate `outputs` at x [n, ...] in batches, [n, C]."""
        dtypes = (self._network.dtype,)
        return map_batches(
            lambda batch: (outputs(batch),), dtypes, self._batch_size, x
        )[0]

    def _unchanged(self, x: tf.Tensor) -> tf.Tensor:
        return self._outputs(x, None)

    def _outputs(self, x: tf.Tensor, weights: list | None) -> tf.Tensor:
        """Return the values from which D is computed, at x and these weights; None means the current weights."""
        outputs = self._network.outputs(x, weights)
        return outputs if self._backprop is None else self._backprop.read(outputs)


def _lanes_of_equal_length(sources: tuple, lanes: int) -> zip:
    """Split x, y and η of all sources into equal lanes. The last lane is padded with sources whose η is NaN."""
    x, y, learning_rates = sources
    n = x.shape[0]
    indices = np.arange(lanes * math.ceil(n / lanes))
    rows = np.minimum(indices, n - 1)
    rates = tf.where(indices < n, tf.gather(learning_rates, rows), np.nan)
    padded = tf.gather(x, rows), tf.gather(y, rows), rates
    return zip(*(tf.split(array, lanes) for array in padded), strict=True)


def _placed(rows: tf.Tensor, indices: tf.Tensor, n: int) -> tf.Tensor:
    """Return [n, ...] with `rows` at `indices` [k, 1] and NaN elsewhere."""
    shape = tf.concat([[n], tf.shape(rows)[1:]], axis=0)
    nan = tf.fill(shape, tf.constant(np.nan, rows.dtype))
    placed = tf.tensor_scatter_nd_update(nan, indices, rows)
    return tf.ensure_shape(placed, [n, *rows.shape[1:]])
