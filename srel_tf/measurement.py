"""Measure S_rel of a model on a probe: probe -> engine -> measures -> validity -> result."""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from srel_tf.errors import ChunkError, ModelError, OptionError, ProbeError, SRelError
from srel_tf.estimators.choose import make_estimator
from srel_tf.estimators.plan import MeasurementPlan
from srel_tf.faults import named, unmoved_sources, warn_of_faults
from srel_tf.gradients.compiled_loss import CompiledLoss, compiled_loss
from srel_tf.gradients.graphs import restored_variable_scope
from srel_tf.gradients.model_checks import warn_of_batch_norm
from srel_tf.gradients.network import Network
from srel_tf.measures.outputs import (
    check_fit,
    labelled,
    read_as,
    warn_of_unclear_targets,
)
from srel_tf.measures.registry import MEASURES
from srel_tf.probe import ProbeSet
from srel_tf.result import Matrices, SRelResult
from srel_tf.settings import Settings
from srel_tf.updates import learning_rate_now

LIBRARIES = (
    "keras.",
    "srel_tf.",
)  # Modules whose `train_step` minimises the compiled loss.


def measure(
    model: keras.Model,
    probe: ProbeSet,
    measures: tuple[str, ...] | str = ("kl", "l1"),
    update: str = "sgd",
    learning_rate: float | None = None,
    estimator: str = "exact",
    predictions: str = "auto",
    batch_size: int = 128,
    precision: str = "auto",
    loss: Callable | None = None,
) -> SRelResult:
    """Measure S_rel(x', x) between all sources x and targets x' of a probe. The model is not changed.

    Args:
        model: a built, compiled `keras.Model`. The loss ℓ is its compiled loss on one source, with regularisation.
        probe: n_s sources and n_t targets.
        measures: names of the distances D:

            - "kl": Definition 2.
            - "l1", "l2": Definition 1. For a classifier they act on the softmax.
            - "raw_l1", "raw_l2": Definition 1 on the values that the model returns, for example logits.
            - "published_kl", "published_l2": the measures of the published code (`srel_tf.measures.published`).
            - Names of your own measures (`register_measure`).
        update: "sgd": w⁺ = w − η∇ℓ, as in the definition. "optimizer": the next step of the model's own optimizer.
            "fresh_adam": the first step of a new Adam.
        learning_rate: η; None means the current learning rate of the optimizer.
        estimator: how S_rel is computed. An entry is called unresolved if its rounding error is too large.

            - "exact": the finite step as defined.
            - "limit": the limit η → 0 (Section 5), only for update="sgd". It takes far less time than "exact". The
              numerators and denominators of the limit are per unit of η (`kl`: of η²).
            - "auto": the finite step in float32. Rows with unresolved entries are computed again in float64. If a row
              then still has unresolved entries, it gets the limit, provided that a longer step confirms the limit.
        predictions: what D acts on: "softmax", "raw" (the outputs as they are) or "auto". The outputs of a model may be
            logits or probabilities. "auto" means the softmax for a classifier, else the raw outputs. The rules are:

            - A model with one output, with a binary cross-entropy, or with a sigmoid at its end is not a classifier.
            - Any other model is a classifier if its loss is a categorical cross-entropy (sparse or not, focal,
              generalized), or if it ends in a softmax.
            - With a custom loss, such a model is also a classifier if y holds class indices (integers [n]).

            Of y only the shape and the dtype are used. One-hot and multi-hot rows are therefore interpreted alike.
            `srel_tf.measures.outputs.read_as` has a table of all cases.
        batch_size: examples per forward pass. If memory runs out, this number is halved as often as needed, with a
            warning. Another batch size may change the order of sums, and thus the last bits of a result. Valid entries
            stay within their tolerance.
        precision: "float32" or "float64": the precision in which a model with float32 weights is run, without a copy
            of the model. "auto": float32 for the estimator "exact", and float64 for "limit". The estimator "auto" runs
            in float32, and in float64 for rows with entries that are unresolved in float32. Models of half or mixed
            precision also run in float32 or float64, with their master weights. Models with float64 weights run in
            float64.
        loss: a function (y_true [n, ...], y_pred) -> [n] or scalar that replaces the compiled loss, for a model whose
            own `train_step` minimises another loss. Penalties of the model and its layers are added as in training.

    Returns:
        An `SRelResult`.

    Raises:
        OptionError, ProbeError, ModelError, BackendError: if an option, probe or model cannot be measured.
        ChunkError: if memory is too small even for batches of one example.

    Example:
        >>> import keras, numpy as np, srel_tf
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> probe = srel_tf.ProbeSet(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([5.0, 5.0]))
        >>> srel_tf.measure(model, probe, measures="l1", learning_rate=0.1).matrix("l1").round(3)
        array([[1. , 1. ],
               [0.5, 1. ]])
    """
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
    return Instrument(model, probe, settings)()


class Instrument:
    """`measure` for custom training loops. Each call measures the model in its current state, without tracing again.

    Make a new instrument after `compile` or a change of `trainable`.

    Args:
        model: a built, compiled `keras.Model`.
        probe: the probe set.
        settings: the options; None means the defaults.

    Attributes:
        settings: the current options. If memory has run out, batch_size stays reduced.

    Raises:
        OptionError, ProbeError, ModelError, BackendError, ChunkError: see `measure`.

    Example:
        instrument = srel_tf.Instrument(model, probe, srel_tf.Settings(measures=("kl",)))
        result = instrument()
    """

    def __init__(
        self, model: keras.Model, probe: ProbeSet, settings: Settings | None = None
    ) -> None:
        if not isinstance(probe, ProbeSet):
            raise ProbeError(
                f"expected a srel_tf.ProbeSet, got {type(probe).__name__}: make one with ProbeSet(x, y)"
            )
        settings = Settings() if settings is None else settings
        if not isinstance(settings, Settings):
            raise OptionError(
                f"expected srel_tf.Settings, got {settings!r}: make them with Settings(measures=..., ...)"
            )
        self.settings = settings
        self._probe = probe
        self._network = Network(model, loss=settings.loss)
        warn_of_batch_norm(model)
        x, y = self._as_fit_gives_it(probe.x), self._as_fit_gives_it(probe.y)
        self._data = (
            tf.gather(x, probe.sources),
            tf.gather(y, probe.sources),
            tf.gather(x, probe.targets),
        )
        self._sources_warned_of: set[int] = set()
        self._warned_of_no_step = False
        self._has_zero_gradient = self._network.compiled(self._gradient_is_zero)
        with restored_variable_scope():
            self._check_loss(model)
            if settings.loss is None:
                _warn_of_own_train_step(model)
            self._plan = self._make_plan(model)
            self._make_estimator()

    def _make_plan(self, model: keras.Model) -> MeasurementPlan:
        """Inspect the model and decide how its outputs are interpreted."""
        settings, num_outputs = self.settings, self._num_outputs(model)
        loss = CompiledLoss("own", "given")
        if settings.loss is None:
            loss = compiled_loss(model, self._probe.y.shape, num_outputs)
        self._probe = labelled(self._probe, loss)
        self._check_targets(model)
        x, y, x_targets = self._data
        self._network.inspect(x[:1], y[:1])
        self._network.check_examples_apart(tf.concat([x, x_targets], axis=0))
        measures = {name: MEASURES[name] for name in settings.measures}
        activation = self._network.activation
        kind, reason = read_as(
            settings.predictions, loss, activation, self._probe.y, num_outputs
        )
        warn_of_unclear_targets(reason, self._probe, num_outputs)
        check_fit(kind, reason, measures, self._probe, num_outputs, loss)
        return MeasurementPlan(
            self._network, self._data, self._probe, measures, settings, loss, kind
        )

    def _make_estimator(self) -> None:
        """Make the estimator.

        If training builds the optimizer later, the estimator is made again. A graph that was traced before cannot read
        the optimizer's state.
        """
        optimizer = self._network.model.optimizer
        self._optimizer_built = optimizer is not None and optimizer.built
        self._estimator = make_estimator(self._plan)

    def __call__(self) -> SRelResult:
        """Measure the model in its current state."""
        start = time.perf_counter()
        model, settings = self._network.model, self.settings
        optimizer_is_new = (
            settings.update == "optimizer"
            and model.optimizer.built
            and not self._optimizer_built
        )
        learning_rate = learning_rate_now(model, settings.learning_rate)
        with restored_variable_scope():
            if optimizer_is_new:
                self._make_estimator()
            matrices = self._matrices(learning_rate)
        result = SRelResult(
            probe=self._probe,
            matrices=matrices,
            update=settings.update,
            estimator=settings.estimator,
            learning_rate=learning_rate,
            step=None if model.optimizer is None else int(model.optimizer.iterations),
            seconds=time.perf_counter() - start,
        )
        warn_of_faults(result)
        if learning_rate == 0:
            self._warn_of_no_step(result)
        else:
            self._warn_of_zero_gradients(result)
        return result

    def _warn_of_no_step(self, result: SRelResult) -> None:
        """Warn once that all entries are NaN because η is zero."""
        if not self._warned_of_no_step:
            self._warned_of_no_step = True
            warnings.warn(
                "the step changes nothing, so that every S_rel is 0/0, NaN and not valid: the learning rate is 0 at "
                f"step {result.step}, as at the beginning of a warm-up; pass learning_rate=... to measure with another "
                "η",
                stacklevel=3,
            )

    def _warn_of_zero_gradients(self, result: SRelResult) -> None:
        """Warn once about each source whose gradient is zero: its row has no valid entry."""
        x, y, _ = self._data
        candidates = [
            i
            for i in np.flatnonzero(unmoved_sources(result)).tolist()
            if i not in self._sources_warned_of
        ]
        rows = [
            i for i in candidates if self._has_zero_gradient(x[i, None], y[i, None])
        ]
        self._sources_warned_of.update(rows)
        if rows:
            ids = named(self._probe.ids[self._probe.sources][rows])
            warnings.warn(
                f"the update of {len(rows)} of {len(x)} sources ({ids}) changes nothing: the gradient is zero, for "
                "example because a hinge loss is satisfied, the example is masked or ignored, or units are dead or "
                "saturated; the rows of these sources are NaN and not valid; leave them out of ProbeSet(sources=...)",
                stacklevel=3,
            )

    def _gradient_is_zero(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        gradients, _ = self._network.loss_gradient(x, y, 1.0)
        return tf.reduce_all([tf.reduce_all(g == 0) for g in gradients])

    def _matrices(self, learning_rate: float) -> dict[str, Matrices]:
        """Run the estimator. If memory runs out, use smaller batches from now on."""
        asked = self.settings.batch_size
        while True:
            try:
                matrices = self._estimator(learning_rate)
                break
            except (tf.errors.ResourceExhaustedError, MemoryError) as error:
                self._halve_batches(error)
        if self.settings.batch_size < asked:
            warnings.warn(
                f"measuring ran out of memory with batch_size={asked}: from now on batch_size is "
                f"{self.settings.batch_size}, which gives the same numbers within rounding; set batch_size to this "
                "value to reproduce the numbers bit for bit",
                stacklevel=3,
            )
        return matrices

    def _halve_batches(self, error: Exception) -> None:
        examples = len(
            {*self._probe.sources, *self._probe.targets}
        )  # No batch is larger than this.
        size = min(self.settings.batch_size, examples) // 2
        if not size:
            n_s, n_t = len(self._probe.sources), len(self._probe.targets)
            raise ChunkError(
                "measuring ran out of memory even with batch_size=1, the smallest: close other "
                f"programs, or measure fewer than {n_s} sources x {n_t} targets at a time"
            ) from error
        self.settings = replace(self.settings, batch_size=size)
        self._plan = replace(self._plan, settings=self.settings)
        self._make_estimator()

    def _check_loss(self, model: keras.Model) -> None:
        own = type(model).compute_loss is not keras.Model.compute_loss
        given = self.settings.loss is not None or _has_loss(model)
        if (
            not given
            and not own
            and not self._network.has_added_losses(self._data[0][:1])
        ):
            raise ModelError(
                f"model {model.name!r} is compiled without a loss: call model.compile(optimizer, loss), or pass "
                "loss=..., a function (y_true, y_pred) -> loss"
            )

    def _check_targets(self, model: keras.Model) -> None:
        """Raise `ProbeError` if the loss does not accept the probe's y."""
        x, y, _ = (array[:1] for array in self._data)
        try:
            with self._network.scope(self._network.weights):
                predictions = model(x, training=False)
            self._network.predictions_and_loss(x, y, self._network.weights)
        except SRelError:
            raise
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise ProbeError(
                f"the loss of model {model.name!r} does not accept targets of shape {self._probe.y.shape} and dtype "
                f"{self._probe.y.dtype} for outputs of shape {tuple(predictions.shape)}: {error}"
            ) from error

    def _num_outputs(self, model: keras.Model) -> int:
        try:
            return self._network.num_outputs(self._data[0])
        except SRelError:
            raise
        except ValueError as error:
            shape = self._probe.x.shape[1:]
            raise ProbeError(
                f"model {model.name!r} does not accept the probe's examples of shape {shape}: {error}"
            ) from error

    def _as_fit_gives_it(self, array: np.ndarray) -> tf.Tensor:
        """Cast floating-point data to the model's precision and leave integers alone, as Keras does."""
        return tf.constant(
            array, self._network.dtype if array.dtype.kind == "f" else None
        )


def _has_loss(model: keras.Model) -> bool:
    """Return whether a model is compiled with a loss. Without a loss, `model.loss` may be a method of Keras."""
    function = getattr(model.loss, "__func__", model.loss)
    return function is not None and function is not getattr(keras.Model, "loss", None)


def _warn_of_own_train_step(model: keras.Model) -> None:
    """Warn if the model has its own `train_step`, which may minimise another loss than the loss that S_rel uses."""
    owners = [
        c
        for c in type(model).__mro__
        if "train_step" in vars(c) and not c.__module__.startswith(LIBRARIES)
    ]
    if owners:
        warnings.warn(
            f"{owners[0].__name__} defines its own train_step: S_rel is measured with the compiled loss; if "
            "train_step minimises another loss, pass loss=..., a function (y_true, y_pred) -> loss",
            stacklevel=3,
        )
