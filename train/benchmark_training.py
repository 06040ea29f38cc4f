"""What measuring during `fit` costs: blocks of steps with and without a measurement, timed in turn."""

import time

import keras
import numpy as np
import pandas as pd

from train.benchmark_procedures import CLASSES, setup

EVERY = 9  # Steps from one measurement to the next, as in the paper.
KINDS = ("plain fit", "limit", "exact")


class _Blocks(keras.callbacks.Callback):
    """Seconds of each block of EVERY steps, the first left out: it traces the graphs.

    A block ends when a step's update is done; the measurement that falls due there belongs to the next block.
    """

    def __init__(self):
        super().__init__()
        self._stamps = []

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % EVERY == 0:
            self._stamps.append(time.perf_counter())

    @property
    def seconds(self):
        return np.diff(self._stamps)


def training(name="resnet18", points=60, batch_size=256, rounds=3, blocks=3, shape=(32, 32, 3)):
    """One row a block of EVERY steps: kind ("plain fit", "limit", "exact": one measurement a block), round, seconds.

    rounds: how often the three kinds take their turn; blocks: how many blocks each of them runs then.
    """
    it = setup(name, points, shape)
    generator = np.random.default_rng(1)
    size = batch_size * EVERY * (blocks + 1)
    x, y = generator.standard_normal((size, *shape), dtype="float32"), generator.integers(CLASSES, size=size)
    rows = []
    for turn in range(rounds):
        for kind in KINDS:
            it.model.detach_probes()
            if kind != "plain fit":
                it.model.attach_probe(it.probe, every=EVERY, estimator=kind)
            clock = _Blocks()
            it.model.fit(x, y, batch_size=batch_size, callbacks=[clock], verbose=0)
            rows += [{"kind": kind, "round": turn, "seconds": s} for s in clock.seconds]
    it.model.detach_probes()
    return pd.DataFrame(rows)


def overhead(table):
    """Median seconds of a block of each kind, and by how much it exceeds that of plain `fit`, as a share."""
    medians = table.groupby("kind", sort=False)["seconds"].median()
    counts = table.groupby("kind", sort=False)["seconds"].size()
    return pd.DataFrame({"seconds": medians, "blocks": counts, "overhead": medians / medians["plain fit"] - 1})
