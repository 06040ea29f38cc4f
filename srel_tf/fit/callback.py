"""The Keras callback that measures on schedule, between the training steps of `model.fit`.

It runs outside the training graph, which therefore stays bit for bit that of a model without a probe.

Step n is measured just before the batch that makes update n+1, after all other callbacks, so that η is the rate that
this update takes. The last step of an epoch is measured at the end of its last batch, because `fit` may end there. If
`fit` goes on and a callback has set another rate or other weights by then, the step is measured again, and the new rows
replace the old ones.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.files import JsonObject, differences
from srel_tf.fit.clock import Reached, TrainingClock
from srel_tf.fit.identity import describe_loss
from srel_tf.fit.recorder import Recorder
from srel_tf.fit.schedules import Schedule, as_schedule
from srel_tf.fit.traced import (
    WEIGHTED,
    is_traced,
    note_trace,
    warn_of_stale_trace,
    warn_once,
    weighs_examples,
)
from srel_tf.frames.schema import check_seed
from srel_tf.measurement import Instrument
from srel_tf.probe import ProbeSet
from srel_tf.result import SRelResult
from srel_tf.settings import Settings
from srel_tf.updates import learning_rate_now

SAME_ROWS = (
    "their rows would agree in run, seed, step, measure, update, estimator, η and ids, so that the frame could not "
    "tell them apart; give one of them another run, or its examples other ids"
)


class TracedStep(NamedTuple):
    """A training step that an instrument was made for: Keras's function and the ids of the weights it trains."""

    function: Any
    weights: list[int]


class SRelCallback(keras.callbacks.Callback):
    """Measures a probe before the first step and after each scheduled step.

    Args:
        probe: The examples.
        every: The schedule: a number of steps, or a function from step to bool.
        settings: Options of the measurement.
        run: Value of the frame's column `run`.
        seed: Value of the frame's column `seed`.

    Attributes:
        recorder: The results that no store has taken yet.
        clock: The steps and epochs done.
        listeners: Functions that are called with each result.
    """

    def __init__(
        self,
        probe: ProbeSet,
        every: int | Schedule,
        settings: Settings,
        run: str = "",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_seed(seed)
        self.recorder = Recorder(run, seed)
        self.clock = TrainingClock()
        self.listeners: list[Callable[[SRelResult], None]] = []
        self.probe = probe
        self._settings = settings
        self._every, self._run, self._seed = every, run, seed
        self._is_due = as_schedule(every)
        self._metadata = self._describe_options()
        self._instrument: Instrument | None = None
        self._made_for: TracedStep | None = (
            None  # The training step that the instrument was made for.
        )
        # (result, epoch) of the last step of the epoch before, until the next batch shows which η it takes.
        self._held: tuple[SRelResult, float] | None = None
        self._checksum: int | None = (
            None  # Of the model at the end of the last batch of the epoch before.
        )
        self._is_counting = (
            False  # Whether the optimizer is known to count the updates of this fit.
        )
        self._norms: np.ndarray | None = (
            None  # Norms of the weights before the batch, while `_is_counting` is False.
        )
        self._similar: list[
            SRelCallback
        ] = []  # Other callbacks whose rows of one step could be equal to these.
        self._seconds: list[
            float
        ] = []  # Durations of the measurements since the last report.

    def _describe_options(self) -> JsonObject:
        """Describe the options in the types that JSON has."""
        settings = {
            field.name: getattr(self._settings, field.name)
            for field in dataclasses.fields(self._settings)
        }
        options = {
            **settings,
            "loss": describe_loss(self._settings.loss),
            "probe": self.probe.fingerprint,
            "every": None if callable(self._every) else self._every,
            "run": self._run,
            "seed": self._seed,
        }
        return json.loads(json.dumps(options, default=_as_python))

    def check_distinct_from(self, others: Iterable[SRelCallback]) -> None:
        """Raise `ProbeError` if the frame could not distinguish the rows of this probe from those of another one."""
        for other in others:
            if self.probe.ids.dtype.kind != other.probe.ids.dtype.kind:
                raise ProbeError(
                    "the ids of one probe are integers, those of another one strings, and one column of the frame "
                    "cannot hold both: give ProbeSet(ids=...) of one type to both"
                )
            if not self._may_share_rows_with(other):
                continue
            has_same_rate = (
                self._settings.learning_rate == other._settings.learning_rate
            )
            # Callable schedules may never coincide; this is checked when they do.
            has_own_schedule = callable(self._every) or callable(other._every)
            if has_same_rate and not has_own_schedule:
                raise ProbeError(
                    f"the model has such a probe already, and step 0 is due for both: {SAME_ROWS}"
                )
            self._similar.append(other)

    def _may_share_rows_with(self, other: SRelCallback) -> bool:
        """Return whether rows of one step could agree in all columns that identify a row, η apart."""
        return (
            self._series == other._series
            and not set(self._settings.measures).isdisjoint(other._settings.measures)
            and not self._source_ids.isdisjoint(other._source_ids)
            and not self._target_ids.isdisjoint(other._target_ids)
        )

    @property
    def _series(self) -> tuple[str, int | None, str, str]:
        return self._run, self._seed, self._settings.update, self._settings.estimator

    @property
    def _source_ids(self) -> set[int | str]:
        return set(self.probe.ids[self.probe.sources].tolist())

    @property
    def _target_ids(self) -> set[int | str]:
        return set(self.probe.ids[self.probe.targets].tolist())

    def on_train_begin(self, logs: JsonObject | None = None) -> None:
        if self.model.steps_per_execution != 1:
            raise OptionError(
                f"steps_per_execution={self.model.steps_per_execution}: Keras would run several updates between two "
                "looks at the model, so that S_rel could not be measured at the steps asked for; compile with 1"
            )
        if self.model.optimizer is None:
            raise ModelError(
                f"model {self.model.name!r} is compiled without an optimizer: there are no updates to count; call "
                "model.compile(optimizer, loss)"
            )
        if not is_traced(self.model):
            self._instrument = None  # The training step will run the Python code of layers that may have changed.
        self._ensure_instrument()
        if self.clock.begin_fit(self.model.optimizer):
            self._forget_later_steps()
        self._is_counting = False

    def on_epoch_begin(self, epoch: int, logs: JsonObject | None = None) -> None:
        self._report()
        self.recorder.epoch_ended(
            None
        )  # If results still wait, that epoch was interrupted and its length is unknown.
        self._observe()
        self.clock.begin_epoch(epoch, self.params.get("steps"))

    def on_train_batch_begin(self, batch: int, logs: JsonObject | None = None) -> None:
        self._observe()
        if self.clock.updates_next:
            self._measure_if_due()
        self._checksum = None
        if not self._is_counting:
            self._norms = _norms(self.model)
        self.clock.begin_batch()

    def on_train_batch_end(self, batch: int, logs: JsonObject | None = None) -> None:
        optimizer = self.clock.optimizer
        former_batches = self.clock.batches
        self._observe(batches=1)
        if not self._is_counting and self.clock.optimizer is optimizer:
            self._check_counting(self.clock.batches - former_batches)
        if weighs_examples(self.model):
            warn_once(self.model, WEIGHTED)
        if not is_traced(self.model):
            note_trace(
                self.model
            )  # The model's own train_step does not call the train_step that notes the trace.
        is_last = self.model.stop_training or self.clock.is_last_batch
        if is_last:
            self._measure_if_due()
            self._checksum = _checksum(self.model)

    def on_epoch_end(self, epoch: int, logs: JsonObject | None = None) -> None:
        length = self.clock.end_epoch()
        if length:
            self.recorder.epoch_ended(length)
        self._observe()
        is_last_epoch = epoch + 1 >= self.params["epochs"]
        if is_last_epoch or self.model.stop_training:
            return
        newest = self.recorder.newest
        step = self.clock.step
        if newest is not None and newest.step == step:
            (self._held,) = self.recorder.withdraw(step)

    def on_train_end(self, logs: JsonObject | None = None) -> None:
        self._report()

    def _observe(self, batches: int = 0) -> None:
        """Let the clock read the optimizer, `batches` batches after the last observation."""
        optimizer = self.clock.optimizer
        went_back = self.clock.observe(self.model.optimizer, batches)
        if went_back:
            self._forget_later_steps()
        if self.clock.optimizer is not optimizer:
            self._is_counting = False

    def _forget_later_steps(self) -> None:
        """Drop the results of the present step and later ones, because the training will reach them again."""
        self.recorder.withdraw(self.clock.step)
        self._held = None

    def _ensure_instrument(self) -> Instrument:
        """Return the instrument for the present training step; makes a new one after a call of `compile`, say.

        While Keras keeps a traced training step, the instrument is kept too.
        """
        weights = [id(variable) for variable in self.model.trainable_variables]
        present = TracedStep(self.model.train_function, weights)
        if self._instrument is None or not self._fits_instrument(present):
            self._instrument = Instrument(self.model, self.probe, self._settings)
            self._made_for = present
        return self._instrument

    def _fits_instrument(self, present: TracedStep) -> bool:
        if self._made_for is None or self._made_for.function is not present.function:
            return False
        return self._made_for == present or is_traced(self.model)

    def _measure_if_due(self) -> None:
        step = self.clock.step
        is_measured = step == self.recorder.last_step and not self._is_outdated(
            self.recorder.newest
        )
        if is_measured or not self._is_due(step) or self._take_held(step):
            return
        self.recorder.withdraw(step)
        instrument = self._ensure_instrument()
        warn_of_stale_trace(self.model)
        result = instrument()._replace(step=step)
        self._check_distinct(result)
        self._settings = instrument.settings
        self.recorder.add(
            result, *cast(Reached, self.clock.reached)
        )  # Not None, because an epoch has begun.
        self._seconds.append(result.seconds)
        for listener in self.listeners:
            listener(result)

    def _take_held(self, step: int) -> bool:
        """Record the held result if it is of this step and its η is still right. Returns whether it was recorded."""
        held, self._held = self._held, None
        if held is None:
            return False
        result, epoch = held
        if result.step != step or self._is_outdated(result):
            return False
        self.recorder.add(result, epoch, batches=0, batches_per_epoch=None)
        return True

    def _check_distinct(self, result: SRelResult) -> None:
        """Raise `OptionError` if a similar probe has measured the same step with the same η."""
        for other in self._similar:
            newest = other.recorder.newest
            if newest is None:
                continue
            if (newest.step, newest.learning_rate) == (
                result.step,
                result.learning_rate,
            ):
                raise OptionError(
                    f"step {result.step} is due for two probes: {SAME_ROWS}"
                )

    def _is_outdated(self, result: SRelResult | None) -> bool:
        """Return whether the next update takes another η than `result`, or starts from other weights.

        False for None (a store has taken it).
        """
        if result is None:
            return False
        rate = learning_rate_now(self.model, self._settings.learning_rate)
        is_changed = self._checksum is not None and self._checksum != _checksum(
            self.model
        )
        return result.learning_rate != rate or is_changed

    def _check_counting(self, batches: int) -> None:
        """Check that the optimizer has counted the update of the last batch, by `batches`.

        Raises:
            ModelError: If the weights have moved without an update of the compiled optimizer.
        """
        self._is_counting = batches != 0
        if batches > 1:
            warn_once(
                self.model,
                f"the optimizer of model {self.model.name!r} made {batches} updates in one batch: S_rel is measured "
                "between batches, and steps within one are left out; give `every` a multiple of that number",
            )
        if batches or self._norms is None:
            return
        if not np.array_equal(self._norms, _norms(self.model), equal_nan=True):
            raise ModelError(
                f"the weights of model {self.model.name!r} have moved, and its compiled optimizer "
                f"({type(self.model.optimizer).__name__}) has made no update: train_step uses another optimizer, so "
                "that there are no steps to count and no η to take; compile the model with the optimizer that trains "
                "it, or measure in a loop of your own with srel_tf.Instrument(model, probe, "
                "srel_tf.Settings(learning_rate=...))"
            )

    @property
    def state(self) -> JsonObject:
        """What a later process needs to continue, in the types that JSON has."""
        return {
            "last_step": self.recorder.last_step,
            "phantom": self.clock.count_offset,
            "batch_size": self._settings.batch_size,  # Smaller than asked for once memory has run out.
            "about": self._metadata,
        }

    def differences(self, state: JsonObject) -> list[str]:
        """Describe, a line each, the options (the probe's fingerprint among them) that differ from those of `state`."""
        return differences(state["about"], self._metadata)

    def resume(
        self, state: JsonObject, model: keras.Model, epoch: int, batch: int
    ) -> None:
        """Continue from a state.

        Args:
            state: A `state` that was saved after `batch` batches of `epoch`; the next fit trains the other batches.
            model: The model, its optimizer restored.
            epoch: Epochs done.
            batch: Batches done of the next epoch.

        Raises:
            ValueError: For a state that no training can have left.
        """
        updates = int(model.optimizer.iterations)
        self._check_state(state, updates)
        self._settings = dataclasses.replace(
            self._settings, batch_size=state["batch_size"]
        )
        self.recorder.forget()  # What was measured after this state will be measured again.
        self.recorder.stored_step = state["last_step"]
        self._held = None
        self.clock.resume(model.optimizer, state["phantom"], epoch, batch)

    def _check_state(self, state: JsonObject, updates: int) -> None:
        """Raise `ValueError` unless the numbers of a state fit an optimizer that has counted `updates` updates."""
        count_offset = state["phantom"]
        if not _is_integer(count_offset) or count_offset > updates:
            raise ValueError(
                f"phantom={count_offset!r} is not a whole number up to the {updates} updates counted"
            )
        step = updates - count_offset
        last_step = state["last_step"]
        if last_step is not None and not _is_integer_in(last_step, 0, step):
            raise ValueError(
                f"last_step={last_step!r} is not a step from 0 to {step}, where the training is"
            )
        size = state["batch_size"]
        largest = self._settings.batch_size
        if not _is_integer_in(size, 1, largest):
            raise ValueError(
                f"batch_size={size!r} is not from 1 to the {largest} asked for"
            )

    def _report(self) -> None:
        """Print the cost of the measurements since the last report; between epochs, to leave the progress bar alone."""
        is_verbose = self.params.get("verbose")
        if self._seconds and is_verbose:
            num_sources = len(self.probe.sources)
            num_targets = len(self.probe.targets)
            num_measurements = len(self._seconds)
            mean = sum(self._seconds) / num_measurements
            print(
                f"S_rel ({self._settings.update}): {num_measurements} measurements, "
                f"{num_sources} sources x {num_targets} targets, {mean:.3g} s each",
                flush=True,
            )
        self._seconds = []


def _norms(model: keras.Model) -> np.ndarray:
    """Compute the norm of each trainable weight, float64 [n_weights]."""
    return np.array(
        [float(tf.norm(tf.cast(v.value, "float64"))) for v in model.trainable_variables]
    )


def _checksum(model: keras.Model) -> int:
    """Compute a checksum of the weights and statistics of a model."""
    value = 0
    for v in model.variables:
        if keras.backend.is_float_dtype(v.dtype):
            value = zlib.crc32(keras.ops.convert_to_numpy(v).tobytes(), value)
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_integer_in(value: Any, least: int, largest: int) -> bool:
    return _is_integer(value) and least <= value <= largest


def _as_python(value: Any) -> Any:
    """Convert NumPy's numbers to Python's, for JSON; anything else to text."""
    return value.item() if hasattr(value, "item") else str(value)
