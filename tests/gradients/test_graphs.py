"""An error while a graph is traced leaves the state of TensorFlow as it was."""

import pytest
import tensorflow as tf

from srel_tf.gradients.graphs import compiled, restored_variable_scope


def test_the_caching_device_is_put_back():
    def failing(x):
        raise ArithmeticError("on purpose")

    mapped = compiled(lambda x: tf.map_fn(failing, x))
    with pytest.raises(ArithmeticError), restored_variable_scope():
        mapped(tf.ones(2))
    assert tf.compat.v1.get_variable_scope().caching_device is None
