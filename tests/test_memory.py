"""The memory of a measurement.

It is bounded by the size of the weights, whatever the number of sources. Large contractions are done in parts.
"""

import subprocess
import sys

SCRIPT = """
import resource
import keras, numpy as np, srel_tf
x = np.random.default_rng(0).normal(size=(64, 512)).astype("float32")
inputs = keras.Input((512,))
hidden = keras.layers.Dense(4096, activation="relu")(inputs)
hidden = keras.layers.Dense(4096, activation="relu")(hidden)
model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.predict(x, verbose=0)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for sources in (2, 64):
    srel_tf.measure(model, srel_tf.ProbeSet(x, np.arange(64) % 2, sources=np.arange(sources)))
    print((peak() - before) / (4 * model.count_params()))
"""


OF_PATCHES = """
import resource
import keras, numpy as np, srel_tf
x = np.random.default_rng(0).normal(size=(96, 64, 64, 1)).astype("float32")
inputs = keras.Input((64, 64, 1))
hidden = keras.layers.Conv2D(16, 3, padding="same", activation="tanh")(inputs)
hidden = keras.layers.Conv2D(4, 7, padding="same", activation="tanh")(hidden)
model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(hidden)))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.predict(x, batch_size=32, verbose=0)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for n in (32, 96):
    srel_tf.measure(model, srel_tf.ProbeSet(x[:n], np.arange(n) % 2), estimator="limit")
    print((peak() - before) / (8 * 64 * 64 * 7 * 7 * 16))
"""


def peaks(script):
    """Return the peak memory after a measurement of few examples, and then of many, in a separate process.

    A separate process is needed because the peak never falls.
    """
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return [float(line) for line in run.stdout.split()[-2:]]


def test_memory_stays_below_four_times_the_weights_whatever_the_number_of_sources():
    """The unit is the size of the model's weights, 75 MB. The gradient of one source takes as much.

    A further source takes less than a hundredth of it. How much depends on the CPU: matrix products copy blocks of
    their factors that fit its caches.
    """
    few, many = peaks(SCRIPT)
    assert many < 4.0
    assert (many - few) / (64 - 2) < 0.01


def test_limit_does_not_hold_the_patches_of_all_examples():
    """The unit is the size of one example's patches of the 7 × 7 convolution in float64, 25.7 MB.

    The patches of 20 examples are held at a time.
    """
    few, many = peaks(OF_PATCHES)
    assert (many - few) / (96 - 32) < 0.75
