"""The measures of the published code, compared with torch's formula written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.measures.distances import log_probabilities, probability_change
from srel_tf.measures.published import PUBLISHED
from tests.nets import classifier, digits


@pytest.fixture
def predictions():
    """Probabilities before and after an update, [2, n, C]."""
    logits = np.random.default_rng(0).normal(size=(2, 6, 3))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def change(before, after):
    return probability_change(
        *(log_probabilities(tf.constant(p), True) for p in (before, after))
    )


def torch_kl_div(log_input, target):
    """Compute torch.nn.functional.kl_div(input, target, reduction="mean") of each row; input: log-probabilities."""
    return (target * (np.log(target) - log_input)).mean(axis=-1)


def test_published_kl_is_kl_div_fed_with_probabilities(predictions):
    before, after = predictions
    measure = PUBLISHED["published_kl"]
    np.testing.assert_allclose(
        measure.numerator(change(before, after)),
        torch_kl_div(after, before),
        rtol=1e-12,
    )
    expected = torch_kl_div(after, before) + 1e-8
    np.testing.assert_allclose(
        measure.denominator(change(before, after)), expected, rtol=1e-12
    )


def test_published_l2_is_mean_absolute_over_root_mean_square(predictions):
    before, after = predictions
    measure = PUBLISHED["published_l2"]
    np.testing.assert_allclose(
        measure.numerator(change(before, after)),
        np.abs(after - before).mean(-1),
        rtol=1e-12,
    )
    expected = np.sqrt(((after - before) ** 2).mean(-1)) + 1e-8
    np.testing.assert_allclose(
        measure.denominator(change(before, after)), expected, rtol=1e-12
    )


def test_published_kl_without_any_update_is_minus_entropy_and_collision_over_classes(
    predictions,
):
    p = predictions[0]
    entropy = -(p * np.log(p)).sum(-1)
    value = PUBLISHED["published_kl"].numerator(change(p, p))
    np.testing.assert_allclose(value, -(entropy + (p**2).sum(-1)) / 3, rtol=1e-12)


def test_published_kl_is_near_one_at_initialisation_however_small_the_step():
    x, y = digits(per_class=5)
    model = classifier("mlp")
    model.layers[-1].kernel.assign(
        model.layers[-1].kernel * 1e-3
    )  # Predictions are nearly uniform.
    probe = srel_tf.ProbeSet(x, y)
    for learning_rate in (1e-12, 1e-4):
        result = srel_tf.measure(
            model, probe, measures=("published_kl",), learning_rate=learning_rate
        )
        np.testing.assert_allclose(result.matrix("published_kl"), 1.0, atol=1e-3)
        assert result.valid("published_kl").all()
