"""Measurements of a training as one tidy frame, until a store takes them."""

import uuid

import numpy as np
import pandas as pd

from srel_tf.frames import schema as frames


class Recorder:
    """Results in the order they were measured, each with its step and its place in the training.

    epoch is the number of epochs done, a fraction within an epoch; NaN while the length of the first epoch is unknown
    (a generator, say), filled in by `epoch_ended`.
    stored_step: the step of the latest rows that a store has taken, None if it has none.
    """

    def __init__(self, run, seed):
        self._run, self._seed = run, seed
        self._name, self._count = uuid.uuid4().hex, 0
        self._measured = []  # (number, result, epoch): matrices take an eighth of the memory of their rows.
        self._pending = {}  # number: (epochs done, batches of this epoch done)
        self.stored_step = None

    def add(self, result, epochs, batches, batches_per_epoch):
        """Append a result that was measured after `epochs` whole epochs and `batches` of the next one."""
        known = batches == 0 or batches_per_epoch
        epoch = epochs + (batches / batches_per_epoch if batches else 0) if known else np.nan
        number, self._count = self._count, self._count + 1
        if not known:
            self._pending[number] = (epochs, batches)
        self._measured.append((number, result, epoch))

    def epoch_ended(self, batches_per_epoch):
        """Fill in the epochs that waited for this length; None where it never became known."""
        if self._pending and batches_per_epoch:
            known = {n: epochs + batches / batches_per_epoch for n, (epochs, batches) in self._pending.items()}
            self._measured = [(n, result, known.get(n, epoch)) for n, result, epoch in self._measured]
        self._pending = {}

    def frame(self):
        """All rows so far; the schema's columns without rows if there are none."""
        rows = [result.to_frame(run=self._run, seed=self._seed, epoch=epoch) for _, result, epoch in self._measured]
        return pd.concat(rows, ignore_index=True) if rows else frames.empty()

    @property
    def newest(self):
        """The latest result that no store has taken; None if there is none."""
        return self._measured[-1][1] if self._measured else None

    @property
    def first_step(self):
        """The step of the earliest result that no store has taken; None if there is none."""
        return self._measured[0][1].step if self._measured else None

    @property
    def last_step(self):
        """The latest step that was measured; None if there is none."""
        return self.newest.step if self._measured else self.stored_step

    def withdraw(self, step):
        """Drop the results of this step and later ones. Returns them as [(result, epoch)]."""
        withdrawn = [(result, epoch) for _, result, epoch in self._measured if result.step >= step]
        self._measured = [entry for entry in self._measured if entry[1].step < step]
        return withdrawn

    @property
    def mark(self):
        """{name of this recorder: number of measurements so far}, to be saved with them."""
        return {self._name: self._count}

    def forget(self, marks=None):
        """Drop what had been measured at this recorder's mark among `marks`: it is kept elsewhere. None: drop all.

        What was dropped for a mark is not dropped again, and marks of other recorders drop nothing.
        """
        count = (self.mark if marks is None else marks).get(self._name, 0)
        taken = [entry[1].step for entry in self._measured if entry[0] < count]
        if taken and marks is not None:
            self.stored_step = taken[-1]
        self._measured = [entry for entry in self._measured if entry[0] >= count]  # One act, whatever interrupts.
