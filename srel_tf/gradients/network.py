"""A Keras model as a pure function of its trainable weights.

Every call runs inside `keras.StatelessScope`: whatever a layer or a metric would write (batch-norm statistics, seeds,
losses) is dropped, so that measuring leaves no trace in the model.
"""

import contextlib
import inspect
import warnings

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import BackendError, ModelError, OptionError
from srel_tf.gradients.convolution import convolutions_of, quick_convolutions
from srel_tf.gradients.precision import computing_in, inspection, layers_within, switches_to


class Network:
    """The model that is measured: outputs in inference mode, and the gradient of its compiled loss on one example.

    dtype: what it computes in; None takes that of its weights. The model itself stays as it is.
    loss: a function (y, outputs) -> [n] or scalar in place of the compiled loss, or None.
    """

    def __init__(self, model, needs_loss=True, dtype=None, loss=None):
        check_model(model, needs_loss)
        self.model, self.loss = model, loss
        self.dtype = tf.as_dtype(dtype or own_precision(model))
        self._loss_takes_training = "training" in inspect.signature(model.compute_loss).parameters
        self._look_at_model()

    def _look_at_model(self):
        """Take down the weights and layers that there are now: a layer may make its own when it is first called."""
        self.variables = list(self.model.trainable_variables)
        floating = [v for v in self.model.variables if keras.backend.is_float_dtype(v.dtype)]
        # The variables of TensorFlow behind Keras's own, whose values a `StatelessScope` replaces.
        self.to_be_cast = {id(v): v.value for v in floating if v.dtype != self.dtype.name}
        self._switches = switches_to(self.dtype, self.model)
        self._convolutions = convolutions_of(layers_within(self.model))

    def in_precision(self, dtype):
        """The same model as a network that computes in `dtype`."""
        return type(self)(self.model, needs_loss=self.model.compiled, dtype=dtype, loss=self.loss)

    @property
    def weights(self):
        """The live trainable weights w in the network's precision, one tensor or tf.Variable a Keras variable."""
        return [self.cast(v.value) for v in self.variables]

    def cast(self, tensor):
        """Floating-point numbers in the network's precision; integers as they are."""
        same = tensor.dtype == self.dtype or not tensor.dtype.is_floating
        return tensor if same else tf.cast(tensor, self.dtype)

    def outputs(self, x, weights=None):
        """f(x; weights) with `training=False`: [n, C] for x [n, ...]; the live weights when None."""
        with self.scope(weights):
            return self.as_outputs(self.model(x, training=False))

    def num_outputs(self, x):
        """C, from a pass of one example; after it all weights are known, for layers may make theirs when first called
        (an activation that is a layer).
        """
        num_outputs = self.outputs(x[:1]).shape[-1]
        self._look_at_model()
        return num_outputs

    def inspect(self, x, y):
        """Trace a forward pass and the loss of an example [1, …], and refuse what is no function of weights and
        example in the network's precision.

        Sets `opaque`, the name of an operation that a derivative does not see, and `activation`, "softmax",
        "log_softmax" or "sigmoid" if that is the model's last operation; None stands for any other. Of a model that
        runs eagerly nobody sees the operations: it is believed.
        """
        self.opaque = self.activation = None
        if self.model.run_eagerly:
            self.activation = eager_activation(self.outputs(x))
            return
        last = []

        @tf.function(autograph=False, jit_compile=False)
        def forward(weights):
            predictions, loss = self.predictions_and_loss(x, y, weights)
            last.append(predictions)
            return self.as_outputs(predictions), loss

        weights = [tf.TensorSpec(v.shape, self.dtype) for v in self.variables]
        graph = forward.get_concrete_function(weights).graph
        found = inspection(graph, graph.inputs[: len(weights)], self.dtype)
        name, self.opaque, self.activation = self.model.name, found.opaque, activation_of(last[-1])
        if found.random:
            raise ModelError(
                f"model {name!r} draws random numbers in inference mode (operation {found.random!r}), so that its "
                "predictions move without any update: draw only if training=True"
            )
        if found.coarse:
            raise ModelError(
                f"operation {found.coarse!r} of model {name!r} computes in less than {self.dtype.name} whatever its "
                "layers' precision is: take the cast out of it, or let it cast to the type of its input"
            )

    def loss_gradient(self, x, y, factor, weights=None):
        """factor · ∇_w ℓ(w, (x, y)), one tensor a variable; f(x; w) [1, C], of one example.

        ℓ is the model's own `compute_loss`, regularisation and `add_loss` terms included.
        """
        weights = [tf.convert_to_tensor(w) for w in weights or self.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            predictions, loss = self.predictions_and_loss(x, y, weights)
        return self.backward(tape, loss, weights, factor), self.as_outputs(predictions)

    def backward(self, tape, loss, sources, factor):
        """factor · ∂loss/∂source for each source, zeros where unconnected, the factor in the network's precision."""
        factor = tf.convert_to_tensor(factor, self.dtype)
        same = loss.dtype == self.dtype
        seed = factor if same else None
        gradients = tape.gradient(loss, sources, seed, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        # A loss in float32 under a net in float64 would round η.
        return gradients if same else [g * tf.cast(factor, g.dtype) for g in gradients]

    def check_examples_apart(self, x):
        """`ModelError` where the outputs at an example depend on the others of its batch."""
        if not self.keeps_examples_apart(x[:2]):
            raise ModelError(
                f"the outputs of model {self.model.name!r} at an example depend on the other examples of the batch, so "
                "that S_rel of two examples is not defined: take statistics of the batch out of inference mode"
            )

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

    def as_outputs(self, predictions):
        """What the model returned as outputs [n, C] in the network's precision."""
        return tf.cast(as_matrix(predictions, self.model), self.dtype)

    def predictions_and_loss(self, x, y, weights):
        """What the model returns for x, and the loss of these examples, with these weights."""
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

    @contextlib.contextmanager
    def scope(self, weights=None, kind=None):
        """Within it the model computes in the network's precision and drops whatever it would write.

        weights: the trainable weights that it has there, in that precision; None takes its own.
        Hands out the `Scope`, or a subclass `kind` of it.
        """
        scope = (kind or Scope)(self)
        for update in zip(self.variables, weights, strict=True) if weights is not None else ():
            scope.add_update(update)  # The constructor's mapping would be cast to the variables' own precision.
        with computing_in(self.dtype, self._switches), quick_convolutions(self._convolutions), scope:
            yield scope


class Scope(keras.StatelessScope):
    """Variables of another precision than a network's have their values cast; what is written is dropped."""

    def __init__(self, network):
        super().__init__(collect_losses=True)
        self._network = network

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None and id(variable) in self._network.to_be_cast:
            value = self._network.cast(self._network.to_be_cast[id(variable)])
        return value


ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}  # By TensorFlow's operations.


def activation_of(output):
    """The activation that a tensor of a graph is the result of, one of `ACTIVATIONS`, or None."""
    op = output.op
    while op.type == "Identity":
        op = op.inputs[0].op
    return ACTIVATIONS.get(op.type)


def eager_activation(outputs):
    """The same of outputs without a graph, with which Keras keeps what its softmax or sigmoid was taken of."""
    logits = getattr(outputs, "_keras_logits", None)
    if logits is None:
        return None
    fitting = [a for a in ("softmax", "sigmoid") if np.array_equal(outputs, keras.activations.get(a)(logits))]
    return fitting[0] if len(fitting) == 1 else None


def own_precision(model):
    """The precision in which a model is measured as it is: float64 for float64 weights, else float32.

    Models of half or mixed precision are measured in float32, in which they hold their weights.
    """
    return "float64" if {v.dtype for v in model.trainable_variables} == {"float64"} else "float32"


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
