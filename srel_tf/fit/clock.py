"""The place in a training: updates and epochs done, also after the training has gone back to a saved state."""

from __future__ import annotations

import copy
from typing import NamedTuple

import keras
import numpy as np


class Waypoint(NamedTuple):
    """A place that the training has passed.

    Attributes:
        num_batches: The optimizer's count of batches there.
        epochs: Epochs done; NaN if unknown.
        count_offset: As in `TrainingClock`.
    """

    num_batches: int
    epochs: float
    count_offset: int


class Reached(NamedTuple):
    """The place where the present step was reached.

    Attributes:
        epochs: Whole epochs done; NaN if unknown.
        batches: Batches done of the next epoch.
        length: Number of batches of that epoch; None if unknown.
    """

    epochs: float
    batches: int
    length: int | None

    @property
    def is_known(self) -> bool:
        """Whether the number of epochs is known."""
        return not np.isnan(self.epochs) and (
            not self.batches or self.length is not None
        )


class Counts(NamedTuple):
    """Batches that an optimizer has received and updates that it has applied, in its own count."""

    batches: int
    updates: int


class TrainingClock:
    """Counts optimizer updates and epochs, from the optimizer's own count and the calls that Keras makes to a callback.

    Attributes:
        step: Updates applied to the weights, by any optimizer.
        batches: Batches that the optimizer has received, in its own count. With `gradient_accumulation_steps` an
            update takes several batches.
        count_offset: The optimizer's count of updates minus `step`. It grows by one when a generator is exhausted,
            because Keras then counts an update that no weights have received; it is negative after `compile` with a new
            optimizer, which counts from 0 while the steps go on.
        reached: The place in the epochs at which `step` was reached; None before the first epoch.
        optimizer: The optimizer that was observed last; None before the first fit.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.step = self.batches = self.count_offset = 0
        self.reached: Reached | None = None
        self.optimizer: keras.optimizers.Optimizer | None = None
        # The present place: `_epochs` epochs, then `_epoch_batches` batches of an epoch of `_epoch_length` batches.
        self._epochs = 0.0
        self._epoch_batches = 0
        self._epoch_length: int | None = None  # None if unknown.
        self._drawn_batches = (
            0  # Batches that Keras has taken from the data in this epoch.
        )
        self._resumed_batches = (
            0  # Batches of the coming epoch that an earlier process has trained.
        )
        self._waypoints: list[Waypoint] = []
        self._within_batch = False
        self._went_back = False

    def copy(self) -> TrainingClock:
        """Return an independent copy, for a probe that is attached later and counts as the others do."""
        other = copy.copy(self)
        other._waypoints = list(self._waypoints)
        return other

    def resume(
        self,
        optimizer: keras.optimizers.Optimizer,
        count_offset: int,
        epoch: int,
        batch: int,
    ) -> None:
        """Continue from a state saved after `batch` batches of `epoch`. The next fit trains the rest of that epoch."""
        self._reset()
        self.optimizer = optimizer
        self.count_offset = count_offset
        self._epochs = float(epoch)
        self._resumed_batches = batch
        self._read_counts()

    def begin_fit(self, optimizer: keras.optimizers.Optimizer) -> bool:
        """Note that `fit` begins. Returns whether the training has gone back since the last observation."""
        went_back = False
        if self._within_batch:
            # An error has hidden the end of this batch, which may have made an update before.
            has_counted = _counts(self.optimizer).batches > self.batches
            went_back = self.observe(self.optimizer, int(has_counted))
            self._within_batch = False
        went_back |= self.observe(optimizer)
        self._went_back = False
        return went_back

    def begin_epoch(self, epoch: int, length: int | None) -> None:
        """Note that Keras's epoch `epoch` begins, of `length` batches (None if unknown)."""
        epochs = self._epochs_done
        # Keras counts the epochs of each fit from initial_epoch. It does not notice that a callback goes back.
        is_ahead = epoch > epochs and not self._went_back
        if np.isnan(epochs) or is_ahead:
            epochs = float(epoch)
        self._epochs = epochs
        self._epoch_batches = self._drawn_batches = self._resumed_batches
        self._epoch_length = length and length + self._resumed_batches
        self._resumed_batches = 0
        self._add_waypoint()
        if self.reached is None or not self.reached.is_known:
            self.reached = self._here()

    def begin_batch(self) -> None:
        """Note that a batch begins. `observe(optimizer, batches=1)` follows, unless the data are exhausted."""
        self._within_batch = True

    def observe(self, optimizer: keras.optimizers.Optimizer, batches: int = 0) -> bool:
        """Read the counts of the model's optimizer.

        Args:
            optimizer: The optimizer, which may be another one than before.
            batches: Batches trained since the last observation.

        Returns:
            Whether the training has gone back since then.
        """
        if self.optimizer is not None and optimizer is not self.optimizer:
            if self._within_batch:
                self.observe(
                    self.optimizer, batches
                )  # The former optimizer may have made this batch's update.
                batches = 0
            self._change_optimizer(optimizer)
        self._drawn_batches += batches
        if batches:
            self._within_batch = False
        went_back = (
            self.optimizer is not None and _counts(optimizer).batches < self.batches
        )
        if went_back:
            self._go_back()
            return True
        former_step = self.step
        self.optimizer = optimizer
        self._epoch_batches += batches
        self._read_counts()
        if self.step != former_step and self.reached is not None:
            self.reached = self._here()
        return False

    def end_epoch(self) -> int | None:
        """Note that the epoch ends. Returns its number of batches if that becomes known only now, else None."""
        if not self._within_batch:
            self._add_waypoint()
            return None
        self._within_batch = (
            False  # Keras has begun a batch and has found no data for it.
        )
        was_unknown = self._epoch_length is None
        length = self._drawn_batches if was_unknown else None
        if length:
            self._set_epoch_length(length)
        self._add_waypoint()
        batches, updates = _counts(self.optimizer)
        if (
            batches > self.batches
        ):  # Keras increments `iterations` once when a generator is exhausted.
            self.count_offset = updates - self.step
            self._read_counts()
            self._add_waypoint()
        return length

    @property
    def is_last_batch(self) -> bool:
        """Whether all batches of the epoch are known to be done."""
        return (
            self._epoch_length is not None and self._drawn_batches >= self._epoch_length
        )

    @property
    def updates_next(self) -> bool:
        """Whether the optimizer applies an update with the next batch; else it only collects that batch's gradient."""
        steps = _accumulation(_inner(self.optimizer))
        return not steps or (self.batches + 1) % steps == 0

    @property
    def _epochs_done(self) -> float:
        """Epochs done. Batches of an interrupted epoch of unknown length do not count."""
        if not self._epoch_batches or not self._epoch_length:
            return self._epochs
        return self._epochs + self._epoch_batches / self._epoch_length

    def _here(self) -> Reached:
        return Reached(self._epochs, self._epoch_batches, self._epoch_length)

    def _set_epoch_length(self, length: int) -> None:
        self._epoch_length = length
        if self.reached is not None and self.reached.length is None:
            self.reached = self.reached._replace(length=length)

    def _waypoint(self) -> Waypoint:
        is_unknown = self._epoch_batches and not self._epoch_length
        epochs = np.nan if is_unknown else self._epochs_done
        return Waypoint(self.batches, epochs, self.count_offset)

    def _add_waypoint(self) -> None:
        self._waypoints.append(self._waypoint())

    def _read_counts(self) -> None:
        self.batches, updates = _counts(self.optimizer)
        self.step = updates - self.count_offset

    def _change_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Count on with another optimizer, whose own count may be any number."""
        self.optimizer = optimizer
        self.count_offset = _counts(optimizer).updates - self.step
        self._read_counts()
        self._waypoints = [self._waypoint()]

    def _go_back(self) -> None:
        """Find the place at which the optimizer had its present count, by interpolating between waypoints."""
        waypoints = [*self._waypoints, self._waypoint()]
        self.batches = _counts(self.optimizer).batches
        batches_per_update = _accumulation(_inner(self.optimizer)) or 1
        batches_at_step = self.batches - self.batches % batches_per_update
        epochs_at_step = _epochs_at(batches_at_step, waypoints)
        self.reached = Reached(epochs_at_step, 0, None)
        self._epochs = _epochs_at(self.batches, waypoints)
        self._waypoints = [
            waypoint
            for waypoint in self._waypoints
            if waypoint.num_batches <= self.batches
        ]
        if self._waypoints:
            self.count_offset = self._waypoints[-1].count_offset
        self._epoch_batches = 0
        self._went_back = True
        self._read_counts()
        self._add_waypoint()


def _epochs_at(num_batches: int, waypoints: list[Waypoint]) -> float:
    """Interpolate the epochs done at a count of batches; NaN before the first waypoint."""
    counts = [waypoint.num_batches for waypoint in waypoints]
    epochs = [waypoint.epochs for waypoint in waypoints]
    return float(np.interp(num_batches, counts, epochs, left=np.nan))


def _counts(optimizer: keras.optimizers.Optimizer | None) -> Counts:
    optimizer = _inner(optimizer)
    updates = int(optimizer.iterations)
    if not _accumulation(optimizer):
        return Counts(updates, updates)
    # Keras's public `iterations` counts updates; only the variable behind it counts the batches collected for them.
    return Counts(int(optimizer._iterations), updates)


def _accumulation(optimizer: keras.optimizers.Optimizer) -> int | None:
    """Batches that the optimizer collects for an update; None for 1."""
    return getattr(optimizer, "gradient_accumulation_steps", None)


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer that a `LossScaleOptimizer` wraps, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
