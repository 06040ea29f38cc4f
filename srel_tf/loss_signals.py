"""∂ℓ/∂f: what the loss of each example says to the network's outputs, in float64.

In a converged net float32 loses p − y, the signal of cross-entropy, though the outputs themselves are good to their
last place. The losses of Keras are therefore evaluated in float64, on the outputs cast to it.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from srel_tf.capture import NotSeparable

SOFTMAX_LOSSES = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
SOFTMAX_FUNCTIONS = (keras.losses.sparse_categorical_crossentropy, keras.losses.categorical_crossentropy)
MEANS_AS_CLASSES = (
    *SOFTMAX_LOSSES,
    keras.losses.BinaryCrossentropy,
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.Huber,
)
MEANS_AS_FUNCTIONS = (
    *SOFTMAX_FUNCTIONS,
    keras.losses.binary_crossentropy,
    keras.losses.mean_squared_error,
    keras.losses.mean_absolute_error,
    keras.losses.huber,
)


class Head(NamedTuple):
    """What the network is differentiated in: u = of_outputs(f), and back, f = to_outputs(u)."""

    of_outputs: callable
    to_outputs: callable


LOGITS_OF = {"log": "Softmax", "log_odds": "Sigmoid"}  # The operation that outputs come from.


def _operation(f):
    """The operation that a tensor of a graph comes from, None without a graph."""
    while tf.is_symbolic_tensor(f) and f.op.type == "Identity":
        f = f.op.inputs[0]
    return f.op if tf.is_symbolic_tensor(f) else None


def head_of(f):
    """The name of the head that outputs f are known to have by the operation they come from; "outputs" by none."""
    op = _operation(f)
    return next((head for head, operation in LOGITS_OF.items() if op is not None and op.type == operation), "outputs")


def slope(head, f):
    """df/du, float64, of outputs f. From u: where a sigmoid is close to one, 1 − f has lost its digits in float32.

    1 for a softmax, whose change `predictions.first_order_change` takes from that of u itself.
    """
    u = tf.cast(HEADS[head].of_outputs(f), tf.float64)
    return tf.sigmoid(u) * tf.sigmoid(-u) if head == "log_odds" else tf.ones_like(u)


def _logits(head, otherwise):
    """What a softmax or a sigmoid was taken of; where outputs f came about in another way, `otherwise(f)`."""

    def of_outputs(f):
        op = _operation(f)
        return op.inputs[0] if op is not None and op.type == LOGITS_OF[head] else otherwise(f)

    return of_outputs


# Keras takes the cross-entropy of a softmax or a sigmoid from its logits, for probabilities may be 0 or 1 to rounding.
HEADS = {
    "outputs": Head(lambda f: f, lambda u: u),
    "log": Head(_logits("log", tf.math.log), keras.activations.softmax),
    "log_odds": Head(_logits("log_odds", lambda p: tf.math.log(p) - tf.math.log1p(-p)), keras.activations.sigmoid),
}


class LossSignals:
    """The signals of a network's compiled loss, which must be a function of outputs and targets alone.

    Keras's losses that are the mean of the examples' own are evaluated on a batch; any other on each example alone.
    """

    def __init__(self, network):
        self._network = network
        self._loss = None if network.model.loss is None else _as_function(network.model)

    @property
    def in_float64(self):
        """Whether the loss is evaluated in float64; others compute in Keras's floatx."""
        return self._loss is not None

    def ignores_shifts_of(self, head):
        """Whether ℓ stays the same when all of u moves by the same, as the cross-entropy of a softmax does."""
        loss = keras.losses.get(self._network.model.loss) if self.in_float64 else None
        if not isinstance(loss, SOFTMAX_LOSSES) and loss not in SOFTMAX_FUNCTIONS:
            return False
        from_logits = isinstance(loss, keras.losses.Loss) and loss.get_config()["from_logits"]
        return head == "log" or (head == "outputs" and from_logits)

    def head(self, predictions, y):
        """The name of the head: logits where `predictions` [n, C] are a softmax or a sigmoid, else these themselves.

        Keras takes cross-entropies from the logits of either; and where a probability is close to one, float32 loses
        the derivative of the activation. `NotSeparable` where the loss has no derivative by either.
        """
        head = head_of(predictions)
        if head != "outputs":
            return head
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            loss = self._one_by_one(y, predictions) if self._loss is None else self._loss(y, predictions)
        if tape.gradient(loss, predictions) is None:
            raise NotSeparable("the loss does not depend on the outputs themselves")
        return "outputs"

    def __call__(self, u, y, head):
        """∂ℓ_i/∂u_i, float64 [n, C], from u float64 [n, C]."""
        if self._loss is not None:
            signal = self._gradient(u, lambda f: self._loss(y, f), head)
            return _balanced(signal, u) if self.ignores_shifts_of(head) else signal
        rows = tf.map_fn(
            lambda i: self._gradient(u[i, None], lambda f: self._one_by_one(y[i, None], f), head)[0],
            tf.range(u.shape[0]),
            fn_output_signature=tf.float64,
        )
        return rows

    def _gradient(self, u, loss, head):
        with tf.GradientTape() as tape:
            tape.watch(u)
            value = tf.reduce_sum(loss(HEADS[head].to_outputs(u)))
        return tf.cast(tape.gradient(value, u, unconnected_gradients=tf.UnconnectedGradients.ZERO), tf.float64)

    def _one_by_one(self, y, predictions):
        with self._network.scope(self._network.weights):  # Penalties come along, and do not depend on predictions.
            return self._network.model.compute_loss(x=None, y=y, y_pred=predictions, sample_weight=None)


def _balanced(signal, u):
    """The entry of the largest u taken from the others, for all sum to zero: p − 1 loses its digits near one."""
    largest = tf.one_hot(tf.argmax(u, axis=-1), tf.shape(u)[-1], on_value=True, off_value=False)
    others = tf.where(largest, tf.zeros_like(signal), signal)
    return tf.where(largest, -tf.reduce_sum(others, axis=-1, keepdims=True), signal)


def _as_function(model):
    """(y, outputs [n, C]) -> each example's loss [n], in the outputs' precision; None where that is not known."""
    if isinstance(model.loss, (list, tuple, dict)) or (model.get_compile_config() or {}).get("loss_weights"):
        return None
    loss = keras.losses.get(model.loss)
    if not isinstance(loss, keras.losses.Loss):
        return loss if loss in MEANS_AS_FUNCTIONS else None
    config = loss.get_config()
    known = (
        type(loss) in MEANS_AS_CLASSES
        and loss.reduction in ("sum_over_batch_size", "mean")
        and config.get("axis", -1) == -1
        and config.get("ignore_class") is None
    )
    return loss.call if known else None
