"""Theorem 5.2 compared with SciPy, Definition 7 and mpmath, and the check of its range of w(0)."""

import mpmath as mp
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp

from srel_tf.errors import AssumptionError, OptionError, ShapeError
from srel_tf.theory import DiagonalQuadratic, HomogeneousPredictor, moment_flow
from tests.theory.reference import dot, exact
from train.errata import variants

A, B, THETA = np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 0.5]), 0.01
W0 = np.array([0.5, -1.2, 3.0])
TARGET, SOURCE = np.array([1.0, -0.4, 0.3]), np.array([0.2, 0.7, -1.1])


def model(**options):
    return DiagonalQuadratic(A, B, THETA, **options)


def squares_mp(w0, t):
    values = []
    for a, b, w in zip(exact(A), exact(B), exact(w0), strict=True):
        decay = mp.exp(-4 * mp.mpf(THETA) * a * mp.mpf(float(t)))
        values.append(
            a * w**2 / (a * decay + b * w**2 * (1 - decay))
        )  # Eq. 36, with numerator and denominator multiplied by w(0)².
    return values


def srel_mp(w0, t, eta=None):
    """Compute eq. 13, or Definition 1 by differences of predictions if η is given, with 120 digits."""
    squares, target, source = squares_mp(w0, t), exact(TARGET), exact(SOURCE)
    if eta is None:
        return abs(
            dot([u * v for u, v in zip(target, source, strict=True)], squares)
        ) / dot([v * v for v in source], squares)
    gap = dot(
        source,
        [mp.mpf(a) / mp.mpf(b) - s for a, b, s in zip(A, B, squares, strict=True)],
    )
    w = [mp.sqrt(s) for s in squares]
    stepped = [
        v + 2 * mp.mpf(eta) * gap * b * v for v, b in zip(w, source, strict=True)
    ]
    moved = [p**2 - q**2 for p, q in zip(stepped, w, strict=True)]
    return abs(dot(target, moved) / dot(source, moved))


def test_weights_solve_equation_33():
    t = np.linspace(0, 150, 7)
    velocity = lambda _, w: 2 * THETA * (A - B * w**2) * w  # noqa: E731
    naive = solve_ivp(
        velocity, (0, 150), W0, t_eval=t, rtol=1e-11, atol=1e-13, method="DOP853"
    ).y.T
    np.testing.assert_allclose(model().weights(W0, t), naive, rtol=1e-8)
    assert (np.sign(model().weights(W0, t)) == np.sign(W0)).all()


def test_is_definition_7_of_the_diagonal_predictor():
    """As in the theorem, W = diag(w) ∈ R^{n×n}. The off-diagonal weights stay zero."""
    t = np.array([0.0, 10.0, 60.0])
    moments = np.zeros((3, 3, 3, 3))
    for r in range(3):
        moments[r, r, r, r] = B[r]
    path = moment_flow(np.diag(A), moments, np.diag(W0), t, THETA, 2).numpy()
    np.testing.assert_allclose(
        np.diagonal(path, axis1=1, axis2=2), model().weights(W0, t), rtol=1e-8
    )
    np.testing.assert_array_equal(
        path - np.stack([np.diag(np.diag(w)) for w in path]), 0
    )
    h = HomogeneousPredictor(
        lambda x: 0 * x[:, 0], lambda x: x[:, :, None] * np.eye(3), 2
    )
    np.testing.assert_allclose(
        h.srel_limit(path, TARGET, SOURCE),
        model().srel(W0, t, TARGET, SOURCE),
        rtol=1e-7,
    )


def test_start_end_loop_and_restart():
    m, t = model(), np.array([0.0, 3.0, 11.0])
    np.testing.assert_allclose(m.weights(W0, 0.0)[0], W0, rtol=1e-15)
    np.testing.assert_allclose(m.squares(W0, 1e6)[0], A / B, rtol=1e-15)
    np.testing.assert_allclose(
        m.weights(W0, t), [m.weights(W0, s)[0] for s in t], rtol=1e-15
    )
    np.testing.assert_allclose(
        m.weights(m.weights(W0, 4.0)[0], 7.0)[0], m.weights(W0, 11.0)[0], rtol=1e-13
    )


def test_digits_hold_for_fifty_relaxation_times():
    times = np.array([0, 1e-3, 1, 10, 50.0]) / model().rates.numpy().min()
    limit = model().srel(W0, times, TARGET, SOURCE).numpy()
    finite = model().srel_finite(W0, times, TARGET, SOURCE, 0.05).numpy()
    residual = model().residual(W0, times, SOURCE).numpy()
    for i, t in enumerate(times):
        squares = squares_mp(W0, t)
        assert abs(limit[i] / srel_mp(W0, t) - 1) < 1e-12
        gap = dot(
            exact(SOURCE),
            [mp.mpf(a) / mp.mpf(b) - s for a, b, s in zip(A, B, squares, strict=True)],
        )
        assert abs(residual[i] / gap - 1) < 1e-10
        assert abs(finite[i] / srel_mp(W0, t, 0.05) - 1) < 1e-10


@pytest.mark.parametrize(
    "w0",
    [[0.0, -1.2, 3.0], [0.5, 0.0, 0.0], [0.0, 1e-170, 0.3], [1e-170, 3e-170, -2e-170]],
)
def test_weights_that_start_at_zero_or_close_to_it(w0):
    """Zero is a fixed point of eq. 33. At the latest times, e^{−4θat} and its square root both underflow."""
    m, times = model(initial="any"), np.array([0.0, 1.0, 1e3, 3e4, 1e6])
    weights, squares = m.weights(w0, times).numpy(), m.squares(w0, times).numpy()
    limit, finite = (
        m.srel(w0, times, TARGET, SOURCE).numpy(),
        m.srel_finite(w0, times, TARGET, SOURCE, 1e-3).numpy(),
    )
    residual = m.residual(w0, times, SOURCE).numpy()
    with mp.workdps(400):
        for i, t in enumerate(times):
            truth = squares_mp(w0, t)
            np.testing.assert_allclose(
                squares[i], np.array(truth, float), rtol=1e-12, atol=1e-300
            )
            np.testing.assert_allclose(
                weights[i], np.sign(w0) * [float(mp.sqrt(s)) for s in truth], rtol=1e-12
            )
            gap = dot(
                exact(SOURCE),
                [
                    mp.mpf(a) / mp.mpf(b) - s
                    for a, b, s in zip(A, B, truth, strict=True)
                ],
            )
            np.testing.assert_allclose(residual[i], float(gap), rtol=1e-10, atol=1e-300)
            assert abs(limit[i] / srel_mp(w0, t) - 1) < 1e-12
            if (
                abs(gap) > 1e-300
            ):  # For a smaller gap, 400 digits are not enough for the differences of Definition 1.
                assert abs(finite[i] / srel_mp(w0, t, 1e-3) - 1) < 1e-10


def test_a_zero_weight_beside_another_one_late():
    """If w(0) = (0, 0.5), only w₂ moves: S_rel is β₂(x')/β₂(x) at all times, in the limit and for every step."""
    m, t = (
        DiagonalQuadratic([1.0, 2.0], [1.0, 1.0], 1.0, initial="any"),
        [0.0, 1.0, 1e3, 1e6, 1e300],
    )
    np.testing.assert_allclose(
        m.srel([0.0, 0.5], t, [1.0, 3.0], [2.0, 1.0]), 3, rtol=1e-15
    )
    np.testing.assert_allclose(
        m.srel_finite([0.0, 0.5], t, [1.0, 3.0], [2.0, 1.0], 0.1), 3, rtol=1e-15
    )
    np.testing.assert_allclose(
        m.residual([0.0, 0.5], t[2:], [2.0, 1.0]), 2, rtol=1e-15
    )  # β₁ a₁/b₁ of the weight that stays 0.
    assert np.isnan(
        m.srel([0.0, 0.0], t, [1.0, 3.0], [2.0, 1.0])
    ).all()  # Nothing moves.
    assert np.isnan(m.srel_finite([0.0, 0.0], t, [1.0, 3.0], [2.0, 1.0], 0.1)).all()


def test_squares_of_the_weights_that_count_may_underflow():
    """The feature of the large weight is zero at the source: S_rel is β₁(x')/β₁(x) for every w₁ > 0."""
    w0, t = [1e-200, 0.5], [0.0, 1.0, 600.0, 1e4]
    target, source = [3.0, 7.0], [2.0, 0.0]
    m = DiagonalQuadratic([1.0, 2.0], [1.0, 1.0], 0.5)
    expected = np.full(4, 1.5)
    np.testing.assert_allclose(m.srel(w0, t, target, source), expected, rtol=1e-14)
    np.testing.assert_allclose(
        m.srel_finite(w0, t[:2], target, source, 0.1), expected[:2], rtol=1e-14
    )
    for degree in (2, 3, 4):
        cubic = HomogeneousPredictor(
            lambda x: tf.zeros(len(x), tf.float64), lambda x: x[:, None], degree
        )
        arguments = [w0], [target, [0.0, 5.0]], [source, [0.0, 4.0]]
        np.testing.assert_allclose(
            cubic.srel_limit(*arguments), [1.5, 1.25], rtol=1e-14
        )
        found = cubic.srel(*arguments, 0.1, residual=[1.0, 1e-8])
        np.testing.assert_allclose(found, [1.5, 1.25], rtol=1e-6)


def test_residual_that_underflows_does_not_take_srel_with_it():
    """Only the fastest feature is nonzero at the source, so the residual underflows to 0 at late times."""
    t = 400.0 / model().rates.numpy().min()
    source = [0.0, 0.0, 1.0]
    assert model().residual(W0, t, source).numpy()[0] == 0
    np.testing.assert_allclose(
        model().srel_finite(W0, t, TARGET, source, 0.1), [0.3], rtol=1e-14
    )


def test_equation_14_is_equation_13_up_to_the_sign():
    m, w0 = (
        DiagonalQuadratic([1.0, 4.0, 9.0], [1.0, 1.0, 1.0], 0.001),
        [np.sqrt(0.5), np.sqrt(2), 2.0],
    )
    t = np.array([0.0, 100.0, 800.0])
    e1, e2, e3 = np.exp(-0.004 * t), np.exp(-0.016 * t), np.exp(-0.036 * t)
    weights = np.stack(
        [1 / (1 + e1), 1 / (0.25 + 0.25 * e2), 1 / (1 / 9 + 5 / 36 * e3)], 1
    )
    printed = weights @ (TARGET * SOURCE) / (weights @ SOURCE**2)
    np.testing.assert_allclose(
        variants.printed_eq_14(m, w0, t, TARGET, SOURCE), printed, rtol=1e-13
    )
    np.testing.assert_allclose(
        m.srel(w0, t, TARGET, SOURCE), np.abs(printed), rtol=1e-13
    )
    assert (printed < 0).all()


def test_pairs_batch_like_single_ones():
    targets, sources, t = (
        np.stack([TARGET, SOURCE]),
        np.stack([SOURCE, TARGET]),
        np.array([0.0, 5.0, 50.0]),
    )
    for method in (model().srel, lambda *a: model().srel_finite(*a, 0.1)):
        batch = method(W0, t, targets, sources).numpy()
        assert batch.shape == (3, 2)
        np.testing.assert_allclose(
            batch[:, 1], method(W0, t, SOURCE, TARGET), rtol=1e-14
        )


def test_formulas_can_be_traced():
    t, pair = np.array([0.0, 5.0]), (TARGET, SOURCE)
    m = model()
    np.testing.assert_allclose(
        tf.function(m.weights)(tf.constant(W0), tf.constant(t)),
        m.weights(W0, t),
        rtol=1e-14,
    )
    traced = tf.function(lambda w0, times: m.srel(w0, times, *pair))
    np.testing.assert_allclose(
        traced(tf.constant(W0), tf.constant(t)), m.srel(W0, t, *pair), rtol=1e-14
    )


@pytest.mark.parametrize("w0", [[0.5, 0.0, 3.0], [0.5, 1.2, 4.25], [0.5, -1.5, 3.0]])
def test_range_of_theorem_5_2_is_checked(w0):
    with pytest.raises(
        AssumptionError, match=r"w_r\(0\)² in \(0, a_r/b_r\): w_\d\(0\)² = "
    ):
        model().weights(w0, 1.0)


def test_bad_input_is_named():
    with pytest.raises(AssumptionError, match=r"a_r > 0.*-4"):
        DiagonalQuadratic([1.0, -4.0], [1.0, 1.0], 1.0)
    with pytest.raises(AssumptionError, match="b_r > 0"):
        DiagonalQuadratic([1.0, 4.0], [1.0, 0.0], 1.0)
    with pytest.raises(ShapeError, match="theta must be one number; given 'x'"):
        DiagonalQuadratic([1.0], [1.0], "x")
    with pytest.raises(AssumptionError, match="theta"):
        DiagonalQuadratic([1.0], [1.0], -1.0)
    with pytest.raises(ShapeError, match="a and b must have the same shape"):
        DiagonalQuadratic([1.0, 2.0], [1.0], 1.0)
    with pytest.raises(ShapeError, match=r"at least one feature; given a = b = \[\]"):
        DiagonalQuadratic([], [], 1.0)
    with pytest.raises(OptionError, match="initial"):
        model(initial="all")
    with pytest.raises(ShapeError, match="beta_source"):
        model().srel(W0, 0.0, [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(AssumptionError, match=r"t = -0\.5"):
        model().srel(W0, [-0.5], TARGET, SOURCE)


def test_source_without_change_is_nan():
    assert np.isnan(model().srel(W0, [0.0, 9.0], TARGET, np.zeros(3))).all()
    at_rest = DiagonalQuadratic(
        [1.0, 4.0], [1.0, 4.0], 1.0, initial="any"
    )  # With w(0) = w*, the residual is zero at every x.
    assert np.isnan(
        at_rest.srel_finite([1.0, -1.0], [0.0, 9.0], [1.0, 2.0], [1.0, 1.0], 0.1)
    ).all()
