"""Statements of the paper's Section 5 and of its published scripts, checked on the closed forms.

Each test is named after a statement. Tests with "counterexample" or "is_false" in their name show that a statement does
not hold. A number in the name is an item of the list of errata (`train/errata/items.csv`).
"""

import numpy as np
import pytest

from srel_tf.theory import (
    DiagonalQuadratic,
    HomogeneousPredictor,
    diagonal_sgd,
    moment_flow,
    theorem_5_3_bound,
)
from train.errata import variants

# The set-up of eq. 14, Figures 11–13: w* = (1, 2, 3), x ~ N(0, I), θ = 0.001.
EQ_14 = DiagonalQuadratic([1.0, 4.0, 9.0], [1.0, 1.0, 1.0], 0.001)
EQ_14_START = np.array([np.sqrt(0.5), np.sqrt(2.0), 2.0])


def times_of_the_claim(bound):
    return ~np.isnan(bound)


def theorem_5_3_case(target, source, t2_star=20.0):
    a, b, w0 = [1.0, 2.0], [1.0, 2.0], [0.5, 0.5]
    times = np.linspace(0, 60, 40)
    srel = DiagonalQuadratic(a, b, 0.1).srel(w0, times, target, source).numpy()
    arguments = a, b, w0, 0.1, times, target, source
    printed = variants.printed_theorem_5_3_bound(*arguments, t2_star).numpy()
    return srel, printed, theorem_5_3_bound(*arguments, t2_star).numpy()


def test_16_theorem_5_3_as_printed_is_false_counterexample():
    """k₂, eq. 38 and eq. 39 are printed with β₂₂(x')².

    For β(x) = (1, 10) and β(x') = (1, 0.1), the printed bound is 1.98, but S_rel is only 0.02.
    """
    srel, printed, corrected = theorem_5_3_case([1.0, 0.1], [1.0, 10.0])
    assert printed[-1] > 90 * srel[-1]
    late = times_of_the_claim(corrected)
    assert late.sum() > 20
    assert (corrected[late] <= srel[late]).all()
    assert corrected[-1] > 0.99 * srel[-1]


def test_16_equation_38_as_printed_is_not_equation_37():
    target, source, e1, e2 = (
        np.array([1.0, 0.5]),
        np.array([2.0, -1.0]),
        np.exp(-0.4 * 3),
        np.exp(-0.8 * 3),
    )
    alpha2, beta2 = 1.0, 3.0
    truth = (
        DiagonalQuadratic([1.0, 2.0], [1.0, 2.0], 0.1)
        .srel([0.5, 0.5], 3.0, target, source)
        .numpy()[0]
    )
    k1 = target[0] * source[0] / (target @ source)
    for last, agrees in ((source[1], True), (target[1], False)):
        square = source[0] ** 2 + last**2
        k2 = source[0] ** 2 / square
        above, below = (alpha2 + beta2 * (k * e2 + (1 - k) * e1) for k in (k1, k2))
        assert (
            np.isclose(abs(target @ source) / square * above / below, truth, rtol=1e-12)
            == agrees
        )


def test_16_theorem_5_3_needs_uncorrelated_features_counterexample():
    """Theorem 5.3 does not exclude E[β₁₁β₂₂] ≠ 0. In this case the flow is not eq. 36, and S_rel is below the bound."""
    a, b, w0 = np.array([1.0, 2.0]), np.diag([1.0, 2.0]), np.array([0.5, 0.5])
    b[0, 1] = b[1, 0] = 0.9
    path = moment_flow(a, b, w0, [0.0, 60.0], 0.1, 2).numpy()
    target, source = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    srel = (target * source) @ path[1] ** 2 / (source**2 @ path[1] ** 2)
    bound = theorem_5_3_bound(
        a, np.diag(b), w0, 0.1, 60.0, target, source, t2_star=30.0
    ).numpy()[0]
    assert srel < 0.5 * bound


def test_17_equation_14_can_be_negative_where_equation_13_is_not():
    arguments = EQ_14_START, [0.0, 500.0], [1.0, 1.0, 1.0], [1.0, -1.0, -1.0]
    printed = variants.printed_eq_14(EQ_14, *arguments)
    assert (printed < 0).all()
    np.testing.assert_allclose(EQ_14.srel(*arguments), -printed, rtol=1e-14)


def test_18_the_bound_of_theorem_5_1_depends_on_time_and_only_p_does_not():
    h = HomogeneousPredictor(lambda x: 0 * x[:, 0], lambda x: x[:, None, :], 2)
    path = EQ_14.weights(EQ_14_START, [0.0, 100.0, 1000.0])[:, None, :]
    x_target, x_source = [1.0, 1.0, 0.5], [2.0, 0.1, 0.3]
    bound = h.srel_bound(path, x_target, x_source).numpy()
    assert bound.shape == (3,)
    assert np.ptp(bound) > 0.1 * bound.min()
    assert h.proximity(x_target, x_source).shape == ()


def test_hypothesis_1_1b_srel_is_of_the_order_of_the_proximity_counterexample():
    """S_rel = O(P(x, x')) does not follow from Theorem 5.1, because the factor of P in its bound depends on x.

    For x = s x' in the model of eq. 14, S_rel = 1/s and P(x, x') = s P(x', x'), so S_rel is large where P is small.
    """
    h = HomogeneousPredictor(lambda x: 0 * x[:, 0], lambda x: x[:, None, :], 2)
    target, shrink = np.array([1.0, -2.0, 1.0]), np.array([1.0, 1e-2, 1e-4])
    targets, sources = np.tile(target, (3, 1)), shrink[:, None] * target
    srel = h.srel_limit(EQ_14_START[None], targets, sources).numpy()
    proximity = h.proximity(targets, sources).numpy()
    np.testing.assert_allclose(
        srel / proximity, srel[0] / proximity[0] / shrink**2, rtol=1e-12
    )
    assert (srel <= h.srel_bound(EQ_14_START[None], targets, sources).numpy()).all()


def test_21_hypothesis_1_2a_for_all_pairs_is_false_counterexample():
    """In the model of eq. 14, no times t₁ < t₂ < t* satisfy the hypothesis for all pairs.

    For x = (1, 0, 1) and the targets e₁ and e₃, S_rel(e₁, x) + S_rel(e₃, x) = 1 at every time. If both were smaller on
    [t₁, t₂] than at all t >= t*, their sum would be smaller too, but it is constant. The pair x' = x, whose S_rel is
    always 1, is another counterexample.
    """
    times = np.linspace(0, 5000, 400)
    source, targets = [1.0, 0.0, 1.0], np.array([[1.0, 0, 0], [0, 0, 1.0]])
    srel = EQ_14.srel(EQ_14_START, times, targets, np.tile(source, (2, 1))).numpy()
    np.testing.assert_allclose(srel.sum(1), 1, rtol=1e-14)
    assert (np.ptp(srel, axis=0) > 0.04).all()  # Both change in time.
    np.testing.assert_allclose(
        EQ_14.srel(EQ_14_START, times, source, source), 1, rtol=1e-15
    )


def test_21_srel_non_decreasing_at_all_later_times_for_all_pairs_is_false_counterexample():
    """For x = (1, 0, 1), x' = (0, 0, 1) in eq. 14, S_rel = w₃²/(w₁² + w₃²) falls at all times after its maximum."""
    times = np.linspace(150, 3000, 300)
    srel = EQ_14.srel(EQ_14_START, times, [0.0, 0.0, 1.0], [1.0, 0.0, 1.0]).numpy()
    assert (np.diff(srel) < 0).all()
    np.testing.assert_allclose(srel[-1], 0.9, atol=1e-5)


def test_21_srel_falls_at_late_times_for_most_random_pairs():
    targets, sources = np.random.default_rng(0).normal(size=(2, 4000, 3))
    srel = EQ_14.srel(
        EQ_14_START, np.linspace(1000, 2000, 30), targets, sources
    ).numpy()
    assert (np.diff(srel, axis=0) < 0).all(0).mean() > 0.5


def figure_11(t):
    target = np.array([-1.0, -11.0, 1.0])
    sources = target + np.sqrt(np.arange(1, 101))[:, None]
    return EQ_14.srel(EQ_14_START, t, np.tile(target, (100, 1)), sources).numpy()[0]


def test_21_figure_11_does_not_decrease_at_its_first_step_counterexample():
    """With the stated θ = 0.001, at t = 500 and at later times, S_rel rises from z = 1 to z = 2 and then falls."""
    for t in (500.0, 2000.0, 1e5):
        srel = figure_11(t)
        assert srel[1] > srel[0] > 1
        assert (np.diff(srel[1:]) < 0).all()


def test_21_srel_can_grow_without_bound_as_the_source_moves_away_counterexample():
    """If the source x = s x' moves from x' towards the origin, the distance grows, and S_rel = 1/s at all times."""
    target, shrink = np.array([-1.0, -11.0, 1.0]), np.array([0.9, 0.5, 0.1, 0.01])
    srel = EQ_14.srel(
        EQ_14_START,
        [0.0, 500.0, 1e4],
        np.tile(target, (4, 1)),
        shrink[:, None] * target,
    ).numpy()
    np.testing.assert_allclose(srel, np.tile(1 / shrink, (3, 1)), rtol=1e-13)


def test_21_iterates_of_figure_13_are_not_within_1e_6_of_the_minimum_counterexample():
    """Neither the flow nor any of 50 SGD runs has ‖w_t − w*‖ < 1e-6 within the plotted 2,000 steps of η = 0.001."""
    w_star = np.array([1.0, 2.0, 3.0])
    flow = EQ_14.weights(EQ_14_START, 2000.0)[0].numpy()
    assert np.linalg.norm(flow - w_star) > 1e-4
    runs = diagonal_sgd(w_star, EQ_14_START, 0.001, 2000, runs=50, seed=0)[-1].numpy()
    assert np.linalg.norm(runs - w_star, axis=1).min() > 1e-6
    times = np.linspace(0, 8000, 8001)
    distance = np.linalg.norm(EQ_14.weights(EQ_14_START, times) - w_star, axis=1)
    assert (
        3000 < times[np.argmax(distance < 1e-6)] < 3500
    )  # The flow needs more than 3,000 steps.


@pytest.mark.parametrize("w0", [[3.0, -5.0, 4.0], [1.0, 2.0, 3.0], [0.0, 1.0, 5.0]])
def test_22_the_range_of_w0_in_theorem_5_2_is_sufficient_not_necessary(w0):
    """Eqs. 13 and 36 also hold for w(0)² > a/b, w(0)² = a/b and w(0) = 0: they agree with Definition 7, integrated."""
    wide = DiagonalQuadratic([1.0, 4.0, 9.0], [1.0, 1.0, 1.0], 0.001, initial="any")
    times = np.array([0.0, 10.0, 200.0, 900.0])
    path = moment_flow(wide.a, np.eye(3), w0, times, 0.001, 2).numpy()
    np.testing.assert_allclose(wide.weights(w0, times), path, rtol=1e-8)
    target, source = np.array([1.0, 1.0, 0.5]), np.array([2.0, 0.1, 0.3])
    naive = np.abs(path**2 @ (target * source)) / (path**2 @ source**2)
    np.testing.assert_allclose(wide.srel(w0, times, target, source), naive, rtol=1e-7)
