"""∂ℓ/∂f: what the loss of each example says to the network's outputs, in float64.

In a converged net float32 loses p − y, the signal of cross-entropy, though the outputs themselves are good to their
last place. The losses of Keras are therefore evaluated in float64, on the outputs cast to it.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from srel_tf.gradients.capture import NotSeparable
from srel_tf.gradients.compiled_loss import function_and_options, single_loss

losses = keras.losses
SOFTMAX_LOSSES = (losses.SparseCategoricalCrossentropy, losses.CategoricalCrossentropy)
MEANS = {  # Keras's functions that return a loss of each example, and their classes.
    losses.sparse_categorical_crossentropy: losses.SparseCategoricalCrossentropy,
    losses.categorical_crossentropy: losses.CategoricalCrossentropy,
    losses.binary_crossentropy: losses.BinaryCrossentropy,
    losses.mean_squared_error: losses.MeanSquaredError,
    losses.mean_absolute_error: losses.MeanAbsoluteError,
    losses.huber: losses.Huber,
}


class Head(NamedTuple):
    """What the network is differentiated in: u = of_outputs(f), and back, f = to_outputs(u)."""

    of_outputs: callable
    to_outputs: callable


LOGITS_OF = {"log": "Softmax", "log_odds": "Sigmoid"}  # The operation that outputs come from.


def operation(f):
    """The operation that a tensor of a graph comes from, None without a graph."""
    while tf.is_symbolic_tensor(f) and f.op.type == "Identity":
        f = f.op.inputs[0]
    return f.op if tf.is_symbolic_tensor(f) else None


def head_of(f):
    """The name of the head that outputs f are known to have by the operation they come from; "outputs" by none."""
    op = operation(f)
    return next((head for head, name in LOGITS_OF.items() if op is not None and op.type == name), "outputs")


def slope(head, f):
    """df/du, float64, of outputs f. From u: where a sigmoid is close to one, 1 − f has lost its digits in float32.

    1 for a softmax, whose change `predictions.first_order_change` takes from that of u itself.
    """
    u = tf.cast(HEADS[head].of_outputs(f), tf.float64)
    return tf.sigmoid(u) * tf.sigmoid(-u) if head == "log_odds" else tf.ones_like(u)


def _logits(head, otherwise):
    """What a softmax or a sigmoid was taken of; where outputs f came about in another way, `otherwise(f)`."""

    def of_outputs(f):
        op = operation(f)
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
        self._loss = _mean_of_examples(network.model)

    @property
    def in_float64(self):
        """Whether the loss is evaluated in float64; others compute in Keras's floatx."""
        return self._loss is not None

    def ignores_shifts_of(self, head):
        """Whether ℓ stays the same if all of u moves by the same, as the cross-entropy of a class index does.

        The cross-entropy of a row y ignores them only if y sums to one, which is not known here.
        """
        return isinstance(self._loss, losses.SparseCategoricalCrossentropy) and self._takes_logits(head)

    def _takes_logits(self, head):
        """Whether u are the logits that a cross-entropy with a softmax inside is taken from."""
        if not isinstance(self._loss, SOFTMAX_LOSSES):
            return False
        return head == "log" or (head == "outputs" and self._loss.from_logits)

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
            loss = self._one_by_one(y, predictions) if self._loss is None else self._of_examples(y, predictions)
        if tape.gradient(loss, predictions) is None:
            raise NotSeparable("the loss does not depend on the outputs themselves")
        return "outputs"

    def __call__(self, u, y, head, mask=None):
        """∂ℓ_i/∂u_i, float64 [n, C], from u float64 [n, C].

        mask: Keras's mask of the outputs, bool [n, …]. Keras leaves out of the loss what is False there, so that the
        loss of an example without a True is zero.
        """
        if self._loss is None:
            return self._signals_one_by_one(u, y, head, mask)
        signal = self._gradient(u, lambda f: self._of_examples(y, f), head)
        if self._takes_logits(head):
            signal = tf.where(self._sums_to_zero(y), _balanced(signal, u), signal)
        if mask is not None:
            # The mean over what is left has the weight one: a loss of one example is masked as a whole or not at all.
            left = tf.reduce_any(tf.reshape(tf.cast(mask, tf.bool), [u.shape[0], -1]), axis=1, keepdims=True)
            signal = tf.where(left, signal, tf.zeros_like(signal))
        return signal

    def _of_examples(self, y, outputs):
        """The loss of each example [n]. y [n] gets an axis, without which it would be broadcast along the outputs."""
        return self._loss.call(y[:, None] if len(y.shape) == 1 else y, outputs)

    def _sums_to_zero(self, y):
        """Whether Σ_c (p − y)_c = 0 for each example, bool [] or [n, 1]: its labels sum to one.

        For other rows TensorFlow's gradient is p − y, and p Σ_c y_c − y under `enable_op_determinism`. Nothing cancels
        in either.
        """
        if isinstance(self._loss, losses.SparseCategoricalCrossentropy):
            return True
        return tf.reduce_sum(tf.cast(y, tf.float64), axis=-1, keepdims=True) == 1

    def _signals_one_by_one(self, u, y, head, mask):
        def signal(i):
            of_one = None if mask is None else mask[i, None]
            return self._gradient(u[i, None], lambda f: self._one_by_one(y[i, None], f, of_one), head)[0]

        return tf.map_fn(signal, tf.range(u.shape[0]), fn_output_signature=tf.float64)

    def _gradient(self, u, loss, head):
        with tf.GradientTape() as tape:
            tape.watch(u)
            value = tf.reduce_sum(loss(HEADS[head].to_outputs(u)))
        return tf.cast(tape.gradient(value, u, unconnected_gradients=tf.UnconnectedGradients.ZERO), tf.float64)

    def _one_by_one(self, y, predictions, mask=None):
        if mask is not None:
            predictions._keras_mask = mask  # Where Keras's losses look for it.
        with self._network.scope(self._network.weights):  # Includes penalties, which do not depend on predictions.
            return self._network.model.compute_loss(x=None, y=y, y_pred=predictions, sample_weight=None)


def _balanced(signal, u):
    """The signal, which sums to zero, with the entry of the largest u taken from the others.

    p − 1 loses its digits if p is close to one.
    """
    largest = tf.one_hot(tf.argmax(u, axis=-1), tf.shape(u)[-1], on_value=True, off_value=False)
    others = tf.where(largest, tf.zeros_like(signal), signal)
    return tf.where(largest, -tf.reduce_sum(others, axis=-1, keepdims=True), signal)


def _mean_of_examples(model):
    """The compiled loss if it is known to be the mean of the examples' own losses, as one of the classes of `MEANS`."""
    loss = single_loss(model)
    loss = MEANS[loss]() if loss in MEANS else loss
    if type(loss) not in MEANS.values() or loss.reduction not in ("sum_over_batch_size", "mean"):
        return None
    _, options = function_and_options(loss)
    plain = options.get("axis", -1) == -1 and options.get("ignore_class") is None and not _may_have_loss_weights(model)
    return loss if plain else None


def _may_have_loss_weights(model):
    try:
        return bool((model.get_compile_config() or {}).get("loss_weights"))
    except Exception:  # An optimizer or a metric of the user's may have no configuration, and raise anything.
        return True
