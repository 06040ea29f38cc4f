"""The variables of a model in training, as arrays that can be saved and restored."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from srel_tf.errors import OptionError
from srel_tf.probe import ProbeSet

Example = tuple[Any, Any]


def variables(model: keras.Model) -> list[keras.Variable]:
    """List weights, batch statistics, seeds of random layers and optimizer variables of a model.

    Variables of metrics are left out, because Keras resets them at the beginning of each epoch.
    """
    metrics = {id(v) for v in model.metrics_variables}
    return [
        v
        for v in [*model.variables, *model.optimizer.variables]
        if id(v) not in metrics
    ]


def build_metrics(
    model: keras.Model, example: Example | None, probes: Sequence[ProbeSet]
) -> None:
    """Let Keras create the variables of the metrics, by computing the metrics of `example`.

    Args:
        model: A compiled model.
        example: (x, y) of at least one example; None means the first example of the first probe.
        probes: The attached probes.

    Raises:
        OptionError: If there is neither an example nor a probe.
    """
    if not example and not probes:
        raise OptionError(
            "the state was saved within an epoch, and its metrics need an example, but no probe is attached: give "
            "restore(model, example=(x, y))"
        )
    x, y = example or _first_example(probes[0])
    predictions = model(keras.ops.convert_to_tensor(x), training=False)
    model.compute_metrics(x, y, predictions)


def _first_example(probe: ProbeSet) -> Example:
    return probe.x[:1], probe.y[:1]


def assign(state: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Assign arrays to variables. If number, shapes or types differ, raise `ValueError` and assign nothing."""
    if len(state) != len(arrays):
        raise ValueError(f"{len(arrays)} saved arrays for {len(state)} variables")
    for variable, array in zip(state, arrays, strict=True):
        _check_match(variable, array)
    for variable, array in zip(state, arrays, strict=True):
        variable.assign(array)


def _check_match(variable: keras.Variable, array: np.ndarray) -> None:
    shape = tuple(variable.shape)
    if shape != array.shape or variable.dtype != array.dtype.name:
        raise ValueError(
            f"a saved array is {array.dtype.name} {array.shape}, but its variable {variable.path} is {variable.dtype} "
            f"{shape}"
        )


def as_count(value: Any, least: int = 0, largest: int = 2**53 - 1) -> int:
    """Return `value`, which was read from a file, if it is an integer from `least` to `largest`.

    Raises:
        ValueError: If `value` is not such an integer.
    """
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not least <= value <= largest:
        raise ValueError(f"{value!r} is not a whole number from {least} to {largest}")
    return value
