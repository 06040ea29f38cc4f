"""How a model's outputs are interpreted (as probabilities, logits or raw values), and how an update changes them."""

import warnings
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.measures.distances import (
    Change,
    Measure,
    log_probabilities,
    probability_change,
    raw_change,
)

Probe: TypeAlias = Any  # A `ProbeSet`.
Loss: TypeAlias = Any  # A `CompiledLoss`.

CHOICES = ("auto", "softmax", "raw")
OWN_LOSS = (
    "the loss is your own, and y holds no class indices"  # Why D acts on raw outputs.
)


def read_as(
    choice: str, loss: Loss, activation: str | None, y: np.ndarray, num_outputs: int
) -> tuple[str, str]:
    """Decide how outputs [n, C] are interpreted.

    Of y only the shape and dtype are used. The values of the outputs are not used here.

    Args:
        choice: the option `predictions` of `measure`.
        loss: the `CompiledLoss`.
        activation: `Network.activation`.
        y: targets of the probe.
        num_outputs: C.

    Returns:
        kind:

            - "raw" if D acts on the outputs as they are.
            - "logits" if D acts on the softmax of the outputs.
            - "probabilities" if the outputs already are the softmax on which D acts.
            - "softmax" if D acts on a softmax, but the values of the outputs must show whether they are logits or
              probabilities (`kind_of_predictions`).
        reason: why D acts on raw outputs; "" if D acts on a softmax.

    The column "compiled loss" of this table is `CompiledLoss.kind`:

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

    If the model's last operation is a softmax, the outputs are probabilities. Otherwise a cross-entropy with
    from_logits=True shows that the outputs are logits. In both cases the values of the outputs are not needed.
    """
    reason = (
        ""
        if choice == "softmax"
        else _reason_for_raw(choice, loss, activation, y, num_outputs)
    )
    if reason:
        return "raw", reason
    if activation == "softmax":
        return "probabilities", ""
    if activation in ("log_softmax", "sigmoid") or loss.from_logits:
        return "logits", ""
    return "softmax", ""


def _reason_for_raw(
    choice: str, loss: Loss, activation: str | None, y: np.ndarray, num_outputs: int
) -> str:
    if choice == "raw":
        return "predictions='raw'"
    if num_outputs == 1:
        return "the model has one output"
    if loss.kind == "binary":
        return f"the loss {loss.name} treats each output separately"
    if activation == "sigmoid":
        return "the model ends in a sigmoid, which treats each output separately"
    if loss.kind in ("sparse", "categorical") or activation in (
        "softmax",
        "log_softmax",
    ):
        return ""
    if loss.kind == "own":
        return "" if holds_class_indices(y) else OWN_LOSS
    return f"the loss {loss.name} is not a classification loss, and the model does not end in a softmax"


def kind_of_predictions(
    kind: str, loss: Loss, model_name: str, outputs: np.ndarray
) -> str:
    """Return "raw", "logits" or "probabilities". If `kind` is "softmax", the values of the outputs decide.

    `kind` is "softmax" for a classifier whose last operation does not show whether its outputs are logits or
    probabilities. An example of such an operation is a mean of several softmaxes.

    Args:
        kind: result of `read_as`.
        loss: the `CompiledLoss`.
        model_name: name of the model, for the message.
        outputs: [n, C].

    Raises:
        ModelError: if the loss expects probabilities, but the outputs are not probabilities.
    """
    if kind != "softmax":
        return kind
    finite = np.isfinite(outputs).all(axis=-1)
    if finite.any():
        outputs = outputs[
            finite
        ]  # A target whose prediction is NaN must not change how the other outputs are interpreted.
    if _on_simplex(outputs):
        return "probabilities"
    if finite.any() and loss.from_logits is False:
        raise ModelError(
            f"the loss {loss.name} of model {model_name!r} expects probabilities that sum to one (from_logits=False), "
            "but the outputs of the model do not sum to one: end the model in a softmax, compile with "
            "from_logits=True, or measure with predictions='raw'"
        )
    return "logits"


def _on_simplex(outputs: np.ndarray) -> bool:
    sums = outputs.sum(axis=-1, dtype=np.float64)
    return bool((outputs >= 0).all() and (np.abs(sums - 1) < 1e-5).all())


def change_of_outputs(kind: str, before: tf.Tensor, after: tf.Tensor) -> Change:
    """Return the `Change` from outputs `before` to `after` [..., C]. The shapes are broadcast."""
    if kind == "raw":
        return raw_change(before, after)
    are_probabilities = kind == "probabilities"
    log_before = log_probabilities(before, are_probabilities)
    log_after = log_probabilities(after, are_probabilities)
    return probability_change(log_before, log_after)


def first_order_change(
    kind: str,
    link: str,
    before: tf.Tensor,
    moved: tf.Tensor,
    link_derivative: tf.Tensor | float,
) -> Change:
    """Return the `Change` of predictions to first order in the change of u, the argument of the link.

    For a classifier only differences between the entries of `moved` matter: a softmax ignores a common shift of logits,
    and changes of probabilities sum to zero.

    Args:
        kind: how the outputs are interpreted: "raw", "logits" or "probabilities".
        link: name of the link from u to the outputs (`output_gradients.LINKS`).
        before: outputs f [..., C].
        moved: the change of u [..., C].
        link_derivative: df/du at `before`.
    """
    before, moved = (
        tf.cast(before, tf.float64),
        link_derivative * tf.cast(moved, tf.float64),
    )
    if kind == "raw":
        return Change(before, before, moved)
    log_g = log_probabilities(before, kind == "probabilities")
    g = tf.exp(log_g)
    if kind == "probabilities" and link == "identity":
        difference = moved - tf.reduce_mean(moved, axis=-1, keepdims=True)
        return Change(g, g, difference, log_g, tf.math.divide_no_nan(difference, g))
    # d_c = δ_c − Σ_k g_k δ_k, computed without cancellation for a class whose probability is close to one.
    others = tf.reduce_sum(g * moved, axis=-1, keepdims=True) - g * moved
    d = -tf.math.expm1(log_g) * moved - others
    return Change(g, g, g * d, log_g, d)


def holds_class_indices(y: np.ndarray) -> bool:
    """Return whether y has one integer for each example, judged by its shape and dtype."""
    return y.dtype.kind in "biu" and y.size == len(y)


def check_fit(
    kind: str,
    reason: str,
    measures: dict[str, Measure],
    probe: Probe,
    num_outputs: int,
    loss: Loss,
) -> None:
    """Check that measures, labels and the model's number of outputs are compatible.

    Args:
        kind: result of `read_as`.
        reason: result of `read_as`.
        measures: measures by name.
        probe: the `ProbeSet`.
        num_outputs: C.
        loss: the `CompiledLoss`.

    Raises:
        OptionError: if a measure of probabilities would act on raw outputs, or a softmax on one output.
        ProbeError: if a label is out of range.
    """
    unfit = [
        name
        for name, measure in measures.items()
        if measure.probabilities and kind == "raw"
    ]
    if unfit:
        raise OptionError(
            f"measures {unfit} are defined for probability vectors, but D acts on raw outputs here ({reason}): use "
            "'l1' or 'l2', or predictions='softmax' if the softmax of two outputs or more is meant"
        )
    if kind != "raw" and num_outputs < 2:
        raise OptionError(
            "predictions='softmax' needs two outputs or more, but this model has one: use predictions='raw'"
        )
    if probe.labels is None or (kind == "raw" and loss.kind != "sparse"):
        return
    outside = (probe.labels < 0) | (probe.labels >= num_outputs)
    outside = np.flatnonzero(outside & (probe.labels != loss.ignore_class))
    if len(outside):
        raise ProbeError(
            f"label {probe.labels[outside[0]]} of example {probe.ids[outside[0]]} is out of range: the model has "
            f"{num_outputs} outputs; give non-negative labels below this number"
        )


def warn_of_unclear_targets(reason: str, probe: Probe, num_outputs: int) -> None:
    """Warn that D acts on raw outputs if the loss is custom and the y of this probe could be class labels."""
    y = probe.y.reshape(len(probe), -1)
    indices = y.shape[1] == 1 and bool(np.isin(y, np.arange(num_outputs)).all())
    if reason == OWN_LOSS and (indices or probe.labels is not None):
        warnings.warn(
            "D acts on the raw outputs: the loss is custom, and only the labels of this probe suggest that the "
            "model is a classifier; give predictions='softmax' if it is one, else predictions='raw'",
            stacklevel=4,
        )


def labelled(probe: Probe, loss: Loss) -> Probe:
    """Check that y has the form that the loss needs, and return the probe.

    If the loss takes class indices, floating-point y are interpreted as class indices, as Keras does.

    Raises:
        ProbeError: if the loss needs one-hot rows, and y has another shape; if the loss needs class indices, and y
            holds rows; or if a class index is not a whole number.
    """
    rows = probe.y.ndim == 2 and probe.y.shape[1] > 1
    if loss.kind == "categorical" and not rows:
        raise ProbeError(
            f"y has the shape {probe.y.shape}, but the loss {loss.name} needs one-hot rows [n, C]: give such rows, or "
            "compile with a loss for class indices"
        )
    if loss.kind != "sparse":
        return probe
    if rows or probe.y.ndim > 2:
        raise ProbeError(
            f"y has the shape {probe.y.shape}, but the loss {loss.name} needs class indices [n]: give such indices, or "
            "compile with a loss for one-hot rows"
        )
    return probe.with_class_indices() if probe.labels is None else probe
