"""The linearised network of Lee et al. (2019), the case d = 1 of Definition 6."""

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory.homogeneous import HomogeneousPredictor


def linearized_network(model: keras.Model) -> tuple[HomogeneousPredictor, tf.Tensor]:
    """Build the linearised network of Lee et al. (2019), the case d = 1 of Definition 6 (remark below the definition).

    α(x) = f(W₀, x) − ⟨J(x), W₀⟩ and β(x) = J(x), where J is the Jacobian of the network at its current weights W₀. The
    weights are copied, so later training of the network does not change the predictor. All P trainable parameters form
    one row (r = 1, n = P), in the order of `model.trainable_variables`.

    Args:
        model: Built Keras model with one output per example, [B, 1] or [B]. Its dtype should be float64, because the
            Jacobian is computed in the precision of the model.

    Returns:
        The predictor, and W₀ [1, P].

    Raises:
        ShapeError: The model is not built, or has more than one output.

    Example:
        >>> import keras
        >>> from srel_tf import theory
        >>> layer = keras.layers.Dense(1, kernel_initializer="ones", dtype="float64")
        >>> network = keras.Sequential([keras.Input((2,), dtype="float64"), layer])
        >>> predictor, weights = theory.linearized_network(network)
        >>> print(weights.numpy(), predictor(weights, [1.0, 2.0]).numpy())
        [[1. 1. 0.]] 3.0
    """
    if not model.built:
        raise ShapeError(
            "The model has no weights yet. Call it once, or give it an input shape, before linearising it."
        )
    trainable = [tf.identity(variable) for variable in model.trainable_variables]
    fixed = [tf.identity(variable) for variable in model.non_trainable_variables]
    flat_start = [
        tf.reshape(tf.cast(variable, tf.float64), [-1]) for variable in trainable
    ]
    start = tf.concat(flat_start, 0)  # [P]

    def outputs(x: tf.Tensor) -> tf.Tensor:
        values, _ = model.stateless_call(trainable, fixed, x, training=False)
        if int(np.prod(values.shape[1:])) != 1:
            raise ShapeError(
                f"Definition 6 has one output per input, but the model returns shape {tuple(values.shape)}; "
                "give a model with outputs [B, 1] or [B]."
            )
        return tf.reshape(values, [-1])

    def values_and_jacobian(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Outputs [B] and Jacobian [B, P]."""
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            values = outputs(x)
        parts = tape.jacobian(values, trainable, unconnected_gradients="zero")
        count = values.shape[0]
        parts64 = [tf.cast(part, tf.float64) for part in parts]
        flat_parts = [tf.reshape(part, [count, -1]) for part in parts64]
        jacobian = tf.concat(flat_parts, 1)
        return tf.cast(values, tf.float64), jacobian

    def alpha(x: tf.Tensor) -> tf.Tensor:
        values, jacobian = values_and_jacobian(x)
        return values - tf.linalg.matvec(jacobian, start)

    def beta(x: tf.Tensor) -> tf.Tensor:
        _, jacobian = values_and_jacobian(x)
        return jacobian[:, None, :]

    return HomogeneousPredictor(alpha, beta, degree=1), start[None]
