"""Where a training is: optimizer updates and epochs done, also after it has gone back to an earlier state."""

import copy
from typing import NamedTuple

import numpy as np


class Knot(NamedTuple):
    """A place that the training has passed.

    count: the optimizer's own count there. epochs: epochs done, NaN if unknown. phantom: as in `Progress`.
    """

    count: int
    epochs: float
    phantom: int


class Reached(NamedTuple):
    """Where the present step was reached: after `epochs` epochs and `batches` of `length` batches (None if unknown)."""

    epochs: float
    batches: int
    length: int | None

    @property
    def is_known(self):
        """Whether the number of epochs is known."""
        return not np.isnan(self.epochs) and (not self.batches or self.length is not None)


class Progress:
    """Counts optimizer updates and epochs from what the optimizer counts and from Keras's calls of a callback.

    step: updates applied to the weights, whichever optimizer made them.
    phantom: updates that the optimizer has counted and the weights have not had: Keras counts one where data of unknown
        length run out. Negative after `compile` with a new optimizer, which counts from 0 while the steps go on.
    batches: batches that the optimizer has been given, as it counts them. With `gradient_accumulation_steps` an update
        takes several.
    reached: the place in the epochs at which `step` was reached, None before the first epoch.
    """

    def __init__(self):
        self.step = self.batches = self.phantom = 0
        self.reached = None
        self.optimizer = None
        # The present place: `_done` epochs, then `_since` batches of an epoch of `_length` (None if unknown).
        self._done, self._since, self._length = 0.0, 0, None
        self._passed = 0  # Batches that Keras has taken from the data in this epoch.
        self._skipped = 0  # Batches of the coming epoch that an earlier process trained.
        self._knots = []
        self._within_batch = self._went_back = False

    def copy(self):
        """Return a copy, for a probe that is attached later and counts as the others do."""
        other = copy.copy(self)
        other._knots = list(self._knots)
        return other

    def resume(self, optimizer, phantom, epoch, batch):
        """Go on from a state saved after `batch` batches of `epoch`. The next fit trains the rest of that epoch."""
        self.__init__()
        self.optimizer, self.phantom = optimizer, phantom
        self._done, self._skipped = float(epoch), batch
        self._read()

    def begin_fit(self, optimizer):
        """Note that `fit` begins. Returns whether the training has gone back since the last look."""
        went_back = False
        if self._within_batch:  # An error has hidden the end of this batch, which may have made an update before.
            went_back = self.look(self.optimizer, int(_counts(self.optimizer)[0] > self.batches))
            self._within_batch = False
        went_back |= self.look(optimizer)
        self._went_back = False
        return went_back

    def begin_epoch(self, epoch, length):
        """Note that Keras's epoch `epoch` begins, of `length` batches (None if unknown)."""
        done = self._epochs_done
        # Keras counts the epochs of each fit from initial_epoch. It does not notice that a callback goes back.
        self._done = float(epoch) if np.isnan(done) or (epoch > done and not self._went_back) else done
        self._since = self._passed = self._skipped
        self._length = length and length + self._skipped
        self._skipped = 0
        self._knots.append(self._knot())
        if self.reached is None or not self.reached.is_known:
            self.reached = Reached(self._done, self._since, self._length)

    def begin_batch(self):
        """Note that a batch begins. `look(optimizer, batches=1)` follows, unless the data have run out."""
        self._within_batch = True

    def look(self, optimizer, batches=0):
        """Read the optimizer, `batches` batches after the last look. Returns whether the training has gone back."""
        if self.optimizer is not None and optimizer is not self.optimizer:
            if self._within_batch:
                self.look(self.optimizer, batches)  # The former optimizer may have made this batch's update.
                batches = 0
            self._change_to(optimizer)
        self._passed += batches
        if batches:
            self._within_batch = False
        if self.optimizer is not None and _counts(optimizer)[0] < self.batches:
            self._go_back()
            return True
        self.optimizer, self._since, step = optimizer, self._since + batches, self.step
        self._read()
        if self.step != step and self.reached is not None:
            self.reached = Reached(self._done, self._since, self._length)
        return False

    def end_epoch(self):
        """Note that the epoch ends. Returns its number of batches if that is known only now, else None."""
        if not self._within_batch:
            self._knots.append(self._knot())
            return None
        self._within_batch = False  # Keras has begun a batch and has found no data for it.
        length = self._passed if self._length is None else None
        if length:
            self._length = length
            if self.reached is not None and self.reached.length is None:
                self.reached = self.reached._replace(length=length)
        self._knots.append(self._knot())
        batches, updates = _counts(self.optimizer)
        if batches > self.batches:
            self.phantom += updates - (self.step + self.phantom)
            self._read()
            self._knots.append(self._knot())
        return length

    @property
    def is_last_batch(self):
        """Whether the epoch is known to be through."""
        return self._length is not None and self._passed >= self._length

    @property
    def updates_next(self):
        """Whether the optimizer applies an update with the next batch; else it only collects that batch's gradient."""
        steps = _accumulation(_inner(self.optimizer))
        return not steps or (self.batches + 1) % steps == 0

    @property
    def _epochs_done(self):
        """Epochs done; batches of an epoch of unknown length that was broken off do not count."""
        return self._done + self._since / self._length if self._since and self._length else self._done

    def _knot(self):
        unknown = self._since and not self._length
        return Knot(self.batches, np.nan if unknown else self._epochs_done, self.phantom)

    def _read(self):
        self.batches, updates = _counts(self.optimizer)
        self.step = updates - self.phantom

    def _change_to(self, optimizer):
        """Count on from here with another optimizer, whose own count may be any."""
        self.optimizer, self.phantom = optimizer, _counts(optimizer)[1] - self.step
        self._read()
        self._knots = [self._knot()]

    def _go_back(self):
        """Take the place at which the optimizer had the count that it has now, between the knots that were passed."""
        knots = [*self._knots, self._knot()]
        self.batches = _counts(self.optimizer)[0]
        counts, epochs = [knot.count for knot in knots], [knot.epochs for knot in knots]
        collected = self.batches % (_accumulation(_inner(self.optimizer)) or 1)  # Batches since the last update.
        # Nothing is known of the time before the first knot.
        self._done, reached = np.interp([self.batches, self.batches - collected], counts, epochs, left=np.nan).tolist()
        self.reached = Reached(reached, 0, None)
        self._knots = [knot for knot in knots if knot.count <= self.batches]
        self.phantom = self._knots[-1].phantom if self._knots else self.phantom
        self._since, self._went_back = 0, True
        self._read()
        self._knots.append(self._knot())


def _counts(optimizer):
    """(batches that the optimizer has been given, updates that it has applied), as it counts them."""
    optimizer = _inner(optimizer)
    updates = int(optimizer.iterations)
    # Keras's public `iterations` counts updates; only the variable behind it counts the batches collected for them.
    return (int(optimizer._iterations) if _accumulation(optimizer) else updates), updates


def _accumulation(optimizer):
    """Batches that the optimizer collects for an update; None for 1."""
    return getattr(optimizer, "gradient_accumulation_steps", None)


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)
