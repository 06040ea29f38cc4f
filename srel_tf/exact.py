"""The finite-step engine: outputs before and after each source's fictitious update, as Definitions 1 and 2 say.

A loop over sources inside one `tf.function`: gradient of one example, updated weights as tensors, one forward pass over
the targets. Nothing is assigned to the model, nothing returns to Python between sources, and the memory does not depend
on the number of sources.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.resolution import DRAWS, perturbed

SOURCE_BATCH = 16  # Sources whose layer inputs and signals are held at a time.
LANES = 2  # Independent loops over half of the sources each: they overlap each other's serial parts.


class Outputs(NamedTuple):
    """Network outputs around each source's update; n_s sources, n_t targets, C outputs.

    before [n_t, C], after [n_s, n_t, C]: at the targets.
    own_before, own_after [n_s, C]: at each source itself, for the denominator.
    noisy [DRAWS, n_t, C], own_noisy [DRAWS, n_s, C]: before any update, at weights perturbed by a rounding error.
    turned [n_s]: the angle by which the same perturbations turn a source's gradient.
    """

    before: tf.Tensor
    after: tf.Tensor
    own_before: tf.Tensor
    own_after: tf.Tensor
    noisy: tf.Tensor
    own_noisy: tf.Tensor
    turned: tf.Tensor


class FiniteStep:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, learning_rate) -> Outputs`.

    layers: `LayerGradients`, or None for one forward and one backward pass a source.
    own: int array [n_s], the column of each source among the targets, −1 where it is not one of them. Where it is, its
    own outputs are read from that column, so that S_rel(x, x) is 1 exactly.
    """

    def __init__(self, network, rule, own, batch_size, layers=None):
        self._network = network
        self._layers = layers
        self._rule = rule
        self._own = own
        self._batch_size = batch_size
        # XLA on the CPU is slow for convolutions, and one setting everywhere gives one answer everywhere.
        self._compiled = tf.function(self._run, jit_compile=False, autograph=False)

    def __call__(self, *arguments):
        run = self._run if self._network.model.run_eagerly else self._compiled
        return run(*arguments)

    def _run(self, x_sources, y_sources, x_targets, learning_rate):
        before = self._forward(x_targets)
        after, own_before, own_after, directions = self._updated(x_sources, y_sources, x_targets, learning_rate)
        column, is_target = tf.constant(self._own.clip(min=0)), tf.constant(self._own[:, None] >= 0)
        return Outputs(
            before=before,
            after=after,
            own_before=tf.where(is_target, tf.gather(before, column), own_before),
            own_after=tf.where(is_target, tf.gather(after, column, axis=1, batch_dims=1), own_after),
            **self._perturbed(x_sources, y_sources, x_targets, directions),
        )

    def _updated(self, x_sources, y_sources, x_targets, learning_rate):
        """For each source: outputs after its update at the targets, before and after at itself, direction of ∇_x ℓ."""

        def rows(x, y):
            return self._rows(x, y, x_targets, learning_rate)

        # Not parallel_iterations: it runs one convolution kernel twice at a time, which crashes TensorFlow on a CPU.
        lanes = np.array_split(np.arange(x_sources.shape[0]), LANES if self._rule.concurrent else 1)
        dtypes = (self._network.dtype,) * 4
        parts = [
            in_batches(rows, dtypes, SOURCE_BATCH, *(tf.gather(a, lane) for a in (x_sources, y_sources)))
            for lane in lanes
            if len(lane)
        ]
        return [tf.concat(part, axis=0) for part in zip(*parts, strict=True)]

    def _rows(self, x, y, x_targets, learning_rate):
        factor, network = self._rule.gradient_factor(learning_rate), self._network
        captured = None if self._layers is None else self._layers.capture(x, y, factor)

        def one_source(i):
            if captured is None:
                gradients, direction, own_before = network.loss_gradient(x[i, None], y[i, None], factor)
            else:
                gradients = self._layers.gradient(captured, i)
                direction, own_before = captured.direction[i, None], captured.outputs[i, None]
            # NaN where the gradient is not finite, which a saturated net would hide: then nothing of the row is valid.
            total = tf.add_n([tf.reduce_sum(g) for g in gradients])
            direction = tf.where(tf.math.is_finite(total), direction, np.nan)
            weights = self._rule.updated(network, gradients, learning_rate)
            own_after = own_before if (self._own >= 0).all() else network.outputs(x[i, None], weights)
            return self._forward(x_targets, weights), own_before[0], own_after[0], direction[0]

        signature = (network.dtype,) * 4
        return tf.map_fn(one_source, tf.range(x.shape[0]), fn_output_signature=signature, parallel_iterations=1)

    def _perturbed(self, x_sources, y_sources, x_targets, directions):
        """Outputs and turned gradients at weights that differ from w by a rounding error, nothing updated."""
        sources_are_targets = np.array_equal(self._own, np.arange(x_targets.shape[0]))

        def outputs(weights):
            noisy = self._forward(x_targets, weights)
            return noisy, noisy if sources_are_targets else self._forward(x_sources, weights)

        def outputs_and_angle(weights):
            turned, own = self._directions(x_sources, y_sources, weights)
            return own if sources_are_targets else self._forward(x_targets, weights), own, angle(turned, directions)

        # One after the other, for each holds a set of weights.
        noisy, own_noisy, angles = self._at_perturbed_weights(outputs_and_angle, range(2), 3, after=directions)
        more_noisy, more_own_noisy = self._at_perturbed_weights(outputs, range(2, DRAWS), 2, after=angles)
        return {
            "noisy": tf.concat([noisy, more_noisy], axis=0),
            "own_noisy": tf.concat([own_noisy, more_own_noisy], axis=0),
            "turned": tf.reduce_max(angles, axis=0),
        }

    def _at_perturbed_weights(self, function, draws, num_outputs, after):
        """The tensors function(perturbed weights) for each draw, stacked, once the tensor `after` is there."""
        with tf.control_dependencies([after]):
            draws = tf.identity(tf.constant(list(draws)))
        return tf.map_fn(
            lambda draw: function(perturbed(self._network.weights, draw)),
            draws,
            fn_output_signature=(self._network.dtype,) * num_outputs,
            parallel_iterations=1,
        )

    def _forward(self, x, weights=None):
        """Outputs at x."""
        return in_batches(
            lambda batch: (self._network.outputs(batch, weights),), (self._network.dtype,), self._batch_size, x
        )[0]

    def _directions(self, x, y, weights=None):
        """Direction of ∇_x ℓ at each example, [n, m], and outputs: one backward pass serves a whole batch."""
        dtypes = (self._network.dtype,) * 2
        return in_batches(lambda *xy: self._network.input_direction(*xy, weights), dtypes, self._batch_size, x, y)


def in_batches(function, dtypes, batch_size, *arrays):
    """The tensors [n, m] of function(*arrays), in batches of equal size, so that all rows see the same kernels."""
    n = arrays[0].shape[0]
    batches = math.ceil(n / batch_size)
    if batches == 1:
        return function(*arrays)
    size = math.ceil(n / batches)
    rows = tf.minimum(tf.range(batches * size), n - 1)  # The last batch is filled up with the last example.
    stacked = tuple(tf.reshape(tf.gather(a, rows), [batches, size, *a.shape[1:]]) for a in arrays)
    results = tf.map_fn(lambda batch: function(*batch), stacked, fn_output_signature=dtypes, parallel_iterations=1)
    return tuple(tf.reshape(t, [batches * size, *t.shape[2:]])[:n] for t in results)


def angle(a, b):
    """Angle between unit rows [n], exact for small ones. S_rel sees no sign and no length of a gradient."""
    aligned = a * tf.sign(tf.reduce_sum(a * b, axis=-1, keepdims=True))
    return tf.norm(aligned - b, axis=-1)
