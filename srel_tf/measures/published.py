"""The measures of the authors' published code, which differ from the definitions in the paper.

`published_kl` is not a KL divergence. `torch.nn.functional.kl_div(input, target)` expects *log*-probabilities as its
input and computes the mean of target · (log target − input). The published code passes probabilities, so that the
result is

    numerator   mean_c p_c (log p_c − p⁺_c)  at x'
    denominator mean_c p_c (log p_c − p⁺_c)  at x, plus 1e-8

where p are the probabilities before the update, and p⁺ the probabilities after it. If the update changes nothing, the
mean is −(H(p) + ‖p‖²)/C, where H is the entropy. At initialisation p is nearly uniform for all examples. The ratio is
then close to 1 for every pair, even if the update changes nothing.

`published_l2` is the counterpart of Definition 1 in the published code: the mean absolute change of the probabilities
at x', divided by (the root-mean-square change at x, plus 1e-8). In the text of the paper, both are ℓ1.
"""

import math

import tensorflow as tf

from srel_tf.measures.distances import Change, Measure, l2

EPSILON = 1e-8


def kl_div_of_probabilities(change: Change) -> tf.Tensor:
    """Compute mean_c p_c (log p_c − p⁺_c): torch's kl_div(p⁺, p) with reduction "mean", applied to probabilities."""
    p_log_p = tf.math.multiply_no_nan(change.log_before, change.before)
    return tf.reduce_mean(p_log_p - change.before * change.after, axis=-1)


def mean_absolute_change(change: Change) -> tf.Tensor:
    """Compute mean_c |p⁺_c − p_c|."""
    return tf.reduce_mean(tf.abs(change.difference), axis=-1)


def root_mean_square_change(change: Change) -> tf.Tensor:
    """Compute (mean_c (p⁺_c − p_c)²)^½."""
    return l2(change) / math.sqrt(change.difference.shape[-1])


PUBLISHED = {
    "published_kl": Measure(
        numerator=kl_div_of_probabilities,
        denominator=lambda change: kl_div_of_probabilities(change) + EPSILON,
        probabilities=True,
    ),
    "published_l2": Measure(
        numerator=mean_absolute_change,
        denominator=lambda change: root_mean_square_change(change) + EPSILON,
        probabilities=True,
    ),
}
