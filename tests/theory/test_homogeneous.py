"""Section 5 for any degree: Definition 6 by loops, finite steps by autodiff and mpmath, Theorem 5.1, Definition 7."""

import mpmath as mp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory import HomogeneousPredictor, moment_flow
from tests.theory.reference import dot, exact

ROWS, WIDTH, INPUTS = 2, 3, 4
MIX = np.random.default_rng(8).normal(size=(ROWS, WIDTH, INPUTS))


def alpha(x):
    return tf.reduce_sum(x**2, -1)


def beta(x):
    return tf.sin(tf.einsum("rni,bi->brn", MIX, x))


def predictor(degree):
    return HomogeneousPredictor(alpha, beta, degree)


def draw(seed, batch=5):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(ROWS, WIDTH))
    return (
        weights,
        generator.normal(size=(batch, INPUTS)),
        generator.normal(size=(batch, INPUTS)),
    )


def naive_value(weights, x, degree):
    total = np.sum(x**2)
    for r in range(ROWS):
        for i in range(WIDTH):
            total += np.sin(MIX[r, i] @ x) * weights[r, i] ** degree
    return total


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_definition_6_by_loops(degree):
    weights, x, _ = draw(0)
    np.testing.assert_allclose(
        predictor(degree)(weights, x),
        [naive_value(weights, v, degree) for v in x],
        rtol=1e-12,
    )
    over_time = np.stack([weights, 2 * weights])
    assert predictor(degree)(over_time, x).shape == (2, 5)
    np.testing.assert_allclose(
        predictor(degree)(over_time, x[3])[0],
        naive_value(weights, x[3], degree),
        rtol=1e-12,
    )


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("eta", [1e-3, 0.3])
def test_finite_step_is_definition_1_with_autodiff(degree, eta):
    weights, x_target, x_source = draw(1)
    h, labels = predictor(degree), np.linspace(-2, 2, 5)
    ours = h.srel(weights, x_target, x_source, eta, label=labels).numpy()
    for i in range(5):
        variable = tf.Variable(weights)
        with tf.GradientTape() as tape:
            loss = (labels[i] - h(variable, x_source[i])) ** 2 / 2
        stepped = weights - eta * tape.gradient(loss, variable).numpy()
        after = [naive_value(stepped, x[i], degree) for x in (x_target, x_source)]
        before = [naive_value(weights, x[i], degree) for x in (x_target, x_source)]
        np.testing.assert_allclose(
            ours[i], abs((after[0] - before[0]) / (after[1] - before[1])), rtol=1e-8
        )


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_finite_step_keeps_its_digits_when_the_residual_vanishes(degree):
    weights, x_target, x_source = (
        v[0] if v.ndim == 2 and len(v) == 5 else v for v in draw(2)
    )
    for residual in (1e-3, 1e-22, 1e-60):
        ours = float(
            predictor(degree).srel(weights, x_target, x_source, 0.1, residual=residual)
        )
        target, source = (
            exact(beta(x[None])[0].numpy().ravel()) for x in (x_target, x_source)
        )
        flat = exact(weights.ravel())
        scale = mp.mpf(0.1) * degree * mp.mpf(residual)
        step = [
            scale * s * w ** (degree - 1) for s, w in zip(source, flat, strict=True)
        ]
        moved = [(w + g) ** degree - w**degree for w, g in zip(flat, step, strict=True)]
        assert abs(ours / abs(dot(target, moved) / dot(source, moved)) - 1) < 1e-12


@pytest.mark.parametrize("degree", [2, 3])
def test_limit_is_approached_in_proportion_to_the_step(degree):
    weights, x_target, x_source = draw(3)
    h, steps = predictor(degree), np.array([1e-4, 5e-5, 2.5e-5])
    limit = h.srel_limit(weights, x_target, x_source).numpy()
    gaps = [
        np.abs(h.srel(weights, x_target, x_source, s, label=np.ones(5)).numpy() - limit)
        for s in steps
    ]
    np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.02)
    np.testing.assert_allclose(gaps[1] / gaps[2], 2, rtol=0.02)


def test_degree_one_is_constant_in_the_weights():
    weights, x_target, x_source = draw(4)
    h = predictor(1)
    limit = h.srel_limit(weights, x_target, x_source).numpy()
    np.testing.assert_array_equal(
        limit, h.srel_limit(7 - weights, x_target, x_source).numpy()
    )
    np.testing.assert_allclose(
        limit,
        h.srel(weights, x_target, x_source, 9.0, label=np.ones(5)).numpy(),
        rtol=1e-13,
    )


@settings(max_examples=25, deadline=None)  # 25 draws of 40 pairs each: 1,000 instances
@given(seed=st.integers(0, 10**9), degree=st.integers(1, 4))
def test_theorem_5_1_on_random_instances(seed, degree):
    weights, x_target, x_source = draw(seed, 40)
    h = predictor(degree)
    limit, bound = (
        f(weights, x_target, x_source).numpy() for f in (h.srel_limit, h.srel_bound)
    )
    assert (limit <= bound * (1 + 1e-12)).all()
    assert (
        np.median(bound / limit) < 20
    )  # The bound is not vacuous: for most pairs it is below 20 S_rel.


def test_theorem_5_1_is_attained_when_one_feature_row_is_parallel_to_its_weights():
    """With one row of one entry, the Cauchy–Schwarz inequality is an equality, and S_rel equals the bound."""
    h = HomogeneousPredictor(lambda x: 0 * x[:, 0], lambda x: x[:, None, :], 2)
    arguments = [[3.0]], [2.0], [0.5]
    np.testing.assert_allclose(
        h.srel_bound([[1.7]], *arguments[1:]),
        h.srel_limit([[1.7]], *arguments[1:]),
        rtol=1e-14,
    )
    np.testing.assert_allclose(h.srel_limit([[1.7]], *arguments[1:]), 4.0, rtol=1e-14)


def test_proximity_by_a_loop_and_symmetric():
    _, x_target, x_source = draw(6)
    naive = []
    for u, v in zip(x_target, x_source, strict=True):
        naive.append(
            max(
                np.linalg.norm(np.sin(MIX[r] @ u) * np.sin(MIX[r] @ v))
                for r in range(ROWS)
            )
        )
    ours = predictor(2).proximity(x_target, x_source)
    np.testing.assert_allclose(ours, naive, rtol=1e-12)
    np.testing.assert_array_equal(ours, predictor(2).proximity(x_source, x_target))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_definition_7_descends_the_mean_loss(degree):
    """dw/dt is −θ times the autodiff gradient of the mean of eq. 10, and a flow can be restarted at a later time."""
    weights, x, _ = draw(7)
    weights, y, h = weights / 2, np.linspace(0, 3, 5), predictor(degree)
    variable = tf.Variable(weights)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((y - h(variable, x)) ** 2) / 2
    short = 1e-6
    slope = (h.flow(weights, [short], x, y, theta=0.4)[0].numpy() - weights) / short
    np.testing.assert_allclose(
        slope, -0.4 * tape.gradient(loss, variable).numpy(), rtol=1e-4, atol=1e-6
    )
    path = h.flow(weights, [0.0, 1.0, 3.0], x, y, theta=0.4)
    np.testing.assert_array_equal(path[0], weights)
    np.testing.assert_allclose(
        h.flow(path[1], [2.0], x, y, 0.4)[0], path[2], rtol=1e-7, atol=1e-9
    )
    losses = [float(tf.reduce_mean((y - h(w, x)) ** 2)) for w in path]
    assert losses[0] > losses[1] > losses[2]


def test_definition_7_with_degree_one_is_a_matrix_exponential():
    generator = np.random.default_rng(9)
    root, a, w0 = (
        generator.normal(size=(3, 3)),
        generator.normal(size=3),
        generator.normal(size=3),
    )
    b, t = root @ root.T + np.eye(3), np.array([0.0, 0.5, 2.0])
    fixed = np.linalg.solve(b, a)
    naive = [expm(-0.3 * b * s) @ (w0 - fixed) + fixed for s in t]
    np.testing.assert_allclose(moment_flow(a, b, w0, t, 0.3, 1), naive, rtol=1e-8)


def test_flow_over_features_is_the_flow_over_their_moments():
    weights, x, _ = draw(7)
    h, y, t = predictor(2), np.linspace(0, 3, 5), [0.5, 2.0]
    through_moments = moment_flow(*h.moments(x, y), weights / 2, t, 0.4, 2)
    np.testing.assert_allclose(
        h.flow(weights / 2, t, x, y, 0.4), through_moments, rtol=1e-8
    )


def test_bad_input_is_named():
    weights, x, other = draw(0)
    for degree in (0, 1.5, -1, True, None, "2", np.nan, np.inf):
        with pytest.raises(AssumptionError, match="degree"):
            HomogeneousPredictor(alpha, beta, degree)
        with pytest.raises(AssumptionError, match="degree"):
            moment_flow([1.0], [[1.0]], [-0.5], [1.0], 1.0, degree)
    for b, words in (
        ([[1.0, 2.0], [2.0, 1.0]], "semidefinite.*-1"),
        ([[1.0, 0.5], [0.0, 1.0]], "symmetric"),
    ):
        with pytest.raises(AssumptionError, match=words):
            moment_flow([1.0, 1.0], b, [0.5, 0.4], [1.0], 1.0, 2)
    h = predictor(2)
    with pytest.raises(ShapeError, match="weights"):
        h(weights.T, x)
    with pytest.raises(ShapeError, match="pair up"):
        h.srel_limit(weights, x, other[:2])
    with pytest.raises(ShapeError, match="label"):
        h.srel(weights, x, other, 0.1)
    for label in (np.ones((5, 1)), np.ones(3)):
        with pytest.raises(ShapeError, match="label"):
            h.srel(weights, x, other, 0.1, label=label)
        with pytest.raises(ShapeError, match="residual"):
            h.srel(weights, x, other, 0.1, residual=label)
    with pytest.raises(ShapeError, match="y must hold 5"):
        h.flow(weights, [1.0], x, np.ones(3), 1.0)
    with pytest.raises(AssumptionError, match="ascend"):
        h.flow(weights, [1.0, 0.5], x, np.ones(5), 1.0)
    with pytest.raises(ShapeError, match=r"alpha\(x\)"):
        HomogeneousPredictor(lambda x: x, beta, 2)(weights, x)


def test_powers_of_small_weights_do_not_underflow():
    """Eq. 31 and Theorem 5.1 are ratios of equal powers of the weights, so the scale of the weights cancels."""
    predictor = HomogeneousPredictor(
        lambda x: tf.zeros(len(x), tf.float64), lambda x: x[:, None, :], degree=3
    )
    weights, target, source = np.array([[1.0, -2.0]]), [1.0, 2.0], [2.0, -1.0]
    for method in (predictor.srel_limit, predictor.srel_bound):
        small, expected = (
            method(weights * 1e-100, target, source),
            method(weights, target, source),
        )
        np.testing.assert_allclose(small, expected, rtol=1e-14)
        assert np.isnan(method(weights * 0, target, source))


def test_zero_denominator_is_nan():
    h = predictor(2)
    _, x_target, x_source = draw(1)
    assert np.isnan(h.srel_limit(np.zeros((ROWS, WIDTH)), x_target, x_source)).all()
    weights = draw(1)[0]
    assert np.isnan(
        h.srel(weights, x_target, x_source, 0.1, residual=np.zeros(5))
    ).all()
