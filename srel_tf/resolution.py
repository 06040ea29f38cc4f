"""What the arithmetic resolves: which entries of S_rel are numbers and which are rounding noise.

The noise is measured, not assumed. Rounding inside a net acts like a relative change of each weight by about one
unit in the last place (backward error), so a few evaluations at weights perturbed that much, read by the same measure
D, show how large a D the arithmetic produces where nothing moved. It contains the rounding of w⁺ to w's grid too.

D is a norm of the change (KL: the square of one, to leading order). With noise N at the target and N₀ at the source,
the triangle inequality bounds the error of S = D/D₀ by (N + S·N₀)/D₀. An entry is valid if that bound, with a margin
for the few draws, is within the measure's tolerance · (1 + S): the contract that the tests hold against float64.
"""

import warnings

import numpy as np
import tensorflow as tf

DRAWS = 4  # Perturbed evaluations from which the noise is read; every second one is the opposite of the first.
MARGIN = 8.0  # On the largest of them: accumulated sums round more than their factors do.
GRADIENT_MARGIN = 4.0  # On the angle by which rounding turns a gradient.


def precision(dtype):
    """Spacing of the numbers just above 1 in which products are formed: TensorFloat-32 keeps 10 bits on a GPU."""
    tensor_float_32 = (
        dtype == tf.float32
        and tf.config.list_physical_devices("GPU")
        and tf.config.experimental.tensor_float_32_execution_enabled()
    )
    if tensor_float_32:
        warnings.warn(
            "TensorFloat-32 is on: most S_rel entries will be below what it resolves and so invalid; call "
            "tf.config.experimental.enable_tensor_float_32_execution(False) before measuring",
            stacklevel=2,
        )
        return 2.0**-10
    return float(np.finfo(dtype.as_numpy_dtype).eps)


def perturbed(weights, draw):
    """The weights with what each input of a layer is multiplied by moved up or down by a last place; no global state.

    That is the effect of rounding the inputs. One sign for all outputs of a layer costs a fraction of one for each.
    Draws 2k and 2k + 1 are opposite: a ReLU's input that rounding may take either way takes one way in each.
    """
    direction = tf.where(draw % 2 == 0, 1.0, -1.0)
    return [_perturbed(tf.convert_to_tensor(w), [index, draw // 2], direction) for index, w in enumerate(weights)]


def _perturbed(w, seed, direction):
    inputs = [*w.shape[:-1], 1] if len(w.shape) > 1 else w.shape
    up = tf.random.stateless_uniform(inputs, seed) < 0.5
    move = tf.cast(direction, w.dtype) * precision(w.dtype)
    return w * tf.where(up, 1 + move, 1 - move)


def last_places_moved(outputs):
    """Outputs [n, C] with each entry moved by its last place, [⌈log₂ C⌉, n, C]: up or down by a bit of its index.

    Any two outputs move apart in one of these patterns, while a few random draws, rounded to the grid of the outputs,
    can by chance leave a difference of two as it was.
    """
    num_outputs = outputs.shape[-1]
    bits = np.arange(num_outputs) >> np.arange(max(1, (num_outputs - 1).bit_length()))[:, None] & 1
    moves = 1 + precision(outputs.dtype) * (2 * bits - 1)
    return outputs * tf.constant(moves[:, None, :], outputs.dtype)


def signal_error(predictions, targets, epsilon):
    """Relative error of ∂ℓ/∂f at each source [n_s] of a loss that subtracts predictions and targets [n_s, C].

    The difference (cross-entropy: p − y) has rounding errors of `epsilon` times their size; where it has almost
    vanished, few of its digits are left. One output has but one direction.
    """
    if predictions is None or predictions.shape[-1] == 1:
        return 0.0
    residual = np.linalg.norm(predictions - targets, axis=-1)
    scale = np.maximum(np.abs(predictions).max(axis=-1), np.abs(targets).max(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return scale * epsilon / residual


def error_bound(measure, srel, denominator, noise, own_noise, gradient):
    """Bound of the error of S [n_s, n_t], from the noise of D at targets [n_t] and sources [n_s] and of ∇ℓ [n_s].

    A wrong direction of ∇ℓ adds its share of the largest change that the update causes to numerator and denominator.
    """
    root = 1 / measure.degree  # KL is the square of a norm: S^½ obeys the triangle inequality.
    s = np.abs(srel) ** root
    noise, own_noise, denominator = (np.abs(a) ** root for a in (noise, own_noise, denominator))
    largest = np.where(np.isfinite(s), s, 0).max(axis=1, initial=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rounding = MARGIN * (noise[None, :] + s * own_noise[:, None]) / denominator[:, None]
        bound = rounding + gradient[:, None] * largest * (1 + s)
        return bound if measure.degree == 1 else 2 * s * bound + bound**2


def first_order_bound(measure, srel, denominator, noise, own_noise, gradient):
    """Bound of the error of S [n_s, n_t] in the limit, from D of the bounds of the changes' own errors:
    noise [n_s, n_t] at targets, own_noise [n_s] at sources; gradient [n_s]: relative error of ∂ℓ/∂f.
    """
    root = 1 / measure.degree
    s = np.abs(srel) ** root
    noise, own_noise, denominator = (np.abs(a) ** root for a in (noise, own_noise, denominator))
    largest = np.where(np.isfinite(s), s, 0).max(axis=1, initial=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        bound = (noise + s * own_noise[:, None]) / denominator[:, None]
        bound += np.broadcast_to(gradient, denominator.shape)[:, None] * largest * (1 + s)
        return bound if measure.degree == 1 else 2 * s * bound + bound**2
