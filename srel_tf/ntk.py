"""The empirical neural tangent kernel, which determines S_rel in the limit η → 0."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from srel_tf.engines.forward_mode import along
from srel_tf.errors import OptionError, ProbeError
from srel_tf.gradients.backprop import BatchBackprop, NotSeparable
from srel_tf.gradients.batching import map_batches
from srel_tf.gradients.factored import FactoredGradient, inner
from srel_tf.gradients.graphs import restored_variable_scope
from srel_tf.gradients.model_checks import warn_of_batch_norm
from srel_tf.gradients.network import Network


def empirical_ntk(
    model: keras.Model,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    batch_size: int = 128,
) -> np.ndarray:
    """Compute Θ(x1, x2) = J(x1) J(x2)ᵀ, with J the Jacobian of the outputs with respect to the trainable weights.

    For a loss without regularisers, the update on x_i changes the outputs at x_j by η δ_ij to first order, with
    δ_ij = −Θ(x_j, x_i) ∂ℓ/∂f(x_i).

    Args:
        model: a built model with one output of shape [n, C], or [n] for C = 1. The model need not be compiled.
        x1: examples [n1, ...].
        x2: examples [n2, ...]; None means x1.
        batch_size: number of examples that are evaluated at once.

    Returns:
        Θ [n1, n2, C, C] in the model's precision: Θ[i, j, c, d] = ⟨∂f_c(x1_i)/∂w, ∂f_d(x2_j)/∂w⟩ for the model in
        inference mode.

    Raises:
        ModelError, BackendError: if the model cannot be measured.
        ProbeError: if the model does not accept the examples.
        OptionError: if batch_size is not a positive integer.

    Example:
        For f(x) = w·x the kernel is the Gram matrix of the examples:

        >>> import keras, numpy as np, srel_tf
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> srel_tf.empirical_ntk(model, np.array([[1.0, 2.0], [3.0, 0.0]]))[:, :, 0, 0]
        array([[5., 3.],
               [3., 9.]], dtype=float32)
    """
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise OptionError(
            f"batch_size={batch_size!r}: give a positive number of examples"
        )
    network = Network(model, needs_loss=False)
    warn_of_batch_norm(model)
    first = _examples(x1, network)
    second = first if x2 is None else _examples(x2, network)
    with restored_variable_scope():
        try:
            num_outputs = network.num_outputs(second)
        except ValueError as error:
            shape = second.shape[1:]
            raise ProbeError(
                f"model {model.name!r} does not accept examples of shape {shape}: {error}"
            ) from error
        network.check_examples_apart(second)
        try:
            kernel = _by_layers(
                BatchBackprop(network, second[:2]), num_outputs, batch_size
            )
        except NotSeparable:
            kernel = _by_forward_mode(network, num_outputs, batch_size)
        return network.compiled(kernel)(first, second).numpy()


empirical_kernel = empirical_ntk


def _examples(x: ArrayLike, network: Network) -> tf.Tensor:
    array = np.asarray(x)
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "fiub":
        raise ProbeError(
            f"expected numbers of shape [n, …] with n ≥ 1, got shape {array.shape} of {array.dtype}"
        )
    return tf.constant(array, network.dtype if array.dtype.kind == "f" else None)


def _by_layers(backprop: BatchBackprop, num_outputs: int, batch_size: int) -> Callable:
    """Return a function that computes Θ of x1 and x2 layer by layer."""
    dtype = backprop.network.dtype
    unit_vectors = np.eye(num_outputs)

    def gradients_at(x: tf.Tensor) -> list[list[FactoredGradient]]:
        seeds = [
            tf.constant(np.tile(unit_vector, [x.shape[0], 1]))
            for unit_vector in unit_vectors
        ]
        return backprop.gradients(backprop.forward(x), seeds)

    def kernel(x1: tf.Tensor, x2: tf.Tensor) -> tf.Tensor:
        def rows(x1_batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            firsts = gradients_at(x1_batch)

            def columns(x2_batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
                seconds = gradients_at(x2_batch)
                pairs = [
                    (a, b)
                    for of_a, of_b in zip(firsts, seconds, strict=True)
                    for a in of_a
                    for b in of_b
                ]
                by_output = [
                    tf.add_n([inner(a.only(c), b) for a, b in pairs])
                    for c in range(num_outputs)
                ]
                return (tf.transpose(tf.stack(by_output, axis=2), [1, 0, 2, 3]),)

            return (
                tf.transpose(
                    map_batches(columns, (dtype,), batch_size, x2)[0], [1, 0, 2, 3]
                ),
            )

        return map_batches(rows, (dtype,), batch_size, x1)[0]

    return kernel


def _by_forward_mode(network: Network, num_outputs: int, batch_size: int) -> Callable:
    """Return a function that computes Θ of x1 and x2, for any model.

    The gradient of each output at each example of x1 is a direction in weight space. Forward-mode differentiation
    gives the derivative of the outputs at x2 along this direction.
    """

    def kernel(x1: tf.Tensor, x2: tf.Tensor) -> tf.Tensor:
        weights = [tf.convert_to_tensor(w) for w in network.weights]

        def of_output(index: tf.Tensor) -> tf.Tensor:
            i, c = index // num_outputs, index % num_outputs
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                output = network.outputs(x1[i, None], weights)[0, c]
            gradients = tape.gradient(
                output, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return along(network, "identity", weights, gradients, x2, batch_size)

        indices = tf.range(x1.shape[0] * num_outputs)
        rows = tf.map_fn(
            of_output, indices, fn_output_signature=network.dtype, parallel_iterations=1
        )
        by_example = tf.reshape(
            rows, [x1.shape[0], num_outputs, x2.shape[0], num_outputs]
        )
        return tf.transpose(by_example, [0, 2, 1, 3])

    return kernel
