"""A Keras model as a pure function of its trainable weights.

Every call runs inside `keras.StatelessScope`: whatever a layer or a metric would write (batch-norm statistics, seeds,
losses) is dropped, so that measuring leaves no trace in the model.
"""

import inspect
import warnings

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import BackendError, ModelError, OptionError


class Network:
    """The model that is measured: outputs in inference mode, and the gradient of its compiled loss on one example."""

    def __init__(self, model, needs_loss=True, loss=None):
        check_model(model, needs_loss)
        self.model, self.loss = model, loss
        self.variables = list(model.trainable_variables)
        self.dtype = tf.as_dtype(self.variables[0].dtype)
        self._loss_takes_training = "training" in inspect.signature(model.compute_loss).parameters

    @property
    def weights(self):
        """The live trainable weights w, one tensor or tf.Variable a Keras variable."""
        return [v.value for v in self.variables]

    def outputs(self, x, weights=None):
        """f(x; weights) with `training=False`: [n, C] for x [n, ...]; the live weights when None."""
        with self.scope(weights):
            return self.as_outputs(self.model(x, training=False))

    def num_outputs(self, x):
        """C, from a pass of one example; after it all weights are known, for layers may make theirs when first called
        (an activation that is a layer).
        """
        num_outputs = self.outputs(x[:1]).shape[-1]
        self.variables = list(self.model.trainable_variables)
        return num_outputs

    def loss_gradient(self, x, y, factor, weights=None):
        """factor · ∇_w ℓ(w, (x, y)), one tensor a variable; direction of ∇_x ℓ [1, m]; f(x; w) [1, C], of one example.

        ℓ is the model's own `compute_loss`, regularisation and `add_loss` terms included.
        """
        weights = [tf.convert_to_tensor(w) for w in weights or self.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, *weights])
            predictions, loss = self._predictions_and_loss(x, y, weights)
        by_x, *gradients = self.backward(tape, loss, [x, *weights], factor)
        return gradients, self.unit_rows(by_x), self.as_outputs(predictions)

    def backward(self, tape, loss, sources, factor):
        """factor · ∂loss/∂source for each source, zeros where unconnected, the factor in the network's precision."""
        factor = tf.convert_to_tensor(factor, self.dtype)
        same = loss.dtype == self.dtype
        seed = factor if same else None
        gradients = tape.gradient(loss, sources, seed, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        # A loss in float32 under a net in float64 would round η.
        return gradients if same else [g * tf.cast(factor, g.dtype) for g in gradients]

    def input_direction(self, x, y, weights):
        """∇_x ℓ / ‖∇_x ℓ‖ of each example of a batch as rows [n, m], zeros for integer inputs; and outputs [n, C]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            predictions, loss = self._predictions_and_loss(x, y, weights)
        by_x = tape.gradient(loss, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return self.unit_rows(by_x), self.as_outputs(predictions)

    def has_added_losses(self, x, but_penalties=False):
        """Whether regularisers (if they count), activity regularisers or `add_loss` add to the compiled loss at x."""
        penalties = sum(v.regularizer is not None for v in self.variables) if but_penalties else 0
        with self.scope(self.weights):
            self.model(x, training=False)
            return len(self.model.losses) > penalties

    def keeps_examples_apart(self, x):
        """Whether the outputs at each of a few examples are the same without the others, but for rounding."""
        together = self.outputs(x).numpy()
        alone = np.concatenate([self.outputs(x[i, None]).numpy() for i in range(x.shape[0])])
        return agree(alone, together)

    def unit_rows(self, by_x):
        """Gradients [n, …] as unit rows [n, m]; zeros for an integer input, which has none."""
        if not by_x.dtype.is_floating:
            return tf.zeros([by_x.shape[0], 1], self.dtype)
        rows = tf.reshape(tf.cast(by_x, self.dtype), [by_x.shape[0], -1])
        return tf.math.divide_no_nan(rows, tf.norm(rows, axis=-1, keepdims=True))

    def as_outputs(self, predictions):
        """What the model returned as outputs [n, C] in the network's precision."""
        return tf.cast(as_matrix(predictions, self.model), self.dtype)

    def _predictions_and_loss(self, x, y, weights):
        with self.scope(weights):
            predictions = self.model(x, training=False)
            if self.loss is not None:
                return predictions, self._loss_that_was_given(y, predictions)
            training = {"training": False} if self._loss_takes_training else {}
            return predictions, self.model.compute_loss(x=x, y=y, y_pred=predictions, sample_weight=None, **training)

    def _loss_that_was_given(self, y, predictions):
        """The loss of the settings in place of the compiled one, and penalties as `compute_loss` adds them."""
        loss = self.loss(y, predictions)
        if not tf.is_tensor(loss) or len(loss.shape) > 1:
            shape = getattr(loss, "shape", type(loss).__name__)
            raise OptionError(f"loss={self.loss!r} returned {shape}: give a function (y_true, y_pred) -> [n] or scalar")
        return keras.ops.sum([keras.ops.mean(loss), *(keras.ops.sum(penalty) for penalty in self.model.losses)])

    def scope(self, weights=None):
        """Within it the model has these trainable weights (None: its own), and drops whatever it would write."""
        mapping = [] if weights is None else list(zip(self.variables, weights, strict=True))
        return keras.StatelessScope(mapping, collect_losses=True)


def agree(ours, theirs, share=1e-3):
    """Whether outputs are the same but for rounding: apart by less than a share of the largest of `theirs`."""
    largest = np.abs(theirs).max(initial=0, where=np.isfinite(theirs))
    return np.allclose(ours, theirs, rtol=0, atol=share * largest, equal_nan=True)


def as_matrix(outputs, model):
    """One output tensor as [n, C] (a model that returns [n] has C = 1); `ModelError` where there are others."""
    if not tf.is_tensor(outputs) or not 1 <= len(outputs.shape) <= 2:
        shape = getattr(outputs, "shape", f"a {type(outputs).__name__}")
        raise ModelError(f"model {model.name!r} returns {shape}; S_rel needs one output of shape [n, C]")
    return outputs[:, None] if len(outputs.shape) == 1 else outputs


def check_model(model, needs_loss=True):
    """Raise `ModelError` (or `BackendError`) unless `model` is ready to be measured."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            f"Keras runs on the {keras.backend.backend()!r} backend, srel_tf needs 'tensorflow': set the environment "
            "variable KERAS_BACKEND=tensorflow before keras is imported"
        )
    if not isinstance(model, keras.Model):
        raise ModelError(f"expected a keras.Model, got {type(model).__name__}")
    if not model.built:
        raise ModelError(f"model {model.name!r} is not built: call it once on a batch, or model.build(input_shape)")
    if needs_loss and not model.compiled:
        raise ModelError(f"model {model.name!r} is not compiled and has no loss: call model.compile(optimizer, loss)")
    if not model.trainable_variables:
        raise ModelError(f"model {model.name!r} has no trainable weights: an update moves nothing")
    _check_precision(model)
    if model.distribute_strategy is not tf.distribute.get_strategy():
        raise ModelError(f"model {model.name!r} was built in the scope of a tf.distribute strategy: build it outside")


def warn_of_batch_norm(model):
    """Say once that the fictitious update of a model with batch normalisation is not that of its training."""
    if any(v.path.endswith("moving_mean") for v in model.non_trainable_variables):
        warnings.warn(
            f"model {model.name!r} has batch normalisation: S_rel is measured in inference mode, so the fictitious "
            "update uses the moving statistics and leaves them as they are; training itself uses batch statistics",
            stacklevel=3,
        )


def _check_precision(model):
    weights = {v.dtype for v in model.trainable_variables}
    compute = {layer.compute_dtype for layer in (model, *model.layers)}
    if len(weights) > 1 or not (weights | compute) <= {"float32", "float64"}:
        raise ModelError(
            f"model {model.name!r} has weights in {sorted(weights)} and computes in {sorted(compute)}: half and mixed "
            "precision do not resolve the change of one update; build it with the dtype policy 'float32' or 'float64'"
        )
