"""Theorem 5.3 and Lemma C.1 on random instances."""

import numpy as np
import pytest

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory import DiagonalQuadratic, lemma_c1_bound, theorem_5_3_bound


def lemma_c1_ratio(t, alpha_squared, beta_squared, b1, b2, p_squared, q_squared):
    """Compute f(t) of Lemma C.1."""
    ep, eq = np.exp(-p_squared * t), np.exp(-q_squared * t)
    above = alpha_squared + b1 * ep + (beta_squared - b1) * eq
    return np.abs(above) / np.abs(alpha_squared + b2 * ep + (beta_squared - b2) * eq)


def rises(values):
    values = values[~np.isnan(values)]
    return (np.diff(values) >= -1e-15).all()


def test_lemma_c1_on_random_instances():
    generator, t = np.random.default_rng(0), np.linspace(0, 20, 200)
    closeness, informative = [], 0
    for _ in range(200):
        alpha_squared, beta_squared, p_squared, q_squared = generator.uniform(
            0.05, 3, 4
        )
        b1, b2 = generator.uniform(0, 6, 2) * generator.choice([0, 1], 2, p=[0.1, 0.9])
        numbers = alpha_squared, beta_squared, b1, b2, p_squared, q_squared
        bound = lemma_c1_bound(t, *numbers).numpy()
        claimed = ~np.isnan(bound)
        assert (bound[claimed] > 0).all()
        assert (
            bound[claimed] <= lemma_c1_ratio(t, *numbers)[claimed] * (1 + 1e-12)
        ).all()
        assert rises(bound)
        informative += claimed.any()
        closeness.append(
            np.max(bound[claimed] / lemma_c1_ratio(t, *numbers)[claimed], initial=0)
        )
    assert informative > 0.95 * 200
    assert (
        np.median(closeness) > 0.45
    )  # The bound is not vacuous: at its best time it is typically within a factor of about two.


@pytest.mark.parametrize("b1", [0.0, 0.1])
def test_lemma_c1_makes_no_claim_at_time_0(b1):
    """The default t₂* is positive even if the lemma holds for every positive t₂*: it is not flushed to 0."""
    bound = lemma_c1_bound([0.0, 1e-300], 1.0, 2.0, b1, 1.0, 1.0, 1.0).numpy()
    np.testing.assert_array_equal(np.isnan(bound), [True, False])


def test_lemma_c1_is_tight_for_a_late_t2_star():
    t = np.array([200.0, 300.0])
    bound = lemma_c1_bound(t, 1.0, 2.0, 5.0, 3.0, 0.5, 0.7, t2_star=200.0)
    np.testing.assert_allclose(
        bound, lemma_c1_ratio(t, 1.0, 2.0, 5.0, 3.0, 0.5, 0.7), rtol=1e-12
    )


def test_lemma_c1_without_b1_knows_no_t2_star():
    """If b₁ = 0, α² − b₁e^{−q²t₂*} is α² for every t₂*, even if the exponential overflows."""
    t = np.array([0.0, 1.0, 1e6])
    bound = lemma_c1_bound(t, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, t2_star=-1e6)
    np.testing.assert_allclose(bound, 1 / (1 + 2 * np.exp(-t)), rtol=1e-15)
    with pytest.raises(AssumptionError, match="it is -inf"):
        lemma_c1_bound(t, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, t2_star=-1e6)


def test_lemma_c1_is_nan_where_it_claims_nothing():
    bound = lemma_c1_bound(
        [0.0, 5.0, 10.0], 1.0, 2.0, 5.0, 3.0, 0.5, 0.7, t2_star=7.0
    ).numpy()
    np.testing.assert_array_equal(np.isnan(bound), [True, True, False])


def test_lemma_c1_waits_for_t1_star():
    """With b₁ = 0, t₂* is almost 0. Before t₁* the denominator of f may be negative, and the lemma makes no claim."""
    t = np.linspace(0, 40, 400)
    numbers = {
        "alpha_squared": 0.1,
        "beta_squared": 0.1,
        "b1": 0.0,
        "b2": 6.0,
        "p_squared": 3.0,
        "q_squared": 0.3,
    }
    denominator = 0.1 + 6 * np.exp(-3 * t) - 5.9 * np.exp(-0.3 * t)
    claimed = ~np.isnan(lemma_c1_bound(t, **numbers).numpy())
    assert (denominator < 0).sum() > 100
    assert (denominator[claimed] > 0).all()
    assert claimed.sum() > 200


def symmetric_instance(generator):
    """Draw moments and w(0) with b_r/a_r = α² and 1/w_r(0)² − α² = β² for both features."""
    a, alpha_squared, beta_squared = (
        generator.uniform(0.2, 3, 2),
        generator.uniform(0.1, 2),
        generator.uniform(0.1, 2),
    )
    w0 = np.sqrt(1 / (alpha_squared + beta_squared)) * generator.choice([-1, 1], 2)
    return a, alpha_squared * a, w0


def test_theorem_5_3_on_random_instances():
    generator, t = np.random.default_rng(1), np.linspace(0, 60, 60)
    negative_k1, closeness = 0, []
    for _ in range(120):
        a, b, w0 = symmetric_instance(generator)
        target, source = generator.normal(size=(2, 2))
        srel = DiagonalQuadratic(a, b, 0.3).srel(w0, t, target, source).numpy()
        bound = theorem_5_3_bound(a, b, w0, 0.3, t, target, source).numpy()
        claimed = ~np.isnan(bound)
        assert (bound[claimed] > 0).all()
        assert (bound[claimed] <= srel[claimed] * (1 + 1e-9)).all()
        assert rises(bound)
        negative_k1 += target[0] * source[0] * (target @ source) < 0
        closeness.append(np.max(bound[claimed] / srel[claimed], initial=0))
    assert negative_k1 > 12  # If k₁ < 0, the proof uses 1 − k₁.
    assert np.median(closeness) > 0.45


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": [1.0, 1.0]}, "b_r/a_r is equal"),
        ({"w0": [0.5, 0.4]}, "equal for both"),
        ({"w0": [2.0, 2.0]}, "> 0; it is"),
        ({"a": [-1.0, 2.0]}, "a_r > 0"),
        ({"beta_target": [1.0, -2.0], "beta_source": [2.0, 1.0]}, "≠ 0"),
        ({"w0": [0.0, 0.5]}, r"w_r\(0\) ≠ 0"),
    ],
)
def test_assumptions_of_theorem_5_3_are_checked(change, words):
    good = {
        "a": [1.0, 2.0],
        "b": [1.0, 2.0],
        "w0": [0.5, 0.5],
        "beta_target": [1.0, 1.0],
        "beta_source": [1.0, 2.0],
    }
    theorem_5_3_bound(**good, theta=0.1, t=[1.0])
    with pytest.raises(AssumptionError, match=words):
        theorem_5_3_bound(**(good | change), theta=0.1, t=[1.0])


def test_other_bad_input_is_named():
    with pytest.raises(ShapeError, match="two features"):
        theorem_5_3_bound(
            [1.0] * 3, [1.0] * 3, [0.5] * 3, 0.1, [1.0], [1.0] * 3, [1.0] * 3
        )
    with pytest.raises(AssumptionError, match="b1 >= 0"):
        lemma_c1_bound([1.0], 1.0, 1.0, -1.0, 1.0, 1.0, 1.0)
    with pytest.raises(AssumptionError, match=r"t2_star=0\.1"):
        lemma_c1_bound([1.0], 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, t2_star=0.1)


@pytest.mark.parametrize(
    "name",
    ["alpha_squared", "beta_squared", "b1", "b2", "p_squared", "q_squared", "t2_star"],
)
def test_lemma_c1_takes_numbers_alone(name):
    numbers = ["alpha_squared", "beta_squared", "b1", "b2", "p_squared", "q_squared"]
    good, shown = (
        dict.fromkeys(numbers, 1.0),
        {"p_squared": "p²", "q_squared": "q²"}.get(name, name),
    )
    for value, error, words in (
        ([1.0, 2.0], ShapeError, r"has shape \(2,\)"),
        ("x", ShapeError, "one number; given 'x'"),
        ("1", ShapeError, "one number; given '1'"),
        (np.nan, AssumptionError, "finite; given .* = nan"),
        (np.inf, AssumptionError, "finite; given .* = inf"),
    ):
        with pytest.raises(error, match=f"{shown} must be.*{words}"):
            lemma_c1_bound([1.0], **(good | {name: value}))
