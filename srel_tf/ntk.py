"""The empirical neural tangent kernel, of which the limit of S_rel is a contraction."""

import numpy as np
import tensorflow as tf

from srel_tf.engines.forward_mode import along
from srel_tf.errors import OptionError, ProbeError
from srel_tf.gradients.backprop import NotSeparable, Passes
from srel_tf.gradients.batching import in_batches
from srel_tf.gradients.factored import inner
from srel_tf.gradients.network import Network, warn_of_batch_norm


def empirical_kernel(model, x1, x2=None, batch_size=128):
    """Θ(x1, x2) = J(x1) J(x2)ᵀ, J the Jacobian of the outputs by the trainable weights, with `training=False`.

    model: a built `keras.Model` with one output of shape [n, C] (or [n]: C = 1); it need not be compiled.
    x1 [n1, …], x2 [n2, …]: examples; x2=None takes x1. batch_size: examples held at a time.

    Returns Θ, [n1, n2, C, C] in the model's precision: Θ[i, j, c, d] = ⟨∂f_c(x1_i)/∂w, ∂f_d(x2_j)/∂w⟩. The limit of
    S_rel has δ_ij = −Θ(x_j, x_i) ∂ℓ/∂f(x_i), for a loss without penalty. Raises `ModelError`, `BackendError`,
    `ProbeError` (examples that the model does not take), `OptionError`.
    """
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise OptionError(f"batch_size={batch_size!r}: give a positive number of examples")
    network = Network(model, needs_loss=False)
    warn_of_batch_norm(model)
    x1 = _examples(x1, network)
    x2 = x1 if x2 is None else _examples(x2, network)
    try:
        num_outputs = network.num_outputs(x2)
    except ValueError as error:
        raise ProbeError(f"model {model.name!r} does not take examples of shape {x2.shape[1:]}: {error}") from error
    network.check_examples_apart(x2)
    try:
        kernel = _by_layers(Passes(network, x2[:2]), num_outputs, batch_size)
    except NotSeparable:
        kernel = _by_tangents(network, num_outputs, batch_size)
    run = kernel if model.run_eagerly else tf.function(kernel, jit_compile=False, autograph=False)
    return run(x1, x2).numpy()


def _examples(x, network):
    x = np.asarray(x)
    if x.ndim < 2 or not len(x) or x.dtype.kind not in "fiub":
        raise ProbeError(f"expected numbers of shape [n, …] with n ≥ 1, got shape {x.shape} of {x.dtype}")
    return tf.constant(x, network.dtype if x.dtype.kind == "f" else None)


def _by_layers(passes, num_outputs, batch_size):
    """Θ from what layers saw and the signals of each output, contracted layer by layer."""
    dtype = passes.network.dtype
    every_output = np.eye(num_outputs)

    def factors(x):
        seen = passes.forward(x)
        signals = passes.backward(seen, [tf.constant(np.tile(e, [x.shape[0], 1])) for e in every_output])
        return passes.factors(seen, signals)

    def kernel(x1, x2):
        def rows(x):
            firsts = factors(x)

            def columns(x):
                pairs = [(a, b) for one, two in zip(firsts, factors(x), strict=True) for a in one for b in two]
                by_output = [tf.add_n([inner(a.only(c), b) for a, b in pairs]) for c in range(num_outputs)]
                return (tf.transpose(tf.stack(by_output, axis=2), [1, 0, 2, 3]),)

            return (tf.transpose(in_batches(columns, (dtype,), batch_size, x2)[0], [1, 0, 2, 3]),)

        return in_batches(rows, (dtype,), batch_size, x1)[0]

    return kernel


def _by_tangents(network, num_outputs, batch_size):
    """Θ of any model: the gradient of each output of each example is pushed forward through the others."""

    def kernel(x1, x2):
        weights = [tf.convert_to_tensor(w) for w in network.weights]

        def one_output(index):
            i, c = index // num_outputs, index % num_outputs
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                output = network.outputs(x1[i, None], weights)[0, c]
            gradients = tape.gradient(output, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return along(network, "outputs", weights, gradients, x2, batch_size)

        indices = tf.range(x1.shape[0] * num_outputs)
        rows = tf.map_fn(one_output, indices, fn_output_signature=network.dtype, parallel_iterations=1)
        return tf.transpose(tf.reshape(rows, [x1.shape[0], num_outputs, x2.shape[0], num_outputs]), [0, 2, 1, 3])

    return kernel
