"""The limit η → 0 of S_rel (Section 5)."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from srel_tf.engines.first_order import Limit
from srel_tf.engines.forward_mode import Tangents
from srel_tf.errors import ModelError, OptionError
from srel_tf.estimators import assemble as evaluation
from srel_tf.estimators.plan import suffix
from srel_tf.gradients.batching import in_batches
from srel_tf.gradients.layer_rules import rule_of
from srel_tf.gradients.output_gradients import HEADS
from srel_tf.gradients.precision import layers_within
from srel_tf.numerics.rounding import DRAWS, perturbed, precision

FURTHER_DIGITS = 2.0**7  # A derivative may lose so many times more than the outputs do: float64 has them to spare.


class FirstOrderLimit:
    """The limit η → 0 (Section 5). Numerators and denominators are per unit of η (`kl`: of η²).

    In float32 all of it is done again at perturbed weights, for a unit that rounding moves over a kink changes some
    derivatives and no output. In float64 there are no such units, and digits to spare: outputs and ∂ℓ/∂u alone are.
    """

    def __init__(self, task):
        self._task = task
        self._passes, reason = task.passes
        own, batch_size = task.probe.own_columns, task.settings.batch_size
        self._method = "limit" + suffix(task)
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
                f"srel_tf.gradients.layer_rules has no rule for layers of type {', '.join(slow)}: their gradients are "
                "formed example by example, which is right, and slower",
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
