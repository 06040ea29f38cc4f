"""The results of a training that are not yet in a store, as one tidy frame."""

import uuid
from typing import NamedTuple, cast

import pandas as pd

from srel_tf.fit.clock import Place
from srel_tf.frames.schema import empty
from srel_tf.result import SRelResult


class Record(NamedTuple):
    """A result and the position in the training at which its step was reached.

    Results are kept as matrices, because matrices take an eighth of the memory of rows.
    """

    result: SRelResult
    place: Place

    @property
    def step(self) -> int:
        """The step of the result, which is never None in a training."""
        return cast(int, self.result.step)


class Recorder:
    """Results in the order in which they were measured, each with its step and its place in the training.

    The epoch of a result is the number of epochs done, with a fraction within an epoch. This number is NaN while the
    length of the epoch is unknown (for example, if the data are a generator).

    Args:
        run: Value of the frame's column `run`.
        seed: Value of the frame's column `seed`.

    Attributes:
        name: Unique name of the recorder, by which a store identifies the results that it holds.
        stored_step: The latest step whose rows are in a store; None if no rows are in a store.
    """

    def __init__(self, run: str, seed: int | None) -> None:
        self.name = uuid.uuid4().hex
        self.stored_step: int | None = None
        self._run, self._seed = run, seed
        self._records: list[Record] = []
        self._held: list[Record] = []

    def add(self, result: SRelResult, place: Place) -> None:
        """Append a result whose step was reached at `place`."""
        self._records.append(Record(result, place))

    def hold(self, step: int) -> None:
        """Withhold the results of `step` and of later steps from the frame until `release` is called."""
        held = [record for record in self._records if record.step >= step]
        self.withdraw(step)
        self._held = held

    def release(self) -> None:
        """Put the withheld results back into the frame."""
        self._records, self._held = [*self._records, *self._held], []

    def withdraw(self, step: int) -> None:
        """Drop the results of `step` and of later steps."""
        self._records = [record for record in self._records if record.step < step]
        self._held = []

    def forget(self, step: int | None) -> None:
        """Drop the results up to `step`, which are in a store; None drops nothing.

        A second call with the same `step` drops nothing, even if the training has gone back in between.
        """
        if step is not None and step != self.stored_step:
            self._records = [record for record in self._records if record.step > step]
            self.stored_step = step

    def frame(self) -> pd.DataFrame:
        """Return all rows that are not in a store. Without results the frame has no rows."""
        rows = [
            r.result.to_frame(run=self._run, seed=self._seed, epoch=r.place.epochs)
            for r in self._records
        ]
        return pd.concat(rows, ignore_index=True) if rows else empty()

    @property
    def newest(self) -> SRelResult | None:
        """The latest result that is not in a store; None if all results are in a store."""
        return self._records[-1].result if self._records else None

    @property
    def first_step(self) -> int | None:
        """The step of the earliest result that is not in a store; None if all results are in a store."""
        return self._records[0].step if self._records else None

    @property
    def last_step(self) -> int | None:
        """The latest measured step; None before the first measurement."""
        return self._records[-1].step if self._records else self.stored_step
