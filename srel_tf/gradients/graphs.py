"""Trace the functions of a measurement, and run them as graphs."""

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf


def compiled(function: Callable) -> Callable:
    """Trace a function of tensors once for each shape.

    XLA is not used, because it is slow for convolutions on a CPU. All functions have the same setting, so that their
    results agree.
    """
    return tf.function(function, jit_compile=False, autograph=False)


@contextlib.contextmanager
def restored_variable_scope() -> Iterator[None]:
    """Restore the caching device of TensorFlow's variable scope at the end of the context, also after an error.

    `tf.map_fn` sets a caching device while it traces. If the mapped function raises an error, the device is not reset,
    and later `tf.distribute` scopes fail.
    """
    scope = tf.compat.v1.get_variable_scope()
    device = scope.caching_device
    try:
        yield
    finally:
        if scope.caching_device is not device:
            with (
                tf.Graph().as_default()
            ):  # The device cannot be set in eager execution.
                scope.set_caching_device(device)
