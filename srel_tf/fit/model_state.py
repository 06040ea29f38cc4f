"""The variables of a model in training, as arrays that can be saved and put back."""

import keras

from srel_tf.errors import OptionError


def variables(model):
    """Weights, batch statistics, seeds of random layers, optimizer; the metrics are begun anew in each epoch."""
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


def build_metrics(model, example, probes):
    """Let Keras make the metrics' variables, from `example` (x, y) or the first of a probe's.

    Raises `OptionError` where there is neither.
    """
    x, y = example or next(((p.probe.x[:1], p.probe.y[:1]) for p in probes), (None, None))
    if x is None:
        raise OptionError(
            "the state was saved within an epoch, and no probe is attached: give restore(model, example=...)"
        )
    model.compute_metrics(x, y, model(keras.ops.convert_to_tensor(x), training=False))


def assign(state, arrays):
    """Put arrays into variables; `ValueError` unless they are of their number, shapes and types."""
    if len(state) != len(arrays):
        raise ValueError(f"{len(arrays)} arrays for {len(state)} variables")
    for v, a in zip(state, arrays, strict=True):
        if tuple(v.shape) != a.shape or v.dtype != a.dtype.name:
            raise ValueError(f"{a.dtype.name} {a.shape} for {v.path}, which is {v.dtype} {tuple(v.shape)}")
    for v, a in zip(state, arrays, strict=True):
        v.assign(a)


def as_count(value):
    """`ValueError` unless a value from a file is a number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is no count")
    return value
