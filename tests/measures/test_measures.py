"""D of Definitions 1 and 2 compared with mpmath, SciPy and NumPy."""

import mpmath
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import rel_entr

from srel_tf.measures.distances import (
    kl,
    l1,
    l2,
    log_probabilities,
    probability_change,
    raw_change,
)


def change_of_logits(before, after):
    return probability_change(
        *(log_probabilities(tf.constant(f), False) for f in (before, after))
    )


def mp_softmax(logits):
    exponentials = [mpmath.exp(mpmath.mpf(float(v))) for v in logits]
    return [e / mpmath.fsum(exponentials) for e in exponentials]


def mp_distances(before, after):
    """Return {measure: D} of two softmax outputs from their logits, literally as in Definitions 1 and 2."""
    g, g_plus = mp_softmax(before), mp_softmax(after)
    difference = [a - b for a, b in zip(g_plus, g, strict=True)]
    return {
        kl: mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(g_plus, g, strict=True)),
        l1: mpmath.fsum(abs(d) for d in difference),
        l2: mpmath.sqrt(mpmath.fsum(d * d for d in difference)),
    }


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


@pytest.mark.parametrize("size", [10.0**-k for k in range(13)])
def test_measures_keep_their_digits_from_perturbations_of_1_to_1e12(size):
    rng = np.random.default_rng(0)
    before = rng.normal(size=5) * 3
    after = before + size * rng.normal(size=5)
    # The spacing of the logits is about 4e-16. No other error is allowed.
    tolerance = 1e-13 + 2e-15 / size
    for distance, value in mp_distances(before, after).items():
        assert float(distance(change_of_logits(before, after))) == pytest.approx(
            float(value), rel=2 * tolerance
        )


@pytest.mark.parametrize("ahead", [1.0, 10.0, 20.0, 35.0, 300.0])
def test_log_probabilities_of_a_sure_prediction_keep_their_digits(ahead):
    """log g of the largest class is about −e^−ahead. From ahead = 35 on, f − log Σ e^f has none of its digits."""
    logits = np.array([[0.25, ahead, -1.5], [ahead, ahead, 0.0]])
    with mpmath.workdps(200):
        expected = [
            [float(mpmath.log(p)) for p in mp_softmax(row)] for row in logits[:1]
        ]
    found = log_probabilities(tf.constant(logits), False).numpy()
    np.testing.assert_allclose(found[:1], expected, rtol=4e-15)
    np.testing.assert_allclose(
        np.exp(found[1]).sum(), 1, rtol=1e-15
    )  # Two logits are largest here, and either may be taken.


@pytest.mark.parametrize("ahead", [10.0, 20.0, 35.0])
def test_measures_of_a_sure_prediction_keep_their_digits(ahead):
    before = np.array([0.25, ahead, -1.5])
    after = before + 1e-3 * np.array([0.5, 1.0, -0.75])
    with mpmath.workdps(80):
        expected = mp_distances(before, after)
    for (
        distance,
        value,
    ) in expected.items():  # The logits are spaced by up to 7e-15, and change by 1e-3.
        assert float(distance(change_of_logits(before, after))) == pytest.approx(
            float(value), rel=2e-11
        )


def test_kl_is_scipys_relative_entropy_of_the_new_distribution_to_the_old():
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(2, 40, 7)) * 2
    change = change_of_logits(before, after)
    g, g_plus = (np.exp(f) / np.exp(f).sum(-1, keepdims=True) for f in (before, after))
    np.testing.assert_allclose(kl(change), rel_entr(g_plus, g).sum(-1), rtol=1e-12)
    assert not np.allclose(
        kl(change), rel_entr(g, g_plus).sum(-1), rtol=1e-3
    )  # The reverse divergence has another value.


def test_kl_is_continuous_where_the_series_takes_over():
    d = np.array([0.25 - 1e-12, 0.25 + 1e-12, -0.25 + 1e-12, -0.25 - 1e-12])
    log_g = np.log(np.full((4, 1), 0.3))
    values = kl(
        probability_change(tf.constant(log_g), tf.constant(log_g + d[:, None]))
    ).numpy()
    np.testing.assert_allclose(
        values, 0.3 * (np.exp(d) * d - np.exp(d) + 1), rtol=1e-13
    )


def test_kl_is_never_negative():
    rng = np.random.default_rng(2)
    before = rng.normal(size=(10_000, 3)) * 10
    after = before + rng.normal(size=before.shape) * 10.0 ** rng.integers(
        -16, 2, size=(10_000, 1)
    )
    assert (kl(change_of_logits(before, after)).numpy() >= 0).all()


def test_no_change_is_exactly_zero():
    logits = np.random.default_rng(3).normal(size=(6, 4))
    for distance in (kl, l1, l2):
        assert (distance(change_of_logits(logits, logits)).numpy() == 0).all()


def test_probabilities_and_logits_agree():
    rng = np.random.default_rng(4)
    before, after = rng.normal(size=(2, 9, 5))
    softmax = [np.exp(f) / np.exp(f).sum(-1, keepdims=True) for f in (before, after)]
    change = probability_change(
        *(log_probabilities(tf.constant(p), True) for p in softmax)
    )
    for distance in (kl, l1, l2):
        np.testing.assert_allclose(
            distance(change), distance(change_of_logits(before, after)), rtol=1e-12
        )


def test_a_class_of_probability_zero_contributes_its_limit():
    def change(before, after):
        return probability_change(
            *(
                log_probabilities(tf.constant(p, tf.float64), True)
                for p in (before, after)
            )
        )

    stays_zero = change([0.5, 0.5, 0.0], [0.25, 0.75, 0.0])
    assert float(kl(stays_zero)) == pytest.approx(
        0.25 * np.log(0.5) + 0.75 * np.log(1.5), rel=1e-14
    )
    assert float(l1(stays_zero)) == pytest.approx(0.5, rel=1e-14)
    becomes_zero = change([0.5, 0.25, 0.25], [0.5, 0.5, 0.0])
    assert float(kl(becomes_zero)) == pytest.approx(0.5 * np.log(2), rel=1e-14)
    was_zero = change([0.5, 0.5, 0.0], [0.5, 0.25, 0.25])
    assert np.isinf(float(kl(was_zero)))
    assert float(l1(was_zero)) == pytest.approx(0.5, rel=1e-14)


def test_huge_logits_do_not_overflow():
    change = change_of_logits(np.array([2000.0, 0.0]), np.array([0.0, 2000.0]))
    assert float(kl(change)) == pytest.approx(2000.0, rel=1e-12)
    assert float(l1(change)) == pytest.approx(2.0, rel=1e-12)


def test_norms_of_raw_outputs_are_numpys():
    rng = np.random.default_rng(5)
    before, after = rng.normal(size=(2, 8, 3))
    change = raw_change(before, after)
    np.testing.assert_allclose(
        l1(change), np.linalg.norm(after - before, 1, axis=-1), rtol=1e-14
    )
    np.testing.assert_allclose(
        l2(change), np.linalg.norm(after - before, 2, axis=-1), rtol=1e-14
    )


def test_l2_of_changes_whose_squares_underflow():
    change = raw_change(np.zeros(2), np.array([3e-200, 4e-200]))
    assert float(l2(change)) == pytest.approx(5e-200, rel=1e-14)
