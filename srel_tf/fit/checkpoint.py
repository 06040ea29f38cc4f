"""Training state and measurements, saved together, so that a killed `fit` goes on as if nothing had happened.

    store = srel_tf.FrameStore("run", write=True)
    checkpoint = srel_tf.Checkpoint(store, every=100)
    epoch, batch = checkpoint.restore(model)               # (0, 0) where nothing is saved
    with checkpoint.stop_after_step():                     # Ctrl-C or SIGTERM ends after the present step, saved
        if batch:                                          # what is left of the epoch that was interrupted
            model.fit(data_of(epoch, skip=batch), initial_epoch=epoch, epochs=epoch + 1, callbacks=[checkpoint])
            epoch += 1
        model.fit(data_of(epoch), initial_epoch=epoch, callbacks=[checkpoint], ...)

The state is every variable of the model (batch statistics and the seeds of dropout among them) and of its optimizer,
and within an epoch those of its metrics. The order of the data is the caller's: `data_of` gives all batches from there
on without end (fit(..., steps_per_epoch=n)), in an order that the number of each epoch alone decides. Keras's own
callbacks that count (`ReduceLROnPlateau`, `EarlyStopping`) begin anew with each `fit`: they are not in the state.
"""

import contextlib
import signal
import threading
from typing import NamedTuple

import keras

from srel_tf.errors import ModelError, OptionError, StorageError
from srel_tf.files import differences
from srel_tf.fit.identity import describe
from srel_tf.fit.model_state import as_count, assign, build_metrics, variables


class Position(NamedTuple):
    """Epochs done, and batches done of the next one."""

    epoch: int
    batch: int


class Checkpoint(keras.callbacks.Callback):
    """Keras callback that saves into a `FrameStore` after every `every` optimizer updates, or at the end of each epoch.

    A state and the rows that the probes measured before it are saved in one act, and the rows leave `srel_frame()`, so
    that memory does not grow with them. Where Keras does not know the length of an epoch, it saves at its end, or where
    training is stopped within it (the rows of that part have no `epoch` then); and under an optimizer with `use_ema`,
    whose averages take the weights' place when a `fit` ends, so that no two of them make one epoch, at its end only.
    It comes last among the callbacks, so that it saves what the others did; models with probes see to that.
    A state saved at step n comes with the rows of the steps before n. Those of n itself are measured when the training
    goes on, with the η that the next update takes; at the end of a `fit` they are saved with the η in force there, and
    stay so in the store if a later `fit` begins with another rate.
    A store holds one training. If this one goes back to a step before the rows that are saved (say by Keras's
    `BackupAndRestore`), nothing more is saved: `restore` goes back to the saved state.
    note: a dict that JSON can hold, saved with each state (`FrameStore.about`).
    companions: objects with a `state` that JSON can hold and that can be set, say a callback with a history of its own.
    Raises `OptionError` for another `every`; during `fit`, `StorageError` where the disk fails, and before it where the
    store holds a training that has not been restored, or rows of later steps than the training has: its rows and these
    would stand in one frame.
    """

    def __init__(self, store, every=None, companions=(), note=None):
        super().__init__()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise OptionError(f"every={every!r}: give a positive number of steps, or None for each epoch")
        self._store, self._every, self._companions = store, every, list(companions)
        self._note = note or {}
        self._about, self._goes_on = None, False  # Whether it is known that the store's training is this one.
        self._position = self._before = Position(0, 0)  # `_before`: where the present fit began.
        self._metrics, self._saved, self._due, self._stop = None, None, False, False
        self._left, self._cut = None, False  # Batches of the epoch, None where unknown; whether it ends before them.
        self._updates = 0  # The optimizer's count after the last batch.

    def restore(self, model, example=None):
        """Put `model`, compiled, its probes attached, into the saved state; the `Position` to go on from.

        example: (x, y) of one example or more, from which Keras makes the metrics' variables; default: a probe's first.
        Raises `StorageError` where the state is damaged, and where model, optimizer, loss, probe or options are not
        those it was saved with: what differs is shown, the model untouched.
        """
        saved = self._store.state()
        if saved is None:
            self._goes_on = True
            return self._before
        arrays, about = saved
        self._store.check()  # Now, not when the training is over.
        if not model.compiled or not model.built:
            raise ModelError(f"model {model.name!r} is not ready: build and compile it before a checkpoint is restored")
        model.optimizer.build(model.trainable_variables)
        try:
            self._about = self._same(model, about)
            self._position = self._before = Position(as_count(about["epoch"]), as_count(about["batch"]))
            self._metrics = [arrays[f"m{i}"] for i in range(as_count(about["metrics"]))]
            if self._metrics:
                build_metrics(
                    model, example, _probings(model)
                )  # Before the rest: the call may draw from seeds of the model's own.
            assign(variables(model), [arrays[f"v{i}"] for i in range(as_count(about["variables"]))])
            for probing, state in zip(_probings(model), about["probes"], strict=True):
                probing.resume(state, model, *self._position)
            for companion, state in zip(self._companions, about["companions"], strict=True):
                companion.state = state
            if self._metrics:
                assign(model.metrics_variables, self._metrics)
        except OptionError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the state saved in {self._store.path} is not that of model {model.name!r} with its optimizer and "
                f"probes ({type(error).__name__}: {error}): start again without it"
            ) from error
        self._goes_on = True
        return self._position

    def _same(self, model, about):
        """What the state was saved with; `StorageError` unless `model` and its probes are that."""
        lines = differences(about["model"], describe(model))
        for i, (probing, state) in enumerate(zip(_probings(model), about["probes"], strict=True)):
            lines += [f"  probe {i}, {line.strip()}" for line in probing.differences(state)]
        if lines:
            raise StorageError(
                f"the state saved in {self._store.path} is that of another training; go on as it was begun, or start "
                "again without it:\n" + "\n".join(lines)
            )
        return about["model"]

    @contextlib.contextmanager
    def stop_after_step(self):
        """Within this block a first Ctrl-C or SIGTERM lets the present step end and be saved, a second acts at once.

        It ends in a KeyboardInterrupt, at the end of the block where no further step came.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_):
            self.request_stop()
            restore()

        def restore():
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

        before, self._stop = {}, False
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, note)
            yield
            self._end_if_asked()
        finally:
            restore()

    def request_stop(self):
        """Save after the present step, and end `fit` with a KeyboardInterrupt."""
        self._stop = True

    def on_train_begin(self, logs=None):
        about = self._store.about
        known = self._goes_on or bool(
            {*_marks(about)} & {name for p in _probings(self.model) for name in p.recorder.mark}
        )
        if not known and (about or self._store.num_rows):
            raise StorageError(
                f"{self._store.path} holds {self._store.num_rows} rows and a state of a training that has not been "
                "restored: call restore(model) before fit, or begin with FrameStore(path, write=True, anew=True)"
            )
        self._goes_on = True
        for probing in _probings(self.model):
            self._check_later_than_stored(probing, probing.progress.step + 1)
        self._updates = int(self.model.optimizer.iterations)
        self._about = self._about or describe(self.model)  # As compiled: a learning rate may change in training.

    def on_epoch_begin(self, epoch, logs=None):
        batch = self._before.batch if epoch == self._before.epoch else 0
        self._position = Position(epoch, batch)
        if batch and self._metrics:
            assign(self.model.metrics_variables, self._metrics)  # The epoch's running means go on.
        self._metrics = None
        self._left, self._cut = self.params.get("steps"), False

    def on_train_batch_end(self, batch, logs=None):
        self._position = Position(self._position.epoch, self._position.batch + 1)
        steps = self.params.get("steps")
        self._left = steps and max(steps - batch - 1, 0)
        updates, before = int(self.model.optimizer.iterations), self._updates
        self._updates = updates  # The same after several batches, with gradient_accumulation_steps.
        self._due |= self._every is not None and updates // self._every != before // self._every
        if self._left == 0:  # An epoch's last step is saved with the epoch.
            return
        averages = self.model.optimizer.use_ema
        self._cut = self.model.stop_training or (self._stop and not averages)
        if not averages and (self._cut or (self._due and self._left)):
            self.save()  # Now: validation would take the metrics' place.
            self._end_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        if self._cut or (self._left and self.model.stop_training):  # `fit` ends here, the epoch does not.
            self._save_once()
            return
        self._position = Position(epoch + 1, 0)
        if self._every is None or self._due or self._stop:
            self.save()
        self._end_if_asked()

    def on_train_end(self, logs=None):
        self._save_once()

    def _save_once(self):
        """Save unless that is done, or averages take the weights' place before the epoch is gone on with."""
        within = self._position.batch and self.model.optimizer.use_ema
        if self._saved != self._position and not within:
            self.save()

    def save(self):
        """Save now. Raises `StorageError`; what was saved before is whole then."""
        frame = self.unsaved(self.model)
        for probing in _probings(self.model):
            self._check_later_than_stored(probing, probing.recorder.first_step)
        state = variables(self.model)
        metrics = self.model.metrics_variables if self._position.batch else []
        probings = _probings(self.model)
        kinds = {"v": state, "m": metrics}
        arrays = {f"{k}{i}": keras.ops.convert_to_numpy(v) for k, vs in kinds.items() for i, v in enumerate(vs)}
        about = {
            **self._position._asdict(),
            "step": int(self.model.optimizer.iterations),
            "variables": len(state),
            "metrics": len(metrics),
            "probes": [p.state for p in probings],
            "measured": {name: count for p in probings for name, count in p.recorder.mark.items()},
            "model": self._about or describe(self.model),
            "companions": [c.state for c in self._companions],
            "note": self._note,
        }
        try:
            self._store.commit(frame, arrays, about)
        finally:  # Ctrl-C may come after the commit.
            self._forget_saved(self.model)
        self._due, self._saved = False, self._position

    def unsaved(self, model):
        """The rows that the probes of `model` measured and that are not in the store; None without probes."""
        self._forget_saved(model)
        return model.srel_frame() if _probings(model) else None

    def _check_later_than_stored(self, probing, step):
        """Raise `StorageError` if the store holds rows of `step`, the next one to be saved, or of later steps.

        step: None if there is nothing to save.
        """
        stored = probing.recorder.stored_step
        if self._store.about and None not in (step, stored) and step <= stored:
            raise StorageError(
                f"the training has gone back and is at step {probing.progress.step}, and {self._store.path} holds rows "
                f"up to step {stored}: call restore(model) before fit, or begin with FrameStore(path, write=True, "
                "anew=True)"
            )

    def _forget_saved(self, model):
        """Drop from memory what the store holds; also where an interrupt came between the saving and this."""
        for probing in _probings(model):
            probing.recorder.forget(_marks(self._store.about))

    def _end_if_asked(self):
        if self._stop:
            self._stop = False  # It has been acted on: another `fit` goes on.
            raise KeyboardInterrupt


def _probings(model):
    return getattr(model, "_probings", [])


def _marks(about):
    """{recorder: number of its measurements that are saved} of a state."""
    marks = (about or {}).get("measured")
    return marks if isinstance(marks, dict) else {}
