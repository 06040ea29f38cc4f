"""Clock of a training: counts updates, batches and epochs, and is set back if the training returns to a saved state.

A model has one clock, `clock_of(model)`, which all of its probes and its checkpoint read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from srel_tf.files import JsonObject
from srel_tf.fit.model_state import as_count


class Position(NamedTuple):
    """A position in the training as Keras counts it: complete epochs, and batches done in the current epoch."""

    epoch: int
    batch: int


@dataclass(eq=False)
class Epoch:
    """An epoch of `fit`.

    All `Place` objects within an epoch share one `Epoch`, so that a length that is set later applies to all of them.

    Attributes:
        length: Number of batches; None while unknown. The length of an epoch that was interrupted before its length was
            known stays None.
    """

    length: int | None = None


class Place(NamedTuple):
    """A position in the training.

    Attributes:
        start: Epochs done when the count of `batches` began; NaN if unknown.
        batches: Batches done since then.
        epoch: The epoch that these batches belong to.
    """

    start: float
    batches: int
    epoch: Epoch

    @property
    def epochs(self) -> float:
        """Number of epochs done, with a fraction within an epoch; NaN while this number is unknown."""
        if not self.batches:
            return self.start
        if self.epoch.length is None:
            return np.nan
        return self.start + self.batches / self.epoch.length


class Waypoint(NamedTuple):
    """A position that the training has passed, identified by the optimizer's count of batches.

    Attributes:
        num_batches: The optimizer's count of batches at this position.
        epochs: Epochs done; NaN if unknown.
        count_offset: `TrainingClock.count_offset` at this position.
    """

    num_batches: int
    epochs: float
    count_offset: int


class Counts(NamedTuple):
    """Numbers of batches received and of updates applied, as the optimizer itself counts them."""

    batches: int
    updates: int


class TrainingClock:
    """Counts optimizer updates and epochs, by the optimizer's own count and by Keras's calls of a callback.

    Attributes:
        step: Updates applied to the weights, by any optimizer.
        batches: Batches that the optimizer has received, in its own count. With `gradient_accumulation_steps` an
            update takes several batches.
        count_offset: The optimizer's count of updates minus `step`. When a generator is exhausted, Keras counts an
            update that was not applied, so the offset grows by one. After `compile` with a new optimizer, that
            optimizer counts from 0 while the steps continue, so the offset is negative.
        position: Epochs and batches done, in Keras's count.
        reached: The place at which `step` was reached; None before the first epoch.
        times_gone_back: Number of times that the training has gone back to an earlier state.
        optimizer: The optimizer that was observed last; None before the first fit.
        mover: The callback that advances the clock.
        fit: Keras's `params` of the current fit. All callbacks of a fit share this object.
    """

    def __init__(self) -> None:
        self.times_gone_back = 0
        self.mover: ClockedCallback | None = None
        self.fit: Any = object()  # Differs from the params of every fit.
        self._reset()

    def _reset(self) -> None:
        self.step = self.batches = self.count_offset = 0
        self.optimizer: keras.optimizers.Optimizer | None = None
        self.position = Position(0, 0)
        self.reached: Place | None = None
        self._place = Place(0.0, 0, Epoch())
        self._first_batch = (
            0  # Number of batches of this epoch that an earlier fit has trained.
        )
        self._is_resumed = False  # Whether the next epoch continues an interrupted one.
        self._waypoints: list[Waypoint] = []
        self._within_batch = False
        self._went_back_in_fit = False

    def resume(
        self,
        optimizer: keras.optimizers.Optimizer,
        count_offset: Any,
        position: Position,
    ) -> None:
        """Continue from a saved state. The next fit trains the rest of the epoch in which the state was saved.

        Args:
            optimizer: The restored optimizer.
            count_offset: `count_offset` of the clock when the state was saved.
            position: `position` of the clock when the state was saved.

        Raises:
            ValueError: If no training can have produced this `count_offset`.
        """
        updates = _counts(optimizer).updates
        offset = as_count(count_offset, least=-(2**53), largest=updates)
        self._reset()
        self.optimizer, self.count_offset = optimizer, offset
        self.position, self._is_resumed = position, True
        self._place = Place(float(position.epoch), 0, Epoch())
        self._read_counts()

    def begin_fit(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Note that `fit` begins."""
        if self._within_batch:
            # An exception ended the previous fit within a batch, possibly after the update of this batch.
            has_counted = _counts(self.optimizer).batches > self.batches
            self.observe(self.optimizer, int(has_counted))
            self._within_batch = False
        self.observe(optimizer)
        self._went_back_in_fit = False

    def begin_epoch(
        self, optimizer: keras.optimizers.Optimizer, epoch: int, length: int | None
    ) -> None:
        """Note that Keras's epoch `epoch` begins, of `length` batches (None if unknown)."""
        self.observe(optimizer)
        start = self._place.epochs
        if np.isnan(start):
            # The previous epoch was interrupted before its length was known: its batches are not counted.
            start = self._place.start
        # Keras counts the epochs of each fit from initial_epoch, and does not notice if a callback restores an earlier
        # state. Keras's number is used in two cases: if the clock's number is unknown, or if Keras's number is larger
        # and the training has not gone back in this fit.
        is_ahead = epoch > start and not self._went_back_in_fit
        if np.isnan(start) or is_ahead:
            start = float(epoch)
        is_rest = self._is_resumed and epoch == self.position.epoch
        self._is_resumed = False
        self._first_batch = self.position.batch if is_rest else 0
        self.position = Position(epoch, self._first_batch)
        whole_length = None if length is None else length + self._first_batch
        self._place = Place(start, self._first_batch, Epoch(whole_length))
        self._add_waypoint()
        if self.reached is None or np.isnan(self.reached.epochs):
            self.reached = self._place

    def begin_batch(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Note that a batch begins. `end_batch` follows, unless the data are exhausted."""
        self.observe(optimizer)
        self._within_batch = True

    def end_batch(self, optimizer: keras.optimizers.Optimizer, batch: int) -> None:
        """Note that a batch has ended, which Keras has numbered `batch` in this epoch."""
        batches_done = self._first_batch + batch + 1
        self.observe(optimizer, batches_done - self.position.batch)

    def end_epoch(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Note that `fit` ends the epoch, after its last batch or earlier."""
        # If a batch has begun and not ended, Keras found no data for this batch.
        data_ended, self._within_batch = self._within_batch, False
        if data_ended and self._place.epoch.length is None:
            self._place.epoch.length = self.position.batch or None
        if data_ended or self.batches_left == 0:
            self.position = Position(self.position.epoch + 1, 0)
        self._add_waypoint()
        if data_ended:
            self._discount_phantom_update()
        self.observe(optimizer)

    def _discount_phantom_update(self) -> None:
        """Exclude from `step` an update that Keras counts, but does not apply, when a generator is exhausted."""
        batches, updates = _counts(self.optimizer)
        if batches > self.batches:
            self.count_offset = updates - self.step
            self._read_counts()
            self._add_waypoint()

    def observe(
        self, optimizer: keras.optimizers.Optimizer | None, batches: int = 0
    ) -> None:
        """Read the counts of the model's optimizer.

        Args:
            optimizer: The model's current optimizer, which may be another one than at the last observation.
            batches: Batches trained since the last observation.
        """
        epoch, batches_before = self.position
        self.position = Position(epoch, batches_before + batches)
        was_within_batch = self._within_batch
        self._within_batch = was_within_batch and not batches
        if self.optimizer is not None and optimizer is not self.optimizer:
            if was_within_batch:
                # The previous optimizer may have applied the update of this batch.
                self._count(self.optimizer, batches)
                batches = 0
            self._change_optimizer(optimizer)
        self._count(optimizer, batches)

    def _count(
        self, optimizer: keras.optimizers.Optimizer | None, batches: int
    ) -> None:
        if self.optimizer is not None and _counts(optimizer).batches < self.batches:
            self._go_back()
            return
        former_step = self.step
        self.optimizer = optimizer
        start, batches_before, epoch = self._place
        self._place = Place(start, batches_before + batches, epoch)
        self._read_counts()
        if self.step != former_step and self.reached is not None:
            self.reached = self._place

    @property
    def batches_left(self) -> int | None:
        """Number of batches left in the current epoch; None if its length is unknown."""
        length = self._place.epoch.length
        return None if length is None else max(length - self.position.batch, 0)

    @property
    def updates_next(self) -> bool:
        """Return whether the optimizer applies an update after the next batch, instead of only adding up gradients."""
        return (self.batches + 1) % _batches_per_update(self.optimizer) == 0

    def _add_waypoint(self) -> None:
        self._waypoints.append(self._waypoint())

    def _waypoint(self) -> Waypoint:
        return Waypoint(self.batches, self._place.epochs, self.count_offset)

    def _read_counts(self) -> None:
        self.batches, updates = _counts(self.optimizer)
        self.step = updates - self.count_offset

    def _change_optimizer(self, optimizer: keras.optimizers.Optimizer | None) -> None:
        """Continue to count with another optimizer, whose own count may begin at any number."""
        self.optimizer = optimizer
        self.count_offset = _counts(optimizer).updates - self.step
        self._read_counts()
        self._waypoints = [self._waypoint()]

    def _go_back(self) -> None:
        """Set the clock back to the place at which the optimizer had its current count, by interpolating waypoints."""
        waypoints = [*self._waypoints, self._waypoint()]
        self.batches = _counts(self.optimizer).batches
        batches_per_update = _batches_per_update(self.optimizer)
        batches_at_step = self.batches - self.batches % batches_per_update
        self.reached = Place(_epochs_at(batches_at_step, waypoints), 0, Epoch())
        self._place = Place(_epochs_at(self.batches, waypoints), 0, self._place.epoch)
        self._waypoints = [
            waypoint
            for waypoint in self._waypoints
            if waypoint.num_batches <= self.batches
        ]
        if self._waypoints:
            self.count_offset = self._waypoints[-1].count_offset
        self._went_back_in_fit = True
        self.times_gone_back += 1
        self._read_counts()
        self._add_waypoint()


def clock_of(model: keras.Model) -> TrainingClock:
    """Return the clock of a model. The first call creates it."""
    clock = getattr(model, "_srel_clock", None)
    if clock is None:
        clock = TrainingClock()
        # Bypass Keras's attribute tracking: the clock is not part of the model, and is not saved with it.
        object.__setattr__(model, "_srel_clock", clock)
    return clock


class ClockedCallback(keras.callbacks.Callback):
    """A callback that reads its model's clock. The first such callback of a fit also advances the clock."""

    @property
    def clock(self) -> TrainingClock:
        """The clock of the model that is trained."""
        return clock_of(self.model)

    @property
    def _moves_clock(self) -> bool:
        return self.clock.mover is self

    def on_train_begin(self, logs: JsonObject | None = None) -> None:
        clock = self.clock
        if clock.fit is not self.params:  # This is the first callback of the fit.
            clock.fit, clock.mover = self.params, self
        if self._moves_clock:
            clock.begin_fit(self.model.optimizer)

    def on_epoch_begin(self, epoch: int, logs: JsonObject | None = None) -> None:
        if self._moves_clock:
            length = self.params.get("steps")
            self.clock.begin_epoch(self.model.optimizer, epoch, length)

    def on_train_batch_begin(self, batch: int, logs: JsonObject | None = None) -> None:
        if self._moves_clock:
            self.clock.begin_batch(self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: JsonObject | None = None) -> None:
        if self._moves_clock:
            self.clock.end_batch(self.model.optimizer, batch)

    def on_epoch_end(self, epoch: int, logs: JsonObject | None = None) -> None:
        if self._moves_clock:
            self.clock.end_epoch(self.model.optimizer)


def _epochs_at(num_batches: int, waypoints: list[Waypoint]) -> float:
    """Interpolate the epochs done when the optimizer had counted `num_batches`; NaN before the first waypoint."""
    counts = [waypoint.num_batches for waypoint in waypoints]
    epochs = [waypoint.epochs for waypoint in waypoints]
    return float(np.interp(num_batches, counts, epochs, left=np.nan))


def _counts(optimizer: Any) -> Counts:
    optimizer = _inner(optimizer)
    updates = int(optimizer.iterations)
    if _batches_per_update(optimizer) == 1:
        return Counts(updates, updates)
    # With gradient accumulation, Keras's public `iterations` counts updates, and the private `_iterations` batches.
    return Counts(int(optimizer._iterations), updates)


def _batches_per_update(optimizer: Any) -> int:
    """Return the number of batches whose gradients the optimizer accumulates for one update."""
    return getattr(_inner(optimizer), "gradient_accumulation_steps", None) or 1


def _inner(optimizer: Any) -> Any:
    """Return the optimizer that a `LossScaleOptimizer` wraps, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
