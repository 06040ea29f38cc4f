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

LANES = 2  # Independent loops over half of the sources each: they overlap each other's serial parts.


class Outputs(NamedTuple):
    """Network outputs around each source's update; n_s sources, n_t targets, C outputs.

    before [n_t, C], after [n_s, n_t, C]: at the targets.
    own_before, own_after [n_s, C]: at each source itself, for the denominator.
    noisy [DRAWS, n_t, C], own_noisy [DRAWS, n_s, C]: before any update, at weights perturbed by a rounding error.
    """

    before: tf.Tensor
    after: tf.Tensor
    own_before: tf.Tensor
    own_after: tf.Tensor
    noisy: tf.Tensor
    own_noisy: tf.Tensor


class FiniteStep:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, learning_rate) -> Outputs`.

    own: int array [n_s], the column of each source among the targets, −1 where it is not one of them. Where it is, its
    own outputs are read from that column, so that S_rel(x, x) is 1 exactly.
    """

    def __init__(self, network, rule, own, batch_size):
        self._network = network
        self._rule = rule
        self._own = own
        self._batch_size = batch_size
        # XLA on the CPU is slow for convolutions, and one setting everywhere gives one answer everywhere.
        self._compiled = tf.function(self._run, jit_compile=False, autograph=False)

    def __call__(self, *arguments):
        run = self._run if self._network.model.run_eagerly else self._compiled
        return run(*arguments)

    def _run(self, x_sources, y_sources, x_targets, learning_rate):
        before, noisy = self._forward(x_targets), self._noisy(x_targets)
        all_are_targets = (self._own >= 0).all()

        def one_source(i):
            x, y = x_sources[i, None], y_sources[i, None]
            gradients, own_before = self._network.loss_gradient(x, y)
            weights = self._rule.updated(self._network, gradients, learning_rate)
            after = self._forward(x_targets, weights)
            if all_are_targets:
                return (after,)
            return after, own_before[0], self._network.outputs(x, weights)[0]

        # Not parallel_iterations: it runs one convolution kernel twice at a time, which crashes TensorFlow on a CPU.
        lanes = np.array_split(np.arange(x_sources.shape[0]), LANES if self._rule.concurrent else 1)
        rows = [
            tf.map_fn(
                one_source,
                tf.constant(lane),
                fn_output_signature=(before.dtype,) * (1 if all_are_targets else 3),
                parallel_iterations=1,
            )
            for lane in lanes
            if len(lane)
        ]
        after, *own = (tf.concat(parts, axis=0) for parts in zip(*rows, strict=True))
        own_before, own_after, own_noisy = self._columns(before, after, noisy)
        if not all_are_targets:
            missing = tf.constant(self._own[:, None] < 0)
            own_before = tf.where(missing, own[0], own_before)
            own_after = tf.where(missing, own[1], own_after)
            own_noisy = tf.where(missing, self._noisy(x_sources), own_noisy)
        return Outputs(before, after, own_before, own_after, noisy, own_noisy)

    def _columns(self, before, after, noisy):
        """The sources' own outputs where they are among the targets (elsewhere those of target 0, to be replaced)."""
        column = tf.constant(self._own.clip(min=0))
        return (
            tf.gather(before, column),
            tf.gather(after, column, axis=1, batch_dims=1),
            tf.gather(noisy, column, axis=1),
        )

    def _forward(self, x, weights=None):
        """f(x; weights) in batches of equal size, so that all rows go through the same kernels."""
        n = x.shape[0]
        batches = math.ceil(n / self._batch_size)
        if batches == 1:
            return self._network.outputs(x, weights)
        size = math.ceil(n / batches)
        filled = tf.gather(x, tf.minimum(tf.range(batches * size), n - 1))
        outputs = tf.map_fn(
            lambda batch: self._network.outputs(batch, weights),
            tf.reshape(filled, [batches, size, *x.shape[1:]]),
            fn_output_signature=self._network.dtype,
            parallel_iterations=1,
        )
        return tf.reshape(outputs, [batches * size, outputs.shape[-1]])[:n]

    def _noisy(self, x):
        return tf.map_fn(
            lambda draw: self._forward(x, perturbed(self._network.weights, draw)),
            tf.range(DRAWS),
            fn_output_signature=self._network.dtype,
            parallel_iterations=1,
        )
