"""Every source's gradient from one batched backward pass, layer by layer.

Back-propagation forms ∇ℓ of a layer's weights from two things: the layer's input and the signal ∂ℓ/∂(its output). Both
come from one forward and one backward pass over a batch of sources. What remains a source is the layer's own
vector-Jacobian product with its row of the signal.
"""

import inspect
from typing import NamedTuple

import keras
import tensorflow as tf

MEANS_AS_CLASSES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.Huber,
)
MEANS_AS_FUNCTIONS = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.binary_crossentropy,
    keras.losses.mean_squared_error,
    keras.losses.mean_absolute_error,
    keras.losses.huber,
)


class Captured(NamedTuple):
    """Input and signal [n, …] of each layer; direction of ∇_x ℓ [n, m] and outputs [n, C] of each example."""

    inputs: list
    signals: list
    direction: tf.Tensor
    outputs: tf.Tensor


class LayerGradients:
    """Gradients of single examples out of a batch. Make it with `layer_gradients`, which knows where it applies."""

    def __init__(self, network, layers, taps):
        self._network = network
        self._layers = layers
        self._taps = taps
        order = [id(v) for layer in layers for v in layer.trainable_variables]
        self._position = [order.index(id(v)) for v in network.variables]

    def capture(self, x, y, factor):
        """One forward and one backward pass over a batch of examples [n, …]; `factor` multiplies the signals."""
        network = self._network
        weights = [tf.convert_to_tensor(w) for w in network.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, *weights])
            with keras.StatelessScope(list(zip(network.variables, weights, strict=True)), collect_losses=True):
                inputs, outputs, predictions = self._taps(x, training=False)
                loss = network.model.compute_loss(x=x, y=y, y_pred=predictions, sample_weight=None, training=False)
        # The loss is the mean over the batch: n times it is the sum of the examples' own losses.
        by_x, *signals = network.backward(tape, loss, [x, *outputs], factor * x.shape[0])
        return Captured(inputs, signals, network.unit_rows(by_x), network.as_outputs(predictions))

    def gradient(self, captured, i):
        """∇_w of example i's loss times `factor`, one tensor a variable of the network."""
        gradients = []
        for layer, x, signal in zip(self._layers, captured.inputs, captured.signals, strict=True):
            weights = [tf.convert_to_tensor(v.value) for v in layer.trainable_variables]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                with keras.StatelessScope(list(zip(layer.trainable_variables, weights, strict=True))):
                    output = layer(x[i, None], training=False) if _takes_training(layer) else layer(x[i, None])
            unconnected = tf.UnconnectedGradients.ZERO
            gradients += tape.gradient(output, weights, signal[i, None], unconnected)
        return [tf.convert_to_tensor(gradients[k]) for k in self._position]


def layer_gradients(network, x):
    """`LayerGradients` of a network, or None where one backward pass may not hold every example's gradient apart.

    It needs a functional or sequential model of Keras's own layers, whose trainable weights each belong to one layer
    that is called once, on one tensor; and a loss that is the mean of the examples' own: one of Keras's losses with its
    default reduction, all classes counted, with no penalty added. x: a batch of one example, on which it is tried.
    """
    model = network.model
    if not getattr(model, "inputs", None) or len(model.inputs) != 1 or len(model.outputs) != 1 or model.run_eagerly:
        return None
    if not type(model).call.__module__.startswith("keras."):
        return None  # A functional model whose subclass does more than its graph.
    if type(model).compute_loss is not keras.Model.compute_loss or not _is_mean_of_examples(model.loss):
        return None
    layers = [layer for layer in model.layers if layer.trainable_variables]
    owned = [id(v) for layer in layers for v in layer.trainable_variables]
    if sorted(owned) != sorted(id(v) for v in network.variables):
        return None  # A weight shared by two layers, or one that the model itself owns.
    if network.has_added_losses(x):
        return None
    taps = _taps(model, layers)
    return None if taps is None or not _keeps_examples_apart(taps, layers) else LayerGradients(network, layers, taps)


def _taps(model, layers):
    """The model x -> [inputs of the layers, their outputs, predictions]; None where the layers have no such tensors.

    `layer.input` belongs to the first call of a layer, which may have been in another graph.
    """
    tensors = [[v.input for v in layers], [v.output for v in layers]]
    if not all(isinstance(t, keras.KerasTensor) for side in tensors for t in side):
        return None
    try:
        return keras.Model(model.inputs, [*tensors, model.outputs[0]])
    except ValueError:
        return None  # That graph has other inputs.


def _is_mean_of_examples(loss):
    """Whether a compiled loss is the mean of the examples' own; Dice and the like treat the batch as a whole."""
    if isinstance(loss, (list, tuple, dict)):
        return False
    loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        return loss in MEANS_AS_FUNCTIONS
    config = loss.get_config()
    return (
        type(loss) in MEANS_AS_CLASSES
        and loss.reduction in ("sum_over_batch_size", "mean")
        and config.get("axis", -1) == -1
        and config.get("ignore_class") is None
    )


def _keeps_examples_apart(taps, layers):
    """Whether each layer is called once, and all are Keras's own.

    A Lambda, a bare operation, a nested model or a layer of the user may do anything.
    """
    entries = taps.get_config()["layers"]
    if any(e["module"] != "keras.layers" or e["registered_name"] or e["class_name"] == "Lambda" for e in entries):
        return False
    calls = {e["config"]["name"]: len(e["inbound_nodes"]) for e in entries}
    return all(calls[v.name] == 1 for v in layers)


def _takes_training(layer):
    return "training" in inspect.signature(layer.call).parameters
