"""Graphs run without TensorFlow's optimizer, and nothing of TensorFlow's state is changed afterwards."""

import pytest
import tensorflow as tf

from srel_tf.gradients.graphs import compiled, restored_variable_scope
from tests.nets import graph_optimizer

NAME = "disable_meta_optimizer"


def is_off():
    return tf.config.optimizer.get_experimental_options().get(NAME, False)


@pytest.mark.parametrize("on", [True, False])
def test_the_graph_optimizer_is_off_while_a_function_runs(on):
    seen = []

    def doubled(x):
        seen.append(is_off())  # The function's Python code runs while it is traced.
        if x.shape[0] == 3:
            raise ArithmeticError("on purpose")
        return 2 * x

    call = compiled(doubled)
    with graph_optimizer(on):
        assert call(tf.ones(2)).numpy().tolist() == [2, 2]
        assert call(tf.zeros(2)).numpy().tolist() == [0, 0]
        with pytest.raises(ArithmeticError):
            call(tf.ones(3))
        assert is_off() != on
    assert seen == [True, True]  # Traced once a shape.


def test_the_caching_device_is_put_back():
    def failing(x):
        raise ArithmeticError("on purpose")

    mapped = compiled(lambda x: tf.map_fn(failing, x))
    with pytest.raises(ArithmeticError), restored_variable_scope():
        mapped(tf.ones(2))
    assert tf.compat.v1.get_variable_scope().caching_device is None
