"""`model.fit` that measures S_rel during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import pandas as pd

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.files import AnyPath
from srel_tf.fit.callback import SRelCallback
from srel_tf.fit.checkpoint import Checkpoint
from srel_tf.fit.schedules import Schedule
from srel_tf.fit.traced import note_trace, note_weights
from srel_tf.frames.schema import empty, merged
from srel_tf.probe import ProbeSet
from srel_tf.settings import Settings

if TYPE_CHECKING:
    from keras import Model as _Base  # The mixin is used with a Keras model.
else:
    _Base = object


class SRelMixin(_Base):
    """Adds probes to a Keras model: `class MyNet(srel_tf.SRelMixin, keras.Model)`.

    Attach one or more probes, train with `fit` as usual, and read `srel_frame()`. Measuring does not disturb the
    training: weights, optimizer state, batch-norm statistics, history and random draws are the same as without a probe.

    Example:
        >>> import keras, numpy as np, srel_tf
        >>> class Net(srel_tf.SRelMixin, keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = keras.layers.Dense(1)
        ...     def call(self, x):
        ...         return self.layer(x)
        >>> model = Net()
        >>> model.compile("sgd", "mse")
        >>> x, y = np.eye(4, dtype="float32"), np.ones((4, 1), "float32")
        >>> model.attach_probe(srel_tf.ProbeSet(x, y), every=1, measures="l1")
        >>> _ = model.fit(x, y, batch_size=2, verbose=0)
        >>> model.srel_frame()["step"].unique().tolist()
        [0, 1, 2]
    """

    # The mixin has no `__init__`: Keras calls the constructors of a functional model's base classes in its own way.

    def attach_probe(
        self,
        probe: ProbeSet,
        every: int | Schedule = 9,
        measures: tuple[str, ...] | str = ("kl", "l1"),
        update: str = "sgd",
        learning_rate: float | None = None,
        estimator: str = "exact",
        predictions: str = "auto",
        batch_size: int = 128,
        run: str = "",
        seed: int | None = None,
        log_dir: AnyPath | None = None,
        precision: str = "auto",
        loss: Any = None,
    ) -> None:
        """Measure `probe` during each later `fit`. The model is built now if it is not built yet.

        To measure another update rule, measure or schedule in the same training, attach a further probe.
        `detach_probes` removes all probes.

        The arguments `measures`, `update`, `estimator`, `predictions`, `batch_size`, `precision` and `loss` mean the
        same as in `srel_tf.measure`.

        Args:
            probe: The examples, n_s sources and n_t targets. The probe's name is the value of the frame's column
                `name`. If `learning_rate` is given, a probe without a name is named after this rate, for example
                "η=0.001".
            every: The steps to measure: an int for its multiples (0 included), or any function `step -> bool`. Step n
                means that n optimizer updates have been applied. The count continues after a new `compile`.
            measures: One or more measures of the change of predictions.
            update: The update rule.
            learning_rate: η of the fictitious step. None means the rate of the next update, even if a callback or a
                schedule sets it.
            estimator: "exact", "limit" or "auto".
            predictions: What the measures act on: "auto", "softmax" or "raw".
            batch_size: Examples per forward pass.
            run: Value of the frame's column `run`.
            seed: Value of the frame's column `seed`.
            log_dir: TensorBoard directory for a scalar per class pair and a heat map of each matrix.
            precision: Precision of the measurement.
            loss: A function that replaces the compiled loss.

        Raises:
            OptionError: If an option has a wrong value.
            ModelError: If the model cannot be measured.
            ProbeError: If the model does not accept the probe, or if the ids of two probes have different types. Also
                if rows of two probes would agree in run, seed, name, measure, update, estimator and ids: the frame
                could not distinguish such rows. Give one of these probes another name.
        """
        bases, name = type(self).__mro__, type(self).__name__
        if bases.index(keras.Model) < bases.index(SRelMixin):
            raise ModelError(
                f"{name} inherits from keras.Model before SRelMixin, and fit would not measure: write "
                f"class {name}(SRelMixin, keras.Model)"
            )
        if not isinstance(probe, ProbeSet):
            raise ProbeError(
                f"attach_probe expects a srel_tf.ProbeSet, got {type(probe).__name__}: make one with ProbeSet(x, y)"
            )
        settings = Settings(
            measures,
            update,
            learning_rate,
            estimator,
            predictions,
            batch_size,
            precision,
            loss,
        )
        callback = SRelCallback(probe, every, settings, run, seed)
        callback.check_distinct_from(self._srel_callbacks)
        if not self.built:
            self(keras.ops.convert_to_tensor(probe.x[:1]), training=False)
        if log_dir is not None:
            from srel_tf.fit.tensorboard import (
                TensorBoardWriter,
            )  # Imported here, because it loads the plotting library.

            callback.listeners.append(TensorBoardWriter(log_dir))
        self._set_srel_callbacks([*self._srel_callbacks, callback])

    def detach_probes(self) -> None:
        """Remove all probes and their measurements.

        If further probes are attached later, the count of steps and epochs continues.
        """
        self._set_srel_callbacks([])

    def srel_frame(self) -> pd.DataFrame:
        """Return all measurements, one row per (step, measure, source, target), with columns `srel_tf.frames.COLUMNS`.

        Measurements survive an interrupted `fit`, and accumulate over several calls of `fit`. Rows that a
        `srel_tf.Checkpoint` has saved are in its store, and no longer in this frame.
        """
        frames = [callback.recorder.frame() for callback in self._srel_callbacks]
        parts = [frame for frame in frames if len(frame)]
        # Rows are in the order of measurement, which does not depend on how often a checkpoint moves rows to its store.
        return merged(parts) if parts else empty()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train as `keras.Model.fit` does, with the attached probes among its callbacks."""
        if self._srel_callbacks:
            if not self.compiled:
                raise ModelError(
                    f"model {self.name!r} is not compiled: call model.compile(optimizer, loss) before fit"
                )
            if isinstance(callbacks, keras.callbacks.CallbackList):
                raise OptionError(
                    "fit with a probe does not take a keras.callbacks.CallbackList: pass a list of callbacks"
                )
            callbacks = self._with_srel_callbacks(keras.tree.flatten(callbacks or []))
        weighs_examples = any(
            kwargs.get(name) is not None for name in ("class_weight", "sample_weight")
        )
        note_weights(self, weighs_examples)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def _with_srel_callbacks(
        self, callbacks: list[keras.callbacks.Callback]
    ) -> list[keras.callbacks.Callback]:
        """Add the probes' callbacks.

        A checkpoint comes last, so that it also saves the measurements of the current step.
        """
        checkpoints = [
            callback for callback in callbacks if isinstance(callback, Checkpoint)
        ]
        others = [callback for callback in callbacks if callback not in checkpoints]
        return [*others, *self._srel_callbacks, *checkpoints]

    def train_step(self, data: Any) -> dict[str, Any]:
        """Train as Keras does, and record which weights are trained, for warnings. Nothing is added to the graph."""
        note_trace(self, data)
        return super().train_step(data)

    @property
    def _srel_callbacks(self) -> list[SRelCallback]:
        return getattr(self, "_srel_attached", [])

    def _set_srel_callbacks(self, callbacks: list[SRelCallback]) -> None:
        # Bypass Keras's attribute tracking: probes are not part of the model, and are not saved with it.
        object.__setattr__(self, "_srel_attached", callbacks)


@keras.saving.register_keras_serializable(package="srel_tf")
class SRelModel(SRelMixin, keras.Model):
    """`keras.Model` (functional or subclassed) with probes.

    Example:
        >>> import keras, numpy as np, srel_tf
        >>> inputs = keras.Input((4,))
        >>> model = srel_tf.SRelModel(inputs, keras.layers.Dense(1)(inputs))
        >>> model.compile("sgd", "mse")
        >>> x, y = np.eye(4, dtype="float32"), np.ones((4, 1), "float32")
        >>> model.attach_probe(srel_tf.ProbeSet(x, y), every=2, measures="l1")
        >>> _ = model.fit(x, y, batch_size=1, verbose=0)
        >>> model.srel_frame()["step"].unique().tolist()
        [0, 2, 4]
    """


@keras.saving.register_keras_serializable(package="srel_tf")
class SRelSequential(SRelMixin, keras.Sequential):
    """`keras.Sequential` with probes.

    Example:
        >>> import keras, numpy as np, srel_tf
        >>> model = srel_tf.SRelSequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.eye(4, dtype="float32"), np.ones((4, 1), "float32")
        >>> model.attach_probe(srel_tf.ProbeSet(x, y), every=4, measures="l1")
        >>> _ = model.fit(x, y, batch_size=1, verbose=0)
        >>> model.srel_frame()["step"].unique().tolist()
        [0, 4]
    """
