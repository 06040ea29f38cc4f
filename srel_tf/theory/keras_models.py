"""The solvable models as compiled float64 Keras models, so that `srel_tf.measure` and `fit` work on them.

Each has the per-example loss ℓ of its section and plain SGD. Keras feeds NumPy arrays to `fit` in its default
precision: pass float64 tensors (or call `keras.config.set_floatx("float64")`) to train in double precision.
"""

import keras
import tensorflow as tf

from srel_tf.theory.checks import as_tensor, check_last_axis


class HalfSquaredError(keras.losses.Loss):
    """½ (y − f)² summed over outputs and averaged over the batch (eq. 10); Keras's mean squared error is 2/K of it."""

    def __init__(self, name="half_squared_error", dtype="float64", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)

    def call(self, y_true, y_pred):
        """One number an example, [B]."""
        return tf.reduce_sum((tf.reshape(y_true, tf.shape(y_pred)) - y_pred) ** 2, -1) / 2


class PenalizedModel(keras.Model):
    """Section 3: the linear last layer W h, [B, K], with ℓ(W; h) = ½‖y − W h‖² + (c/2)‖W‖².

    The penalty is part of `compute_loss`: Keras adds up loss and regularisers in its default precision only.
    """

    def __init__(self, w0, coefficient, **kwargs):
        super().__init__(dtype="float64", **kwargs)
        w0 = as_tensor(w0, "w0", 2)
        self._coefficient = coefficient
        self._w = self.add_weight(shape=w0.shape, dtype="float64", name="W")
        self._w.assign(w0)
        self.build((None, w0.shape[1]))

    def build(self, input_shape):
        """The weight exists already: nothing depends on the shape of the inputs."""
        self.built = True

    def call(self, x):
        """Predictions, [B, K]."""
        return tf.matmul(tf.cast(x, tf.float64), tf.convert_to_tensor(self._w), transpose_b=True)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean over the batch of ℓ."""
        errors = tf.reduce_sum((tf.cast(y, tf.float64) - y_pred) ** 2, -1) / 2
        return tf.reduce_mean(errors) + self._coefficient / 2 * tf.reduce_sum(tf.convert_to_tensor(self._w) ** 2)


def penalized_network(regression, w0, learning_rate):
    """The Keras model of a `PenalizedRegression`, with the penalty of its `ridge`.

    Full-batch training is the flow of Definition 4: one step η advances its time by η/θ². The S_rel of Theorem 3.2
    is measured as "l2" on raw outputs.

    Args:
        regression: `PenalizedRegression`. w0: [K, p]. learning_rate: η of its SGD.

    Returns:
        A compiled `PenalizedModel`; inputs are rows of features [B, p], labels one-hot rows [B, K].
    """
    w0 = as_tensor(w0, "w0", 2)
    check_last_axis(w0, regression.width, "w0", "one weight a feature")
    model = PenalizedModel(w0, regression.coefficient, name="penalized_regression")
    model.compile(keras.optimizers.SGD(learning_rate), jit_compile=False)
    return model


class ReLUGateModel(keras.Model):
    """Section 4: max(0, ⟨w, x⟩), [B, 1], whose loss has the gradient proxy of Algorithm 1 (eq. 8), not the ℓ2 risk's.

    ℓ(w, (x, y)) = (β/2) 1{y > 0} (y − ⟨w, x⟩)² with the labels y = max(0, ⟨w*, x⟩).
    """

    def __init__(self, w0, beta=1.0, **kwargs):
        super().__init__(dtype="float64", **kwargs)
        w0 = as_tensor(w0, "w0", 1)
        self._beta = beta
        self._w = self.add_weight(shape=w0.shape, dtype="float64", name="w")
        self._w.assign(w0)
        self.build((None, w0.shape[0]))

    def build(self, input_shape):
        """The weight exists already: nothing depends on the shape of the inputs."""
        self.built = True

    def call(self, x):
        """Predictions, [B, 1]."""
        return tf.nn.relu(self._inner(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean over the batch of ℓ; reads x, since the loss is of ⟨w, x⟩ before the ReLU."""
        y = tf.reshape(tf.cast(y, tf.float64), [-1, 1])
        sampled = tf.cast(y > 0, tf.float64)
        return self._beta / 2 * tf.reduce_mean(sampled * (y - self._inner(x)) ** 2)

    def _inner(self, x):
        return tf.linalg.matvec(tf.cast(x, tf.float64), tf.convert_to_tensor(self._w))[:, None]


def relu_gate_network(gate, w0, learning_rate):
    """The Keras model of a `ReLUGate`: one step η of its SGD advances the flow's time by η on average.

    Args:
        gate: `ReLUGate`. w0: [n]. learning_rate: η of its SGD.

    Returns:
        A compiled `ReLUGateModel`; inputs [B, n], labels max(0, ⟨w*, x⟩).
    """
    w0 = as_tensor(w0, "w0", 1)
    check_last_axis(w0, gate.dimension, "w0", "as many as w_star")
    model = ReLUGateModel(w0, gate.beta, name="relu_gate")
    model.compile(keras.optimizers.SGD(learning_rate), jit_compile=False)
    return model


class HomogeneousLayer(keras.layers.Layer):
    """Definition 6 as a layer: α(x) + Σ_r ⟨β_r(x), w_r^d⟩, [B, 1], with the trainable weights W [r, n]."""

    def __init__(self, predictor, w0, **kwargs):
        super().__init__(dtype="float64", **kwargs)
        w0 = as_tensor(w0, "w0", 2)
        self._predictor = predictor
        self._w = self.add_weight(shape=w0.shape, dtype="float64", name="W")
        self._w.assign(w0)

    def call(self, x):
        """Predictions, [B, 1]."""
        powers = tf.convert_to_tensor(self._w) ** self._predictor.degree
        features = tf.cast(self._predictor.beta(x), tf.float64)
        offset = tf.cast(self._predictor.alpha(x), tf.float64)
        return (offset + tf.einsum("brn,rn->b", features, powers))[:, None]

    def compute_output_shape(self, input_shape):
        """One output an input."""
        return (input_shape[0], 1)


def homogeneous_network(predictor, w0, input_shape, learning_rate):
    """Section 5: a `HomogeneousPredictor` as a Keras model with the loss of eq. 10.

    One step η of full-batch training advances the time of Definition 7 by η/θ. The diagonal case of Theorem 5.2 is
    the predictor with one row, β(x) = (β_11(x), …, β_nn(x)), and degree 2.

    Args:
        predictor: `HomogeneousPredictor` whose α and β are TensorFlow functions. w0: [r, n].
        input_shape: of one input, for example (3,). learning_rate: η of its SGD.

    Returns:
        A compiled `keras.Model`; outputs [B, 1].
    """
    inputs = keras.Input(input_shape, dtype="float64")
    model = keras.Model(inputs, HomogeneousLayer(predictor, w0)(inputs), name="homogeneous_predictor")
    model.compile(keras.optimizers.SGD(learning_rate), HalfSquaredError(), jit_compile=False)
    return model
