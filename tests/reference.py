"""A naive computation of S_rel, for comparison.

It clones the net, assigns one real step to the clone, and makes two forward passes. NumPy computes the measures. It is
slow and plain on purpose, and does not import srel_tf.
"""

import keras
import numpy as np
import tensorflow as tf


def clone(model, dtype=None):
    """Return a copy of a functional or sequential model with its own weights and the same loss, in `dtype`.

    The loss is made again in `dtype`, because it casts the predictions to its own dtype (by default
    keras.config.floatx()).
    """

    def copy_layer(layer):
        config = layer.get_config()
        if dtype is not None and isinstance(layer, keras.layers.Layer):
            config["dtype"] = dtype
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=copy_layer)
    copy.set_weights(model.get_weights())
    loss = (
        model.loss
        if dtype is None
        else type(model.loss).from_config({**model.loss.get_config(), "dtype": dtype})
    )
    copy.compile(optimizer="sgd", loss=loss)
    return copy


def stepped(model, x, y, learning_rate, optimizer=None):
    """Return a clone of `model` after one real step on the examples x, y. The step is plain SGD or by `optimizer`."""
    copy = clone(model)
    with tf.GradientTape() as tape:
        loss = copy.compute_loss(
            x=x, y=y, y_pred=copy(x, training=False), sample_weight=None, training=False
        )
    gradients = tape.gradient(loss, copy.trainable_variables)
    if optimizer is not None:
        optimizer.apply(gradients, copy.trainable_variables)
        return copy
    for variable, gradient in zip(copy.trainable_variables, gradients, strict=True):
        variable.assign(variable - learning_rate * gradient)
    return copy


def fresh_adam(learning_rate):
    """Return a new Adam whose first step is the same as in PyTorch.

    PyTorch adds ε after the bias correction, Keras before it. Keras's ε is therefore scaled.
    """
    return keras.optimizers.Adam(learning_rate, epsilon=1e-8 * np.sqrt(1 - 0.999))


def log_softmax(outputs):
    outputs = np.asarray(outputs, dtype=np.longdouble)
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl(before, after):
    """Compute Σ g⁺ log(g⁺/g) from two rows of logits, in extended precision."""
    log_g, log_g_plus = log_softmax(before), log_softmax(after)
    return float((np.exp(log_g_plus) * (log_g_plus - log_g)).sum(axis=-1))


def norm(order):
    """Return a function that computes the ℓ1 or ℓ2 norm of the difference of the softmax outputs."""

    def distance(before, after):
        return float(
            np.linalg.norm(
                (np.exp(log_softmax(after)) - np.exp(log_softmax(before))).astype(
                    float
                ),
                order,
            )
        )

    return distance


def raw_norm(order):
    """Return a function that computes the ℓ1 or ℓ2 norm of the difference of the outputs themselves."""
    return lambda before, after: float(
        np.linalg.norm(np.asarray(after) - np.asarray(before), order)
    )


def of_probabilities(distance):
    """Return the same distance as a function of rows of probabilities instead of logits."""
    return lambda before, after: distance(
        *(np.log(np.asarray(p, dtype=np.longdouble)) for p in (before, after))
    )


MEASURES = {"kl": kl, "l1": norm(1), "l2": norm(2)}


def srel(model, x, y, sources, targets, learning_rate, distance, make_optimizer=None):
    """Return S_rel [n_s, n_t], computed one source after the other.

    `make_optimizer` makes the optimizer for each source, in the state from which it steps. None means plain SGD.
    """
    return srels(
        model, x, y, sources, targets, learning_rate, {"": distance}, make_optimizer
    )[""]


def srels(model, x, y, sources, targets, learning_rate, distances, make_optimizer=None):
    """Return {name: S_rel [n_s, n_t]} for several distances {name: distance}, from the same steps.

    S_rel is NaN (0/0) if the step does not change the prediction at its own source.
    """
    before = model(x, training=False).numpy()
    matrices = {name: np.empty((len(sources), len(targets))) for name in distances}
    for row, i in enumerate(sources):
        optimizer = None if make_optimizer is None else make_optimizer()
        after = stepped(model, x[i : i + 1], y[i : i + 1], learning_rate, optimizer)(
            x, training=False
        ).numpy()
        for name, distance in distances.items():
            numerators = np.array([distance(before[j], after[j]) for j in targets])
            with np.errstate(all="ignore"):
                matrices[name][row] = numerators / np.float64(
                    distance(before[i], after[i])
                )
    return matrices
