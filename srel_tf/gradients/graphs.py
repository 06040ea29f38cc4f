"""Trace the functions of a measurement, and run them as graphs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


def compiled(function: Callable) -> Callable:
    """Return a function of tensors as a graph that is traced once for each shape of its arguments.

    XLA is always off: it is slow for convolutions on a CPU, and a setting that depended on the machine could change the
    results.
    """
    traced = tf.function(function, jit_compile=False, autograph=False)

    @functools.wraps(traced, updated=())
    def call(*arguments: Any) -> Any:
        with unoptimized_graphs():
            return traced(*arguments)

    return call


@contextlib.contextmanager
def unoptimized_graphs() -> Iterator[None]:
    """Switch TensorFlow's graph optimizer off within the context, on a machine without a GPU.

    The optimizer takes a fifth of the time of the first call. It does not make later calls faster, because they spend
    their time in large kernels. On a GPU it stays on, because it chooses the layout of convolutions.
    """
    if tf.config.list_logical_devices("GPU"):
        yield
        return
    name, options = "disable_meta_optimizer", tf.config.optimizer
    before = options.get_experimental_options().get(name, False)
    options.set_experimental_options({name: True})
    try:
        yield
    finally:
        options.set_experimental_options({name: before})


@contextlib.contextmanager
def restored_variable_scope() -> Iterator[None]:
    """Restore the caching device of TensorFlow's variable scope at the end of the context, also after an error.

    `tf.map_fn` sets a caching device while it traces. If its function raises an error, it does not reset the device,
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
