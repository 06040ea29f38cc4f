"""The results of a training that no store has taken yet, as one tidy frame."""

import uuid
from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from srel_tf.frames.schema import empty
from srel_tf.result import SRelResult


class Record(NamedTuple):
    """A result with its number in the order of measuring and the epochs done, NaN while they are unknown.

    Results are kept as matrices, because these take an eighth of the memory of their rows.
    """

    number: int
    result: SRelResult
    epoch: float


class Place(NamedTuple):
    """A place in the training: whole epochs done, and batches done of the next epoch."""

    epochs: float
    batches: int


class Recorder:
    """Results in the order they were measured, each with its step and its place in the training.

    The epoch of a result is the number of epochs done, a fraction within an epoch. It is NaN while the length of the
    first epoch is unknown (a generator, say), and filled in by `epoch_ended`.

    Args:
        run: Value of the frame's column `run`.
        seed: Value of the frame's column `seed`.

    Attributes:
        stored_step: The latest step whose rows a store has taken; None if there is none.
    """

    def __init__(self, run: str, seed: int | None) -> None:
        self._run, self._seed = run, seed
        self._name = uuid.uuid4().hex
        self._count = 0
        self._records: list[Record] = []
        self._pending: dict[
            int, Place
        ] = {}  # Places of results, by number, whose epoch is not known yet.
        self.stored_step: int | None = None

    def add(
        self,
        result: SRelResult,
        epochs: float,
        batches: int,
        batches_per_epoch: int | None,
    ) -> None:
        """Append a result that was measured after `epochs` whole epochs and `batches` batches of the next one.

        Args:
            result: The result.
            epochs: Whole epochs done.
            batches: Batches done of the next epoch.
            batches_per_epoch: Length of that epoch; None if it is unknown.
        """
        place = Place(epochs, batches)
        number = self._count
        self._count += 1
        if batches and not batches_per_epoch:
            self._pending[number] = place
            epoch = np.nan
        else:
            epoch = _epochs_done(place, batches_per_epoch)
        self._records.append(Record(number, result, epoch))

    def epoch_ended(self, batches_per_epoch: int | None) -> None:
        """Fill in the epochs that waited for the length of this epoch; None if the length stays unknown."""
        if self._pending and batches_per_epoch:
            self._records = [
                self._filled_in(record, batches_per_epoch) for record in self._records
            ]
        self._pending = {}

    def _filled_in(self, record: Record, batches_per_epoch: int) -> Record:
        place = self._pending.get(record.number)
        if place is None:
            return record
        return record._replace(epoch=_epochs_done(place, batches_per_epoch))

    def frame(self) -> pd.DataFrame:
        """Return all rows so far; without results, a frame without rows."""
        rows = [
            r.result.to_frame(run=self._run, seed=self._seed, epoch=r.epoch)
            for r in self._records
        ]
        return pd.concat(rows, ignore_index=True) if rows else empty()

    @property
    def newest(self) -> SRelResult | None:
        """The latest result that no store has taken; None if there is none."""
        return self._records[-1].result if self._records else None

    @property
    def first_step(self) -> int | None:
        """The step of the earliest result that no store has taken; None if there is none."""
        return self._records[0].result.step if self._records else None

    @property
    def last_step(self) -> int | None:
        """The latest step that was measured; None if there is none."""
        return self._records[-1].result.step if self._records else self.stored_step

    def withdraw(self, step: int) -> list[tuple[SRelResult, float]]:
        """Drop the results of this step and later ones. Returns them as [(result, epoch)]."""
        withdrawn = [(r.result, r.epoch) for r in self._records if _step(r) >= step]
        self._records = [r for r in self._records if _step(r) < step]
        return withdrawn

    @property
    def mark(self) -> dict[str, int]:
        """{name of this recorder: number of measurements so far}, to be saved with them."""
        return {self._name: self._count}

    def forget(self, marks: Mapping[str, int] | None = None) -> None:
        """Drop the results that a store has taken.

        Args:
            marks: {name of a recorder: number of measurements that are stored}. What was dropped for a mark is not
                dropped again, and marks of other recorders drop nothing. None drops all results.
        """
        num_stored = (self.mark if marks is None else marks).get(self._name, 0)
        stored_steps = [_step(r) for r in self._records if r.number < num_stored]
        if stored_steps and marks is not None:
            self.stored_step = stored_steps[-1]
        self._records = [
            r for r in self._records if r.number >= num_stored
        ]  # One assignment: an interrupt is safe.


def _step(record: Record) -> int:
    """Return the step of a result, which is never None in a training."""
    return cast(int, record.result.step)


def _epochs_done(place: Place, batches_per_epoch: int | None) -> float:
    if not place.batches or not batches_per_epoch:
        return place.epochs
    return place.epochs + place.batches / batches_per_epoch
