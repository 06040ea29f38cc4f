"""The Keras callback that measures on schedule, between the training steps of `model.fit`.

It runs outside the training graph, which therefore stays bit for bit that of a model without a probe.
"""

import dataclasses
import json

import keras

from srel_tf.errors import OptionError, ProbeError
from srel_tf.files import differences
from srel_tf.frames import check_seed
from srel_tf.measurement import Instrument
from srel_tf.recorder import Recorder
from srel_tf.schedules import as_schedule

SAME_ROWS = (
    "their rows would agree in run, seed, step, measure, update, estimator, η and ids, so that the frame could not "
    "tell them apart; give one of them another run, or its examples other ids"
)


class Probing(keras.callbacks.Callback):
    """Measures `probe` with `settings` before the first step and after each step n with `every(n)`."""

    def __init__(self, probe, every, settings, run="", seed=None):
        super().__init__()
        check_seed(seed)
        self.recorder = Recorder(run, seed)
        self.probe, self._settings = probe, settings
        self._every, self._run, self._seed = every, run, seed
        self._about = _as_json(
            {
                **dataclasses.asdict(settings),
                "probe": probe.fingerprint,
                "every": None if callable(every) else every,
                "run": run,
                "seed": seed,
            }
        )
        self._is_due = as_schedule(every)
        self.listeners = []  # Called with each result.
        self._instrument = None
        self._epochs = self._epochs_done = self._batches = self._batches_before = self._skipped = 0
        self._optimizer, self._iterations, self._phantom, self._last_step = None, 0, 0, None
        self._last_rate, self._rivals = None, []
        self._seconds, self._cut = [], False

    @property
    def counting(self):
        """Where the model is in its training; set, a probe that is attached later counts as the others do."""
        return self._optimizer, self._phantom, self._epochs_done

    @counting.setter
    def counting(self, counting):
        self._optimizer, self._phantom, self._epochs_done = counting

    def check_beside(self, others):
        """`ProbeError` where the frame could not tell rows of this probe from those of another one of the model."""
        for other in others:
            if self.probe.ids.dtype.kind != other.probe.ids.dtype.kind:
                raise ProbeError(
                    "the ids of one probe are integers, those of another one strings, and one column of the frame "
                    "cannot hold both: give ProbeSet(ids=...) of one type to both"
                )
            if not self._shares_rows_with(other):
                continue
            if self._settings.learning_rate == other._settings.learning_rate and not (
                callable(self._every) or callable(other._every)  # Which may never meet.
            ):
                raise ProbeError(f"the model has such a probe already, and step 0 is due for both: {SAME_ROWS}")
            self._rivals.append(other)

    def _shares_rows_with(self, other):
        """Whether rows of one step could agree in all that names them, η apart."""
        mine, theirs = self._settings, other._settings
        return (
            (self._run, self._seed, mine.update) == (other._run, other._seed, theirs.update)
            and bool({*mine.measures} & {*theirs.measures})
            and mine.estimator == theirs.estimator
            and all(
                bool({*self.probe.ids[a].tolist()} & {*other.probe.ids[b].tolist()})
                for a, b in ((self.probe.sources, other.probe.sources), (self.probe.targets, other.probe.targets))
            )
        )

    def on_train_begin(self, logs=None):
        if self.model.steps_per_execution != 1:
            raise OptionError(
                f"steps_per_execution={self.model.steps_per_execution}: Keras would run several updates between two "
                "looks at the model, so that S_rel could not be measured at the steps asked for; compile with 1"
            )
        if self.model.optimizer is not self._optimizer:
            if self._optimizer is not None:  # Compiled anew: a new optimizer counts from 0, the steps go on.
                self._phantom -= int(self._optimizer.iterations) - int(self.model.optimizer.iterations)
            self._optimizer = self.model.optimizer
        # A new one for each fit: compile() or layer.trainable may have changed since the last.
        self._instrument = Instrument(self.model, self.probe, self._settings)

    def on_epoch_begin(self, epoch, logs=None):
        self._report()
        self.recorder.epoch_ended(None)  # Whatever the length of one that was broken off.
        self._epochs = max(epoch, self._epochs_done)  # Keras counts each fit from initial_epoch.
        self._batches = self._batches_before = self._skipped
        self._skipped = 0
        self._iterations = int(self._optimizer.iterations)
        self._measure_if_due()

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        self._iterations = int(self._optimizer.iterations)
        if self._steps:
            self._epochs_done = self._epochs + self._batches / self._steps
        self._cut = self.model.stop_training  # By another callback, after this step.
        self._measure_if_due()

    def on_epoch_end(self, epoch, logs=None):
        if not self._steps and not self._cut:
            self._epochs_done = self._epochs + 1
            self.recorder.epoch_ended(self._batches)
        # Where data of unknown length runs out, Keras may count the update that found no batch.
        self._phantom += int(self._optimizer.iterations) - self._iterations

    def on_train_end(self, logs=None):
        self._report()

    @property
    def _steps(self):
        """Batches of the present epoch, None where Keras does not know."""
        steps = self.params.get("steps")
        return steps and steps + self._batches_before

    def _measure_if_due(self):
        step = self._iterations - self._phantom
        if step == self._last_step or not self._is_due(step):
            return
        result = self._instrument()._replace(step=step)
        if any((other._last_step, other._last_rate) == (step, result.learning_rate) for other in self._rivals):
            raise OptionError(f"step {step} is due for two probes: {SAME_ROWS}")
        self._last_step, self._last_rate, self._settings = step, result.learning_rate, self._instrument.settings
        self.recorder.add(result, self._epochs, self._batches, self._steps)
        self._seconds.append(result.seconds)
        for listener in self.listeners:
            listener(result)

    @property
    def state(self):
        """What a later process needs to go on, as JSON holds it."""
        size = self._settings.batch_size  # Smaller than asked for once memory has run out.
        return {"last_step": self._last_step, "phantom": self._phantom, "batch_size": size, "about": self._about}

    def differences(self, state):
        """A line for each option that was another one where `state` was saved, the probe's fingerprint among them."""
        return differences(state["about"], self._about)

    def resume(self, state, model, epoch, batch):
        """Go on from a `state` saved after `batch` batches of `epoch`, of which the next fit trains the others.

        model: with its optimizer as it was then. `ValueError` for a state that no training can have left.
        """
        last, phantom, size = state["last_step"], state["phantom"], state["batch_size"]
        if not _is_whole(phantom) or int(model.optimizer.iterations) < phantom:
            raise ValueError(f"phantom={phantom!r} is no number of the {int(model.optimizer.iterations)} updates")
        done = int(model.optimizer.iterations) - phantom
        if last is not None and not (_is_whole(last) and 0 <= last <= done):
            raise ValueError(f"last_step={last!r} is no step up to {done}, where the training is")
        if not _is_whole(size) or not 1 <= size <= self._settings.batch_size:
            raise ValueError(f"batch_size={size!r} is not from 1 to the {self._settings.batch_size} asked for")
        self._last_step, self._phantom = last, phantom
        self._settings = dataclasses.replace(self._settings, batch_size=size)
        self._optimizer, self._epochs_done, self._skipped = model.optimizer, epoch, batch

    def _report(self):
        """A line on the cost of the measurements since the last one; between epochs, so as to leave the bar alone."""
        if self._seconds and self.params.get("verbose"):
            n_s, n_t = len(self.probe.sources), len(self.probe.targets)
            print(
                f"S_rel ({self._settings.update}): {len(self._seconds)} measurements, {n_s} sources x {n_t} "
                f"targets, {sum(self._seconds) / len(self._seconds):.3g} s each",
                flush=True,
            )
        self._seconds = []


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _as_json(content):
    """As it is read from JSON: NumPy's numbers as Python's, tuples as lists."""
    return json.loads(json.dumps(content, default=lambda v: v.item() if hasattr(v, "item") else str(v)))
