"""A Keras model as a pure function of its trainable weights.

Every call runs inside a `keras.StatelessScope`. This scope drops all writes of layers and metrics (batch-norm
statistics, seeds, losses), so that a measurement leaves the model unchanged.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, OptionError
from srel_tf.gradients.convolution import convolutions_of, quick_convolutions
from srel_tf.gradients.graphs import compiled
from srel_tf.gradients.model_checks import check_model
from srel_tf.gradients.precision import (
    computing_in,
    inspection,
    layers_within,
    own_precision,
    switches_to,
)

COMPANIONS = 3  # Largest number of other examples in a batch with which one example is evaluated.
# Largest accepted difference of outputs between equal batches, relative to the largest output. Outputs may differ,
# because the order of sums may differ.
SAME = 1e-6


class Rounding(Protocol):
    """Perturbations that imitate rounding: of frozen weights, and of the gradient where back-propagation begins."""

    def frozen(self, k: int, weight: tf.Tensor) -> tf.Tensor:
        """Return the k-th of `Network.frozen_weights`, perturbed."""

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return `gradient`, a gradient with respect to the outputs [..., C], perturbed."""


class Network:
    """The measured model: its outputs in inference mode, and the gradient of its compiled loss on one example.

    Args:
        model: a built Keras model, which is not changed.
        needs_loss: whether the model must be compiled.
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
        self.rounding: Rounding | None = None
        self._look_at_model()

    def _look_at_model(self) -> None:
        """Collect the current weights and layers.

        This is repeated after a first forward pass, because layers may create weights when they are first called.
        """
        self.variables = list(self.model.trainable_variables)
        floating = [
            v for v in self.model.variables if keras.backend.is_float_dtype(v.dtype)
        ]
        # The TensorFlow variables inside Keras's variables. Within a `Scope`, `v.value` is the cast value instead.
        self.to_be_cast = {
            id(v): v.value for v in floating if v.dtype != self.dtype.name
        }
        trained = {id(v) for v in self.variables}
        self.frozen = [v for v in floating if id(v) not in trained]
        self._place = {id(v): k for k, v in enumerate(self.frozen)}
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

    @property
    def frozen_weights(self) -> list:
        """The current values of weights that are not trained, for example batch-norm statistics, as for `weights`."""
        return [self.cast(v.value) for v in self.frozen]

    @contextlib.contextmanager
    def rounded_by(self, rounding: Rounding) -> Iterator:
        """Within the context, frozen weights and output gradients are perturbed, to imitate rounding."""
        self.rounding = rounding
        try:
            yield
        finally:
            self.rounding = None

    def value_of_frozen(self, variable: keras.Variable) -> tf.Tensor | None:
        """Return the value that replaces a frozen variable; None if the variable keeps its value."""
        value = self.to_be_cast.get(id(variable))
        value = None if value is None else self.cast(value)
        k = self._place.get(id(variable))
        if self.rounding is None or k is None:
            return value
        return self.rounding.frozen(
            k, tf.convert_to_tensor(variable._value) if value is None else value
        )

    def outputs(self, x: tf.Tensor, weights: list | None = None) -> tf.Tensor:
        """Return f(x; weights) [n, C] for x [n, ...], with `training=False`. None means the current weights."""
        with self.scope(weights):
            return self.as_outputs(self.model(x, training=False))

    def compiled(self, function: Callable) -> Callable:
        """Return the function as a graph (`graphs.compiled`). For a model that runs eagerly, return it unchanged."""
        return function if self.model.run_eagerly else compiled(function)

    def num_outputs(self, x: tf.Tensor) -> int:
        """Return C, from a forward pass of one example. In this pass, layers also create weights that are missing."""
        num_outputs = self.outputs(x[:1]).shape[-1]
        self._look_at_model()
        return num_outputs

    def inspect(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """Trace the forward pass and the loss of one example x, y [1, ...], and inspect their operations.

        Two attributes are set. `opaque` is the name of an operation without a derivative, or None. `activation` is
        "softmax", "log_softmax" or "sigmoid" if this is the model's last operation, else None. The operations of a
        model that runs eagerly cannot be inspected.

        Raises:
            ModelError: if the outputs or the loss depend on random numbers, or are computed in lower precision than
                `dtype`, the precision of the network.
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
                "predictions change without any update: draw random numbers only if training=True"
            )
        if found.coarse:
            raise ModelError(
                f"operation {found.coarse!r} of model {name!r} computes in lower precision than {self.dtype.name}, "
                "whatever the precision of its layers is: remove the cast, or cast to the dtype of the layer's input"
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

        Args:
            x, y: the example [1, ...].
            factor: multiplies the gradient.
            weights: the trainable weights; None means the current ones.
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
        """Return factor · ∂loss/∂source for each of the tensors `sources`; zeros if the loss does not depend on it.

        The factor is cast to the network's dtype.
        """
        factor = tf.convert_to_tensor(factor, self.dtype)
        same = loss.dtype == self.dtype
        seed = factor if same else None
        gradients = tape.gradient(
            loss, sources, seed, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        # If the loss has another dtype, the factor is applied afterwards, because a float32 seed would round η.
        return gradients if same else [g * tf.cast(factor, g.dtype) for g in gradients]

    def check_examples_apart(self, x: tf.Tensor) -> None:
        """Raise `ModelError` if outputs at an example depend on chance, or on the other examples of its batch.

        The first of the examples x [n, ...] is evaluated in four batches of equal size: in two equal batches before
        other examples, in a batch of copies of itself, and in a batch after other examples. With equal sizes, all
        batches are computed by the same kernels, so that rounding at the same place of a batch is also the same.
        """
        others = _different(x)[:COMPANIONS]
        orders = [0, *others], [0, *others], [0] * (1 + len(others)), [*others, 0]
        first, again, alone, last = (
            self.outputs(tf.gather(x, order)).numpy() for order in orders
        )
        if not agree(first, again, SAME):
            raise ModelError(
                f"model {self.model.name!r} gives another prediction each time in inference mode, without any update: "
                "it draws random numbers, or changes a state; do so only if training=True"
            )
        if not agree(alone[0], first[0], SAME) or not agree(last[-1], first[0]):
            raise ModelError(
                f"the outputs of model {self.model.name!r} at an example depend on the other examples of the batch, or "
                "on its place in the batch, so that S_rel of two examples is not defined: use batch statistics and "
                "random numbers only if training=True"
            )

    def has_added_losses(self, x: tf.Tensor, but_penalties: bool = False) -> bool:
        """Return whether regularisers of weights, activity regularisers or `add_loss` add to the compiled loss at x.

        If `but_penalties` is True, regularisers of weights do not count.
        """
        penalties = (
            sum(v.regularizer is not None for v in self.variables)
            if but_penalties
            else 0
        )
        with self.scope(self.weights):
            self.model(x, training=False)
            return len(self.model.losses) > penalties

    def as_outputs(self, predictions: Any) -> tf.Tensor:
        """Return the model's predictions as outputs [n, C] in the network's precision."""
        return tf.cast(as_matrix(predictions, self.model), self.dtype)

    def predictions_and_loss(
        self, x: tf.Tensor, y: tf.Tensor, weights: list
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the model's predictions for x and the loss of these examples, with these weights."""
        with self.scope(weights):
            predictions = self.model(x, training=False)
            if self.rounding is not None:
                predictions = _with_gradient_through(
                    self.rounding.gradient, predictions
                )
            if self.loss is not None:
                return predictions, self._loss_of_settings(y, predictions)
            training = {"training": False} if self._loss_takes_training else {}
            return predictions, self.model.compute_loss(
                x=x, y=y, y_pred=predictions, sample_weight=None, **training
            )

    def _loss_of_settings(self, y: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
        """Return the loss given by the user, plus penalties as in `compute_loss`."""
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
        """Within the context, make the model compute in the network's precision, and drop all its writes.

        Args:
            weights: the trainable weights to use, in the network's precision; None means the model's own.
            kind: a function that makes the yielded `Scope`, for example a subclass of `Scope`.
        """
        scope = (kind or Scope)(self)
        for update in (
            zip(self.variables, weights, strict=True) if weights is not None else ()
        ):
            scope.add_update(
                update
            )  # The constructor would cast the weights to the variables' own precision.
        with (
            computing_in(self.dtype, self._switches),
            quick_convolutions(self._convolutions),
            scope,
        ):
            yield scope


def _with_gradient_through(
    function: Callable[[tf.Tensor], tf.Tensor], predictions: tf.Tensor
) -> tf.Tensor:
    """Return predictions with the same values. In back-propagation, their gradient is passed through `function`."""

    @tf.custom_gradient
    def same(tensor: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(tensor), function

    moved = same(predictions)
    # Keras attaches the logits of a softmax to the probabilities, and computes the loss from the logits.
    for name in ("_keras_logits", "_keras_mask"):
        attached = getattr(predictions, name, None)
        if attached is not None:
            setattr(moved, name, attached if name == "_keras_mask" else same(attached))
    return moved


class Scope(keras.StatelessScope):
    """Cast the values of variables to a network's precision, and drop all writes."""

    def __init__(self, network: Network) -> None:
        super().__init__(collect_losses=True)
        self._network = network

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor:
        value = super().get_current_value(variable)
        return self._network.value_of_frozen(variable) if value is None else value


ACTIVATIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
}  # {TensorFlow operation: the activation that it computes}.


def activation_of(output: tf.Tensor) -> str | None:
    """Return the activation (one of `ACTIVATIONS`) that produced a graph's tensor, or None."""
    op = output.op
    while op.type == "Identity":
        op = op.inputs[0].op
    return ACTIVATIONS.get(op.type)


def eager_activation(outputs: tf.Tensor) -> str | None:
    """Return the activation that produced an eager tensor: "softmax", "sigmoid", or None if this is not clear.

    The activation is recognised by the logits that Keras attaches to the tensor.
    """
    logits = getattr(outputs, "_keras_logits", None)
    if logits is None:
        return None
    fitting = [
        a
        for a in ("softmax", "sigmoid")
        if np.array_equal(outputs, keras.activations.get(a)(logits))
    ]
    return fitting[0] if len(fitting) == 1 else None


def _different(x: tf.Tensor) -> list[int]:
    """Return the indices of the examples of x [n, ...] that differ from the first one."""
    rows = x.numpy().reshape(x.shape[0], -1)
    return np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()


def agree(ours: np.ndarray, theirs: np.ndarray, share: float = 1e-3) -> bool:
    """Return whether `ours` and `theirs` differ by at most `share` of the largest entry of `theirs`.

    Such small differences may be due to rounding.
    """
    largest = np.abs(theirs).max(initial=0, where=np.isfinite(theirs))
    return np.allclose(ours, theirs, rtol=0, atol=share * largest, equal_nan=True)


def as_matrix(outputs: Any, model: keras.Model) -> tf.Tensor:
    """Return one output tensor as [n, C]; [n] becomes [n, 1]. Raise `ModelError` for outputs of any other form."""
    if not tf.is_tensor(outputs) or not 1 <= len(outputs.shape) <= 2:
        shape = getattr(outputs, "shape", f"a {type(outputs).__name__}")
        raise ModelError(
            f"model {model.name!r} returns {shape}; S_rel needs one output of shape [n, C]"
        )
    return outputs[:, None] if len(outputs.shape) == 1 else outputs
