"""The Keras callback that measures on schedule, between the training steps of `model.fit`.

It runs outside the training graph, which therefore stays bit for bit that of a model without a probe.

Step n is measured just before the batch that makes update n+1, after all other callbacks, so that η is the rate that
this update takes. The last step of an epoch is measured at the end of its last batch, for `fit` may end there. If `fit`
goes on and a callback has set another rate by then, the step is measured again, and the new rows replace the old ones.
"""

import dataclasses
import json

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.files import differences
from srel_tf.fit.clock import Progress
from srel_tf.fit.identity import describe_loss
from srel_tf.fit.recorder import Recorder
from srel_tf.fit.schedules import as_schedule
from srel_tf.fit.traced import WEIGHTED, is_traced, note_trace, warn_of_stale_trace, warn_once, weighs_examples
from srel_tf.frames.schema import check_seed
from srel_tf.measurement import Instrument
from srel_tf.updates import learning_rate_now

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
                **{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
                "loss": describe_loss(settings.loss),
                "probe": probe.fingerprint,
                "every": None if callable(every) else every,
                "run": run,
                "seed": seed,
            }
        )
        self._is_due = as_schedule(every)
        self.listeners = []  # Called with each result.
        self.progress = Progress()
        self._instrument = self._made_for = None
        self._held = None  # (result, epoch) of the last step of the epoch before, until the next batch settles its η.
        self._counts = False  # Whether the optimizer is known to count the updates of this fit.
        self._norms = None  # Norms of the weights before the present batch, taken as long as `_counts` is False.
        self._rivals, self._seconds = [], []

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
        if self.model.optimizer is None:
            raise ModelError(
                f"model {self.model.name!r} is compiled without an optimizer: there are no updates to count; call "
                "model.compile(optimizer, loss)"
            )
        if not is_traced(self.model):
            self._instrument = None  # The training step will run the Python code of layers that may have changed.
        self._make_instrument()
        if self.progress.begin_fit(self.model.optimizer):
            self._forget_later_steps()
        self._counts = False

    def on_epoch_begin(self, epoch, logs=None):
        self._report()
        self.recorder.epoch_ended(None)  # The length of an epoch that was broken off stays unknown.
        self._look()
        self.progress.begin_epoch(epoch, self.params.get("steps"))

    def on_train_batch_begin(self, batch, logs=None):
        self._look()
        if self.progress.updates_next:
            self._measure_if_due()
        if not self._counts:
            self._norms = _norms(self.model)
        self.progress.begin_batch()

    def on_train_batch_end(self, batch, logs=None):
        before = self.progress.optimizer, self.progress.batches
        self._look(batches=1)
        if not self._counts and self.progress.optimizer is before[0]:
            self._check_counting(self.progress.batches - before[1])
        if weighs_examples(self.model):
            warn_once(self.model, WEIGHTED)
        if not is_traced(self.model):
            note_trace(self.model)  # The model's own train_step has not called the one that notes it.
        if self.model.stop_training or self.progress.is_last_batch:
            self._measure_if_due()

    def on_epoch_end(self, epoch, logs=None):
        length = self.progress.end_epoch()
        if length:
            self.recorder.epoch_ended(length)
        self._look()
        goes_on = epoch + 1 < self.params["epochs"] and not self.model.stop_training
        newest = self.recorder.newest
        if goes_on and newest is not None and newest.step == self.progress.step:
            (self._held,) = self.recorder.withdraw(newest.step)

    def on_train_end(self, logs=None):
        self._report()

    def _look(self, batches=0):
        optimizer = self.progress.optimizer
        if self.progress.look(self.model.optimizer, batches):
            self._forget_later_steps()
        self._counts &= self.progress.optimizer is optimizer

    def _forget_later_steps(self):
        """Drop the results of the present step and later ones, which the training will make again."""
        self.recorder.withdraw(self.progress.step)
        self._held = None

    def _make_instrument(self):
        """Make an instrument for the training step as Keras has it, say after a call of `compile`.

        While Keras keeps a traced training step, the instrument stays as it is, too.
        """
        made_for = self.model.train_function, [id(v) for v in self.model.trainable_variables]
        same_step = self._instrument is not None and self._made_for[0] is made_for[0]
        if not same_step or (self._made_for != made_for and not is_traced(self.model)):
            self._instrument, self._made_for = Instrument(self.model, self.probe, self._settings), made_for

    def _measure_if_due(self):
        step = self.progress.step
        if step == self.recorder.last_step and not self._has_another_rate(self.recorder.newest):
            return
        if not self._is_due(step):
            return
        held, self._held = self._held, None
        if held is not None and held[0].step == step and not self._has_another_rate(held[0]):
            result, epoch = held
            self.recorder.add(result, epoch, 0, None)
            return
        self.recorder.withdraw(step)
        self._make_instrument()
        warn_of_stale_trace(self.model)
        result = self._instrument()._replace(step=step)
        if any(_is_series(other.recorder.newest, step, result.learning_rate) for other in self._rivals):
            raise OptionError(f"step {step} is due for two probes: {SAME_ROWS}")
        self._settings = self._instrument.settings
        self.recorder.add(result, *self.progress.reached)
        self._seconds.append(result.seconds)
        for listener in self.listeners:
            listener(result)

    def _has_another_rate(self, result):
        """Whether the next update takes another η than `result` was measured with; False if a store has taken it."""
        return result is not None and result.learning_rate != learning_rate_now(
            self.model, self._settings.learning_rate
        )

    def _check_counting(self, batches):
        """Look whether the optimizer has counted what the last batch did to the weights."""
        self._counts = batches != 0
        if batches > 1:
            warn_once(
                self.model,
                f"the optimizer of model {self.model.name!r} made {batches} updates in one batch: S_rel is measured "
                "between batches, and steps within one are left out; give `every` a multiple of that number",
            )
        if not batches and not np.array_equal(self._norms, _norms(self.model), equal_nan=True):
            raise ModelError(
                f"the weights of model {self.model.name!r} have moved, and its compiled optimizer "
                f"({type(self.model.optimizer).__name__}) has made no update: train_step uses another optimizer, so "
                "that there are no steps to count and no η to take; compile the model with the optimizer that trains "
                "it, or measure in a loop of your own with srel_tf.Instrument(model, probe, "
                "srel_tf.Settings(learning_rate=...))"
            )

    @property
    def state(self):
        """What a later process needs to go on, as JSON holds it."""
        size = self._settings.batch_size  # Smaller than asked for once memory has run out.
        return {
            "last_step": self.recorder.last_step,
            "phantom": self.progress.phantom,
            "batch_size": size,
            "about": self._about,
        }

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
        self._settings = dataclasses.replace(self._settings, batch_size=size)
        self.recorder.forget()  # What was measured after this state will be measured again.
        self.recorder.stored_step, self._held = last, None
        self.progress.resume(model.optimizer, phantom, epoch, batch)

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


def _is_series(result, step, learning_rate):
    return result is not None and (result.step, result.learning_rate) == (step, learning_rate)


def _norms(model):
    return np.array([float(tf.norm(tf.cast(v.value, "float64"))) for v in model.trainable_variables])


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _as_json(content):
    """As it is read from JSON: NumPy's numbers as Python's, tuples as lists."""
    return json.loads(json.dumps(content, default=lambda v: v.item() if hasattr(v, "item") else str(v)))
