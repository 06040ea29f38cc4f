"""Gradient ∂ℓ/∂f of each example's loss with respect to the network's outputs, in float64.

In a converged net float32 loses the digits of p − y, the gradient of the cross-entropy, even if the outputs are exact
to the last bit. Keras's losses are therefore evaluated in float64, on outputs that are cast to float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from srel_tf.gradients.compiled_loss import function_and_options, single_loss
from srel_tf.gradients.layer_io import NotSeparable
from srel_tf.gradients.network import Network

losses = keras.losses
SOFTMAX_LOSSES = (losses.SparseCategoricalCrossentropy, losses.CategoricalCrossentropy)
# Keras's functions that return a loss for each example, and their classes.
MEANS = {
    losses.sparse_categorical_crossentropy: losses.SparseCategoricalCrossentropy,
    losses.categorical_crossentropy: losses.CategoricalCrossentropy,
    losses.binary_crossentropy: losses.BinaryCrossentropy,
    losses.mean_squared_error: losses.MeanSquaredError,
    losses.mean_absolute_error: losses.MeanAbsoluteError,
    losses.huber: losses.Huber,
}


class Link(NamedTuple):
    """The link between outputs f and the variable u with respect to which the loss is differentiated.

    u = of_outputs(f) and f = to_outputs(u).
    """

    of_outputs: Callable[[tf.Tensor], tf.Tensor]
    to_outputs: Callable[[tf.Tensor], tf.Tensor]


OPERATIONS = {
    "softmax": "Softmax",
    "sigmoid": "Sigmoid",
}  # TensorFlow's operation of each link.


def operation(f: tf.Tensor) -> tf.Operation | None:
    """Return the operation that produced a graph's tensor; identities are skipped. None for an eager tensor."""
    while tf.is_symbolic_tensor(f) and f.op.type == "Identity":
        f = f.op.inputs[0]
    return f.op if tf.is_symbolic_tensor(f) else None


def link_of(f: tf.Tensor) -> str:
    """Return the name of the link that produced outputs f; "identity" if their last operation is not a link."""
    op = operation(f)
    if op is None:
        return "identity"
    return next(
        (link for link, op_type in OPERATIONS.items() if op.type == op_type), "identity"
    )


def link_derivative(link: str, f: tf.Tensor) -> tf.Tensor:
    """Return df/du of outputs f [n, C], float64.

    The derivative of a sigmoid is computed from u, because a float32 f close to one has lost the digits of 1 − f. For a
    softmax the result is 1, because `outputs.first_order_change` takes changes of the logits u.
    """
    u = tf.cast(LINKS[link].of_outputs(f), tf.float64)
    return tf.sigmoid(u) * tf.sigmoid(-u) if link == "sigmoid" else tf.ones_like(u)


def _logits(
    link: str, inverse: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that computes the logits behind outputs f, or `inverse(f)` if f has another origin."""

    def of_outputs(f: tf.Tensor) -> tf.Tensor:
        op = operation(f)
        return (
            op.inputs[0]
            if op is not None and op.type == OPERATIONS[link]
            else inverse(f)
        )

    return of_outputs


# Keras computes the cross-entropy of a softmax or sigmoid from its logits, because probabilities may round to 0 or 1.
LINKS = {
    "identity": Link(lambda f: f, lambda u: u),
    "softmax": Link(_logits("softmax", tf.math.log), keras.activations.softmax),
    "sigmoid": Link(
        _logits("sigmoid", lambda p: tf.math.log(p) - tf.math.log1p(-p)),
        keras.activations.sigmoid,
    ),
}


class OutputGradients:
    """∂ℓ/∂u of a network whose compiled loss depends only on outputs and targets.

    Losses of Keras that are a mean over examples are evaluated on a batch. Any other loss is evaluated on each example
    alone.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._loss = _mean_over_examples(network.model)

    def ignores_shifts_of(self, link: str) -> bool:
        """Return whether a common shift of all entries of u leaves ℓ unchanged.

        A shift leaves the cross-entropy of a class index unchanged. For a row y, this holds only if y sums to one. The
        values of y are not available here, so that the result for rows is False.
        """
        return isinstance(
            self._loss, losses.SparseCategoricalCrossentropy
        ) and self._takes_logits(link)

    def _takes_logits(self, link: str) -> bool:
        """Return whether u holds the logits of a softmax whose cross-entropy is the loss."""
        if not isinstance(self._loss, SOFTMAX_LOSSES):
            return False
        return link == "softmax" or (link == "identity" and self._loss.from_logits)

    def link(self, predictions: tf.Tensor, y: tf.Tensor) -> str:
        """Return the name of the link of `predictions` [n, C]: "softmax", "sigmoid" or "identity".

        Raises:
            NotSeparable: if the loss has no derivative with respect to the predictions.
        """
        link = link_of(predictions)
        if link != "identity":
            return link
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            loss = (
                self._compute_loss(y, predictions)
                if self._loss is None
                else self._of_examples(y, predictions)
            )
        if tape.gradient(loss, predictions) is None:
            raise NotSeparable("the loss does not depend on the outputs themselves")
        return "identity"

    def __call__(
        self, u: tf.Tensor, y: tf.Tensor, link: str, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return ∂ℓ_i/∂u_i, float64 [n, C].

        Args:
            u: float64 [n, C].
            y: targets [n, ...].
            link: name of the link between u and the outputs.
            mask: Keras's mask of the outputs, bool [n, ...]. The loss ignores outputs where the mask is False. The loss
                of an example whose mask is False everywhere is zero.
        """
        if self._loss is None:
            return self._example_by_example(u, y, link, mask)
        gradient = self._gradient(u, lambda f: self._of_examples(y, f), link)
        if self._takes_logits(link):
            gradient = tf.where(self._sums_to_zero(y), _balanced(gradient, u), gradient)
        if mask is not None:
            # Keras averages over the unmasked entries. The loss of a single example is therefore not scaled; it is zero
            # if all entries are masked.
            counts = tf.reduce_any(
                tf.reshape(tf.cast(mask, tf.bool), [u.shape[0], -1]),
                axis=1,
                keepdims=True,
            )
            gradient = tf.where(counts, gradient, tf.zeros_like(gradient))
        return gradient

    def _of_examples(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example, [n].

        A y of shape [n] gets a second axis. Without this axis, y would be broadcast along the outputs.
        """
        assert self._loss is not None
        return self._loss.call(y[:, None] if len(y.shape) == 1 else y, outputs)

    def _sums_to_zero(self, y: tf.Tensor) -> tf.Tensor | bool:
        """Return whether Σ_c (p − y)_c = 0, that is, whether the labels y of an example sum to one, bool [] or [n, 1].

        For other rows y, TensorFlow's gradient is p − y, or p Σ_c y_c − y under `enable_op_determinism`. Neither form
        suffers from cancellation, so `_balanced` is not needed for them.
        """
        if isinstance(self._loss, losses.SparseCategoricalCrossentropy):
            return True
        return tf.reduce_sum(tf.cast(y, tf.float64), axis=-1, keepdims=True) == 1

    def _example_by_example(
        self, u: tf.Tensor, y: tf.Tensor, link: str, mask: tf.Tensor | None
    ) -> tf.Tensor:
        def of_example(i: tf.Tensor) -> tf.Tensor:
            own_mask = None if mask is None else mask[i, None]
            return self._gradient(
                u[i, None], lambda f: self._compute_loss(y[i, None], f, own_mask), link
            )[0]

        return tf.map_fn(
            of_example, tf.range(u.shape[0]), fn_output_signature=tf.float64
        )

    def _gradient(
        self, u: tf.Tensor, loss: Callable[[tf.Tensor], tf.Tensor], link: str
    ) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(u)
            total = tf.reduce_sum(loss(LINKS[link].to_outputs(u)))
        return tf.cast(
            tape.gradient(total, u, unconnected_gradients=tf.UnconnectedGradients.ZERO),
            tf.float64,
        )

    def _compute_loss(
        self, y: tf.Tensor, predictions: tf.Tensor, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return the model's own `compute_loss`, with regularisers, which do not depend on the predictions."""
        if mask is not None:
            predictions._keras_mask = (
                mask  # Keras's losses read the mask from this attribute.
            )
        with self._network.scope(self._network.weights):
            return self._network.model.compute_loss(
                x=None, y=y, y_pred=predictions, sample_weight=None
            )


def _balanced(gradient: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Replace the gradient's entry at the largest u by minus the sum of the other entries.

    The two are equal, because the sum of all entries is zero. The original entry is p − 1, which loses its digits if p
    is close to one.
    """
    largest = tf.one_hot(
        tf.argmax(u, axis=-1), tf.shape(u)[-1], on_value=True, off_value=False
    )
    others = tf.where(largest, tf.zeros_like(gradient), gradient)
    return tf.where(largest, -tf.reduce_sum(others, axis=-1, keepdims=True), gradient)


def _mean_over_examples(model: keras.Model) -> keras.losses.Loss | None:
    """Return the compiled loss if its class is in `MEANS` and it averages over examples, else None."""
    loss: Any = single_loss(model)
    loss = MEANS[loss]() if loss in MEANS else loss
    if type(loss) not in MEANS.values() or loss.reduction not in (
        "sum_over_batch_size",
        "mean",
    ):
        return None
    _, options = function_and_options(loss)
    of_last_axis = options.get("axis", -1) == -1
    plain = (
        of_last_axis
        and options.get("ignore_class") is None
        and not _may_have_loss_weights(model)
    )
    return loss if plain else None


def _may_have_loss_weights(model: keras.Model) -> bool:
    try:
        return bool((model.get_compile_config() or {}).get("loss_weights"))
    except Exception:  # A user's optimizer or metric may have no configuration, and may raise any exception.
        return True
