"""Checks of a model before it is measured, with errors and warnings."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from srel_tf.errors import BackendError, ModelError


def check_model(model: Any, needs_loss: bool = True) -> None:
    """Raise `ModelError` or `BackendError` unless `model` is ready to be measured."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            f"Keras runs on the {keras.backend.backend()!r} backend, srel_tf needs 'tensorflow': set the environment "
            "variable KERAS_BACKEND=tensorflow before keras is imported"
        )
    if not isinstance(model, keras.Model):
        raise ModelError(f"expected a keras.Model, got {type(model).__name__}")
    if not model.built:
        raise ModelError(
            f"model {model.name!r} is not built: call it once on a batch, or model.build(input_shape)"
        )
    if needs_loss and not model.compiled:
        raise ModelError(
            f"model {model.name!r} is not compiled and has no loss: call model.compile(optimizer, loss)"
        )
    if not model.trainable_variables:
        raise ModelError(
            f"model {model.name!r} has no trainable weights, so that no update changes it: make a layer trainable"
        )
    if model.distribute_strategy is not tf.distribute.get_strategy():
        raise ModelError(
            f"model {model.name!r} was built in the scope of a tf.distribute strategy: build it outside of the scope"
        )


def warn_of_batch_norm(model: keras.Model) -> None:
    """Warn if a model has batch normalisation, because its fictitious update then differs from a training step."""
    if any(v.path.endswith("moving_mean") for v in model.non_trainable_variables):
        warnings.warn(
            f"model {model.name!r} has batch normalisation: S_rel is measured in inference mode, so the fictitious "
            "update uses the moving statistics and does not change them; training itself uses batch statistics",
            stacklevel=3,
        )
