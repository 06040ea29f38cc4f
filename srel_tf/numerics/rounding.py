"""What the arithmetic resolves: which entries of S_rel are numbers and which are rounding noise.

The noise is measured in each measurement, not assumed. Rounding inside a net acts like a relative change of each weight
by about one unit in the last place (backward error). So what is measured is evaluated once more at weights that are
perturbed by several such units: gradients, updated weights and predictions. The difference, read by the same D, is the
noise of D. It contains what rounding does to gradients, units that rounding may move over a kink, and how a far step
amplifies both. A larger perturbation, not a factor on the noise of a small one: it moves more units over their kinks.

D is a norm of the change (KL: the square of one, to leading order). With noise N at the target and N₀ at the source,
the triangle inequality bounds the error of S = D/D₀ by (N + S·N₀)/D₀. N is read twice: without any update at all
targets, and at the source and some targets after the update, for all of its row. An entry is valid if the larger of
both is within the measure's tolerance · (1 + S).
"""

import warnings

import numpy as np
import tensorflow as tf

DRAWS = 2  # Perturbed evaluations from which noise is read; the second is the opposite of the first.
UNITS = 8.0  # In the last place, by which weights and outputs are perturbed.


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
    """The weights with what each input of a layer is multiplied by moved up or down by `UNITS`; no global state.

    That is the effect of rounding the inputs. One sign for all outputs of a layer costs a fraction of one for each.
    Draws 2k and 2k + 1 are opposite: a ReLU's input that rounding may take either way takes one way in each.
    """
    direction = tf.where(draw % 2 == 0, 1.0, -1.0)
    return [_perturbed(tf.convert_to_tensor(w), [index, draw // 2], direction) for index, w in enumerate(weights)]


def _perturbed(w, seed, direction):
    inputs = [*w.shape[:-1], 1] if len(w.shape) > 1 else w.shape
    up = tf.random.stateless_uniform(inputs, seed) < 0.5
    move = tf.cast(direction, w.dtype) * UNITS * precision(w.dtype)
    return w * tf.where(up, 1 + move, 1 - move)


def last_places_moved(outputs):
    """Outputs [n, C] with each entry moved by `UNITS` of its last place, [⌈log₂ C⌉, n, C]: up or down by a bit of its
    index.

    Any two outputs move apart in one of these patterns, while a few random draws, rounded to the grid of the outputs,
    can by chance leave a difference of two as it was.
    """
    num_outputs = outputs.shape[-1]
    bits = np.arange(num_outputs) >> np.arange(max(1, (num_outputs - 1).bit_length()))[:, None] & 1
    moves = 1 + UNITS * precision(outputs.dtype) * (2 * bits - 1)
    return outputs * tf.constant(moves[:, None, :], outputs.dtype)


def noise_between(measure, values, again):
    """How far D is apart in two evaluations, as a norm: of its square root for a D that is the square of one.

    Infinite where only the second is no number; zero where the first is none, for such an entry is not valid anyway.
    """
    root = 1 / measure.degree
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.abs(again) ** root - np.abs(values) ** root)
    return np.where(np.isfinite(values), np.where(np.isfinite(again), apart, np.inf), 0.0)


def error_bound(measure, srel, denominator, noise, own_noise, of_updates=0.0):
    """Bound of the error of S [n_s, n_t].

    noise, own_noise: `noise_between` of D at targets [n_s, n_t] and at sources [n_s].
    of_updates [n_s, n_t]: noise of D by the update itself, as a share of D at the source.
    """
    root = 1 / measure.degree  # KL is the square of a norm: S^½ obeys the triangle inequality.
    s, denominator = np.abs(srel) ** root, np.abs(denominator) ** root
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        of_readings = (noise + s * own_noise[:, None]) / denominator[:, None]
        bound = np.maximum(of_readings, of_updates * (1 + s))
        return bound if measure.degree == 1 else 2 * s * bound + bound**2
