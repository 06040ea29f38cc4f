"""The Keras callback that measures on schedule, between the training steps of `model.fit`.

The callback runs outside the training graph. Therefore the graph is exactly the same as without a probe.

Step n is measured just before the batch of update n+1, after all other callbacks, so that η is the rate that this
update uses. The last step of an epoch is measured at the end of its last batch, because `fit` may end there. If a
callback changes the learning rate or the weights before the next batch, this step is measured again, and the new rows
replace the old ones.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable
from typing import Any, cast

import keras
import numpy as np

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.files import JsonObject, differences
from srel_tf.fit.clock import ClockedCallback, Place
from srel_tf.fit.identity import describe_loss
from srel_tf.fit.model_state import as_count
from srel_tf.fit.recorder import Recorder
from srel_tf.fit.schedules import Schedule, as_schedule
from srel_tf.fit.traced import (
    WEIGHTED,
    OptimizerCheck,
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


class SRelCallback(ClockedCallback):
    """Measures a probe at each scheduled step. At step n the model has received n updates; step 0 is before the first.

    Args:
        probe: The examples. If η is given, a probe without a name is named after η, for example "η=0.001". The frame
            can then distinguish the rows of several η in one training.
        every: The schedule: a number of steps, or a function from step to bool.
        settings: Options of the measurement.
        run: Value of the frame's column `run`.
        seed: Value of the frame's column `seed`.

    Attributes:
        recorder: The results that are not yet in a store.
        listeners: Functions that are called with each new result.
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
        self.listeners: list[Callable[[SRelResult], None]] = []
        if settings.learning_rate is not None and not probe.name:
            probe = probe.with_name(f"η={settings.learning_rate:g}")
        self.probe = probe
        self._settings = settings
        self._every, self._run, self._seed = every, run, seed
        self._is_due = as_schedule(every)
        self._metadata = self._describe_options()
        self._instrument: Instrument | None = None
        # The training step for which the instrument was made: Keras's function, and the ids of the trainable weights.
        self._made_for: tuple[Any, list[int]] = (None, [])
        self._optimizer_check = OptimizerCheck()
        # Checksum of the weights at the end of an epoch whose last step was measured, else None.
        self._checksum: int | None = None
        self._times_gone_back = 0  # `clock.times_gone_back` when it was last read.
        self._seconds: list[
            float
        ] = []  # Duration of each measurement since the last report.

    def _describe_options(self) -> JsonObject:
        """Describe the options in types that JSON supports."""
        settings = {
            field.name: getattr(self._settings, field.name)
            for field in dataclasses.fields(self._settings)
        }
        options = {
            **settings,
            "loss": describe_loss(self._settings.loss),
            "probe": self.probe.fingerprint,
            "name": self.probe.name,
            "every": None if callable(self._every) else self._every,
            "run": self._run,
            "seed": self._seed,
        }
        return json.loads(json.dumps(options, default=_as_python))

    def check_distinct_from(self, others: Iterable[SRelCallback]) -> None:
        """Raise `ProbeError` if the frame could not distinguish the rows of this probe from another probe's rows."""
        for other in others:
            if self.probe.ids.dtype.kind != other.probe.ids.dtype.kind:
                raise ProbeError(
                    "the ids of one probe are integers and the ids of another one are strings, but one column of the "
                    "frame cannot hold both: give ProbeSet(ids=...) of one type to both"
                )
            if self._series == other._series and self._overlaps(other):
                raise ProbeError(
                    f"the model has a probe with name={self.probe.name!r} already, and rows of both probes would agree "
                    "in run, seed, name, measure, update, estimator and ids, so that the frame could not distinguish "
                    "them: give one of them a unique name with ProbeSet(..., name=...) or probe.with_name(...)"
                )

    @property
    def _series(self) -> tuple[str, int | None, str, str, str]:
        settings = self._settings
        return (
            self._run,
            self._seed,
            self.probe.name,
            settings.update,
            settings.estimator,
        )

    def _overlaps(self, other: SRelCallback) -> bool:
        """Return whether two probes have a measure, a source and a target in common."""
        probe, other_probe = self.probe, other.probe
        return not (
            set(self._settings.measures).isdisjoint(other._settings.measures)
            or _are_disjoint(
                probe.ids[probe.sources], other_probe.ids[other_probe.sources]
            )
            or _are_disjoint(
                probe.ids[probe.targets], other_probe.ids[other_probe.targets]
            )
        )

    def on_train_begin(self, logs: JsonObject | None = None) -> None:
        if self.model.steps_per_execution != 1:
            raise OptionError(
                f"steps_per_execution={self.model.steps_per_execution}: Keras would run several updates between two "
                "measurements, so that S_rel could not be measured at the requested steps; compile with "
                "steps_per_execution=1"
            )
        if self.model.optimizer is None:
            raise ModelError(
                f"model {self.model.name!r} is compiled without an optimizer, so there are no updates to count: call "
                "model.compile(optimizer, loss)"
            )
        if not is_traced(self.model):
            self._instrument = None  # Without a trace, `fit` runs the layers' Python code, which may have changed.
        self._ensure_instrument()
        super().on_train_begin(logs)
        self._follow_clock()
        self._optimizer_check = OptimizerCheck()

    def on_epoch_begin(self, epoch: int, logs: JsonObject | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._follow_clock()
        self._report()

    def on_train_batch_begin(self, batch: int, logs: JsonObject | None = None) -> None:
        super().on_train_batch_begin(batch, logs)
        self._follow_clock()
        if self.clock.updates_next:
            self._measure_if_due()
        self._checksum = None
        self._optimizer_check.begin_batch(self.model, self.clock.batches)

    def on_train_batch_end(self, batch: int, logs: JsonObject | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        self._follow_clock()
        self._optimizer_check.end_batch(self.model, self.clock.batches)
        if weighs_examples(self.model):
            warn_once(self.model, WEIGHTED)
        if not is_traced(self.model):
            # The user's class overrides `train_step` without a call of `SRelMixin.train_step`, which records the trace.
            note_trace(self.model)
        if self.model.stop_training or self.clock.batches_left == 0:
            self._measure_if_due()
            if self.recorder.last_step == self.clock.step:
                # Another callback may change the weights before the next epoch.
                self._checksum = _checksum(self.model)

    def on_epoch_end(self, epoch: int, logs: JsonObject | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._follow_clock()
        is_last_epoch = epoch + 1 >= self.params["epochs"]
        if not is_last_epoch and not self.model.stop_training:
            # η of this step is known only when the next batch begins.
            self.recorder.hold(self.clock.step)

    def on_train_end(self, logs: JsonObject | None = None) -> None:
        self._report()

    def _follow_clock(self) -> None:
        """If the training has gone back, drop the results of the current step and of later steps."""
        if self._times_gone_back != self.clock.times_gone_back:
            self._times_gone_back = self.clock.times_gone_back
            self.recorder.withdraw(self.clock.step)

    def _ensure_instrument(self) -> Instrument:
        """Return the instrument for the current training step.

        The instrument is kept as long as Keras keeps the traced training step. After a call of `compile`, for example,
        a new instrument is made.
        """
        weights = [id(variable) for variable in self.model.trainable_variables]
        present = (self.model.train_function, weights)
        is_same_trace = self._made_for[0] is present[0] and is_traced(self.model)
        is_same_step = self._made_for == present or is_same_trace
        if self._instrument is None or not is_same_step:
            self._instrument = Instrument(self.model, self.probe, self._settings)
            self._made_for = present
        return self._instrument

    def _measure_if_due(self) -> None:
        """Measure the current step if it is scheduled and was not yet measured with the current η."""
        self.recorder.release()
        step = self.clock.step
        is_measured = step == self.recorder.last_step and not self._is_outdated()
        if is_measured or not self._is_due(step):
            return
        self.recorder.withdraw(step)
        instrument = self._ensure_instrument()
        warn_of_stale_trace(self.model)
        result = instrument()._replace(step=step)
        self._settings = instrument.settings
        # `reached` is not None, because an epoch has begun.
        self.recorder.add(result, cast(Place, self.clock.reached))
        self._seconds.append(result.seconds)
        for listener in self.listeners:
            listener(result)

    def _is_outdated(self) -> bool:
        """Return whether the newest result was measured with another η or other weights than the next update will use.

        Return False if the newest result is already in a store.
        """
        result = self.recorder.newest
        if result is None:
            return False
        rate = learning_rate_now(self.model, self._settings.learning_rate)
        is_changed = self._checksum is not None and self._checksum != _checksum(
            self.model
        )
        return result.learning_rate != rate or is_changed

    @property
    def state(self) -> JsonObject:
        """The state that a later process needs to continue, in types that JSON supports."""
        return {
            "recorder": self.recorder.name,
            "last_step": self.recorder.last_step,
            "batch_size": self._settings.batch_size,  # Smaller than requested if memory has run out.
            "about": self._metadata,
        }

    def differences(self, state: JsonObject) -> list[str]:
        """Return one line for each option that has another value in `state`. The probe's fingerprint is an option."""
        return differences(state["about"], self._metadata)

    def resume(self, state: JsonObject, step: int) -> None:
        """Continue from a state that was saved at `step`.

        Raises:
            ValueError: If no training can have produced this state.
        """
        last_step = state["last_step"]
        if last_step is not None:
            as_count(last_step, largest=step)
        batch_size = as_count(
            state["batch_size"], least=1, largest=self._settings.batch_size
        )
        self._settings = dataclasses.replace(self._settings, batch_size=batch_size)
        # Steps after this state will be measured again.
        self.recorder.withdraw(0)
        self.recorder.stored_step = last_step

    def _report(self) -> None:
        """Print the mean time of the measurements since the last report.

        Called between epochs only, so that the text does not disturb Keras's progress bar.
        """
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


def _checksum(model: keras.Model) -> int:
    """Compute a checksum of all floating-point variables of a model."""
    value = 0
    for v in model.variables:
        if keras.backend.is_float_dtype(v.dtype):
            value = zlib.crc32(keras.ops.convert_to_numpy(v).tobytes(), value)
    return value


def _are_disjoint(ids: np.ndarray, others: np.ndarray) -> bool:
    return not np.isin(ids, others).any()


def _as_python(value: Any) -> Any:
    """Convert a NumPy number to a Python number, and any other object to text, for JSON."""
    return value.item() if hasattr(value, "item") else str(value)
