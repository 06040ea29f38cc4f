"""How the functions of a measurement are traced and run as graphs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


def compiled(function: Callable) -> Callable:
    """Trace a function of tensors once for each shape.

    XLA is slow for convolutions on a CPU, and one setting everywhere gives one answer everywhere.
    """
    traced = tf.function(function, jit_compile=False, autograph=False)

    @functools.wraps(traced, updated=())
    def call(*arguments: Any) -> Any:
        with unoptimized_graphs():
            return traced(*arguments)

    return call


@contextlib.contextmanager
def unoptimized_graphs() -> Iterator[None]:
    """Switch TensorFlow's graph optimizer off on a machine without a GPU.

    It takes a fifth of the first call. Later calls take as long without it, for their time goes into large kernels.
    On a GPU it chooses the layout of convolutions.
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
    """Put the caching device of TensorFlow's variable scope back, also after an error.

    `tf.map_fn` sets one while it traces and keeps it if its function raises. Later `tf.distribute` scopes then fail.
    """
    scope = tf.compat.v1.get_variable_scope()
    device = scope.caching_device
    try:
        yield
    finally:
        if scope.caching_device is not device:
            with tf.Graph().as_default():  # It cannot be set in eager execution.
                scope.set_caching_device(device)
