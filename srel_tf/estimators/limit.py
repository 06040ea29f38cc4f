"""The limit η → 0 of S_rel (Section 5)."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from srel_tf.engines.first_order import FirstOrderEngine
from srel_tf.engines.forward_mode import ForwardModeEngine
from srel_tf.engines.joined import FirstOrder
from srel_tf.errors import ModelError, OptionError
from srel_tf.estimators.assemble import from_first_order
from srel_tf.estimators.plan import MeasurementPlan
from srel_tf.gradients.backprop import LossBackprop
from srel_tf.gradients.batching import map_batches, row
from srel_tf.gradients.layer_rules import rule_of
from srel_tf.gradients.output_gradients import LINKS
from srel_tf.gradients.precision import layers_within
from srel_tf.numerics.rounding import (
    SIGNS,
    PerturbedRounding,
    perturbed,
    perturbed_inputs,
    precision,
)
from srel_tf.result import Matrices

FURTHER_DIGITS = (
    2.0**7
)  # Assumed ratio of the rounding noise of derivatives to the noise of outputs. Float64 has enough digits for this.
# Check of derivatives by finite differences: (lengths of the steps relative to the weights), relative tolerance.
CHECK_IN_FLOAT64 = (1e-7, 1e-6, 1e-5), 1e-2
CHECK_IN_FLOAT32 = (1e-4, 1e-3, 1e-2), 1e-1


class LimitEstimator:
    """S_rel in the limit η → 0. Numerators and denominators are per unit of η (`kl`: of η²).

    In float32 the whole measurement is repeated at perturbed weights, because rounding can move a unit across a kink.
    Such a move changes derivatives even if the outputs stay the same. In float64 it is assumed that no unit is so close
    to a kink, and that enough digits remain. Only outputs and output gradients are therefore evaluated again.
    """

    def __init__(self, plan: MeasurementPlan) -> None:
        self._plan = plan
        self._backprop, reason = plan.backprop
        source_column, batch_size = plan.probe.own_columns, plan.settings.batch_size
        model = plan.network.model
        self._engine: FirstOrderEngine | ForwardModeEngine
        if self._backprop is None:
            warnings.warn(
                f"model {model.name!r}: {reason}; the limit is therefore computed for one source after the other, by "
                "forward-mode differentiation, which costs a few forward passes of all targets for each source",
                stacklevel=5,
            )
            self._engine = ForwardModeEngine(
                plan.network, plan.data[0][:1], source_column, batch_size
            )
        else:
            self._warn_of_slow_layers(self._backprop)
            differences = self._differences_suffice(self._backprop)
            self._engine = FirstOrderEngine(
                self._backprop, source_column, batch_size, differences
            )
        self._relative_noise = RelativeNoise(plan, self._backprop)
        self._sign = tf.Variable(0.0, trainable=False)
        own_layers = _has_layers_of_ones_own(model)
        self._is_checked = not (
            self._backprop is None or plan.network.opaque or own_layers
        )

    def _warn_of_slow_layers(self, backprop: LossBackprop) -> None:
        slow = sorted(
            {type(v).__name__ for v in backprop.layer_io.layers if rule_of(v) is None}
        )
        if slow:
            warnings.warn(
                f"srel_tf has no gradient rule for layers of type {', '.join(slow)}: their gradients are formed "
                "example by example, which is correct but slower; add a rule with srel_tf.register_layer_rule",
                stacklevel=6,
            )

    def _differences_suffice(self, backprop: LossBackprop) -> bool:
        """Return whether neither D nor ℓ depends on a common shift of all outputs."""
        raw = self._plan.kind == "raw" or any(
            measure.raw for measure in self._plan.measures.values()
        )
        return not raw and backprop.loss.ignores_shifts_of(backprop.link)

    def __call__(self, learning_rate: Any = None) -> dict[str, Matrices]:
        """Return {measure: Matrices}; the limit does not depend on η."""
        plan, weights = self._plan, self._plan.network.weights
        changes = self._with_sign(0.0)
        if not self._is_checked:
            check_derivative(plan, self._backprop, changes)
            self._is_checked = True
        changes_again, relative_noise = [], None
        if plan.in_float64:
            relative_noise = self._relative_noise(weights)
        else:
            changes_again = [self._with_sign(sign) for sign in SIGNS]
        kinds = plan.kinds(changes.before, self._backprop)
        if (
            changes.link == "softmax"
        ):  # u holds the logits behind the softmax, but the outputs are probabilities.
            kinds = dict.fromkeys(kinds, "probabilities")
        return from_first_order(
            changes,
            changes_again,
            relative_noise,
            kinds,
            plan.measures,
            plan.probe.own_columns,
            plan.method("limit"),
        )

    def _with_sign(self, sign: float) -> FirstOrder:
        """Return the changes at weights and inputs perturbed with this sign; 0 means no perturbation.

        In float64 nothing is perturbed here.
        """
        plan, network = self._plan, self._plan.network
        (x, y, x_targets), weights = plan.data, network.weights
        if plan.in_float64:
            return self._engine(x, y, x_targets, weights)
        if sign:
            weights = perturbed(weights, sign)
            x, x_targets = (perturbed_inputs(array, sign) for array in (x, x_targets))
        self._sign.assign(sign)  # The engine is traced once, and reads this variable.
        with network.rounded_by(PerturbedRounding(self._sign)):
            return self._engine(x, y, x_targets, weights)


class RelativeNoise:
    """Callable that returns the rounding noise of each source's derivatives, divided by the largest derivative, [n_s].

    The noise is found by evaluating outputs and ∂ℓ/∂u again at perturbed weights and inputs. Without a `LossBackprop`,
    ∇ℓ is evaluated instead of ∂ℓ/∂u.
    """

    def __init__(self, plan: MeasurementPlan, backprop: LossBackprop | None) -> None:
        self._plan, self._backprop = plan, backprop
        self._evaluate_both = plan.network.compiled(self._evaluate)

    def __call__(self, weights: list) -> np.ndarray:
        found = self._evaluate_both(weights, perturbed(weights, SIGNS[0]))
        outputs, noisy, lengths, changes = (t.numpy() for t in found)
        finite = np.isfinite(outputs) & np.isfinite(noisy)
        largest = np.abs(outputs).max(initial=0, where=finite)
        moved = np.abs(noisy - outputs).max(initial=0, where=finite)
        of_outputs = max(
            moved / largest if largest else 0, precision(self._plan.network.dtype)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            changes = np.maximum(
                changes, np.nanmedian(changes)
            )  # Use at least the median, because rounding leaves some gradients unchanged by chance.
            of_gradients = changes / lengths
        of_gradients = np.where(np.isnan(of_gradients), 0, of_gradients)
        return FURTHER_DIGITS * np.maximum(of_gradients, of_outputs)

    def _evaluate(self, weights: list, noisy_weights: list) -> tuple[tf.Tensor, ...]:
        """Evaluate outputs and gradients at `weights`, and again with `noisy_weights` and perturbed inputs.

        Returns:
            The outputs at `weights` and at `noisy_weights`, [n_t, C] each. Then the norms of the gradients, and the
            norms of their changes, [n_s] each.
        """
        (x, y, x_targets), network = self._plan.data, self._plan.network
        batch_size = self._plan.settings.batch_size
        backprop, dtypes = self._backprop, (network.dtype, network.dtype)

        def twice(function: Callable, x: tf.Tensor) -> list:
            """Return function(x, weights), and its value at perturbed weights and inputs."""
            first = function(x, weights)
            moved = perturbed_inputs(x, SIGNS[0])
            with network.rounded_by(PerturbedRounding(SIGNS[0])):
                return [first, function(moved, noisy_weights)]

        def at_targets(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(twice(network.outputs, x))

        def of_loss(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
            y_i = row(y, i)

            def gradient_at(x: tf.Tensor, w: list) -> list:
                return network.loss_gradient(x, y_i, 1.0, w)[0]

            gradient, noisy = twice(gradient_at, row(x, i))
            change = [b - a for a, b in zip(gradient, noisy, strict=True)]
            return tf.linalg.global_norm(gradient), tf.linalg.global_norm(change)

        if backprop is None:
            lengths = tf.map_fn(
                of_loss, tf.range(x.shape[0]), fn_output_signature=dtypes
            )
            return *map_batches(at_targets, dtypes, batch_size, x_targets), *lengths

        def at_sources(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
            x = tf.identity(x)  # `LayerIO` accepts only tensors of this loop.
            passes = twice(backprop.forward, x)
            gradient, noisy = (backprop.output_gradient(one, y) for one in passes)
            outputs = [one.outputs for one in passes]
            return (
                *outputs,
                tf.norm(gradient, axis=-1),
                tf.norm(noisy - gradient, axis=-1),
            )

        *outputs, length, change = map_batches(
            at_sources, (*dtypes, tf.float64, tf.float64), batch_size, x, y
        )
        sources_are_targets = np.array_equal(
            self._plan.probe.own_columns, np.arange(x_targets.shape[0])
        )
        if not sources_are_targets:
            outputs = list(map_batches(at_targets, dtypes, batch_size, x_targets))
        return *outputs, length, change


def check_derivative(
    plan: MeasurementPlan, backprop: LossBackprop | None, changes: FirstOrder
) -> None:
    """Compare the derivative with finite differences, for the source whose update changes the outputs most.

    Raises:
        ModelError: if they disagree at each of several step lengths. The predictions then depend on the weights in a
            way that the derivative does not include.
    """
    network, (x, y, x_targets) = plan.network, plan.data
    weights = [tf.convert_to_tensor(w) for w in network.weights]
    moved = _largest_differences(changes.moved)
    finite = np.isfinite(moved).any(axis=0)
    moved = np.where(np.isfinite(moved), moved, 0)
    i = moved.sum(axis=1).argmax()
    gradients, _ = network.loss_gradient(x[i, None], y[i, None], 1.0, weights)
    weight_norm, gradient_norm = (
        float(tf.linalg.global_norm(tensors)) for tensors in (weights, gradients)
    )
    usable = (
        np.isfinite([weight_norm, gradient_norm]).all()
        and weight_norm
        and gradient_norm
    )
    if not usable or not moved[i].max():
        return

    link = changes.link if backprop is None else backprop.link

    @network.compiled
    def u_at(weights: list) -> tf.Tensor:
        return tf.cast(
            LINKS[link].of_outputs(network.outputs(x_targets, weights)), tf.float64
        )

    before = u_at(weights)
    steps, tolerance = CHECK_IN_FLOAT64 if plan.in_float64 else CHECK_IN_FLOAT32
    for step in steps:
        eta = step * weight_norm / gradient_norm
        after = u_at([w - eta * g for w, g in zip(weights, gradients, strict=True)])
        error = np.abs(_largest_differences(after - before) / eta - moved[i])
        if error[finite].max(initial=0) <= tolerance * moved[i].max():
            return
    cause = (
        f" (operation {network.opaque!r} has no derivative)" if network.opaque else ""
    )
    raise ModelError(
        f"the predictions of model {network.model.name!r} do not follow their derivative{cause}, so that "
        "differentiation does not give the limit η → 0: use estimator='exact'"
    )


def check_limit(plan: MeasurementPlan) -> None:
    """Raise `OptionError` for rules and measures that have no limit η → 0."""
    settings = plan.settings
    if settings.update != "sgd":
        raise OptionError(
            f"update={settings.update!r} with estimator={settings.estimator!r}: the limit is defined for the plain "
            "step w − η∇ℓ; use update='sgd', or estimator='exact'"
        )
    without = [
        name for name, measure in plan.measures.items() if measure.first_order is None
    ]
    if without:
        raise OptionError(
            f"measures {without} have no first-order form, and therefore no limit: use estimator='exact', or pass "
            "first_order=... to register_measure"
        )


def _has_layers_of_ones_own(model: keras.Model) -> bool:
    """Return whether a model has layers that do not come from Keras, so that `check_derivative` is needed."""
    layers = [
        layer for layer in layers_within(model) if not isinstance(layer, keras.Model)
    ]
    return not all(type(layer).__module__.startswith("keras.") for layer in layers)


def _largest_differences(moved: tf.Tensor) -> np.ndarray:
    """Return by how much the difference of two outputs changes at most, [...], from changes of the outputs [..., C].

    For C = 1, return the size of the output's change.
    """
    array = np.asarray(moved)
    return np.abs(array[..., 0]) if array.shape[-1] == 1 else np.ptp(array, axis=-1)
