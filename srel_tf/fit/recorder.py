"""The results of a training that no store has taken yet, as one tidy frame."""

import uuid
from collections.abc import Mapping
from typing import NamedTuple, cast

import pandas as pd

from srel_tf.fit.clock import Place
from srel_tf.frames.schema import empty
from srel_tf.result import SRelResult


class Record(NamedTuple):
    """A result with its number in the order of measuring and the place at which its step was reached.

    Results are kept as matrices, because these take an eighth of the memory of their rows.
    """

    number: int
    result: SRelResult
    place: Place

    @property
    def step(self) -> int:
        """The step of the result, which is never None in a training."""
        return cast(int, self.result.step)


class Recorder:
    """Results in the order they were measured, each with its step and its place in the training.

    The epoch of a result is the number of epochs done, a fraction within an epoch. It is NaN while the length of the
    epoch is unknown (a generator, say).

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
        self._held: list[Record] = []
        self.stored_step: int | None = None

    def add(self, result: SRelResult, place: Place) -> None:
        """Append a result whose step was reached at `place`."""
        self._records.append(Record(self._count, result, place))
        self._count += 1

    def hold(self, step: int) -> None:
        """Take the results of `step` out of the frame until `release`."""
        held = [record for record in self._records if record.step >= step]
        self.withdraw(step)
        self._held = held

    def release(self) -> None:
        """Put the results that are held back into the frame."""
        held, self._held = self._held, []
        for record in held:
            self.add(record.result, record.place)

    def withdraw(self, step: int) -> None:
        """Drop the results of `step` and later ones."""
        self._records = [record for record in self._records if record.step < step]
        self._held = []

    def frame(self) -> pd.DataFrame:
        """Return all rows so far; without results, a frame without rows."""
        rows = [
            r.result.to_frame(run=self._run, seed=self._seed, epoch=r.place.epochs)
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
        return self._records[0].step if self._records else None

    @property
    def last_step(self) -> int | None:
        """The latest step that was measured; None if there is none."""
        return self._records[-1].step if self._records else self.stored_step

    @property
    def mark(self) -> dict[str, int]:
        """{name of this recorder: number of measurements so far}, to be saved with them."""
        return {self._name: self._count}

    def forget(self, marks: Mapping[str, int]) -> None:
        """Drop the results that a store has taken.

        Args:
            marks: {name of a recorder: number of measurements that are stored}. What was dropped for a mark is not
                dropped again, and marks of other recorders drop nothing.
        """
        num_stored = marks.get(self._name, 0)
        stored_steps = [r.step for r in self._records if r.number < num_stored]
        if stored_steps:
            self.stored_step = stored_steps[-1]
        # One assignment, so that an interrupt is safe.
        self._records = [r for r in self._records if r.number >= num_stored]
