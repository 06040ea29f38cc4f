"""Long runs: after a warm-up, memory does not grow with the number of measurements, and nothing is traced again.

The quick suite measures 120 times in one `fit`, with the estimator whose graph is traced fastest.
`pytest -m slow tests/frames/test_long_run.py` measures 2,000 times.
"""

import gc
import resource
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest

import srel_tf
from srel_tf import FrameStore
from tests.nets import digits


def resident():
    """Return the resident memory of this process in bytes."""
    gc.collect()
    return (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        * resource.getpagesize()
    )


def allocated():
    """Return the bytes that Python and NumPy have allocated since the first call, which follows after all tracing."""
    gc.collect()
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


class Watch(keras.callbacks.Callback):
    """Records the memory after every third epoch, and the number of traces of the engine after each epoch."""

    def __init__(self, memory):
        super().__init__()
        self._memory, self.memory, self.traces = memory, [], []

    def on_epoch_end(self, epoch, logs=None):
        engine = self.model._srel_callbacks[0]._instrument._estimator._engine
        if epoch % 3 == 2:
            self.memory.append(self._memory())
        self.traces.append(engine._compiled.experimental_get_tracing_count())


def long_fit(store, epochs, memory, estimator):
    """Train with 10 updates per epoch, and measure at each update.

    A measurement has 30 x 30 pairs and 2 measures, so 1,800 rows. Rows are saved at the end of each epoch.
    """
    x, y = digits(per_class=10)
    x, y = x[:30], y[:30]
    inputs = keras.Input(x.shape[1:])
    model = srel_tf.SRelModel(
        inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.attach_probe(
        srel_tf.ProbeSet(x, y), every=1, run="a", seed=0, estimator=estimator
    )
    watch = Watch(memory)
    model.fit(
        x,
        y,
        batch_size=3,
        epochs=epochs,
        verbose=0,
        callbacks=[watch, srel_tf.Checkpoint(store)],
    )
    return model, watch


def check(store, epochs, memory, estimator):
    model, watch = long_fit(store, epochs, memory, estimator)
    measurements = 10 * epochs + 1
    assert set(watch.traces) == {1}
    rows = store.read()
    assert rows.groupby("step").size().tolist() == [1800] * measurements
    assert len(model.srel_frame()) == 0
    warm = watch.memory[len(watch.memory) // 3 :]  # The first third is warm-up.
    return max(warm) - warm[0], measurements


def test_memory_is_flat_and_nothing_is_traced_again(tmp_path):
    try:
        with FrameStore(tmp_path / "frame", write=True) as store:
            grown, _ = check(store, 12, allocated, "limit")
    finally:
        tracemalloc.stop()
    assert grown < 1e6  # The 60 measurements would take 2 MB, their rows 12 MB.


@pytest.mark.slow
def test_two_thousand_measurements(tmp_path, capsys):
    with FrameStore(tmp_path / "frame", write=True) as store:
        grown, measurements = check(store, 200, resident, "exact")
    with capsys.disabled():
        print(
            f"\n{measurements} measurements in one fit: {grown / 1e6:.1f} MB more at the peak than after a third"
        )
    assert grown < 10e6  # The 1,300 measurements would take 40 MB, their rows 270 MB.


def test_a_store_without_probes_keeps_the_state(tmp_path):
    """A checkpoint also works for a plain Keras model."""
    x, y = np.ones((4, 3), "float32"), np.array([0, 1, 0, 1])

    def net():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(
            "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        return model

    with FrameStore(tmp_path / "frame", write=True) as store:
        first = net()
        first.fit(
            x,
            y,
            batch_size=2,
            epochs=2,
            verbose=0,
            callbacks=[srel_tf.Checkpoint(store)],
        )
        second = net()
        assert srel_tf.Checkpoint(store).restore(second) == (2, 0)
    for a, b in zip(
        *([*m.weights, *m.optimizer.variables] for m in (first, second)), strict=True
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
