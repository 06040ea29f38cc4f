"""The finite-step engine: outputs before and after each source's fictitious update, as Definitions 1 and 2 say.

A loop over sources inside one `tf.function`: gradient of one example, updated weights as tensors, one forward pass over
the targets. Nothing is assigned to the model, nothing returns to Python between sources, and the memory does not depend
on the number of sources.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.gradients.backprop import SourceGradients
from srel_tf.gradients.batching import in_batches
from srel_tf.numerics.rounding import DRAWS, perturbed

SOURCE_BATCH = 32  # Sources whose layer inputs and signals are held at a time.
LANES = 2  # Independent loops over half of the sources each: they overlap each other's serial parts.
SAMPLE = 2  # Targets of each source that are evaluated again, at its update from perturbed weights;
SAMPLES = 32  # more for few sources: so many in all.


class Outputs(NamedTuple):
    """Network outputs (`LossPasses.read`) around each source's update; n_s sources, n_t targets, C outputs.

    before [n_t, C], after [n_s, n_t, C]: at the targets.
    own_before, own_after [n_s, C]: at each source itself, for the denominator.
    noisy [DRAWS, n_t, C], own_noisy [DRAWS, n_s, C]: before any update, at weights perturbed by a rounding error.
    sample [n_s, m]: some columns of each source. sampled [DRAWS, n_s, m, C], own_sampled [DRAWS, n_s, C]: there and at
    itself, after an update that is computed at the perturbed weights.
    """

    before: tf.Tensor
    after: tf.Tensor
    own_before: tf.Tensor
    own_after: tf.Tensor
    noisy: tf.Tensor
    own_noisy: tf.Tensor
    sample: tf.Tensor
    sampled: tf.Tensor
    own_sampled: tf.Tensor


class FiniteStep:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, learning_rates) -> Outputs`.

    learning_rates [n_s]: η of each source; NaN leaves a source out, whose outputs are then NaN.
    passes: the network's `LossPasses`, or None for one forward and one backward pass a source.
    own: int array [n_s], the column of each source among the targets, −1 where it is not one of them. Where it is, its
    own outputs are read from that column, so that S_rel(x, x) is 1 exactly.
    """

    def __init__(self, network, rule, own, batch_size, passes=None):
        self._network = network
        self._passes = passes
        self._rule = rule
        self._own = own
        self._batch_size = batch_size
        # XLA on the CPU is slow for convolutions, and one setting everywhere gives one answer everywhere.
        self._compiled = tf.function(self._run, jit_compile=False, autograph=False)

    def __call__(self, *arguments):
        run = self._run if self._network.model.run_eagerly else self._compiled
        return run(*arguments)

    def _run(self, x_sources, y_sources, x_targets, learning_rates):
        before = self._forward(x_targets)
        after, own_before, own_after = self._updated(x_sources, y_sources, x_targets, learning_rates)
        sample = self._sample(x_targets.shape[0])
        noisy, own_noisy, sampled = self._noise(
            x_sources, y_sources, x_targets, learning_rates, sample, after=own_after
        )
        column, is_target = tf.constant(self._own.clip(min=0)), tf.constant(self._own[:, None] >= 0)
        return Outputs(
            before=before,
            after=after,
            own_before=tf.where(is_target, tf.gather(before, column), own_before),
            own_after=tf.where(is_target, tf.gather(after, column, axis=1, batch_dims=1), own_after),
            noisy=noisy,
            own_noisy=own_noisy,
            sample=tf.constant(sample),
            sampled=sampled[:, :, 1:],
            own_sampled=sampled[:, :, 0],
        )

    def _sample(self, n_t):
        """Columns [n_s, m] of the targets at which the noise of each source's update is read; all get their turn."""
        m = min(n_t, max(SAMPLE, math.ceil(SAMPLES / len(self._own))))
        start = np.where(self._own >= 0, self._own + 1, np.arange(len(self._own)))
        return (start[:, None] + np.arange(m) * max(1, n_t // m)) % n_t

    def _updated(self, x_sources, y_sources, x_targets, learning_rates):
        """For each source: outputs after its update at the targets; before and after at itself."""

        def rows(x, y, learning_rates):
            return self._rows(x, y, x_targets, learning_rates)

        n = x_sources.shape[0]
        # Not parallel_iterations: it runs one convolution kernel twice at a time, which crashes TensorFlow on a CPU.
        lanes = LANES if self._rule.elementwise and n > 1 else 1
        filled = np.minimum(np.arange(lanes * math.ceil(n / lanes)), n - 1)  # Of equal length, by one to leave out.
        rates = tf.where(np.arange(len(filled)) < n, tf.gather(learning_rates, filled), np.nan)
        per_source = tf.gather(x_sources, filled), tf.gather(y_sources, filled), rates
        if not tf.executing_eagerly():
            rows = tf.function(rows, jit_compile=False, autograph=False)  # Traced once for all lanes.
        dtypes = (self._network.dtype,) * 3
        parts = [
            in_batches(rows, dtypes, min(SOURCE_BATCH, self._batch_size), *lane)
            for lane in zip(*(tf.split(a, lanes) for a in per_source), strict=True)
        ]
        return [tf.concat(part, axis=0)[:n] for part in zip(*parts, strict=True)]

    def _rows(self, x, y, x_targets, learning_rates):
        updated = self._updates(x, y, learning_rates, self._network.weights)

        def one_source(i):
            weights, own_before, zero = updated(i)
            after = self._forward(x_targets, weights) + zero
            own_after = own_before if (self._own >= 0).all() else self._outputs(x[i, None], weights)[0] + zero
            return after, own_before, own_after

        return self._for_each_source(one_source, learning_rates, 3)

    def _for_each_source(self, function, learning_rates, num_outputs):
        """The tensors function(i), stacked; NaN for a source that is left out."""
        n = learning_rates.shape[0]
        signature = (self._network.dtype,) * num_outputs
        wanted = tf.where(~tf.math.is_nan(learning_rates))
        if tf.executing_eagerly():  # Where a loop over nothing would not know the shape of a row.
            wanted = tf.range(n)[:, None]
        found = tf.map_fn(function, wanted[:, 0], fn_output_signature=signature, parallel_iterations=1)
        return tuple(_placed(rows, wanted, n) for rows in found)

    def _updates(self, x, y, learning_rates, weights):
        """i -> (the weights after the update on the i-th example, as `_outputs` takes them; its outputs before; and
        zero, but NaN where its gradient is not finite, which a saturated net would hide).
        """
        if self._passes is not None and self._rule.elementwise:
            return self._layerwise(x, y, learning_rates, weights)
        return self._whole(x, y, learning_rates, weights)

    def _whole(self, x, y, learning_rates, weights):
        """`_updates` with all weights as a list of tensors."""
        network, rule = self._network, self._rule
        factor = rule.gradient_factor(learning_rates)
        captured = None if self._passes is None else SourceGradients(self._passes, x, y, factor, weights)

        def updated(i):
            if captured is None:
                gradients, outputs = network.loss_gradient(x[i, None], y[i, None], factor[i], weights)
                own_before = outputs[0]
            else:
                gradients = [captured.of_weight(k, i) for k in range(len(network.variables))]
                own_before = captured.outputs[i]
            zero = 0.0 * tf.add_n([tf.reduce_sum(g) for g in gradients])
            if not rule.elementwise:
                gradients = rule.as_in_training(x[i, None], y[i, None], weights, gradients)
            return rule.updated(weights, gradients, learning_rates[i]), own_before, zero

        return updated

    def _layerwise(self, x, y, learning_rates, weights):
        """`_updates` with each weight formed where its layer is called: the arguments of `Capture.outputs`."""
        rule = self._rule
        captured = SourceGradients(self._passes, x, y, rule.gradient_factor(learning_rates), weights)

        def updated(i):
            def weight(k):
                return rule.updated([weights[k]], [captured.of_weight(k, i)], learning_rates[i])[0]

            def step(k):
                return captured.step(k, i) if rule.is_gradient else None

            return (weight, step, weights), captured.outputs[i], tf.cast(captured.zero[i], self._network.dtype)

        return updated

    def _noise(self, x_sources, y_sources, x_targets, learning_rates, sample, after):
        """At each draw of perturbed weights: outputs before any update at targets [n_t, C] and sources [n_s, C]; and
        after each source's update at itself and its sample of targets [n_s, 1 + m, C].
        """
        sources_are_targets = np.array_equal(self._own, np.arange(x_targets.shape[0]))

        def one_draw(draw):
            weights = perturbed(self._network.weights, draw)

            def sampled(x, y, learning_rates, sample):
                x = tf.identity(x)  # A tensor of this loop, as layers are to see it.
                updated = self._updates(x, y, learning_rates, weights)

                def one_source(i):
                    again = tf.concat([x[i, None], tf.gather(x_targets, sample[i])], axis=0)
                    return (self._forward(again, updated(i)[0]),)

                return self._for_each_source(one_source, learning_rates, 1)

            noisy = self._forward(x_targets, weights)
            own_noisy = noisy if sources_are_targets else self._forward(x_sources, weights)
            per_source = x_sources, y_sources, learning_rates, tf.constant(sample)
            size = min(SOURCE_BATCH, self._batch_size)
            return noisy, own_noisy, in_batches(sampled, (self._network.dtype,), size, *per_source)[0]

        with tf.control_dependencies([after]):  # One after the other: the memory is for one.
            draws = tf.identity(tf.range(DRAWS))
        signature = (self._network.dtype,) * 3
        return tf.map_fn(one_draw, draws, fn_output_signature=signature, parallel_iterations=1)

    def _forward(self, x, weights=None):
        """Outputs at x."""
        dtypes = (self._network.dtype,)
        return in_batches(lambda batch: (self._outputs(batch, weights),), dtypes, self._batch_size, x)[0]

    def _outputs(self, x, weights):
        """f(x; weights): a list of tensors, or the functions `weight` and `step` of `Capture.outputs`."""
        if isinstance(weights, tuple):
            outputs = self._passes.capture.outputs(x, *weights)
        else:
            outputs = self._network.outputs(x, weights)
        return outputs if self._passes is None else self._passes.read(outputs)


def _placed(rows, indices, n):
    """[n, …] with `rows` at `indices` [k, 1], NaN elsewhere."""
    shape = tf.concat([[n], tf.shape(rows)[1:]], axis=0)
    placed = tf.tensor_scatter_nd_update(tf.fill(shape, tf.constant(np.nan, rows.dtype)), indices, rows)
    return tf.ensure_shape(placed, [n, *rows.shape[1:]])
