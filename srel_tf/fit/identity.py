"""Fingerprint of model, optimizer and loss, compared before a checkpoint is restored."""

import hashlib
import json
import re
from typing import Any

import keras

from srel_tf.files import JsonObject

NAME_KEYS = (
    "name",
    "keras_history",
    "input_layers",
    "output_layers",
)  # Config keys whose values are layer names.


def training_fingerprint(model: keras.Model) -> JsonObject:
    """Describe architecture (as a hash), optimizer with its options, and loss.

    A state is restored only if all three match.

    Args:
        model: A compiled model.

    Returns:
        {name of a property: its value}, in types that JSON supports.
    """
    config = model.optimizer.get_config()
    options = {
        f"optimizer {name}": value for name, value in config.items() if name != "name"
    }
    loss = keras.saving.serialize_keras_object(model.loss)
    fingerprint = {
        "architecture": _architecture_hash(model),
        "optimizer": type(model.optimizer).__name__,
        **options,
        "loss": _without_names(loss, {}),
    }
    return _as_json(fingerprint)


def _architecture_hash(model: keras.Model) -> str:
    """Hash the type and the config of each layer, without names."""
    index_of_name: dict[str, int] = {}
    layers = []
    for layer in model._flatten_layers():
        config = _without_names(_config(layer), index_of_name)
        layers.append([type(layer).__name__, config])
    return hashlib.sha256(json.dumps(layers).encode()).hexdigest()


def describe_loss(loss: Any) -> Any:
    """Describe `Settings.loss` in types that JSON supports.

    A Keras loss is described by its class and config, a function by its name.
    """
    if loss is None:
        return None
    if isinstance(loss, keras.losses.Loss):
        return _as_json([type(loss).__name__, loss.get_config()])
    return f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__name__)}"


def _config(layer: keras.layers.Layer) -> Any:
    """Return the config of a layer or model; None if a user's class has no usable `get_config`."""
    try:
        return _as_json(layer.get_config())
    except Exception:  # A user's class may raise any exception. The layers within it are described nevertheless.
        return None


def _as_json(content: Any) -> Any:
    """Convert to types that JSON supports. Memory addresses are removed, because they differ between processes."""
    return json.loads(
        json.dumps(content, sort_keys=True, default=_text_without_address)
    )


def _text_without_address(value: object) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


def _without_names(config: Any, index_of_name: dict[str, int]) -> Any:
    """Replace layer names by indices: Keras numbers automatic names per process, so equal models differ in them.

    Args:
        config: A config, or a part of it.
        index_of_name: {layer name: index} of the names seen so far. New names are added to it.
    """
    if isinstance(config, list):
        return [_without_names(part, index_of_name) for part in config]
    if not isinstance(config, dict):
        return config
    return {
        key: _indices(part, index_of_name)
        if key in NAME_KEYS
        else _without_names(part, index_of_name)
        for key, part in config.items()
    }


def _indices(names: Any, index_of_name: dict[str, int]) -> Any:
    if isinstance(names, list):
        return [_indices(name, index_of_name) for name in names]
    if isinstance(names, str):
        return index_of_name.setdefault(names, len(index_of_name))
    return _without_names(names, index_of_name)
