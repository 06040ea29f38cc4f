"""Cost of measuring during `fit`: blocks of steps with and blocks without a measurement are timed in turn."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd

from train.benchmark.procedures import CLASSES, setup

EVERY = 9  # Steps from one measurement to the next, as in the paper.
PLAIN = "plain fit"
KINDS = ("no measurement", "limit", "exact")  # Kinds of blocks in a fit with probes.


class _Blocks(keras.callbacks.Callback):
    """Records the seconds of each block of EVERY steps, except the first block, which traces the graphs.

    A block ends after the update of its last step. A measurement after this update belongs to the next block.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stamps: list[float] = []

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if (batch + 1) % EVERY == 0:
            self._stamps.append(time.perf_counter())

    @property
    def seconds(self) -> np.ndarray:
        return np.diff(self._stamps)


def training(
    name: str = "resnet18",
    points: int = 60,
    batch_size: int = 256,
    rounds: int = 5,
    shape: tuple[int, ...] = (32, 32, 3),
) -> pd.DataFrame:
    """Time blocks of EVERY steps in two calls of `fit`.

    The first `fit` has no probes; its blocks are of the kind "plain fit". The second `fit` has a probe for each
    estimator. Its blocks are, in turn, without a measurement, with a measurement of `limit`, and with a measurement of
    `exact`. This is repeated `rounds` times, so that other load on the machine affects the three kinds alike. The
    difference between blocks without a measurement and "plain fit" is the cost of a probe that does not measure.

    Returns:
        One row per block, with its kind and its seconds.
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


def due(estimator: str, start: int) -> Callable[[int], bool]:
    """Make the schedule of an estimator.

    The estimator measures at step `start`, where its graph is traced, and then at the first step of each block of its
    kind.
    """
    turn = KINDS.index(estimator)

    def is_due(step: int) -> bool:
        block, within = divmod(step - start, EVERY)
        return within == 0 and (block == 0 or (block - 1) % len(KINDS) == turn)

    return is_due


def _fit(
    model: keras.Model, batch_size: int, blocks: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Run one `fit` on random images and return the seconds of its blocks, except the first."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal(
        (batch_size * EVERY * blocks, *shape), dtype="float32"
    )
    clock = _Blocks()
    y = generator.integers(CLASSES, size=len(x))
    model.fit(x, y, batch_size=batch_size, callbacks=[clock], verbose=0)
    return clock.seconds


def overhead(table: pd.DataFrame) -> pd.DataFrame:
    """Compute the median seconds of each kind of block, and the overhead relative to a block without a measurement."""
    by_kind = table.groupby("kind", sort=False)["seconds"]
    medians = by_kind.median()
    return pd.DataFrame(
        {
            "seconds": medians,
            "blocks": by_kind.size(),
            "overhead": medians / medians[KINDS[0]] - 1,
        }
    )
