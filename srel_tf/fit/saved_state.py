"""A training state read from a store, and its comparison with the model into which it will be restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from srel_tf.files import JsonObject, differences
from srel_tf.fit.callback import SRelCallback
from srel_tf.fit.clock import Position
from srel_tf.fit.identity import training_fingerprint
from srel_tf.fit.model_state import as_count

Arrays = Sequence[np.ndarray]


class SavedState(NamedTuple):
    """A training state that was read from a store.

    Attributes:
        position: The position in the training.
        count_offset: `TrainingClock.count_offset`.
        variables: Values of the variables that `model_state.variables` lists.
        metrics: Values of the metrics' variables; empty between epochs.
        fingerprint: The `training_fingerprint` of the saved model.
        probes: The state of each probe's callback.
        stateful_callbacks: The state of each of the checkpoint's `companions`.
    """

    position: Position
    count_offset: int
    variables: Arrays
    metrics: Arrays
    fingerprint: JsonObject
    probes: list[JsonObject]
    stateful_callbacks: list[Any]


def load_state(arrays: Mapping[str, np.ndarray], metadata: JsonObject) -> SavedState:
    """Make a `SavedState` from the arrays and the metadata that a store holds.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If a count is not a non-negative integer.
    """
    epoch = as_count(metadata["epoch"])
    batch = as_count(metadata["batch"])
    num_variables = as_count(metadata["variables"])
    num_metrics = as_count(metadata["metrics"])
    return SavedState(
        position=Position(epoch, batch),
        count_offset=metadata["count_offset"],
        variables=[arrays[f"v{i}"] for i in range(num_variables)],
        metrics=[arrays[f"m{i}"] for i in range(num_metrics)],
        fingerprint=metadata["model"],
        probes=metadata["probes"],
        stateful_callbacks=metadata["companions"],
    )


def as_arrays(prefix: str, state: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Return the values of variables as {prefix + index: array}."""
    return {
        f"{prefix}{i}": keras.ops.convert_to_numpy(variable)
        for i, variable in enumerate(state)
    }


def state_differences(
    state: SavedState, model: keras.Model, callbacks: Sequence[SRelCallback]
) -> list[str]:
    """Compare the model, optimizer, loss, probes and options of a saved state with those of a model.

    Args:
        state: The saved state.
        model: The compiled model.
        callbacks: The callbacks of the model's probes.

    Returns:
        One line for each difference; an empty list if the state belongs to the same training.

    Raises:
        ValueError: If the state and the model have different numbers of probes.
    """
    lines = differences(state.fingerprint, training_fingerprint(model))
    for i, (callback, saved) in enumerate(zip(callbacks, state.probes, strict=True)):
        for line in callback.differences(saved):
            lines.append(f"  probe {i}, {line.strip()}")
    return lines
