"""What a model's outputs are (probabilities, logits, raw values) and how they change under an update."""

import warnings

import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.measures.distances import Change, log_probabilities, probability_change, raw_change

CHOICES = ("auto", "softmax", "raw")
OWN_LOSS = "the loss is your own, and y holds no class indices"  # A reason for raw outputs.


def read_as(choice, loss, activation, y, num_outputs):
    """How to read outputs [n, C]: (kind, reason). The values of outputs and of y play no part.

    choice: the user's `predictions`. loss: `CompiledLoss`. activation: `Network.activation`. y: targets of the probe.

    kind: "raw": D acts on the outputs as they are. "logits": D acts on their softmax. "probabilities": they are the
    softmax. "softmax": one of the last two, which only the values of the outputs tell (`kind_of_predictions`).
    reason: why D does not act on a softmax; "" if it does.

    | predictions | C  | compiled loss       | last activation       | y                      | D acts on   |
    |-------------|----|---------------------|-----------------------|------------------------|-------------|
    | "softmax"   | ≥2 | any                 | any                   | any                    | the softmax |
    | "raw"       |    | any                 | any                   | any                    | raw outputs |
    | "auto"      | 1  | any                 | any                   | any                    | raw outputs |
    | "auto"      | ≥2 | binary              | any                   | any                    | raw outputs |
    | "auto"      | ≥2 | any                 | sigmoid               | any                    | raw outputs |
    | "auto"      | ≥2 | sparse, categorical | any other             | any                    | the softmax |
    | "auto"      | ≥2 | other, own          | softmax, log-softmax  | any                    | the softmax |
    | "auto"      | ≥2 | own                 | any other             | integers [n] or [n, 1] | the softmax |
    | "auto"      | ≥2 | own                 | any other             | rows [n, C], floats    | raw outputs |
    | "auto"      | ≥2 | other               | any other             | any                    | raw outputs |

    A softmax is the model's last operation, so that its outputs are probabilities by construction; a cross-entropy
    with from_logits=True says that they are logits. In both cases no value of an output can change the reading.
    """
    reason = "" if choice == "softmax" else _reason_for_raw(choice, loss, activation, y, num_outputs)
    if reason:
        return "raw", reason
    if activation == "softmax":
        return "probabilities", ""
    if activation in ("log_softmax", "sigmoid") or loss.from_logits:
        return "logits", ""
    return "softmax", ""


def _reason_for_raw(choice, loss, activation, y, num_outputs):
    if choice == "raw":
        return "predictions='raw'"
    if num_outputs == 1:
        return "the model has one output"
    if loss.kind == "binary":
        return f"the loss {loss.name} takes each output by itself"
    if activation == "sigmoid":
        return "the model ends in a sigmoid, which takes each output by itself"
    if loss.kind in ("sparse", "categorical") or activation in ("softmax", "log_softmax"):
        return ""
    if loss.kind == "own":
        return "" if holds_class_indices(y) else OWN_LOSS
    return f"the loss {loss.name} is not one of a classifier, and the model does not end in a softmax"


def kind_of_predictions(choice, loss, model, outputs):
    """ "raw", "logits" or "probabilities": `choice` of `read_as`, by the values of `outputs` [n, C] if it is "softmax".

    The values count for a classifier whose last operation is not known, or does not make probabilities by itself: a
    model that divides by a sum, say, or takes the mean of several softmaxes.
    loss: `CompiledLoss`. Raises `ModelError` if it expects probabilities and the model does not return them.
    """
    if choice != "softmax":
        return choice
    finite = np.isfinite(outputs).all(axis=-1)
    if finite.any():
        outputs = outputs[finite]  # One target whose prediction is NaN does not change how the others are read.
    if _on_simplex(outputs):
        return "probabilities"
    if finite.any() and loss.from_logits is False:
        raise ModelError(
            f"the loss {loss.name} of model {model.name!r} expects probabilities that sum to one (from_logits=False), "
            "and its outputs do not: end the model in a softmax, compile with from_logits=True, or measure with "
            "predictions='raw'"
        )
    return "logits"


def _on_simplex(outputs):
    sums = outputs.sum(axis=-1, dtype=np.float64)
    return bool((outputs >= 0).all() and (np.abs(sums - 1) < 1e-5).all())


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


def holds_class_indices(y):
    """Whether y is one whole number an example by its shape and type."""
    return y.dtype.kind in "biu" and y.size == len(y)


def check_fit(kind, reason, measures, probe, num_outputs, loss):
    """`OptionError` or `ProbeError` if measures, labels and a model's number of outputs don't go together.

    kind, reason: of `read_as`.
    """
    unfit = [name for name, measure in measures.items() if measure.probabilities and kind == "raw"]
    if unfit:
        raise OptionError(
            f"measures {unfit} are defined for probability vectors, and D acts on raw outputs here ({reason}): use "
            "'l1' or 'l2', or predictions='softmax' if the softmax of two outputs or more is meant"
        )
    if kind != "raw" and num_outputs < 2:
        raise OptionError("predictions='softmax' needs two outputs or more; this model has one: use 'raw'")
    if probe.labels is None or (kind == "raw" and loss.kind != "sparse"):
        return
    outside = (probe.labels < 0) | (probe.labels >= num_outputs)
    outside = np.flatnonzero(outside & (probe.labels != loss.ignore_class))
    if len(outside):
        raise ProbeError(
            f"label {probe.labels[outside[0]]} of example {probe.ids[outside[0]]} is out of range: the model has "
            f"{num_outputs} outputs"
        )


def warn_of_unclear_targets(reason, probe, num_outputs):
    """Say that D acts on raw outputs under a loss of the user's own, if the y of this probe could be labels."""
    y = probe.y.reshape(len(probe), -1)
    indices = y.shape[1] == 1 and bool(np.isin(y, np.arange(num_outputs)).all())
    if reason == OWN_LOSS and (indices or probe.labels is not None):
        warnings.warn(
            "D acts on the raw outputs: the loss is your own, and nothing but the labels of this probe says that the "
            "model is a classifier; give predictions='softmax' if it is one, else predictions='raw'",
            stacklevel=4,
        )


def labelled(probe, loss):
    """The probe with the class labels that the loss reads from y: floating-point class indices are labels to Keras.

    Raises `ProbeError` if class indices meet a loss for rows, or the other way round, or if an index is not whole.
    """
    rows = probe.y.ndim == 2 and probe.y.shape[1] > 1
    if loss.kind == "categorical" and not rows:
        raise ProbeError(f"y has the shape {probe.y.shape}, and the loss {loss.name} needs one-hot rows [n, C]")
    if loss.kind != "sparse":
        return probe
    if rows or probe.y.ndim > 2:
        raise ProbeError(f"y has the shape {probe.y.shape}, and the loss {loss.name} needs class indices [n]")
    return probe.with_class_indices() if probe.labels is None else probe
