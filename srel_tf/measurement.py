"""measure(): probe -> engine -> measures -> result."""

import numbers
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ChunkError, ModelError, OptionError, ProbeError, SRelError
from srel_tf.estimators.choose import make_estimator
from srel_tf.estimators.plan import Task
from srel_tf.gradients.compiled_loss import CompiledLoss, compiled_loss
from srel_tf.gradients.network import Network, warn_of_batch_norm
from srel_tf.measures import outputs as reading
from srel_tf.measures.distances import DEFINITIONS, RAW
from srel_tf.measures.published import PUBLISHED
from srel_tf.probe import ProbeSet
from srel_tf.result import SRelResult
from srel_tf.updates import RULES, learning_rate_now

MEASURES = {**DEFINITIONS, **RAW, **PUBLISHED}
ESTIMATORS = ("exact", "limit", "auto")
PRECISIONS = ("auto", "float32", "float64")
LIBRARIES = ("keras.", "srel_tf.")  # Modules whose `train_step` minimises the compiled loss.


def measure(
    model,
    probe,
    measures=("kl", "l1"),
    update="sgd",
    learning_rate=None,
    estimator="exact",
    predictions="auto",
    batch_size=128,
    precision="auto",
    loss=None,
):
    """Measure S_rel(x', x) between all sources x and targets x' of a probe; the model is left untouched.

    model: built, compiled `keras.Model`; ℓ is its compiled loss, regularisation included, for each source alone.
    probe: `ProbeSet` of n_s sources and n_t targets.
    measures: "kl" (Definition 2), "l1", "l2" (Definition 1), "raw_l1", "raw_l2" (Definition 1 on what the model
        returns, say logits, where "l1" is of its softmax), "published_kl" and "published_l2" of
        `srel_tf.measures.published`.
    update: "sgd" (w⁺ = w − η∇ℓ, the definition), "optimizer" (the model's own next step), "fresh_adam".
    learning_rate: η; None takes the optimizer's present one.
    estimator: "exact", the finite step as defined; "limit", η → 0 (Section 5), far cheaper, for update="sgd", with
        numerators and denominators per unit of η (`kl`: of η²); "auto", the finite step, in float64 for the rows that
        float32 does not resolve.
    predictions: what D acts on. "auto": the softmax of a classifier, else the raw outputs; "softmax" or "raw" force
        one. A model is a classifier if it has two outputs or more and either a categorical cross-entropy for its loss
        (sparse or not, focal, generalized) or a softmax at its end. It is none under a binary cross-entropy, or if it
        ends in a sigmoid: those take each output by itself. Under a loss of your own, a model that ends in neither is a
        classifier if y holds class indices (integers [n]). The probe's rows play no part: rows with one label and rows
        with several are read alike, and keep their class names in the frame. A model may return logits or
        probabilities. `srel_tf.measures.outputs.read_as` has the table.
    batch_size: examples per forward pass. Where memory runs out it is halved as often as needed, with a warning that
        names what was left. Batches of another size may be summed in another order: the last bits of a number may
        differ then, valid entries keep to their tolerance.
    precision: "float32" or "float64", what a model with float32 weights is run in, as it is and without a copy; "auto":
        float32 for "exact", float64 for "limit", and for "auto" float64 where float32 does not resolve a row. Models of
        half or mixed precision are run in float32 or float64 with the weights that they hold; models with float64
        weights in float64.
    loss: a function (y_true [n, …], y_pred) -> [n] or scalar that takes the place of the compiled loss, for a model
        whose own `train_step` minimises another one. Penalties of the model and of its layers are added as in training.

    Returns an `SRelResult`. Raises `OptionError`, `ProbeError`, `ModelError`, `BackendError`; `ChunkError` where memory
    does not hold batches of one example.
    """
    settings = Settings(measures, update, learning_rate, estimator, predictions, batch_size, precision, loss)
    return Instrument(model, probe, settings)()


@dataclass(frozen=True)
class Settings:
    """The options of `measure`, checked: `OptionError` for each that does not exist."""

    measures: tuple = ("kl", "l1")
    update: str = "sgd"
    learning_rate: float | None = None
    estimator: str = "exact"
    predictions: str = "auto"
    batch_size: int = 128
    precision: str = "auto"
    loss: Callable | None = None

    def __post_init__(self):
        if not isinstance(self.measures, Iterable):
            raise OptionError(f"measures={self.measures!r}: choose from {', '.join(MEASURES)}")
        names = (self.measures,) if isinstance(self.measures, str) else tuple(self.measures)
        object.__setattr__(self, "measures", names)
        for name in names:
            check_choice("measure", name, MEASURES)
        if not names or len(set(names)) < len(names):
            raise OptionError(f"measures={names}: name at least one, and none twice")
        check_choice("update rule", self.update, RULES)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("predictions", self.predictions, reading.CHOICES)
        check_choice("precision", self.precision, PRECISIONS)
        eta = self.learning_rate
        if eta is not None and not (_is_number(eta, numbers.Real) and 0 < eta < float("inf")):
            raise OptionError(f"learning_rate={eta!r}: give a positive number, or None for the optimizer's own")
        if not _is_number(self.batch_size, numbers.Integral) or self.batch_size < 1:
            raise OptionError(f"batch_size={self.batch_size!r}: give a positive number of examples")
        if self.loss is not None and not callable(self.loss):
            raise OptionError(f"loss={self.loss!r}: give a function (y_true, y_pred) -> loss, or None for compile's")


def check_choice(what, name, choices):
    """`OptionError` unless `name` is one of `choices`."""
    if not isinstance(name, str) or name not in choices:
        raise OptionError(f"unknown {what} {name!r}: choose from {', '.join(choices)}")


def _is_number(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)


class Instrument:
    """`measure` for training loops of your own: each call measures the model as it is then, and traces nothing new.

    instrument = srel_tf.Instrument(model, probe, srel_tf.Settings(measures=("kl",)))
    result = instrument()

    Make a new one after `compile` or a change of `trainable`. Raises what `measure` raises.
    settings: those in force; their batch_size stays as small as it had to be made where memory ran out.
    """

    def __init__(self, model, probe, settings=None):
        if not isinstance(probe, ProbeSet):
            raise ProbeError(f"expected a srel_tf.ProbeSet, got {type(probe).__name__}: make one with ProbeSet(x, y)")
        settings = Settings() if settings is None else settings
        if not isinstance(settings, Settings):
            raise OptionError(
                f"expected srel_tf.Settings, got {settings!r}: make them with Settings(measures=..., ...)"
            )
        self.settings = settings
        self._probe = probe
        self._measures = {name: MEASURES[name] for name in settings.measures}
        self._network = Network(model, loss=settings.loss)
        warn_of_batch_norm(model)
        x, y = (self._as_fit_gives_it(a) for a in (probe.x, probe.y))
        self._data = tf.gather(x, probe.sources), tf.gather(y, probe.sources), tf.gather(x, probe.targets)
        self._check_loss(model)
        if settings.loss is None:
            _warn_of_own_train_step(model)
        num_outputs = self._num_outputs(model)
        loss = CompiledLoss("own", "given") if settings.loss else compiled_loss(model, probe.y.shape, num_outputs)
        self._probe = reading.labelled(probe, loss)
        self._check_targets(model)
        self._network.inspect(self._data[0][:1], self._data[1][:1])
        self._network.check_examples_apart(self._data[0])
        kind, reason = self._read_as(loss, num_outputs)
        reading.check_fit(kind, reason, self._measures, self._probe, num_outputs, loss)
        self._task = Task(self._network, self._data, self._probe, self._measures, settings, loss, kind)
        self._zero_gradients = set()  # Numbers of the sources that a warning has named.
        self._said_no_step = False
        check = self._gradient_is_zero
        self._has_zero_gradient = check if model.run_eagerly else tf.function(check, autograph=False)
        self._make_estimator()

    def _make_estimator(self):
        """A new one once training has built the optimizer, whose state the graph of the former one could not read."""
        optimizer = self._network.model.optimizer
        self._optimizer_built = optimizer is not None and optimizer.built
        self._estimator = make_estimator(self._task)

    def __call__(self):
        """Measure now: an `SRelResult`."""
        start = time.perf_counter()
        model, settings = self._network.model, self.settings
        if settings.update == "optimizer" and model.optimizer.built and not self._optimizer_built:
            self._make_estimator()
        learning_rate = learning_rate_now(model, settings.learning_rate)
        result = SRelResult(
            probe=self._probe,
            matrices=self._matrices(learning_rate),
            update=settings.update,
            estimator=settings.estimator,
            learning_rate=learning_rate,
            step=None if model.optimizer is None else int(model.optimizer.iterations),
            seconds=time.perf_counter() - start,
        )
        _warn_of_faults(result)
        if learning_rate == 0:
            self._warn_of_no_step(result)
        else:
            self._warn_of_zero_gradients(result)
        return result

    def _warn_of_no_step(self, result):
        """Say once why all entries are NaN if η is zero."""
        if not self._said_no_step:
            self._said_no_step = True
            warnings.warn(
                "the step moves nothing, and S_rel is 0/0, NaN and not valid: the learning rate is 0 at step "
                f"{result.step}, say at the beginning of a warm-up; pass learning_rate=... to measure with another η",
                stacklevel=3,
            )

    def _warn_of_zero_gradients(self, result):
        """Name each source once whose gradient is zero: its update moves nothing, and its row has no valid entry."""
        x, y, _ = self._data
        rows = [i for i in np.flatnonzero(_unmoved(result)) if i not in self._zero_gradients]
        rows = [i for i in rows if self._has_zero_gradient(x[i, None], y[i, None])]
        self._zero_gradients.update(rows)
        if rows:
            named = _named(self._probe.ids[self._probe.sources][rows])
            warnings.warn(
                f"the update of {len(rows)} of {len(x)} sources ({named}) moves nothing: the gradient is zero (a hinge "
                "that is satisfied, an example that is masked or ignored, dead or saturated units), so that their rows "
                "are NaN and not valid; leave them out of ProbeSet(sources=...)",
                stacklevel=3,
            )

    def _gradient_is_zero(self, x, y):
        gradients, *_ = self._network.loss_gradient(x, y, 1.0)
        return tf.reduce_all([tf.reduce_all(g == 0) for g in gradients])

    def _matrices(self, learning_rate):
        """What the estimator gives; in smaller batches from now on where memory runs out."""
        asked = self.settings.batch_size
        while True:
            try:
                matrices = self._estimator(learning_rate)
                break
            except (tf.errors.ResourceExhaustedError, MemoryError) as error:
                self._halve_batches(error)
        if self.settings.batch_size < asked:
            warnings.warn(
                f"measuring ran out of memory with batch_size={asked}: from now on it is {self.settings.batch_size}, "
                "which gives the same numbers within rounding; set it to this to have them bit for bit",
                stacklevel=3,
            )
        return matrices

    def _halve_batches(self, error):
        examples = len({*self._probe.sources, *self._probe.targets})  # A batch beyond them is no larger.
        size = min(self.settings.batch_size, examples) // 2
        if not size:
            n_s, n_t = len(self._probe.sources), len(self._probe.targets)
            raise ChunkError(
                "measuring ran out of memory even with batch_size=1, and no smaller one can be set: close other "
                f"programs, or measure fewer than {n_s} sources x {n_t} targets at a time"
            ) from error
        self.settings = replace(self.settings, batch_size=size)
        self._task = replace(self._task, settings=self.settings)
        self._make_estimator()

    def _read_as(self, loss, num_outputs):
        """How to read the model's outputs, and why they are read as raw ones, as `predictions.read_as` says."""
        choice, activation = self.settings.predictions, self._network.activation
        kind, reason = reading.read_as(choice, loss, activation, self._probe.y, num_outputs)
        reading.warn_of_unclear_targets(reason, self._probe, num_outputs)
        return kind, reason

    def _check_loss(self, model):
        own = type(model).compute_loss is not keras.Model.compute_loss
        given = self.settings.loss is not None or _has_loss(model)
        if not given and not own and not self._network.has_added_losses(self._data[0][:1]):
            raise ModelError(
                f"model {model.name!r} is compiled without a loss: call model.compile(optimizer, loss), or pass "
                "loss=..., a function (y_true, y_pred) -> loss"
            )

    def _check_targets(self, model):
        """`ProbeError` if the loss does not take the probe's y."""
        x, y = (array[:1] for array in self._data[:2])
        try:
            with self._network.scope(self._network.weights):
                predictions = model(x, training=False)
            self._network.predictions_and_loss(x, y, self._network.weights)
        except SRelError:
            raise
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise ProbeError(
                f"the loss of model {model.name!r} does not take targets of shape {self._probe.y.shape} and dtype "
                f"{self._probe.y.dtype} for outputs of shape {tuple(predictions.shape)}: {error}"
            ) from error

    def _num_outputs(self, model):
        try:
            return self._network.num_outputs(self._data[0])
        except SRelError:
            raise
        except ValueError as error:
            shape = self._probe.x.shape[1:]
            raise ProbeError(
                f"model {model.name!r} does not take the probe's examples of shape {shape}: {error}"
            ) from error

    def _as_fit_gives_it(self, array):
        """Keras feeds floating-point data in the model's precision and leaves integers alone."""
        return tf.constant(array, self._network.dtype if array.dtype.kind == "f" else None)


def _warn_of_faults(result):
    """Name the sources whose gradient, or whose prediction after the update, is not finite: all is invalid there; and
    the targets whose prediction is no number, whatever is updated.
    """
    probe, of_measures = result.probe, result.matrices.values()
    sources = np.any([_faults(entries) for entries in of_measures], axis=0)
    if sources.any():
        warnings.warn(
            f"{sources.sum()} of {len(sources)} sources ({_named(probe.ids[probe.sources][sources])}) have a NaN or an "
            "infinity in their gradient, or in the prediction after their update: their rows are NaN and not valid",
            stacklevel=3,
        )
    if sources.all():
        return
    targets = np.any([np.isnan(entries.numerator[~sources]).all(axis=0) for entries in of_measures], axis=0)
    if targets.any():
        warnings.warn(
            f"{targets.sum()} of {len(targets)} targets ({_named(probe.ids[probe.targets][targets])}) have a NaN or an "
            "infinity in their prediction: their columns are NaN and not valid",
            stacklevel=3,
        )


def _unmoved(result):
    """Which sources may have a zero gradient, [n_s]: their own prediction has not moved by a bit.

    If a source is not a target, batches of two sizes gave its prediction before and after, which may round apart: then
    it is enough that no entry of its row is valid.
    """
    of_measures = result.matrices.values()
    still = np.all([entries.denominator == 0 for entries in of_measures], axis=0)
    unresolved = ~np.any([entries.valid.any(axis=1) for entries in of_measures], axis=0)
    return still | (unresolved & (result.probe.own_columns < 0))


def _has_loss(model):
    """Whether a model is compiled with a loss. Without one, Keras has a method of the name `loss`."""
    function = getattr(model.loss, "__func__", model.loss)
    return function is not None and function is not getattr(keras.Model, "loss", None)


def _warn_of_own_train_step(model):
    """Say that the loss which is measured need not be the loss which the model's own `train_step` minimises."""
    owners = [c for c in type(model).__mro__ if "train_step" in vars(c) and not c.__module__.startswith(LIBRARIES)]
    if owners:
        warnings.warn(
            f"{owners[0].__name__} has a train_step of its own: S_rel is of the compiled loss; if train_step minimises "
            "another one, pass loss=..., a function (y_true, y_pred) -> loss",
            stacklevel=3,
        )


def _named(ids):
    return "ids " + ", ".join(map(repr, ids[:5].tolist())) + (", …" if len(ids) > 5 else "")


def _faults(entries):
    """Which sources of `Matrices` have no number at all; one whose update moves nothing has the number 0."""
    return ~np.isfinite(entries.denominator) | np.isnan(entries.numerator).all(axis=1)
