"""The solvable models as compiled float64 Keras models, for use with `srel_tf.measure` and `fit`.

Each model uses plain SGD and the per-example loss ℓ of its section of the paper. `fit` converts NumPy arrays to the
default precision of Keras. To train in double precision, pass float64 tensors or call
`keras.config.set_floatx("float64")`.
"""

from typing import Any

import keras
import tensorflow as tf

from srel_tf.theory.checks import ArrayLike, as_tensor, check_last_axis
from srel_tf.theory.homogeneous import HomogeneousPredictor
from srel_tf.theory.penalized import PenalizedRegression
from srel_tf.theory.relu_gate import ReLUGate


class HalfSquaredError(keras.losses.Loss):
    """The loss ½ (y − f)² of eq. 10, summed over outputs and averaged over the batch.

    Keras's mean squared error is 2/K times this loss, for K outputs.

    Args:
        name: Name of the loss.
        dtype: Precision of the loss.
        **kwargs: Further arguments of `keras.losses.Loss`.
    """

    def __init__(
        self, name: str = "half_squared_error", dtype: str = "float64", **kwargs: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype, **kwargs)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each example, [B]."""
        errors = tf.reshape(y_true, tf.shape(y_pred)) - y_pred
        return tf.reduce_sum(errors**2, -1) / 2


class _SingleWeightModel(keras.Model):
    """Base class of models with one float64 weight, which the constructor creates.

    Args:
        w0: Initial weight; its last axis is the input axis.
        rank: Number of axes of the weight.
        weight_name: Name of the weight.
        **kwargs: Further arguments of `keras.Model`.
    """

    def __init__(
        self, w0: ArrayLike, rank: int, weight_name: str, **kwargs: Any
    ) -> None:
        super().__init__(dtype="float64", **kwargs)
        w0 = as_tensor(w0, "w0", rank)
        self._w = self.add_weight(shape=w0.shape, dtype="float64", name=weight_name)
        self._w.assign(w0)
        self.build((None, w0.shape[-1]))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Mark the model as built."""
        self.built = True


class PenalizedModel(_SingleWeightModel):
    """Section 3: the linear last layer W h, [B, K], with ℓ(W; h) = ½‖y − W h‖² + (c/2)‖W‖².

    The penalty is part of `compute_loss`, because Keras adds losses and regularisers in its default precision only.

    Args:
        w0: Initial W, [K, p].
        coefficient: c.
        **kwargs: Further arguments of `keras.Model`.
    """

    def __init__(self, w0: ArrayLike, coefficient: float, **kwargs: Any) -> None:
        super().__init__(w0, rank=2, weight_name="W", **kwargs)
        self._coefficient = coefficient

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Compute predictions, [B, K], from features [B, p]."""
        return tf.matmul(
            tf.cast(x, tf.float64), tf.convert_to_tensor(self._w), transpose_b=True
        )

    def compute_loss(
        self,
        x: tf.Tensor = None,
        y: tf.Tensor = None,
        y_pred: tf.Tensor = None,
        sample_weight: tf.Tensor = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Compute the mean of ℓ over the batch, a scalar."""
        labels = tf.cast(y, tf.float64)
        errors = labels - y_pred
        losses = tf.reduce_sum(errors**2, -1) / 2
        weights = tf.convert_to_tensor(self._w)
        square_norm = tf.reduce_sum(weights**2)
        penalty = self._coefficient / 2 * square_norm
        return tf.reduce_mean(losses) + penalty


def penalized_network(
    regression: PenalizedRegression,
    w0: ArrayLike,
    learning_rate: float,
) -> PenalizedModel:
    """Build the Keras model of a `PenalizedRegression`, with the penalty that its option `ridge` selects.

    Full-batch training follows the flow of Definition 4: one step η advances the time of the flow by η/θ². To measure
    the S_rel of Theorem 3.2, use the measure "l2" with `predictions="raw"`.

    Args:
        regression: The closed form.
        w0: Initial W, [K, p].
        learning_rate: η of the model's SGD.

    Returns:
        Compiled model. Its inputs are rows of features [B, p], and its labels are one-hot rows [B, K].

    Raises:
        ShapeError: `w0` has the wrong shape.

    Example:
        >>> import numpy as np
        >>> from srel_tf import theory
        >>> regression = theory.PenalizedRegression([[1.0, 0.0], [0.0, 2.0]], [0, 1], num_classes=2, lam=0.1, theta=1.0)
        >>> model = theory.penalized_network(regression, w0=np.eye(2), learning_rate=0.1)
        >>> print(model(np.array([[1.0, 0.0]])).numpy())
        [[1. 0.]]
    """
    w0 = as_tensor(w0, "w0", 2)
    check_last_axis(w0, regression.width, "w0", "one weight per feature")
    model = PenalizedModel(w0, regression.coefficient, name="penalized_regression")
    model.compile(keras.optimizers.SGD(learning_rate), jit_compile=False)
    return model


class ReLUGateModel(_SingleWeightModel):
    """Section 4: the model max(0, ⟨w, x⟩), [B, 1], with a loss whose gradient is the proxy of Algorithm 1 (eq. 8).

    ℓ(w, (x, y)) = (β/2) 1{y > 0} (y − ⟨w, x⟩)² with the labels y = max(0, ⟨w*, x⟩). This is not the ℓ2 risk, because
    the error contains ⟨w, x⟩ before the ReLU.

    Args:
        w0: Initial w, [n].
        beta: β > 0.
        **kwargs: Further arguments of `keras.Model`.
    """

    def __init__(self, w0: ArrayLike, beta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(w0, rank=1, weight_name="w", **kwargs)
        self._beta = beta

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Compute predictions, [B, 1], from inputs [B, n]."""
        return tf.nn.relu(self._preactivation(x))

    def compute_loss(
        self,
        x: tf.Tensor = None,
        y: tf.Tensor = None,
        y_pred: tf.Tensor = None,
        sample_weight: tf.Tensor = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Compute the mean of ℓ over the batch, a scalar. x is needed, because ℓ contains ⟨w, x⟩ before the ReLU."""
        labels = tf.cast(y, tf.float64)
        labels = tf.reshape(labels, [-1, 1])
        is_positive = labels > 0
        is_sampled = tf.cast(is_positive, tf.float64)
        errors = labels - self._preactivation(x)
        losses = is_sampled * errors**2
        return self._beta / 2 * tf.reduce_mean(losses)

    def _preactivation(self, x: tf.Tensor) -> tf.Tensor:
        """Compute ⟨w, x⟩, [B, 1]."""
        return tf.linalg.matvec(tf.cast(x, tf.float64), tf.convert_to_tensor(self._w))[
            :, None
        ]


def relu_gate_network(
    gate: ReLUGate,
    w0: ArrayLike,
    learning_rate: float,
) -> ReLUGateModel:
    """Build the Keras model of a `ReLUGate`.

    One step of the model's SGD advances the time of the flow by η on average.

    Args:
        gate: The closed form.
        w0: Initial w, [n].
        learning_rate: η of the model's SGD.

    Returns:
        Compiled model. Its inputs are x, [B, n], and its labels are max(0, ⟨w*, x⟩).

    Raises:
        ShapeError: `w0` has the wrong shape.

    Example:
        >>> import numpy as np
        >>> from srel_tf import theory
        >>> model = theory.relu_gate_network(theory.ReLUGate([1.0, 1.0]), w0=[1.0, 0.0], learning_rate=0.1)
        >>> print(model(np.array([[2.0, 5.0], [-2.0, 5.0]])).numpy())
        [[2.]
         [0.]]
    """
    w0 = as_tensor(w0, "w0", 1)
    check_last_axis(w0, gate.dimension, "w0", "as many as w_star")
    model = ReLUGateModel(w0, gate.beta, name="relu_gate")
    model.compile(keras.optimizers.SGD(learning_rate), jit_compile=False)
    return model


class HomogeneousLayer(keras.layers.Layer):
    """Definition 6 as a layer: α(x) + Σ_r ⟨β_r(x), w_r^d⟩, [B, 1], with the trainable weights W [r, n].

    Args:
        predictor: α, β and d.
        w0: Initial W, [r, n].
        **kwargs: Further arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, predictor: HomogeneousPredictor, w0: ArrayLike, **kwargs: Any
    ) -> None:
        super().__init__(dtype="float64", **kwargs)
        w0 = as_tensor(w0, "w0", 2)
        self._predictor = predictor
        self._w = self.add_weight(shape=w0.shape, dtype="float64", name="W")
        self._w.assign(w0)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Compute predictions, [B, 1], from inputs [B, ...]."""
        powers = tf.convert_to_tensor(self._w) ** self._predictor.degree
        features = tf.cast(self._predictor.beta(x), tf.float64)
        offset = tf.cast(self._predictor.alpha(x), tf.float64)
        return (offset + tf.einsum("brn,rn->b", features, powers))[:, None]

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, int]:
        """Return (B, 1): one output per input."""
        return (input_shape[0], 1)


def homogeneous_network(
    predictor: HomogeneousPredictor,
    w0: ArrayLike,
    input_shape: tuple[int, ...],
    learning_rate: float,
) -> keras.Model:
    """Build a `HomogeneousPredictor` as a Keras model with the loss of eq. 10 (Section 5).

    One step η of full-batch training advances the time of the flow of Definition 7 by η/θ. The diagonal case of
    Theorem 5.2 is the predictor of degree 2 with one row, β(x) = (β_11(x), …, β_nn(x)).

    Args:
        predictor: The closed form. Its α and β must consist of TensorFlow operations.
        w0: Initial W, [r, n].
        input_shape: Shape of one input, for example (3,).
        learning_rate: η of the model's SGD.

    Returns:
        Compiled model with outputs [B, 1].

    Example:
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> from srel_tf import theory
        >>> squares = theory.HomogeneousPredictor(lambda x: tf.zeros_like(x[:, 0]), lambda x: x[:, None], degree=2)
        >>> model = theory.homogeneous_network(squares, [[1.0, 2.0]], input_shape=(2,), learning_rate=0.1)
        >>> print(model(np.array([[1.0, 1.0]])).numpy())
        [[5.]]
    """
    inputs = keras.Input(input_shape, dtype="float64")
    outputs = HomogeneousLayer(predictor, w0)(inputs)
    model = keras.Model(inputs, outputs, name="homogeneous_predictor")
    model.compile(
        keras.optimizers.SGD(learning_rate), HalfSquaredError(), jit_compile=False
    )
    return model
