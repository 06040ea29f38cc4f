"""Find the entries of S_rel that the arithmetic resolves. The other entries are dominated by rounding noise.

The noise is estimated anew in each measurement. By backward error analysis, rounding inside a net acts like a relative
change of each weight by about one unit in the last place (ULP). Gradients, updated weights and predictions are
therefore evaluated again with all weights (frozen ones, too), inputs and output gradients perturbed by several ULP. The
noise of D is the distance D between a prediction and its repetition. This noise includes three effects: rounding of
gradients, units that rounding may move across a kink, and the amplification of rounding by a large step. The
perturbation is larger than one ULP so that it moves enough units across kinks. A smaller perturbation would move fewer
units, even if its noise were multiplied by a factor.

D is a norm of the change (for KL: the square of a norm, to leading order). With noise N at the target and N₀ at the
source, the triangle inequality bounds the error of S = D/D₀ by (N + S·N₀)/D₀. The noise is evaluated in two ways: at
all targets without any update, and at the source and some targets after the update. An entry is valid if both bounds
are within the measure's tolerance · (1 + S).
"""

import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

SIGNS = (1.0, -1.0)  # Signs of the two perturbed evaluations.
UNITS = 8.0  # Number of ULP by which weights and outputs are perturbed.
# Seeds of the perturbations of output gradients, inputs and frozen weights. Trained weights have the seeds 0, 1, …
OF_GRADIENTS, OF_INPUTS, OF_FROZEN = 10**6 - 1, 10**6, 10**6 + 1


class Noise(NamedTuple):
    """Noise of one measure's D. If D is the square of a norm, all fields are about the norm √D instead of D.

    Attributes:
        at_targets: noise at each target, [n_s, n_t].
        at_sources: noise at each source, [n_s].
        of_updates: noise of each source's update, divided by the norm at the source, [n_s, n_t].
    """

    at_targets: np.ndarray
    at_sources: np.ndarray
    of_updates: np.ndarray


def precision(dtype: tf.DType) -> float:
    """Return the machine epsilon of matrix products in this dtype; 2^−10 with TensorFloat-32 on a GPU."""
    tensor_float_32 = (
        dtype == tf.float32
        and tf.config.get_visible_devices("GPU")
        and tf.config.experimental.tensor_float_32_execution_enabled()
    )
    if tensor_float_32:
        warnings.warn(
            "TensorFloat-32 is on: it does not resolve most S_rel entries, which are then invalid; call "
            "tf.config.experimental.enable_tensor_float_32_execution(False) before measuring",
            stacklevel=2,
        )
        return 2.0**-10
    return float(np.finfo(dtype.as_numpy_dtype).eps)


def perturbed(weights: list, sign: tf.Tensor | float) -> list[tf.Tensor]:
    """Return weights perturbed by ±`UNITS` ULP. Weights that multiply the same layer input are perturbed alike.

    This imitates rounding of the layer's inputs, and takes a fraction of the memory that one random sign per weight
    would take. Two calls differ only by `sign`. Rounding may push the input of a ReLU up or down, and the two signs
    push it in opposite directions.
    """
    return [_perturbed(tf.convert_to_tensor(w), k, sign) for k, w in enumerate(weights)]


def perturbed_inputs(x: tf.Tensor, sign: tf.Tensor | float) -> tf.Tensor:
    """Return examples [n, ...] with each feature changed by 0.5 to 1.5 times ±`UNITS` ULP, alike in all examples.

    This imitates rounding in layers without weights. Whole numbers may be ids or categories. Whole numbers are
    therefore only moved away from zero, by 0 to 3 times `UNITS` ULP, so that a cast to integers gives the same id.
    Examples with an integer dtype are not changed.
    """
    if not x.dtype.is_floating:
        return x
    generator, shape = np.random.default_rng(OF_INPUTS), (1, *x.shape[1:])
    # Perturbations of equal size would often cancel those of the first layer's weights.
    of_feature = generator.choice([-1.0, 1.0], shape) * generator.uniform(
        0.5, 1.5, shape
    )
    shift = tf.cast(sign, x.dtype) * tf.constant(of_feature, x.dtype)
    shift = tf.where(x == tf.round(x), 1.5 + shift, shift)
    return x * (1 + UNITS * precision(x.dtype) * shift)


class PerturbedRounding:
    """Perturbations of frozen weights and of output gradients (`Network.rounded_by`).

    Args:
        sign: their sign; 0 means no perturbation.
        frozen_weights: the frozen weights. If they are given, they are perturbed now, before a loop reads them.
            Otherwise each frozen weight is perturbed when it is read.
    """

    def __init__(
        self, sign: tf.Tensor | tf.Variable | float, frozen_weights: list | None = None
    ) -> None:
        self._sign = sign
        self._frozen = [
            _perturbed(w, OF_FROZEN + k, sign)
            for k, w in enumerate(frozen_weights or [])
        ]

    def frozen(self, k: int, weight: tf.Tensor) -> tf.Tensor:
        """Return the k-th frozen weight, perturbed as `perturbed` perturbs the trained weights."""
        if self._frozen:
            return self._frozen[k]
        return _perturbed(weight, OF_FROZEN + k, self._sign)

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return ∂ℓ/∂f [..., C] with its entries changed by 0.5 to 1.5 times ±`UNITS` ULP.

        This imitates rounding in back-propagation. If the contributions of the outputs to ∇ℓ cancel and leave only
        rounding noise, this perturbation changes ∇ℓ by as much as ∇ℓ itself. The two signs use different patterns of
        changes, because the contributions of two outputs that change alike would still cancel.
        """
        outputs = np.arange(gradient.shape[-1])
        sizes = np.random.default_rng(OF_GRADIENTS).uniform(0.5, 1.5, len(outputs))
        by_output, by_pair = (
            tf.constant(sizes * (-1.0) ** (outputs // width), gradient.dtype)
            for width in (1, 2)
        )
        sign = tf.cast(self._sign, gradient.dtype)
        pattern = tf.where(sign > 0, by_output, by_pair)
        return gradient * (1 + sign * UNITS * precision(gradient.dtype) * pattern)


def _perturbed(w: tf.Tensor, seed: int, sign: tf.Tensor | float) -> tf.Tensor:
    per_input = [*w.shape[:-1], 1] if len(w.shape) > 1 else w.shape
    direction = np.random.default_rng(seed).choice([-1.0, 1.0], tuple(per_input))
    move = tf.constant(UNITS * precision(w.dtype) * direction, w.dtype)
    return w * (1 + tf.cast(sign, w.dtype) * move)


def last_places_moved(outputs: tf.Tensor) -> tf.Tensor:
    """Return copies of outputs [n, C] in which each entry is changed by ±`UNITS` ULP, [⌈log₂ C⌉, n, C].

    In copy b, the sign is + for outputs whose index has bit b set, else −. Any two outputs thus change in opposite
    directions in at least one copy. With a few random signs, the difference of two outputs could by chance not change.
    """
    n_outputs = outputs.shape[-1]
    n_bits = max(1, (n_outputs - 1).bit_length())
    bits = np.arange(n_outputs) >> np.arange(n_bits)[:, None] & 1
    moves = 1 + UNITS * precision(outputs.dtype) * (2 * bits - 1)
    return outputs * tf.constant(moves[:, None, :], outputs.dtype)


def noise_between(
    degree: int, values: np.ndarray, values_again: np.ndarray
) -> np.ndarray:
    """Return the absolute difference between two evaluations of the norm D^(1/degree).

    The difference is infinite if only the second value is not finite. If the first value is not finite, the result is
    zero, because such an entry is invalid anyway.
    """
    root = 1 / degree
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.abs(values_again) ** root - np.abs(values) ** root)
    return np.where(
        np.isfinite(values), np.where(np.isfinite(values_again), apart, np.inf), 0.0
    )


def error_bound(
    degree: int, srel: np.ndarray, denominator: np.ndarray, noise: Noise
) -> np.ndarray:
    """Return a bound on the error of S, [n_s, n_t], where `denominator` is D at the sources [n_s].

    For degree 2, D is the square of a norm. The triangle inequality bounds the error of S^½, from which the bound on
    the error of S follows.
    """
    root = 1 / degree
    s = np.abs(srel) ** root
    norm_at_source = np.abs(denominator)[:, None] ** root
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        of_readings = (
            noise.at_targets + s * noise.at_sources[:, None]
        ) / norm_at_source
        of_updates = noise.of_updates * (1 + s)
        bound = np.maximum(of_readings, of_updates)
        return bound if degree == 1 else 2 * s * bound + bound**2
