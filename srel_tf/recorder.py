"""Everything that was measured during training, in memory, as one tidy frame."""

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
        self._frames = []
        self._pending = []  # (index into _frames, epochs done, batches of this epoch done)

    @property
    def last_step(self):
        """Step of the latest measurement, None before the first."""
        return int(self._frames[-1]["step"].iloc[0]) if self._frames else None

    def add(self, result, epochs, batches, batches_per_epoch):
        """Append a result that was measured after `epochs` whole epochs and `batches` of the next one."""
        known = batches == 0 or batches_per_epoch
        epoch = epochs + (batches / batches_per_epoch if batches else 0) if known else np.nan
        if not known:
            self._pending.append((len(self._frames), epochs, batches))
        self._frames.append(result.to_frame(run=self._run, seed=self._seed, epoch=epoch))

    def epoch_ended(self, batches_per_epoch):
        """Fill in the epochs that waited for this length."""
        for index, epochs, batches in self._pending:
            self._frames[index]["epoch"] = epochs + batches / batches_per_epoch
        self._pending.clear()

    def frame(self):
        """All rows so far; the schema's columns without rows if there are none."""
        return pd.concat(self._frames, ignore_index=True) if self._frames else frames.empty()
