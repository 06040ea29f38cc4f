"""The Keras callback that measures on schedule, between the training steps of `model.fit`.

It runs outside the training graph, which therefore stays bit for bit that of a model without a probe.
"""

import keras

from srel_tf.errors import OptionError
from srel_tf.measurement import Instrument
from srel_tf.recorder import Recorder
from srel_tf.schedules import as_schedule


class Probing(keras.callbacks.Callback):
    """Measures `probe` with `settings` before the first step and after each step n with `every(n)`."""

    def __init__(self, probe, every, settings, run="", seed=None, listeners=()):
        super().__init__()
        self.recorder = Recorder(run, seed)
        self._probe, self._settings = probe, settings
        self._is_due = as_schedule(every)
        self._listeners = listeners
        self._instrument = None
        self._epochs = self._epochs_done = self._batches = 0
        self._optimizer, self._iterations, self._phantom, self._last_step = None, 0, 0, None
        self._seconds = []

    def on_train_begin(self, logs=None):
        if self.model.steps_per_execution != 1:
            raise OptionError(
                f"steps_per_execution={self.model.steps_per_execution}: Keras would run several updates between two "
                "looks at the model, so that S_rel could not be measured at the steps asked for; compile with 1"
            )
        if self.model.optimizer is not self._optimizer:
            self._optimizer, self._phantom, self._last_step = self.model.optimizer, 0, None
        # A new one for each fit: compile() or layer.trainable may have changed since the last.
        self._instrument = Instrument(self.model, self._probe, self._settings)

    def on_epoch_begin(self, epoch, logs=None):
        self._report()
        self._epochs, self._batches = max(epoch, self._epochs_done), 0  # Keras counts each fit from initial_epoch.
        self._iterations = int(self._optimizer.iterations)
        self._measure_if_due()

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        self._iterations = int(self._optimizer.iterations)
        self._measure_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._epochs_done = self._epochs + 1
        self.recorder.epoch_ended(self._batches)
        # Where data of unknown length runs out, Keras may count the update that found no batch.
        self._phantom += int(self._optimizer.iterations) - self._iterations

    def on_train_end(self, logs=None):
        self._report()

    def _measure_if_due(self):
        step = self._iterations - self._phantom
        if step == self._last_step or not self._is_due(step):
            return
        result = self._instrument()._replace(step=step)
        self._last_step = step
        self.recorder.add(result, self._epochs, self._batches, self.params.get("steps"))
        self._seconds.append(result.seconds)
        for listener in self._listeners:
            listener(result)

    def _report(self):
        """A line on the cost of the measurements since the last one; between epochs, so as to leave the bar alone."""
        if self._seconds and self.params.get("verbose"):
            n_s, n_t = len(self._probe.sources), len(self._probe.targets)
            print(
                f"S_rel ({self._settings.update}): {len(self._seconds)} measurements, {n_s} sources x {n_t} "
                f"targets, {sum(self._seconds) / len(self._seconds):.3g} s each",
                flush=True,
            )
        self._seconds = []
