"""Forward pass of a batch, and back-propagation from its outputs to the output of every layer."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from srel_tf.errors import ModelError
from srel_tf.gradients.factored import FactoredGradient, OuterProductGradient
from srel_tf.gradients.layer_gradients import LayerCall
from srel_tf.gradients.layer_io import LayerIO, NotSeparable
from srel_tf.gradients.layer_rules import has_registered_rule
from srel_tf.gradients.network import Network, as_matrix
from srel_tf.gradients.output_gradients import LINKS, OutputGradients, link_derivative

# Largest accepted relative difference between gradients by a rule and gradients by differentiation, in float32.
RULE_TOLERANCE = 0.01


class ForwardPass(NamedTuple):
    """A recorded forward pass of n examples.

    Attributes:
        outputs: f [n, C] in the network's precision.
        u: the argument of the link function that gives f, [n, C].
        calls: the recorded layer calls.
        tape: a persistent gradient tape that watches the outputs of the calls.
        weights: the trainable weights of the pass; None means the model's own weights.
        mask: Keras's mask of the outputs, or None.
    """

    outputs: tf.Tensor
    u: tf.Tensor
    calls: list[LayerCall]
    tape: tf.GradientTape
    weights: list | None
    mask: tf.Tensor | None = None


class BatchBackprop:
    """Forward and backward passes of a network whose layer calls can be recorded.

    Args:
        network: the network.
        x: two examples [2, ...] for a trial run.

    Raises:
        NotSeparable: if layer inputs and outputs do not determine the gradients of single examples.
        ModelError: if a registered layer rule gives another gradient than differentiation.
    """

    link = "identity"

    def __init__(self, network: Network, x: tf.Tensor) -> None:
        if network.model.run_eagerly:
            raise NotSeparable("the model runs eagerly")
        self.network, self.layer_io = network, LayerIO(network, x)
        if any(has_registered_rule(layer) for layer in self.layer_io.layers):
            self._check_rules(x)

    def forward(self, x: tf.Tensor, weights: list | None = None) -> ForwardPass:
        """Run the network on x [n, ...] with the given trainable weights; None means the network's own weights."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            predictions, calls = self.layer_io.forward(x, tape, weights)
            outputs = as_matrix(predictions, self.network.model)
            u = LINKS[self.link].of_outputs(outputs)
        mask = getattr(predictions, "_keras_mask", None)
        return ForwardPass(
            tf.cast(outputs, self.network.dtype), u, calls, tape, weights, mask
        )

    def _check_rules(self, x: tf.Tensor) -> None:
        """Compare the gradients by the layers' rules with differentiation; raise `ModelError` if they differ.

        Both are gradients of a weighted sum of the outputs at the first example.
        """
        network = self.network

        @network.compiled
        def both(x: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            weights = [tf.convert_to_tensor(w) for w in network.weights]
            forward_pass = self.forward(x, weights)
            seed = tf.linspace(1.0, 2.0, forward_pass.u.shape[-1])
            seed = tf.broadcast_to(tf.cast(seed, network.dtype), forward_pass.u.shape)
            by_rules = self.gradients(forward_pass, [seed])
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                weighted = seed[:1] * network.outputs(x[:1], weights)
            zero = tf.UnconnectedGradients.ZERO
            by_differentiation = tape.gradient(weighted, weights, None, zero)
            first = tf.constant(0)
            return [
                sum_of_calls(of_weight, first, w.shape, network.dtype)
                for of_weight, w in zip(by_rules, weights, strict=True)
            ], [tf.convert_to_tensor(g) for g in by_differentiation]

        by_rules, by_differentiation = both(x)
        largest = max(float(tf.norm(g)) for g in by_differentiation)
        for variable, ours, theirs in zip(
            network.variables, by_rules, by_differentiation, strict=True
        ):
            difference = float(tf.norm(ours - theirs))
            if difference > RULE_TOLERANCE * max(
                float(tf.norm(theirs)), largest * 1e-3
            ):
                raise ModelError(
                    f"the gradient of {variable.path} that a registered layer rule gives differs from differentiation "
                    f"by {difference:.3g}: correct the rule (register_layer_rule)"
                )

    def backward(
        self, forward_pass: ForwardPass, seeds: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Return the gradients of M functions of u at the output of each layer call, [n, M, ...].

        `seeds` holds the derivative of each function with respect to u, M tensors [n, C].
        """
        tape, u, rounding = forward_pass.tape, forward_pass.u, self.network.rounding
        seeds = [tf.cast(seed, u.dtype) for seed in seeds]
        if rounding is not None:
            seeds = [rounding.gradient(seed) for seed in seeds]
        layer_outputs = [call.output for call in forward_pass.calls]
        zero = tf.UnconnectedGradients.ZERO
        by_seed = [tape.gradient(u, layer_outputs, seed, zero) for seed in seeds]
        return [tf.stack(of_layer, axis=1) for of_layer in zip(*by_seed, strict=True)]

    def gradients(
        self, forward_pass: ForwardPass, seeds: list[tf.Tensor]
    ) -> list[list[FactoredGradient]]:
        """Return per-example gradients of M functions of u for each weight (`LayerIO.gradients`)."""
        output_grads = self.backward(forward_pass, seeds)
        return self.layer_io.gradients(
            forward_pass.calls, output_grads, forward_pass.weights
        )


class LossBackprop(BatchBackprop):
    """`BatchBackprop` for a compiled loss that depends only on outputs and targets, apart from regularisers.

    Derivatives are with respect to u, the variable from which Keras computes the loss.

    Args:
        network: the network.
        x, y: two examples [2, ...] for a trial run.

    Raises:
        NotSeparable: if the loss depends on more than outputs and targets, or if `BatchBackprop` raises this error.
    """

    def __init__(self, network: Network, x: tf.Tensor, y: tf.Tensor) -> None:
        super().__init__(network, x)
        model = network.model
        if network.loss is not None:
            raise NotSeparable("the loss is the user's own function")
        if (
            type(model).compute_loss is not keras.Model.compute_loss
            or model.loss is None
        ):
            raise NotSeparable("the model computes its loss itself")
        if network.has_added_losses(x, but_penalties=True):
            raise NotSeparable("the model adds losses with add_loss")
        self.loss = OutputGradients(network)
        self.link = self._find_link(x, y)

    def read(self, outputs: tf.Tensor) -> tf.Tensor:
        """Return the values [n, C] from which D is computed.

        If the model ends in a softmax, these are the logits, because logits resolve probabilities near 0 and 1. For any
        other model they are the outputs.
        """
        return (
            LINKS["softmax"].of_outputs(outputs) if self.link == "softmax" else outputs
        )

    def link_derivative(self, outputs: tf.Tensor) -> tf.Tensor:
        """Return df/du, float64 [n, C]."""
        return link_derivative(self.link, outputs)

    def _find_link(self, x: tf.Tensor, y: tf.Tensor) -> str:
        links = []

        @tf.function(autograph=False)
        def trace(x: tf.Tensor, y: tf.Tensor) -> None:
            predictions, _ = self.layer_io.forward(x)
            links.append(self.loss.link(as_matrix(predictions, self.network.model), y))

        trace.get_concrete_function(x, y)
        return links[-1]

    def output_gradient(self, forward_pass: ForwardPass, y: tf.Tensor) -> tf.Tensor:
        """Return ∂ℓ/∂u of each example, float64 [n, C]."""
        return self.loss(
            tf.cast(forward_pass.u, tf.float64), y, self.link, forward_pass.mask
        )

    def penalty_gradient(self, weights: list | None = None) -> list[tf.Tensor] | None:
        """Return the gradient of the regularisers' penalty, one tensor per weight. None without regularisers."""
        variables = self.network.variables
        if all(v.regularizer is None for v in variables):
            return None
        tensors = [tf.convert_to_tensor(w) for w in weights or self.network.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            terms = [
                v.regularizer(w)
                for v, w in zip(variables, tensors, strict=True)
                if v.regularizer is not None
            ]
            penalty = tf.add_n(terms)
        return tape.gradient(
            penalty, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )


class SourceGradients:
    """∇ℓ of each example of a batch, from one forward and one backward pass.

    Args:
        backprop: the passes of the network.
        x, y: examples [n, ...].
        factor: [n], factors of the gradients, which are applied at the start of back-propagation.
        weights: the trainable weights; None means the current weights of the network.

    Attributes:
        outputs: f [n, C], as `LossBackprop.read` returns it.
        zero: float64 [n], 0 for examples whose gradient is finite, else NaN. This number is added to the outputs after
            the update, because a saturated net may return finite outputs even after an update that contains NaN.
    """

    def __init__(
        self,
        backprop: LossBackprop,
        x: tf.Tensor,
        y: tf.Tensor,
        factor: tf.Tensor,
        weights: list | None = None,
    ) -> None:
        self._variables, self._dtype = (
            backprop.network.variables,
            backprop.network.dtype,
        )
        forward_pass = backprop.forward(x, weights)
        seed = (
            backprop.output_gradient(forward_pass, y)
            * tf.cast(factor, tf.float64)[:, None]
        )
        self._gradients = backprop.gradients(forward_pass, [seed])
        self._penalty, self._factor = backprop.penalty_gradient(weights), factor
        self.outputs = backprop.read(forward_pass.outputs)
        self.zero = _zero_if_finite(self._gradients)

    def rank_one_step(self, k: int, i: tf.Tensor) -> OuterProductGradient | None:
        """Return factor · ∂ℓ_i/∂(the k-th weight) in factored form if it is a single outer product, else None."""
        of_calls = self._gradients[k]
        if self._penalty is not None or len(of_calls) != 1:
            return None
        gradient = of_calls[0]
        if not isinstance(gradient, OuterProductGradient) or not gradient.is_rank_one:
            return None
        return gradient.example(i)

    def of_weight(self, k: int, i: tf.Tensor) -> tf.Tensor:
        """Return factor · ∂ℓ_i/∂(the k-th weight)."""
        shape = self._variables[k].shape
        gradient = sum_of_calls(self._gradients[k], i, shape, self._dtype)
        if self._penalty is None:
            return gradient
        factor = tf.cast(tf.gather(self._factor, i), self._dtype)
        return gradient + self._penalty[k] * factor


def sum_of_calls(
    of_calls: list[FactoredGradient],
    i: tf.Tensor,
    shape: tf.TensorShape,
    dtype: tf.DType,
) -> tf.Tensor:
    """Return the gradient of a weight at example i, the sum over the calls of its layer."""
    terms = [tf.reshape(of_call.gradient(i), shape) for of_call in of_calls]
    return tf.add_n(terms) if terms else tf.zeros(shape, dtype)


def _zero_if_finite(gradients: list[list[FactoredGradient]]) -> tf.Tensor:
    fields: list[Any] = [
        field for of_weight in gradients for factored in of_weight for field in factored
    ]
    floating = [t for t in fields if tf.is_tensor(t) and t.dtype.is_floating]
    sums = [tf.reduce_sum(tf.reshape(t, [t.shape[0], -1]), axis=-1) for t in floating]
    return 0.0 * tf.cast(tf.add_n(sums), tf.float64)
