"""What measuring during `fit` costs: blocks of steps with and without a measurement, timed in turn."""

import time

import keras
import numpy as np
import pandas as pd

from train.benchmark.procedures import CLASSES, setup

EVERY = 9  # Steps from one measurement to the next, as in the paper.
PLAIN, KINDS = (
    "plain fit",
    ("no measurement", "limit", "exact"),
)  # What the blocks of a fit with probes do in turn.


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


def training(name="resnet18", points=60, batch_size=256, rounds=5, shape=(32, 32, 3)):
    """One row a block of EVERY steps: kind, seconds.

    One `fit` has a probe for each estimator; its blocks do without a measurement, with one of `limit`, with one of
    `exact`, in turn, `rounds` times: neighbours in time see the same machine. "plain fit" is a `fit` without probes of
    as many blocks, which shows that a probe costs nothing where it does not measure.
    """
    it = setup(name, points, shape)
    plain = _fit(it.model, batch_size, 1 + rounds, shape)
    start = int(it.model.optimizer.iterations)
    for estimator in KINDS[1:]:
        it.model.attach_probe(
            it.probe, every=due(estimator, start), estimator=estimator
        )
    in_turn = _fit(it.model, batch_size, 1 + rounds * len(KINDS), shape)
    it.model.detach_probes()
    rows = [(PLAIN, s) for s in plain] + list(zip(KINDS * rounds, in_turn, strict=True))
    return pd.DataFrame(rows, columns=["kind", "seconds"])


def due(estimator, start):
    """The schedule of an estimator: step `start`, where its graph is traced, and the start of each of its blocks."""
    turn = KINDS.index(estimator)

    def is_due(step):
        block, within = divmod(step - start, EVERY)
        return within == 0 and (block == 0 or (block - 1) % len(KINDS) == turn)

    return is_due


def _fit(model, batch_size, blocks, shape):
    """Seconds of the blocks of one `fit` on random images, but for the first."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal(
        (batch_size * EVERY * blocks, *shape), dtype="float32"
    )
    clock = _Blocks()
    y = generator.integers(CLASSES, size=len(x))
    model.fit(x, y, batch_size=batch_size, callbacks=[clock], verbose=0)
    return clock.seconds


def overhead(table):
    """Median seconds of a block of each kind, and by how much it exceeds one without a measurement, as a share."""
    by_kind = table.groupby("kind", sort=False)["seconds"]
    medians = by_kind.median()
    return pd.DataFrame(
        {
            "seconds": medians,
            "blocks": by_kind.size(),
            "overhead": medians / medians[KINDS[0]] - 1,
        }
    )
