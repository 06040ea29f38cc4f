"""How S_rel is computed: the finite step as defined, or its limit η → 0, each in float32 or in float64.

An estimator is made once for a model and a probe, and called at each measurement:
`estimator(learning_rate) -> {measure: Matrices}`.
"""

import functools
import warnings
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf

from srel_tf import evaluation
from srel_tf import predictions as reading
from srel_tf.batches import in_batches
from srel_tf.errors import ModelError, OptionError
from srel_tf.exact import FiniteStep
from srel_tf.layer_rules import rule_of
from srel_tf.limit import Limit
from srel_tf.loss_signals import HEADS
from srel_tf.passes import LossPasses, NotSeparable
from srel_tf.precision import layers_within
from srel_tf.resolution import DRAWS, perturbed, precision
from srel_tf.tangents import Tangents
from srel_tf.updates import RULES

FURTHER_DIGITS = 2.0**7  # A derivative may lose so many times more than the outputs do: float64 has them to spare.


@dataclass(frozen=True)
class Task:
    """What is to be measured: the network, x and y of the sources, x of the targets as tensors, probe, options.

    loss: the `CompiledLoss`. read_as: how to read outputs (`predictions.read_as`).
    """

    network: object
    data: tuple
    probe: object
    measures: dict
    settings: object
    loss: object
    read_as: str

    def in_precision(self, dtype):
        """The same in another precision. `ModelError` where the model has a part that computes in less."""
        network = self.network.in_precision(dtype)
        x, y, x_targets = self.data
        network.inspect(network.cast(x[:1]), network.cast(y[:1]))
        try:
            network.outputs(network.cast(x[:1]))
        except tf.errors.OpError as error:
            what = f"model {network.model.name!r} does not run in {dtype} ({error.message.splitlines()[0]})"
            raise ModelError(what) from error
        return replace(self, network=network, data=(network.cast(x), network.cast(y), network.cast(x_targets)))

    def kind(self, outputs, passes):
        """How to read outputs [n_t, C] of an engine (`predictions.kind_of_predictions`)."""
        if passes is not None and passes.head == "log":
            return "logits"
        return reading.kind_of_predictions(self.read_as, self.loss, self.network.model, outputs.numpy())

    def kinds(self, outputs, passes):
        """`kind` by whether a measure is of raw outputs: those of a model that ends in a softmax are probabilities."""
        kind = self.kind(outputs, passes)
        as_they_are = kind == "probabilities" or (passes is not None and passes.head == "log")
        return {False: kind, True: kind if as_they_are else "raw"}

    @functools.cached_property
    def passes(self):
        """(`LossPasses`, None), or (None, why the layers do not tell gradients of examples apart)."""
        x, y, _ = self.data
        try:
            return LossPasses(self.network, x[:2], y[:2]), None
        except NotSeparable as reason:
            return None, reason


class Exact:
    """The finite step (Definitions 1 and 2)."""

    def __init__(self, task):
        self._task = task
        self._passes, _ = task.passes
        rule = RULES[task.settings.update](task.network)
        own, batch_size = task.probe.own_columns, task.settings.batch_size
        self._engine = FiniteStep(task.network, rule, own, batch_size, self._passes)
        self._method = "finite_step" + _suffix(task)

    def __call__(self, learning_rate):
        """{measure: Matrices} for one η, or for one of each source [n_s], NaN for those to leave out."""
        task = self._task
        steps = np.broadcast_to(learning_rate, [len(task.probe.sources)])
        outputs = self._engine(*task.data, tf.constant(steps, task.network.dtype))
        kinds = task.kinds(outputs.before, self._passes)
        return evaluation.of_finite_steps(outputs, kinds, task.measures, task.probe.own_columns, self._method)


class FirstOrderLimit:
    """The limit η → 0 (Section 5). Numerators and denominators are per unit of η (`kl`: of η²).

    In float32 all of it is done again at perturbed weights, for a unit that rounding moves over a kink changes some
    derivatives and no output. In float64 there are no such units, and digits to spare: outputs and ∂ℓ/∂u alone are.
    """

    def __init__(self, task):
        self._task = task
        self._passes, reason = task.passes
        own, batch_size = task.probe.own_columns, task.settings.batch_size
        self._method = "limit" + _suffix(task)
        if self._passes is None:
            warnings.warn(
                f"model {task.network.model.name!r}: {reason}; the limit is taken source by source by forward-mode "
                "differentiation, which costs a few forward passes of all targets for each",
                stacklevel=5,
            )
            self._engine = Tangents(task.network, task.data[0][:1], own, batch_size)
        else:
            self._warn_of_slow_layers()
            self._engine = Limit(self._passes, own, batch_size, self._differences_suffice())
        self._compiled_look = tf.function(self._look, jit_compile=False, autograph=False)
        own_layers = _has_layers_of_ones_own(task.network.model)
        self._is_checked = not (self._passes is None or task.network.opaque or own_layers)

    def _warn_of_slow_layers(self):
        slow = sorted({type(v).__name__ for v in self._passes.capture.layers if rule_of(v) is None})
        if slow:
            warnings.warn(
                f"no rule in srel_tf.layer_rules for layers of type {', '.join(slow)}: their gradients are formed "
                "example by example, which is right, and slower",
                stacklevel=6,
            )

    def __call__(self, learning_rate):
        task, weights = self._task, self._task.network.weights
        changes = self._engine(*task.data, weights)
        if not self._is_checked:
            self._check_derivative(changes)
            self._is_checked = True
        again, relative = [], None
        if task.network.dtype == tf.float64:
            relative = self._relative_noise(weights)
        else:
            again = [self._engine(*task.data, perturbed(weights, draw)) for draw in range(DRAWS)]
        kinds = task.kinds(changes.before, self._passes)
        if changes.head == "log":  # u are the logits of a softmax, whose outputs D acts on as they are.
            kinds = dict.fromkeys(kinds, "probabilities")
        own = task.probe.own_columns
        return evaluation.of_first_order(changes, again, relative, kinds, task.measures, own, self._method)

    def _check_derivative(self, changes):
        """`ModelError` where the predictions do not move as their derivative says: it does not see all they depend on.

        Of the source that moves most, with steps of some sizes.
        """
        network, (x, y, x_targets) = self._task.network, self._task.data
        weights = [tf.convert_to_tensor(w) for w in network.weights]
        moved = _differences(changes.moved)
        finite = np.isfinite(moved).any(axis=0)
        moved = np.where(np.isfinite(moved), moved, 0)
        i = moved.sum(axis=1).argmax()
        gradients, _ = network.loss_gradient(x[i, None], y[i, None], 1.0, weights)
        lengths = [float(tf.linalg.global_norm(a)) for a in (weights, gradients)]
        if not all(np.isfinite(lengths)) or not all(lengths) or not moved[i].max():
            return

        @tf.function(autograph=False, jit_compile=False)
        def differentiated(weights):
            head = changes.head if self._passes is None else self._passes.head
            return tf.cast(HEADS[head].of_outputs(network.outputs(x_targets, weights)), tf.float64)

        read = differentiated.python_function if network.model.run_eagerly else differentiated
        before = read(weights)
        tolerance, steps = (1e-2, (1e-7, 1e-6, 1e-5)) if network.dtype == tf.float64 else (1e-1, (1e-4, 1e-3, 1e-2))
        for step in steps:
            eta = step * lengths[0] / lengths[1]
            after = read([w - eta * g for w, g in zip(weights, gradients, strict=True)])
            apart = np.abs(_differences(after - before) / eta - moved[i])
            if apart[finite].max(initial=0) <= tolerance * moved[i].max():
                return
        raise ModelError(
            f"the predictions of model {network.model.name!r} do not move as their derivative says"
            + (f" (operation {network.opaque!r} has none)" if network.opaque else "")
            + ": it has no limit η → 0 that differentiation gives; use estimator='exact'"
        )

    def _relative_noise(self, weights):
        """What rounding may change the derivatives of each source by, as a share of the largest, [n_s]."""
        run = self._look if self._task.network.model.run_eagerly else self._compiled_look
        outputs, noisy, lengths, moved_signals = (t.numpy() for t in run(weights, perturbed(weights, 0)))
        finite = np.isfinite(outputs) & np.isfinite(noisy)
        largest, moved = (np.abs(a).max(initial=0, where=finite) for a in (outputs, noisy - outputs))
        least = precision(self._task.network.dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved_signals = np.maximum(moved_signals, np.nanmedian(moved_signals))  # Some do not move by chance.
            of_signals = moved_signals / lengths
        of_signals = np.where(np.isnan(of_signals), 0, of_signals)
        return FURTHER_DIGITS * np.maximum(of_signals, max(moved / largest if largest else 0, least))

    def _look(self, weights, noisy):
        """Outputs [n_t, C] at the targets with both weights; length of ∂ℓ/∂u of each source, and of its change, [n_s].

        Where the layers do not tell examples apart, ∇ℓ is in the place of ∂ℓ/∂u.
        """
        (x, y, x_targets), network, passes = self._task.data, self._task.network, self._passes
        pair, size = (weights, noisy), self._task.settings.batch_size

        def at_targets(x):
            return tuple(network.outputs(x, w) for w in pair)

        def at_sources(x, y):
            x = tf.identity(x)  # A tensor of this loop, as layers are to see it.
            seen = [passes.forward(x, w) for w in pair]
            signal, other = (passes.loss_signal(one, y) for one in seen)
            return *(one.outputs for one in seen), tf.norm(signal, axis=-1), tf.norm(other - signal, axis=-1)

        def gradients(i):
            gradient, other = (network.loss_gradient(x[i, None], y[i, None], 1.0, w)[0] for w in pair)
            moved = [b - a for a, b in zip(gradient, other, strict=True)]
            return tf.linalg.global_norm(gradient), tf.linalg.global_norm(moved)

        dtypes, doubles = (network.dtype,) * 2, (tf.float64,) * 2
        if passes is None:
            lengths = tf.map_fn(gradients, tf.range(x.shape[0]), fn_output_signature=dtypes)
            return *in_batches(at_targets, dtypes, size, x_targets), *lengths
        found = in_batches(at_sources, dtypes + doubles, size, x, y)
        outputs, lengths = found[:2], found[2:]
        if not np.array_equal(self._task.probe.own_columns, np.arange(x_targets.shape[0])):
            outputs = in_batches(at_targets, dtypes, size, x_targets)
        return *outputs, *lengths

    def _differences_suffice(self):
        """Whether neither D nor ℓ sees a shift that all outputs have in common."""
        raw = self._task.read_as == "raw" or any(measure.raw for measure in self._task.measures.values())
        return not raw and self._passes.loss.ignores_shifts_of(self._passes.head)


def _has_layers_of_ones_own(model):
    """Whether a model is made of layers that are not Keras's, whose derivatives nobody has tested."""
    layers = [layer for layer in layers_within(model) if not isinstance(layer, keras.Model)]
    return not all(type(layer).__module__.startswith("keras.") for layer in layers)


def _differences(moved):
    """The largest change of a difference of two outputs (of the output, where there is one), [...] of [..., C]."""
    moved = np.asarray(moved)
    return np.abs(moved[..., 0]) if moved.shape[-1] == 1 else np.ptp(moved, axis=-1)


def _suffix(task):
    return "_float64" if task.network.dtype == tf.float64 else ""


class Completed:
    """The finite step in float32, and its rows that float32 does not resolve in float64.

    A step that is below the resolution of float64, too, has the S_rel of its limit, if one of the steps that are
    `LONGER` times as long agrees with the limit within the tolerance. Of each row the method with the most valid
    entries is taken.
    """

    def __init__(self, task):
        self._task = task
        self._single = Exact(task)

    def __call__(self, learning_rate):
        rates = np.broadcast_to(learning_rate, [len(self._task.probe.sources)])
        found = self._single(rates)
        unresolved = _unresolved_rows(found)
        if unresolved.any() and self._double is not None:
            found = row_by_row(found, self._double(np.where(unresolved, rates, np.nan)))
            unresolved = _unresolved_rows(found)
            if unresolved.any() and self._limit is not None:
                limit = self._limit(rates)
                for times in LONGER:
                    longer = self._double(np.where(unresolved, times * rates, np.nan))
                    agree = {name: agreeing(m, limit[name], longer[name]) for name, m in self._measures}
                    found = row_by_row(found, agree)
        return found

    @property
    def _measures(self):
        return self._task.measures.items()

    @functools.cached_property
    def _task_in_float64(self):
        """None, with a warning, where the model has no such form."""
        try:
            return self._task.in_precision("float64")
        except ModelError as error:
            warnings.warn(f"rows that float32 does not resolve stay invalid: {error}", stacklevel=7)
            return None

    @functools.cached_property
    def _double(self):
        """The finite step in float64, made when first needed, or None."""
        return None if self._task_in_float64 is None else Exact(self._task_in_float64)

    @functools.cached_property
    def _limit(self):
        """The limit in float64, made when first needed; None for rules and measures that have none."""
        try:
            check_limit(self._task_in_float64)
        except OptionError:
            return None
        return FirstOrderLimit(self._task_in_float64)


LONGER = (1e3, 1e5)


def agreeing(measure, limit, step):
    """`Matrices` of the limit, valid where those of a finite step are and agree within the measure's tolerance."""
    with np.errstate(invalid="ignore"):
        agree = np.abs(limit.srel - step.srel) <= measure.tolerance * (1 + np.abs(limit.srel))
    valid = limit.valid & step.valid & agree
    return limit._replace(valid=valid, srel=np.where(valid, limit.srel, np.nan))


def _unresolved_rows(found):
    """Which rows [n_s] of {measure: Matrices} have an entry that is a number and not valid."""
    rows = []
    for entries in found.values():
        numbers = np.isfinite(entries.numerator) & np.isfinite(entries.denominator)[:, None]
        rows.append((numbers & ~entries.valid).any(axis=1))
    return np.any(rows, axis=0)


def row_by_row(first, second):
    """{measure: Matrices} with the row of each source from the second where more of its entries are valid."""
    return {name: _better_rows(entries, second[name]) for name, entries in first.items()}


def _better_rows(first, second):
    better = second.valid.sum(axis=1) > first.valid.sum(axis=1)
    return type(first)(
        *(np.where(better if a.ndim == 1 else better[:, None], a, b) for a, b in zip(second, first, strict=True))
    )


def make_estimator(task):
    """The estimator that the settings ask for.

    precision "auto" is the model's own for "exact", float64 for "limit", and for "auto" float64 where the model's own
    does not resolve a row.
    """
    settings, own = task.settings, task.network.dtype.name
    kind = FirstOrderLimit if settings.estimator == "limit" else Exact
    if kind is FirstOrderLimit:
        check_limit(task)
    wanted = settings.precision
    if wanted == "auto":
        wanted = {"exact": own, "limit": "float64", "auto": "auto"}[settings.estimator]
    if own == "float64" and wanted == "float32":
        raise OptionError("precision='float32': the model's weights are in float64, of which float32 loses digits")
    if wanted == own or own == "float64":
        return kind(task)
    if wanted == "auto":
        return Completed(task)
    try:
        task = task.in_precision("float64")
    except ModelError as error:
        if settings.precision == "float64":
            raise
        warnings.warn(f"the limit is taken in float32: {error}", stacklevel=5)
    return kind(task)


def check_limit(task):
    """`OptionError` for what has no limit η → 0."""
    settings = task.settings
    if settings.update != "sgd":
        raise OptionError(
            f"update={settings.update!r} with estimator={settings.estimator!r}: the limit is that of the plain step "
            "w − η∇ℓ; use update='sgd', or estimator='exact'"
        )
    without = [name for name, measure in task.measures.items() if measure.first_order is None]
    if without:
        raise OptionError(
            f"measures {without} are not zero where nothing moves, so that they have no limit: use estimator='exact'"
        )
