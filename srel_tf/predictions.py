"""What a model's outputs are (probabilities, logits, raw values) and how they change under an update."""

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.measures import Change, log_probabilities, probability_change, raw_change

CHOICES = ("auto", "softmax", "raw")


def kind_of_predictions(choice, probe, model, outputs):
    """ "raw", "logits" or "probabilities": how to read `outputs` [n, C] under the user's `choice`.

    Outputs that lie on the simplex at every target are probabilities, whatever the model's last layer is called.
    Raises `ModelError` where the loss expects probabilities and the model does not return them.
    """
    if not is_classifier(choice, probe, outputs.shape[-1]):
        return "raw"
    finite = np.isfinite(outputs).all(axis=-1)
    if finite.any():
        outputs = outputs[finite]  # One target whose prediction is NaN does not change how the others are read.
    if _on_simplex(outputs):
        return "probabilities"
    if np.isfinite(outputs).all() and _expects_probabilities(model.loss):
        raise ModelError(
            f"the loss of model {model.name!r} expects probabilities (from_logits=False), its outputs are none: end "
            "the model in a softmax, compile with from_logits=True, or measure with predictions='raw'"
        )
    return "logits"


def _on_simplex(outputs):
    sums = outputs.sum(axis=-1, dtype=np.float64)
    return bool((outputs >= 0).all() and (np.abs(sums - 1) < 1e-5).all())


def _expects_probabilities(loss):
    """Whether a compiled loss is a cross-entropy on probabilities; False where it cannot be told."""
    if isinstance(loss, str):
        return "crossentropy" in loss.lower()
    return isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits") is False


def change(kind, before, after):
    """The `Change` from network outputs `before` to `after` (broadcast against each other, [..., C])."""
    if kind == "raw":
        return raw_change(before, after)
    return probability_change(*(log_probabilities(outputs, kind == "probabilities") for outputs in (before, after)))


def first_order_change(kind, head, before, moved, slope):
    """The `Change` of predictions whose u (a head of `loss_signals`) moves by `moved` [..., C], to first order in it.

    slope: df/du.

    For a classifier only differences of `moved` count: softmax does not see a common shift of logits, and changes of
    probabilities sum to zero.
    """
    before, moved = tf.cast(before, tf.float64), slope * tf.cast(moved, tf.float64)
    if kind == "raw":
        return Change(before, before, moved)
    log_g = log_probabilities(before, kind == "probabilities")
    g = tf.exp(log_g)
    if kind == "probabilities" and head == "outputs":
        difference = moved - tf.reduce_mean(moved, axis=-1, keepdims=True)
        return Change(g, g, difference, log_g, tf.math.divide_no_nan(difference, g))
    # δ_c − Σ_k g_k δ_k, where the class of probability one would cancel.
    others = tf.reduce_sum(g * moved, axis=-1, keepdims=True) - g * moved
    d = -tf.math.expm1(log_g) * moved - others
    return Change(g, g, g * d, log_g, d)


def is_classifier(choice, probe, num_outputs):
    """Whether the predictions are those of a classifier: class labels and two outputs or more, or the user says so."""
    return choice == "softmax" or (choice == "auto" and probe.labels is not None and num_outputs > 1)


def check_fit(choice, measures, probe, num_outputs):
    """`OptionError` or `ProbeError` where measures, labels and a model's number of outputs don't go together."""
    classifier = is_classifier(choice, probe, num_outputs)
    unfit = [name for name, measure in measures.items() if measure.probabilities and not classifier]
    if unfit:
        raise OptionError(
            f"measures {unfit} are defined for probability vectors, and D acts on raw outputs here (regression "
            "targets, one output, or predictions='raw'): use 'l1' or 'l2'"
        )
    if classifier and num_outputs < 2:
        raise OptionError("predictions='softmax' needs two outputs or more; this model has one: use 'raw'")
    outside = [] if probe.labels is None else np.flatnonzero((probe.labels < 0) | (probe.labels >= num_outputs))
    if classifier and len(outside):
        raise ProbeError(
            f"label {probe.labels[outside[0]]} of example {probe.ids[outside[0]]} is out of range: the model has "
            f"{num_outputs} outputs"
        )


def check_label_form(probe, loss):
    """`ProbeError` where class indices meet a loss for one-hot rows, or the other way round."""
    name = (loss if isinstance(loss, str) else type(loss).__name__).lower().replace("_", "")
    one_hot = probe.y.ndim == 2 and probe.y.shape[1] > 1
    if name == "categoricalcrossentropy" and probe.labels is not None and not one_hot:
        raise ProbeError(f"y holds class indices, shape {probe.y.shape}, and the loss {name} needs one-hot rows")
    if name == "sparsecategoricalcrossentropy" and one_hot:
        raise ProbeError(f"y holds rows, shape {probe.y.shape}, and the loss {name} needs class indices [n]")
