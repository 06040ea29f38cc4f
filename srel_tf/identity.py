"""What a training is: by it a checkpoint knows whether a model goes on with the one that was saved."""

import hashlib
import json

import keras

NAMES = ("name", "keras_history", "input_layers", "output_layers")  # Under which a configuration names layers.


def describe(model):
    """Hash of the architecture, the optimizer's options, the loss: what a state does not fit without."""
    try:
        config = _anonymous(json.loads(json.dumps(model.get_config(), sort_keys=True, default=str)), {})
    except NotImplementedError:  # A class of the user's own.
        config = None
    config = [config, [type(layer).__name__ for layer in model._flatten_layers()]]
    options = {f"optimizer {name}": v for name, v in model.optimizer.get_config().items() if name != "name"}
    about = {
        "architecture": hashlib.sha256(json.dumps(config).encode()).hexdigest(),
        "optimizer": type(model.optimizer).__name__,
        **options,
        "loss": _anonymous(keras.saving.serialize_keras_object(model.loss), {}),
    }
    return json.loads(json.dumps(about, default=str))


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
