"""A Keras model as a pure function of its trainable weights.

Every call runs inside `keras.StatelessScope`: all writes of layers and metrics (batch-norm statistics, seeds,
losses) are dropped, so that measuring leaves the model unchanged.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import BackendError, ModelError, OptionError
from srel_tf.gradients.convolution import convolutions_of, quick_convolutions
from srel_tf.gradients.precision import (
    computing_in,
    inspection,
    layers_within,
    switches_to,
)


class Network:
    """The measured model: its outputs in inference mode, and the gradient of its compiled loss on one example.

    Args:
        model: a built Keras model, which is not changed.
        needs_loss: whether it must be compiled.
        dtype: the precision to compute in; None means the precision of the weights.
        loss: a function (y, outputs) -> [n] or scalar that replaces the compiled loss, or None.

    Raises:
        ModelError, BackendError: see `check_model`.
    """

    def __init__(
        self,
        model: keras.Model,
        needs_loss: bool = True,
        dtype: str | tf.DType | None = None,
        loss: Callable | None = None,
    ) -> None:
        check_model(model, needs_loss)
        self.model, self.loss = model, loss
        self.dtype = tf.as_dtype(dtype or own_precision(model))
        self._loss_takes_training = (
            "training" in inspect.signature(model.compute_loss).parameters
        )
        self._look_at_model()

    def _look_at_model(self) -> None:
        """Collect the current weights and layers. A layer may create its weights when it is first called."""
        self.variables = list(self.model.trainable_variables)
        floating = [
            v for v in self.model.variables if keras.backend.is_float_dtype(v.dtype)
        ]
        # The variables of TensorFlow behind Keras's own, whose values a `StatelessScope` replaces.
        self.to_be_cast = {
            id(v): v.value for v in floating if v.dtype != self.dtype.name
        }
        self._switches = switches_to(self.dtype, self.model)
        self._convolutions = convolutions_of(layers_within(self.model))

    def in_precision(self, dtype: str | tf.DType) -> "Network":
        """Return a network of the same model that computes in `dtype`."""
        return type(self)(
            self.model, needs_loss=self.model.compiled, dtype=dtype, loss=self.loss
        )

    @property
    def weights(self) -> list:
        """The current trainable weights w in the network's precision: a tensor or tf.Variable for each variable."""
        return [self.cast(v.value) for v in self.variables]

    def cast(self, tensor: tf.Tensor) -> tf.Tensor:
        """Cast floating-point numbers to the network's precision; return integers unchanged."""
        same = tensor.dtype == self.dtype or not tensor.dtype.is_floating
        return tensor if same else tf.cast(tensor, self.dtype)

    def outputs(self, x: tf.Tensor, weights: list | None = None) -> tf.Tensor:
        """Return f(x; weights) [n, C] with `training=False` for x [n, ...]; None means the current weights."""
        with self.scope(weights):
            return self.as_outputs(self.model(x, training=False))

    def num_outputs(self, x: tf.Tensor) -> int:
        """Return C, from a forward pass of one example, after which all layers have created their weights."""
        num_outputs = self.outputs(x[:1]).shape[-1]
        self._look_at_model()
        return num_outputs

    def inspect(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """Trace the forward pass and the loss of one example x, y [1, ...] and inspect the operations.

        Sets `opaque`, the name of an operation without a derivative, or None; and `activation`, "softmax",
        "log_softmax" or "sigmoid" if that is the model's last operation, else None. The operations of a model that
        runs eagerly cannot be inspected.

        Raises:
            ModelError: if outputs or loss draw random numbers, or are computed in lower precision than the network's.
        """
        self.opaque: str | None = None
        self.activation: str | None = None
        if self.model.run_eagerly:
            self.activation = eager_activation(self.outputs(x))
            return
        last = []

        @tf.function(autograph=False, jit_compile=False)
        def forward(weights: list) -> tuple[tf.Tensor, tf.Tensor]:
            predictions, loss = self.predictions_and_loss(x, y, weights)
            last.append(predictions)
            return self.as_outputs(predictions), loss

        weights = [tf.TensorSpec(v.shape, self.dtype) for v in self.variables]
        graph = forward.get_concrete_function(weights).graph
        found = inspection(graph, graph.inputs[: len(weights)], self.dtype)
        name, self.opaque, self.activation = (
            self.model.name,
            found.opaque,
            activation_of(last[-1]),
        )
        if found.random:
            raise ModelError(
                f"model {name!r} draws random numbers in inference mode (operation {found.random!r}), so that its "
                "predictions move without any update: draw only if training=True"
            )
        if found.coarse:
            raise ModelError(
                f"operation {found.coarse!r} of model {name!r} computes in lower precision than {self.dtype.name}, "
                f"whatever its "
                "layers' precision is: take the cast out of it, or let it cast to the type of its input"
            )

    def loss_gradient(
        self,
        x: tf.Tensor,
        y: tf.Tensor,
        factor: tf.Tensor | float,
        weights: list | None = None,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Return factor · ∇_w ℓ(w, (x, y)), one tensor per variable, and f(x; w) [1, C], for one example.

        ℓ is the model's own `compute_loss`, with regularisation and `add_loss` terms.
        """
        weights = [tf.convert_to_tensor(w) for w in weights or self.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            predictions, loss = self.predictions_and_loss(x, y, weights)
        return self.backward(tape, loss, weights, factor), self.as_outputs(predictions)

    def backward(
        self,
        tape: tf.GradientTape,
        loss: tf.Tensor,
        sources: list,
        factor: tf.Tensor | float,
    ) -> list[tf.Tensor]:
        """Return factor · ∂loss/∂source for each source, zeros if unconnected; the factor has the network's dtype."""
        factor = tf.convert_to_tensor(factor, self.dtype)
        same = loss.dtype == self.dtype
        seed = factor if same else None
        gradients = tape.gradient(
            loss, sources, seed, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        # The factor has the network's dtype: a float32 loss of a float64 net would round η.
        return gradients if same else [g * tf.cast(factor, g.dtype) for g in gradients]

    def check_examples_apart(self, x: tf.Tensor) -> None:
        """Raise `ModelError` if the outputs at an example depend on the other examples of its batch."""
        if not self.keeps_examples_apart(x[:2]):
            raise ModelError(
                f"the outputs of model {self.model.name!r} at an example depend on the other examples of the batch, so "
                "that S_rel of two examples is not defined: take statistics of the batch out of inference mode"
            )

    def has_added_losses(self, x: tf.Tensor, but_penalties: bool = False) -> bool:
        """Return whether regularisers, activity regularisers or `add_loss` add to the compiled loss at x.

        If `but_penalties` is True, regularisers of weights are left out.
        """
        penalties = (
            sum(v.regularizer is not None for v in self.variables)
            if but_penalties
            else 0
        )
        with self.scope(self.weights):
            self.model(x, training=False)
            return len(self.model.losses) > penalties

    def keeps_examples_apart(self, x: tf.Tensor) -> bool:
        """Return whether the outputs at each example are the same in a batch and alone, apart from rounding."""
        together = self.outputs(x).numpy()
        alone = np.concatenate(
            [self.outputs(x[i, None]).numpy() for i in range(x.shape[0])]
        )
        return agree(alone, together)

    def as_outputs(self, predictions: Any) -> tf.Tensor:
        """Return the model's predictions as outputs [n, C] in the network's precision."""
        return tf.cast(as_matrix(predictions, self.model), self.dtype)

    def predictions_and_loss(
        self, x: tf.Tensor, y: tf.Tensor, weights: list
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the model's predictions for x and the loss of these examples, with these weights."""
        with self.scope(weights):
            predictions = self.model(x, training=False)
            if self.loss is not None:
                return predictions, self._loss_of_settings(y, predictions)
            training = {"training": False} if self._loss_takes_training else {}
            return predictions, self.model.compute_loss(
                x=x, y=y, y_pred=predictions, sample_weight=None, **training
            )

    def _loss_of_settings(self, y: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
        """Return the loss given by the user plus penalties, as `compute_loss` adds them."""
        assert self.loss is not None
        loss = self.loss(y, predictions)
        if not tf.is_tensor(loss) or len(loss.shape) > 1:
            shape = getattr(loss, "shape", type(loss).__name__)
            raise OptionError(
                f"loss={self.loss!r} returned {shape}: give a function (y_true, y_pred) -> [n] or scalar"
            )
        return keras.ops.sum(
            [
                keras.ops.mean(loss),
                *(keras.ops.sum(penalty) for penalty in self.model.losses),
            ]
        )

    @contextlib.contextmanager
    def scope(
        self,
        weights: list | None = None,
        kind: Callable[["Network"], "Scope"] | None = None,
    ) -> Iterator:
        """Make the model compute in the network's precision within the context, and drop all its writes.

        Args:
            weights: the trainable weights to use, in that precision; None means the model's own.
            kind: function that makes the yielded `Scope`, for example a subclass.
        """
        scope = (kind or Scope)(self)
        for update in (
            zip(self.variables, weights, strict=True) if weights is not None else ()
        ):
            scope.add_update(
                update
            )  # A mapping given to the constructor would be cast to the variables' own precision.
        with (
            computing_in(self.dtype, self._switches),
            quick_convolutions(self._convolutions),
            scope,
        ):
            yield scope


class Scope(keras.StatelessScope):
    """Cast the values of variables to a network's precision, and drop all writes."""

    def __init__(self, network: Network) -> None:
        super().__init__(collect_losses=True)
        self._network = network

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor:
        value = super().get_current_value(variable)
        if value is None and id(variable) in self._network.to_be_cast:
            value = self._network.cast(self._network.to_be_cast[id(variable)])
        return value


ACTIVATIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
}  # The activation of each TensorFlow operation.


def activation_of(output: tf.Tensor) -> str | None:
    """Return the activation (one of `ACTIVATIONS`) that produced a graph's tensor, or None."""
    op = output.op
    while op.type == "Identity":
        op = op.inputs[0].op
    return ACTIVATIONS.get(op.type)


def eager_activation(outputs: tf.Tensor) -> str | None:
    """Return the activation of an eager tensor, to which Keras attaches the logits of a softmax or sigmoid."""
    logits = getattr(outputs, "_keras_logits", None)
    if logits is None:
        return None
    fitting = [
        a
        for a in ("softmax", "sigmoid")
        if np.array_equal(outputs, keras.activations.get(a)(logits))
    ]
    return fitting[0] if len(fitting) == 1 else None


def own_precision(model: keras.Model) -> str:
    """Return "float64" for a model whose weights are all float64, else "float32".

    Models of half or mixed precision are measured in float32, the precision of their master weights.
    """
    return (
        "float64"
        if {v.dtype for v in model.trainable_variables} == {"float64"}
        else "float32"
    )


def agree(ours: np.ndarray, theirs: np.ndarray, share: float = 1e-3) -> bool:
    """Return whether outputs are equal apart from rounding, relative to the largest entry of `theirs`."""
    largest = np.abs(theirs).max(initial=0, where=np.isfinite(theirs))
    return np.allclose(ours, theirs, rtol=0, atol=share * largest, equal_nan=True)


def as_matrix(outputs: Any, model: keras.Model) -> tf.Tensor:
    """Return one output tensor as [n, C]; a model that returns [n] has C = 1. `ModelError` for anything else."""
    if not tf.is_tensor(outputs) or not 1 <= len(outputs.shape) <= 2:
        shape = getattr(outputs, "shape", f"a {type(outputs).__name__}")
        raise ModelError(
            f"model {model.name!r} returns {shape}; S_rel needs one output of shape [n, C]"
        )
    return outputs[:, None] if len(outputs.shape) == 1 else outputs


def check_model(model: Any, needs_loss: bool = True) -> None:
    """Raise `ModelError` or `BackendError` unless `model` is ready to be measured."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            f"Keras runs on the {keras.backend.backend()!r} backend, but srel_tf needs 'tensorflow': set the "
            f"environment "
            "variable KERAS_BACKEND=tensorflow before keras is imported"
        )
    if not isinstance(model, keras.Model):
        raise ModelError(f"expected a keras.Model, got {type(model).__name__}")
    if not model.built:
        raise ModelError(
            f"model {model.name!r} is not built: call it once on a batch, or model.build(input_shape)"
        )
    if needs_loss and not model.compiled:
        raise ModelError(
            f"model {model.name!r} is not compiled and has no loss: call model.compile(optimizer, loss)"
        )
    if not model.trainable_variables:
        raise ModelError(
            f"model {model.name!r} has no trainable weights: an update changes nothing"
        )
    if model.distribute_strategy is not tf.distribute.get_strategy():
        raise ModelError(
            f"model {model.name!r} was built in the scope of a tf.distribute strategy: build it outside"
        )


def warn_of_batch_norm(model: keras.Model) -> None:
    """Warn that the fictitious update of a model with batch normalisation differs from its training update."""
    if any(v.path.endswith("moving_mean") for v in model.non_trainable_variables):
        warnings.warn(
            f"model {model.name!r} has batch normalisation: S_rel is measured in inference mode, so the fictitious "
            "update uses the moving statistics and leaves them as they are; training itself uses batch statistics",
            stacklevel=3,
        )
