"""Training state and measurements, saved together, so that a killed `fit` can continue as if it had not been killed.

    store = srel_tf.FrameStore("run", write=True)
    checkpoint = srel_tf.Checkpoint(store, every=100)
    epoch, batch = checkpoint.restore(model)               # (0, 0) if nothing is saved
    with checkpoint.stop_after_step():                     # Ctrl-C or SIGTERM: finish the current step, save, stop
        if batch:                                          # the rest of the epoch that was interrupted
            model.fit(data_of(epoch, skip=batch), initial_epoch=epoch, epochs=epoch + 1, callbacks=[checkpoint])
            epoch += 1
        model.fit(data_of(epoch), initial_epoch=epoch, callbacks=[checkpoint], ...)

The state consists of all variables of the model (batch statistics and dropout seeds included) and of its optimizer. A
state saved within an epoch also contains the variables of the metrics.

The caller provides the data in a reproducible order. Here `data_of` yields the batches that follow the given position,
without end (use fit(..., steps_per_epoch=n)). The order of the batches within an epoch must depend only on the number
of the epoch.

Keras callbacks that remember earlier epochs (`ReduceLROnPlateau`, `EarlyStopping`) are not part of the state. Such a
callback starts afresh with each `fit`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import pandas as pd

from srel_tf.errors import ModelError, OptionError, StorageError
from srel_tf.files import JsonObject
from srel_tf.fit.callback import SRelCallback
from srel_tf.fit.clock import ClockedCallback, Position, clock_of
from srel_tf.fit.identity import training_fingerprint
from srel_tf.fit.model_state import Example, assign, build_metrics, variables
from srel_tf.fit.saved_state import (
    Arrays,
    SavedState,
    as_arrays,
    load_state,
    state_differences,
)
from srel_tf.fit.signals import first_signal_calls
from srel_tf.frames.store import FrameStore


class Checkpoint(ClockedCallback):
    """Keras callback that saves model, optimizer and measurements into a `FrameStore`.

    Each save writes the state and the rows that the probes have measured since the last save. These rows are then
    removed from `srel_frame()`, so that memory use does not grow.

    A state is saved without the rows of its own step, because their η is the rate of the next update, which is not
    decided yet. These rows are saved with the next state. At the end of a `fit`, however, the rows of the last step are
    saved at once, with the current η. These rows stay in the store, even if a later `fit` begins with another rate.

    If Keras does not know the length of an epoch, states are saved at the end of this epoch only, or at the step where
    training is stopped. If training is stopped there, the rows of this epoch have NaN in the column `epoch`. With
    `use_ema`, states are saved at epoch ends only, because `fit` overwrites the weights with their averages when `fit`
    ends.

    The checkpoint must be the last callback, so that it saves the effects of all other callbacks. `fit` of a model with
    probes moves the checkpoint to the end of the list.

    A store holds one training. If the training goes back (for example through Keras's `BackupAndRestore`) and measures
    a step again whose rows are already in the store, the next save raises `StorageError`. Call `restore` to return to
    the saved state.

    Args:
        store: The store, open for writing.
        every: Number of optimizer updates between two states; None saves at the end of each epoch.
        companions: Objects with a settable `state` that JSON can represent, for example a callback with a history.
        note: A dict that JSON can represent, saved with each state (`FrameStore.about`).

    Raises:
        OptionError: If `every` is neither a positive integer nor None.
        StorageError: During `fit`, if the disk fails. When `fit` begins, if the store holds a training that was not
            restored, or rows of steps that the training has not reached yet. Without this error, one frame would mix
            two trainings.

    Example:
        >>> import tempfile, keras, numpy as np, srel_tf
        >>> x, y = np.eye(4, dtype="float32"), np.ones((4, 1), "float32")
        >>> directory = tempfile.TemporaryDirectory()
        >>> def train(epochs):
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        ...     model.compile("sgd", "mse")
        ...     with srel_tf.FrameStore(f"{directory.name}/run", write=True) as store:
        ...         checkpoint = srel_tf.Checkpoint(store)
        ...         epoch, batch = checkpoint.restore(model)
        ...         _ = model.fit(x, y, initial_epoch=epoch, epochs=epochs, verbose=0, callbacks=[checkpoint])
        ...     return epoch, batch
        >>> train(epochs=2), train(epochs=3)
        ((0, 0), (2, 0))
    """

    def __init__(
        self,
        store: FrameStore,
        every: int | None = None,
        companions: Iterable[Any] = (),
        note: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        is_integer = isinstance(every, int) and not isinstance(every, bool)
        if every is not None and (not is_integer or every < 1):
            raise OptionError(
                f"every={every!r}: give a positive number of steps, or None to save after each epoch"
            )
        self._store = store
        self._every = every
        self._stateful_callbacks = list(companions)
        self._user_metadata = note or {}
        self._fingerprint: JsonObject | None = (
            None  # Fingerprint of the model as it was compiled.
        )
        # Whether the store belongs to this training: `restore` has matched the two, or the store was empty.
        self._restored = False
        self._restored_metrics: Arrays = ()  # Saved values of the metrics, for the epoch that is continued.
        self._saved_place: tuple[Position, int] | None = None  # Place of the last save.
        self._saved_step = (
            0  # Step of the last save, or the step at which this fit began.
        )
        self._stop_requested = False

    def restore(self, model: keras.Model, example: Example | None = None) -> Position:
        """Restore the saved state into `model`.

        Args:
            model: The compiled model, with its probes attached.
            example: (x, y) of at least one example, from which Keras creates the metrics' variables. The default is the
                first example of the first probe.

        Returns:
            The `Position` (epoch, batch) to continue from; (0, 0) if nothing is saved.

        Raises:
            StorageError: If the state is damaged, or if model, optimizer, loss, probes or options differ from those of
                the saved training. The message lists the differences. The model is not changed.
        """
        saved = self._store.state()
        if saved is None:
            self._restored = True
            return Position(0, 0)
        self._store.check()  # Report damaged parts before training, not after.
        _check_ready(model)
        try:
            state = load_state(*saved)
            lines = state_differences(state, model, _srel_callbacks(model))
            if lines:
                raise StorageError(
                    f"the state saved in {self._store.path} belongs to another training: use the model and the options "
                    "of that training, or start again without this state; the differences are\n"
                    + "\n".join(lines)
                )
            self._apply(model, state, example)
        except OptionError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the state saved in {self._store.path} does not belong to model {model.name!r} with its optimizer and "
                f"probes ({type(error).__name__}: {error}): start again without this state"
            ) from error
        self._restored = True
        return state.position

    def _apply(
        self, model: keras.Model, state: SavedState, example: Example | None
    ) -> None:
        """Assign the state to the variables of the model, its optimizer and metrics, and to the callbacks."""
        callbacks = _srel_callbacks(model)
        if state.metrics:
            probes = [callback.probe for callback in callbacks]
            # Must precede assign(): this forward pass may advance seed generators.
            build_metrics(model, example, probes)
        assign(variables(model), state.variables)
        clock = clock_of(model)
        clock.resume(model.optimizer, state.count_offset, state.position)
        for callback, saved in zip(callbacks, state.probes, strict=True):
            callback.resume(saved, clock.step)
        for companion, saved in zip(
            self._stateful_callbacks, state.stateful_callbacks, strict=True
        ):
            companion.state = saved
        if state.metrics:
            assign(model.metrics_variables, state.metrics)
        self._fingerprint = state.fingerprint
        self._restored_metrics = state.metrics

    @contextlib.contextmanager
    def stop_after_step(self) -> Iterator[None]:
        """Within this block, let the first Ctrl-C or SIGTERM stop `fit` after the current step is finished and saved.

        A second signal acts at once.

        Raises:
            KeyboardInterrupt: After the step was saved, or at the end of the block if no further step followed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._stop_requested = False
        with first_signal_calls(self.request_stop):
            yield
            self._stop_if_requested()

    def request_stop(self) -> None:
        """Save after the current step, and end `fit` with a KeyboardInterrupt."""
        self._stop_requested = True

    def on_train_begin(self, logs: JsonObject | None = None) -> None:
        super().on_train_begin(logs)
        has_content = self._store.about or self._store.num_rows
        if has_content and not self._restored and not self._has_measured_stored_rows():
            raise StorageError(
                f"{self._store.path} holds {self._store.num_rows} rows and a state of a training that has not been "
                "restored: call restore(model) before fit, or discard them with FrameStore(path, write=True, anew=True)"
            )
        self._restored = True
        for callback in _srel_callbacks(self.model):
            self._check_later_than_stored(callback, self.clock.step + 1)
        self._saved_step = self.clock.step
        # The fingerprint is taken before training, because callbacks may change the learning rate.
        self._fingerprint = self._fingerprint or training_fingerprint(self.model)

    def on_epoch_begin(self, epoch: int, logs: JsonObject | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self.clock.position.batch and self._restored_metrics:
            # The metrics continue as averages over the whole epoch.
            assign(self.model.metrics_variables, self._restored_metrics)
        self._restored_metrics = ()

    def on_train_batch_end(self, batch: int, logs: JsonObject | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        batches_left = self.clock.batches_left
        # `on_epoch_end` saves after the last step of an epoch. With `use_ema` it saves all states.
        if batches_left == 0 or self.model.optimizer.use_ema:
            return
        is_due = self._is_due and batches_left is not None
        if is_due or self.model.stop_training or self._stop_requested:
            self.save()  # Do not wait for on_epoch_end: validation overwrites the metrics before that call.
            self._stop_if_requested()

    @property
    def _is_due(self) -> bool:
        """Return whether the training has passed a multiple of `every` since the last save."""
        every = self._every
        return (
            every is not None and self.clock.step // every != self._saved_step // every
        )

    def on_epoch_end(self, epoch: int, logs: JsonObject | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.clock.position.batch:
            # `fit` ends within the epoch.
            self._save_once()
            return
        if self._every is None or self._is_due or self._stop_requested:
            self.save()
        self._stop_if_requested()

    def on_train_end(self, logs: JsonObject | None = None) -> None:
        self._save_once()

    def _save_once(self) -> None:
        """Save, unless this position is already saved, or lies within an epoch and `use_ema` is set."""
        is_spoiled = self.clock.position.batch and self.model.optimizer.use_ema
        if self._saved_place != self._place and not is_spoiled:
            self.save()

    @property
    def _place(self) -> tuple[Position, int]:
        return self.clock.position, self.clock.step

    def save(self) -> None:
        """Save now. If this fails, raise `StorageError`; earlier saves stay complete."""
        frame = self.unsaved(self.model)
        for callback in _srel_callbacks(self.model):
            self._check_later_than_stored(callback, callback.recorder.first_step)
        state = variables(self.model)
        metrics = self.model.metrics_variables if self.clock.position.batch else []
        arrays = {**as_arrays("v", state), **as_arrays("m", metrics)}
        metadata = self._metadata(len(state), len(metrics))
        try:
            self._store.commit(frame, arrays, metadata)
        finally:  # Also after Ctrl-C, which may arrive when the commit has succeeded.
            self._forget_saved(self.model)
        self._saved_place, self._saved_step = self._place, self.clock.step

    def _metadata(self, num_variables: int, num_metrics: int) -> JsonObject:
        """Return the metadata of a state, which `load_state` and users read together with its arrays."""
        return {
            "epoch": self.clock.position.epoch,
            "batch": self.clock.position.batch,
            "step": self.clock.step,
            "count_offset": self.clock.count_offset,
            "variables": num_variables,
            "metrics": num_metrics,
            "probes": [callback.state for callback in _srel_callbacks(self.model)],
            "model": self._fingerprint or training_fingerprint(self.model),
            "companions": [companion.state for companion in self._stateful_callbacks],
            "note": self._user_metadata,
        }

    def unsaved(self, model: keras.Model) -> pd.DataFrame | None:
        """Return the rows of the probes of `model` that are not yet in the store; None if it has no probes."""
        self._forget_saved(model)
        return model.srel_frame() if _srel_callbacks(model) else None

    def _check_later_than_stored(
        self, callback: SRelCallback, step: int | None
    ) -> None:
        """Raise `StorageError` if the store holds rows of `step` or of later steps.

        Args:
            callback: The callback of a probe.
            step: The next step to be saved; None if nothing is to be saved.
        """
        stored = callback.recorder.stored_step
        if step is None or stored is None or not self._store.about:
            return
        if step <= stored:
            raise StorageError(
                f"the training has gone back and is at step {self.clock.step}, and {self._store.path} holds rows "
                f"up to step {stored}: call restore(model) before fit, or discard these rows with FrameStore(path, "
                "write=True, anew=True)"
            )

    def _has_measured_stored_rows(self) -> bool:
        """Return whether rows in the store were measured by a probe of this model object."""
        stored_steps = self._stored_steps()
        callbacks = _srel_callbacks(self.model)
        return any(callback.recorder.name in stored_steps for callback in callbacks)

    def _forget_saved(self, model: keras.Model) -> None:
        """Drop from memory all rows that the store holds, even if an interrupt left them in memory after the save."""
        stored_steps = self._stored_steps()
        for callback in _srel_callbacks(model):
            callback.recorder.forget(stored_steps.get(callback.recorder.name))

    def _stored_steps(self) -> dict[str, int | None]:
        """Return {name of a recorder: latest step whose rows are in the store}."""
        probes = (self._store.about or {}).get("probes", [])
        return {probe.get("recorder"): probe["last_step"] for probe in probes}

    def _stop_if_requested(self) -> None:
        if self._stop_requested:
            self._stop_requested = False  # Another `fit` may follow.
            raise KeyboardInterrupt


def _check_ready(model: keras.Model) -> None:
    """Build the optimizer. Raises `ModelError` if the model is not built and compiled."""
    if not model.compiled or not model.built:
        raise ModelError(
            f"model {model.name!r} is not ready: build and compile it before you restore a checkpoint"
        )
    model.optimizer.build(model.trainable_variables)


def _srel_callbacks(model: keras.Model) -> list[SRelCallback]:
    """Return the callbacks of the model's probes; an empty list for models without `SRelMixin`."""
    return getattr(model, "_srel_callbacks", [])
