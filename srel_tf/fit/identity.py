"""What a training is: by it a checkpoint knows whether a model goes on with the one that was saved."""

import hashlib
import json
import re

import keras

NAMES = ("name", "keras_history", "input_layers", "output_layers")  # Under which a configuration names layers.


def describe(model):
    """Hash of the architecture, the optimizer's options, the loss: what a state does not fit without."""
    numbers = {}
    config = [[type(layer).__name__, _anonymous(_config(layer), numbers)] for layer in model._flatten_layers()]
    options = {f"optimizer {name}": v for name, v in model.optimizer.get_config().items() if name != "name"}
    about = {
        "architecture": hashlib.sha256(json.dumps(config).encode()).hexdigest(),
        "optimizer": type(model.optimizer).__name__,
        **options,
        "loss": _anonymous(keras.saving.serialize_keras_object(model.loss), {}),
    }
    return _as_json(about)


def describe_loss(loss):
    """A loss that is a setting, as JSON holds it; None for None. Functions are known by their names."""
    if loss is None:
        return None
    if isinstance(loss, keras.losses.Loss):
        return _as_json([type(loss).__name__, loss.get_config()])
    return f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__name__)}"


def _config(layer):
    """What a layer or model says of itself; None for a class of the user's own that says nothing."""
    try:
        return _as_json(layer.get_config())
    except Exception:  # Whatever the user's class may raise: its layers are asked one by one.
        return None


def _as_json(content):
    """As JSON holds it, the same in each process: without addresses in memory."""
    return json.loads(json.dumps(content, sort_keys=True, default=lambda v: re.sub(" at 0x[0-9a-f]+", "", str(v))))


def _anonymous(config, numbers):
    """A configuration whose names are numbers: Keras counts on in the names of a second model."""
    if isinstance(config, list):
        return [_anonymous(c, numbers) for c in config]
    if not isinstance(config, dict):
        return config
    return {key: _numbered(c, numbers) if key in NAMES else _anonymous(c, numbers) for key, c in config.items()}


def _numbered(names, numbers):
    if isinstance(names, list):
        return [_numbered(name, numbers) for name in names]
    return numbers.setdefault(names, len(numbers)) if isinstance(names, str) else _anonymous(names, numbers)
