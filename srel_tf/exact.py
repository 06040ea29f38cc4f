"""The finite-step engine: outputs before and after each source's fictitious update, as Definitions 1 and 2 say.

A loop over sources inside one `tf.function`: gradient of one example, updated weights as tensors, one forward pass over
the targets. Nothing is assigned to the model, nothing returns to Python between sources, and the memory does not depend
on the number of sources.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.batches import in_batches
from srel_tf.passes import SourceGradients
from srel_tf.resolution import DRAWS, perturbed

SOURCE_BATCH = 16  # Sources whose layer inputs and signals are held at a time.
LANES = 2  # Independent loops over half of the sources each: they overlap each other's serial parts.


class Outputs(NamedTuple):
    """Network outputs around each source's update; n_s sources, n_t targets, C outputs.

    before [n_t, C], after [n_s, n_t, C]: at the targets.
    own_before, own_after [n_s, C]: at each source itself, for the denominator.
    noisy [DRAWS, n_t, C], own_noisy [DRAWS, n_s, C]: before any update, at weights perturbed by a rounding error.
    turned [n_s]: the angle by which the same perturbations turn a source's gradient.
    signal_error [n_s]: relative error of ∂ℓ/∂f, as far as it comes from the last places of f.
    """

    before: tf.Tensor
    after: tf.Tensor
    own_before: tf.Tensor
    own_after: tf.Tensor
    noisy: tf.Tensor
    own_noisy: tf.Tensor
    turned: tf.Tensor
    signal_error: tf.Tensor


class FiniteStep:
    """Callable engine, traced once: `engine(x_sources, y_sources, x_targets, learning_rates) -> Outputs`.

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
        after, own_before, own_after, directions = self._updated(x_sources, y_sources, x_targets, learning_rates)
        column, is_target = tf.constant(self._own.clip(min=0)), tf.constant(self._own[:, None] >= 0)
        if self._passes is None:
            signal_error = tf.zeros([x_sources.shape[0]], tf.float64)
        else:
            signal_error = self._passes.loss_signal_error(own_before, y_sources)
        return Outputs(
            signal_error=signal_error,
            before=before,
            after=after,
            own_before=tf.where(is_target, tf.gather(before, column), own_before),
            own_after=tf.where(is_target, tf.gather(after, column, axis=1, batch_dims=1), own_after),
            **self._perturbed(x_sources, y_sources, x_targets, directions),
        )

    def _updated(self, x_sources, y_sources, x_targets, learning_rates):
        """For each source: outputs after its update at the targets, before and after at itself, direction of ∇_x ℓ."""

        def rows(x, y, learning_rates):
            return self._rows(x, y, x_targets, learning_rates)

        # Not parallel_iterations: it runs one convolution kernel twice at a time, which crashes TensorFlow on a CPU.
        lanes = np.array_split(np.arange(x_sources.shape[0]), LANES if self._rule.elementwise else 1)
        dtypes = (self._network.dtype,) * 4
        per_source = x_sources, y_sources, learning_rates
        parts = [
            in_batches(rows, dtypes, SOURCE_BATCH, *(tf.gather(a, lane) for a in per_source))
            for lane in lanes
            if len(lane)
        ]
        return [tf.concat(part, axis=0) for part in zip(*parts, strict=True)]

    def _rows(self, x, y, x_targets, learning_rates):
        network, rule = self._network, self._rule
        factor = rule.gradient_factor(learning_rates)
        captured = None if self._passes is None else SourceGradients(self._passes, x, y, factor)

        def plain(i):
            gradients, direction, own_before = network.loss_gradient(x[i, None], y[i, None], factor[i])
            weights = rule.updated(network.weights, gradients, learning_rates[i])
            return weights, direction[0], own_before[0]

        def layerwise(i):
            def updated(k):
                w, gradient = network.weights[k], captured.of_weight(k, i)
                return rule.updated([w], [gradient], learning_rates[i])[0]

            if rule.elementwise:  # Each weight is formed where its layer is called.
                weights = updated
            else:
                gradients = [captured.of_weight(k, i) for k in range(len(network.variables))]
                weights = rule.updated(network.weights, gradients, learning_rates[i])
            return weights, captured.direction[i], captured.outputs[i]

        def one_source(i):
            weights, direction, own_before = plain(i) if captured is None else layerwise(i)
            after = self._forward(x_targets, weights)
            own_after = own_before if (self._own >= 0).all() else self._outputs(x[i, None], weights)[0]
            return after, own_before, own_after, direction

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
        dtypes = (self._network.dtype,)
        return in_batches(lambda batch: (self._outputs(batch, weights),), dtypes, self._batch_size, x)[0]

    def _outputs(self, x, weights):
        """f(x; weights): a list of tensors, or a function that forms the k-th when its layer is called."""
        if callable(weights):
            return self._passes.capture.outputs(x, weights)
        return self._network.outputs(x, weights)

    def _directions(self, x, y, weights=None):
        """Direction of ∇_x ℓ at each example, [n, m], and outputs: one backward pass serves a whole batch."""
        dtypes = (self._network.dtype,) * 2
        of = self._network if self._passes is None else self._passes
        return in_batches(lambda *xy: of.input_direction(*xy, weights), dtypes, self._batch_size, x, y)


def angle(a, b):
    """Angle between unit rows [n], exact for small ones. S_rel sees no sign and no length of a gradient."""
    aligned = a * tf.sign(tf.reduce_sum(a * b, axis=-1, keepdims=True))
    return tf.norm(aligned - b, axis=-1)
