"""A function of many examples, a batch at a time inside one graph."""

import math

import tensorflow as tf


def in_batches(function, dtypes, batch_size, *arrays):
    """The tensors [n, m] of function(*arrays), in batches of equal size, so that all rows see the same kernels."""
    n = arrays[0].shape[0]
    batches = math.ceil(n / batch_size)
    if batches == 1:
        return function(*arrays)
    size = math.ceil(n / batches)
    rows = tf.minimum(tf.range(batches * size), n - 1)  # The last batch is filled up with the last example.
    stacked = tuple(tf.reshape(tf.gather(a, rows), [batches, size, *a.shape[1:]]) for a in arrays)
    results = tf.map_fn(lambda batch: function(*batch), stacked, fn_output_signature=dtypes, parallel_iterations=1)
    return tuple(tf.reshape(t, [batches * size, *t.shape[2:]])[:n] for t in results)
