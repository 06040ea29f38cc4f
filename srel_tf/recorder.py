"""What was measured during training, until someone takes it, as one tidy frame."""

import numpy as np
import pandas as pd

from srel_tf import frames


class Recorder:
    """Results in the order they were measured, each with its step and its place in the training.

    epoch is the number of epochs done, a fraction within an epoch; NaN while the length of the first epoch is unknown
    (a generator, say), filled in by `epoch_ended`.
    """

    def __init__(self, run, seed):
        self._run, self._seed = run, seed
        self._measured = []  # (result, epoch): matrices take an eighth of the memory of their rows.
        self._pending = []  # (index into _measured, epochs done, batches of this epoch done)

    def add(self, result, epochs, batches, batches_per_epoch):
        """Append a result that was measured after `epochs` whole epochs and `batches` of the next one."""
        known = batches == 0 or batches_per_epoch
        epoch = epochs + (batches / batches_per_epoch if batches else 0) if known else np.nan
        if not known:
            self._pending.append((len(self._measured), epochs, batches))
        self._measured.append((result, epoch))

    def epoch_ended(self, batches_per_epoch):
        """Fill in the epochs that waited for this length; None where it never became known."""
        for index, epochs, batches in self._pending if batches_per_epoch else ():
            self._measured[index] = (self._measured[index][0], epochs + batches / batches_per_epoch)
        self._pending.clear()

    def frame(self):
        """All rows so far; the schema's columns without rows if there are none."""
        rows = [result.to_frame(run=self._run, seed=self._seed, epoch=epoch) for result, epoch in self._measured]
        return pd.concat(rows, ignore_index=True) if rows else frames.empty()

    def forget(self):
        """Drop what has been measured: it is kept elsewhere."""
        self._measured.clear()
        self._pending.clear()
