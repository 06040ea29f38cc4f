"""`model.fit` that measures S_rel as it goes."""

import keras

from srel_tf.errors import ModelError, OptionError, ProbeError
from srel_tf.fit.callback import Probing
from srel_tf.fit.checkpoint import Checkpoint
from srel_tf.fit.traced import note_trace, note_weights
from srel_tf.frames import schema as frames
from srel_tf.measurement import Settings
from srel_tf.probe import ProbeSet


class SRelMixin:
    """Adds probes to a Keras model: `class MyNet(srel_tf.SRelMixin, keras.Model)`.

    Attach one probe or more, train with `fit` as ever, read `srel_frame()`. Training is not disturbed: weights,
    optimizer state, batch-norm statistics, history and random draws are those of a `fit` without a probe.
    """

    # Takes no constructor arguments: Keras calls the constructors of functional models' bases in its own way.

    def attach_probe(
        self,
        probe,
        every=9,
        measures=("kl", "l1"),
        update="sgd",
        learning_rate=None,
        estimator="exact",
        predictions="auto",
        batch_size=128,
        run="",
        seed=None,
        log_dir=None,
        precision="auto",
        loss=None,
    ):
        """Measure `probe` during each coming `fit`; builds the model if it is not built yet.

        every: an int or any `step -> bool`. Step n means that n optimizer updates have been applied; step 0 counts.
            After a new `compile`, whose optimizer counts from 0, the steps go on.
        measures, update, learning_rate, estimator, predictions, batch_size, precision, loss: as for
            `srel_tf.measure`; learning_rate=None is the rate that the next update takes, also where a callback or a
            schedule sets it.
        run, seed: go into the frame's columns of these names.
        log_dir: TensorBoard directory for a scalar per class pair and a heat map of each matrix.

        Attach again to measure another rule, measure or schedule in the same training; `detach_probes` removes all.
        Raises `OptionError`, `ProbeError`, `ModelError`; `ProbeError` too where the frame could not tell rows of two
        probes apart, for they agree in run, seed, measure, update, estimator, η and ids, or hold ids of two types.
        Where `every` is a function, that is seen, as an `OptionError` of `fit`, at the first step that both measure.
        """
        if not isinstance(probe, ProbeSet):
            raise ProbeError(f"attach_probe expects a srel_tf.ProbeSet, got {type(probe).__name__}")
        settings = Settings(measures, update, learning_rate, estimator, predictions, batch_size, precision, loss)
        probing = Probing(probe, every, settings, run, seed)
        probing.check_beside(self._probings)
        if self._progress is not None:
            probing.progress = self._progress.copy()
        if not self.built:
            self(keras.ops.convert_to_tensor(probe.x[:1]), training=False)
        if log_dir is not None:
            from srel_tf.fit.tensorboard import TensorBoardWriter  # Loads the plotting library.

            probing.listeners.append(TensorBoardWriter(log_dir, settings))
        self._set_probings([*self._probings, probing])

    def detach_probes(self):
        """Remove all probes and what they measured. Steps and epochs go on for probes that are attached later."""
        object.__setattr__(self, "_srel_progress", self._progress)
        self._set_probings([])

    def srel_frame(self):
        """All measurements so far, one row a (step, measure, source, target): the columns of `srel_tf.frames.COLUMNS`.

        It survives an interrupted `fit`, and grows over several. What a `srel_tf.Checkpoint` has saved is in its
        store, and no longer here.
        """
        parts = [part for part in (p.recorder.frame() for p in self._probings) if len(part)]
        # In the order of measuring, which does not depend on how often a checkpoint takes the rows away.
        return frames.merged(parts) if parts else frames.empty()

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs):
        """`keras.Model.fit`, with the attached probes among its callbacks."""
        if self._probings:
            if not self.compiled:
                raise ModelError(f"model {self.name!r} is not compiled: call model.compile(optimizer, loss) before fit")
            if isinstance(callbacks, keras.callbacks.CallbackList):
                raise OptionError("fit with a probe takes a list of callbacks, not a keras.callbacks.CallbackList")
            callbacks = keras.tree.flatten(callbacks or [])
            # A checkpoint comes last: it saves the measurements of its own step too.
            last = [c for c in callbacks if isinstance(c, Checkpoint)]
            callbacks = [*(c for c in callbacks if c not in last), *self._probings, *last]
        note_weights(self, any(kwargs.get(name) is not None for name in ("class_weight", "sample_weight")))
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_step(self, data):
        """Train as Keras does. Notes for warnings what Keras traces, and adds nothing to the graph."""
        note_trace(self, data)
        return super().train_step(data)

    @property
    def _probings(self):
        return getattr(self, "_srel_probings", [])

    @property
    def _progress(self):
        """Steps and epochs as the first probe counts them, or did before it was detached; None without any so far."""
        return self._probings[0].progress if self._probings else getattr(self, "_srel_progress", None)

    def _set_probings(self, probings):
        # Past Keras's attribute tracking: probes are no part of the model, and are not saved with it.
        object.__setattr__(self, "_srel_probings", probings)


@keras.saving.register_keras_serializable(package="srel_tf")
class SRelModel(SRelMixin, keras.Model):
    """`keras.Model` (functional or subclassed) with probes."""


@keras.saving.register_keras_serializable(package="srel_tf")
class SRelSequential(SRelMixin, keras.Sequential):
    """`keras.Sequential` with probes."""
