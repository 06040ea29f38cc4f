"""The finite-step engine: outputs before and after each source's fictitious update, as Definitions 1 and 2 say.

A loop over sources inside one `tf.function`: gradient of one example, updated weights as tensors, one forward pass over
the targets. Nothing is assigned to the model, nothing returns to Python between sources, and the memory does not depend
on the number of sources.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.batches import in_batches
from srel_tf.passes import SourceGradients
from srel_tf.resolution import DRAWS, GRADIENT_MARGIN, perturbed

SOURCE_BATCH = 32  # Sources whose layer inputs and signals are held at a time.
LANES = 2  # Independent loops over half of the sources each: they overlap each other's serial parts.


class Outputs(NamedTuple):
    """Network outputs (`LossPasses.read`) around each source's update; n_s sources, n_t targets, C outputs.

    before [n_t, C], after [n_s, n_t, C]: at the targets.
    own_before, own_after [n_s, C]: at each source itself, for the denominator.
    noisy [DRAWS, n_t, C], own_noisy [DRAWS, n_s, C]: before any update, at weights perturbed by a rounding error.
    gradient_error [n_s]: relative error of the direction of each source's gradient.
    """

    before: tf.Tensor
    after: tf.Tensor
    own_before: tf.Tensor
    own_after: tf.Tensor
    noisy: tf.Tensor
    own_noisy: tf.Tensor
    gradient_error: tf.Tensor


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
        after, own_before, own_after, about = self._updated(x_sources, y_sources, x_targets, learning_rates)
        noisy, own_noisy = self._noise(x_sources, x_targets, after=own_after)
        if self._passes is None:
            gradient_error = GRADIENT_MARGIN * self._turned(x_sources, y_sources, about, after=noisy)
        else:
            gradient_error = about[:, 0]
        column, is_target = tf.constant(self._own.clip(min=0)), tf.constant(self._own[:, None] >= 0)
        return Outputs(
            before=before,
            after=after,
            own_before=tf.where(is_target, tf.gather(before, column), own_before),
            own_after=tf.where(is_target, tf.gather(after, column, axis=1, batch_dims=1), own_after),
            noisy=noisy,
            own_noisy=own_noisy,
            gradient_error=gradient_error,
        )

    def _updated(self, x_sources, y_sources, x_targets, learning_rates):
        """For each source: outputs after its update at the targets; before and after at itself; its gradient's error
        [1] where layers tell it, else the direction of ∇_x ℓ.
        """

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
        dtypes = (self._network.dtype,) * 4
        parts = [
            in_batches(rows, dtypes, min(SOURCE_BATCH, self._batch_size), *lane)
            for lane in zip(*(tf.split(a, lanes) for a in per_source), strict=True)
        ]
        return [tf.concat(part, axis=0)[:n] for part in zip(*parts, strict=True)]

    def _rows(self, x, y, x_targets, learning_rates):
        network, rule = self._network, self._rule
        factor = rule.gradient_factor(learning_rates)
        captured = None if self._passes is None else SourceGradients(self._passes, x, y, factor)

        def plain(i):
            gradients, direction, own_before = network.loss_gradient(x[i, None], y[i, None], factor[i])
            # NaN where the gradient is not finite, which a saturated net would hide: then nothing of the row is valid.
            direction += 0.0 * tf.add_n([tf.reduce_sum(g) for g in gradients])
            if not rule.elementwise:
                gradients = rule.as_in_training(x[i, None], y[i, None], network.weights, gradients)
            weights = rule.updated(network.weights, gradients, learning_rates[i])
            return weights, direction[0], own_before[0]

        def layerwise(i):
            def updated(k):
                w, gradient = network.weights[k], captured.of_weight(k, i)
                return rule.updated([w], [gradient], learning_rates[i])[0]

            def step(k):
                return captured.step(k, i) if rule.is_gradient else None

            if rule.elementwise:  # Each weight is formed where its layer is called.
                weights = (updated, step)
            else:
                gradients = [captured.of_weight(k, i) for k in range(len(network.variables))]
                gradients = rule.as_in_training(x[i, None], y[i, None], network.weights, gradients)
                weights = rule.updated(network.weights, gradients, learning_rates[i])
            return weights, tf.cast(captured.error[i, None], network.dtype), captured.outputs[i]

        def one_source(i):
            weights, about, own_before = plain(i) if captured is None else layerwise(i)
            after = self._forward(x_targets, weights)
            own_after = own_before if (self._own >= 0).all() else self._outputs(x[i, None], weights)[0]
            return after, own_before, own_after, about

        signature = (network.dtype,) * 4
        wanted = tf.where(~tf.math.is_nan(learning_rates))
        if tf.executing_eagerly():  # Where a loop over nothing would not know the shape of a row.
            wanted = tf.range(x.shape[0])[:, None]
        found = tf.map_fn(one_source, wanted[:, 0], fn_output_signature=signature, parallel_iterations=1)
        return tuple(_placed(rows, wanted, x.shape[0]) for rows in found)

    def _noise(self, x_sources, x_targets, after):
        """Outputs [DRAWS, n_t, C] and [DRAWS, n_s, C] at weights that differ from w by a rounding error."""

        def outputs(weights):
            noisy = self._forward(x_targets, weights)
            sources_are_targets = np.array_equal(self._own, np.arange(x_targets.shape[0]))
            return noisy, noisy if sources_are_targets else self._forward(x_sources, weights)

        return self._at_perturbed_weights(outputs, DRAWS, 2, after)

    def _turned(self, x_sources, y_sources, directions, after):
        """The largest angle by which the first pair of perturbations turns ∇_x ℓ of each source, [n_s]."""
        dtypes = (self._network.dtype,) * 2

        def angles(weights):
            xy = x_sources, y_sources
            turned, _ = in_batches(
                lambda *xy: self._network.input_direction(*xy, weights), dtypes, self._batch_size, *xy
            )
            return (angle(turned, directions),)

        return tf.reduce_max(self._at_perturbed_weights(angles, 2, 1, after)[0], axis=0)

    def _at_perturbed_weights(self, function, draws, num_outputs, after):
        """The tensors function(perturbed weights) for each draw, stacked: one after the other, and after `after`."""
        with tf.control_dependencies([after]):
            draws = tf.identity(tf.range(draws))
        return tf.map_fn(
            lambda draw: function(perturbed(self._network.weights, draw)),
            draws,
            fn_output_signature=(self._network.dtype,) * num_outputs,
            parallel_iterations=1,
        )

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


def angle(a, b):
    """Angle between unit rows [n], exact for small ones. S_rel sees no sign and no length of a gradient."""
    aligned = a * tf.sign(tf.reduce_sum(a * b, axis=-1, keepdims=True))
    return tf.norm(aligned - b, axis=-1)
