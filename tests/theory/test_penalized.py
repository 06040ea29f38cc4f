"""Section 3 compared with SciPy, finite differences, mpmath and Definition 1 by differences of predictions."""

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from srel_tf.errors import AssumptionError, OptionError, ShapeError
from srel_tf.theory import PenalizedRegression
from tests.theory.reference import ridge_flow_mp, ridge_gradient, ridge_srel_mp

THETA, LAM = 0.3, 0.7


def make(size=7, width=4, classes=3, ridge="paper", lam=LAM, seed=0):
    """Make a model and its data. N, p and K differ, so that a transposed matrix fails."""
    generator = np.random.default_rng(seed)
    features = np.maximum(generator.normal(size=(size, width)), -0.5)
    labels = generator.integers(0, classes, size)
    w0 = generator.normal(size=(classes, width))
    return (
        PenalizedRegression(features, labels, classes, lam, THETA, ridge),
        features,
        labels,
        w0,
    )


@pytest.mark.parametrize("ridge", ["paper", "loss"])
@pytest.mark.parametrize(("size", "width"), [(7, 4), (4, 9)])
def test_weights_solve_definition_4(ridge, size, width):
    model, features, labels, w0 = make(size, width, ridge=ridge)
    c = LAM * (size if ridge == "paper" else 1) / 3
    t = np.linspace(0, 40, 9)

    def velocity(_, w):
        return (
            -(THETA**2)
            * ridge_gradient(features, labels, 3, c, w.reshape(3, width)).ravel()
        )

    naive = solve_ivp(
        velocity, (0, 40), w0.ravel(), t_eval=t, rtol=1e-11, atol=1e-13, method="DOP853"
    ).y.T
    np.testing.assert_allclose(
        model.weights(w0, t).numpy(), naive.reshape(9, 3, width), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("ridge", ["paper", "loss"])
def test_objective_is_what_the_flow_descends(ridge):
    model, _, _, w0 = make(ridge=ridge)
    step, slope = 1e-6, np.zeros_like(w0)
    for index in np.ndindex(*w0.shape):
        change = np.zeros_like(w0)
        change[index] = step
        slope[index] = (
            model.objective(w0 + change) - model.objective(w0 - change)
        ).numpy() / (2 * step)
    short = 1e-6
    velocity = (model.weights(w0, short)[0].numpy() - w0) / short
    np.testing.assert_allclose(velocity, -(THETA**2) * slope, rtol=1e-5, atol=1e-7)


def test_equation_3_by_a_loop():
    model, features, labels, w0 = make()
    naive = sum(
        np.sum((np.eye(3)[k] - w0 @ h) ** 2)
        for h, k in zip(features, labels, strict=True)
    ) / (2 * 7)
    naive += LAM / (2 * 3) * np.sum(w0**2)
    np.testing.assert_allclose(model.loss(w0).numpy(), naive, rtol=1e-13)
    batch = np.stack([w0, 2 * w0, 0 * w0])
    np.testing.assert_allclose(
        model.loss(batch).numpy(), [model.loss(w).numpy() for w in batch], rtol=1e-13
    )


def test_start_end_and_restart():
    model, features, labels, w0 = make(ridge="loss")
    np.testing.assert_allclose(
        model.weights(w0, 0.0)[0].numpy(), w0, rtol=0, atol=1e-14
    )
    moment = features.T @ features / 7 + LAM / 3 * np.eye(4)
    fixed = np.stack(
        [np.linalg.solve(moment, features[labels == q].sum(0) / 7) for q in range(3)]
    )
    np.testing.assert_allclose(
        model.weights(w0, 1e6)[0].numpy(), fixed, rtol=1e-11, atol=1e-14
    )
    np.testing.assert_allclose(
        model.stationary_weights().numpy(), fixed, rtol=1e-11, atol=1e-14
    )
    middle = model.weights(w0, 3.0)[0]
    np.testing.assert_allclose(
        model.weights(middle, 4.5)[0].numpy(),
        model.weights(w0, 7.5)[0].numpy(),
        rtol=1e-12,
    )


def test_short_times_keep_their_digits():
    model, features, labels, _ = make(ridge="loss")
    tiny = 1e-14
    moved = model.weights(np.zeros((3, 4)), tiny)[0].numpy()
    first_order = (
        np.stack([features[labels == q].sum(0) / 7 for q in range(3)]) * THETA**2 * tiny
    )
    np.testing.assert_allclose(moved, first_order, rtol=1e-12)


@pytest.mark.parametrize("ridge", ["paper", "loss"])
@pytest.mark.parametrize("eta", [1e-3, 10.0])
def test_srel_is_definition_1_for_any_step(ridge, eta):
    model, features, labels, w0 = make(ridge=ridge)
    c, t = model.coefficient, 2.5
    w = model.weights(w0, t)[0].numpy()
    for source, target in [(0, 1), (3, 5), (6, 2)]:
        gradient = (
            np.outer(w @ features[source] - np.eye(3)[labels[source]], features[source])
            + c * w
        )
        stepped = w - eta * gradient
        changes = [
            np.linalg.norm(stepped @ features[i] - w @ features[i])
            for i in (target, source)
        ]
        np.testing.assert_allclose(
            model.srel(w0, t, source, target).numpy(),
            [changes[0] / changes[1]],
            rtol=1e-9,
        )


def test_srel_is_equation_4_as_printed():
    model, features, labels, w0 = make()
    n_lambda_over_k, source, target = 7 * LAM / 3, 2, 4
    h, h_target, k = features[source], features[target], labels[source]
    w = model.weights(w0, 1.0)[0].numpy()
    matrix = n_lambda_over_k * np.eye(4) + np.outer(h, h)
    h_tilde = n_lambda_over_k + h @ h
    above = (
        (h_target @ h) ** 2
        - 2 * (h @ h_target) * (matrix @ h_target @ w[k])
        + sum((w @ matrix @ h_target) ** 2)
    )
    below = (
        (h @ h) ** 2
        - 2 * h_tilde * (h @ h) * (h @ w[k])
        + h_tilde**2 * sum((w @ h) ** 2)
    )
    np.testing.assert_allclose(
        model.srel(w0, 1.0, source, target).numpy() ** 2, [above / below], rtol=1e-11
    )


def test_times_pairs_and_starts_batch_like_loops():
    model, _, _, w0 = make()
    starts, t, sources, targets = (
        np.stack([w0, -w0]),
        np.array([0.0, 1.0, 7.0]),
        np.array([0, 5, 2, 2]),
        [1, 0, 2, 6],
    )
    batch = model.srel(starts, t, sources, targets).numpy()
    assert batch.shape == (2, 3, 4)
    for i, j, p in np.ndindex(*batch.shape):
        single = model.srel(starts[i], t[j], sources[p], targets[p]).numpy()
        assert single.shape == (1,)
        np.testing.assert_allclose(batch[i, j, p], single[0], rtol=1e-12)
    weights = model.weights(starts, t).numpy()
    assert weights.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(
        weights[1, 2], model.weights(-w0, 7.0)[0].numpy(), rtol=1e-13
    )


@pytest.mark.parametrize("ridge", ["paper", "loss"])
@pytest.mark.parametrize(
    ("size", "width", "lam"),
    [
        pytest.param(6, 3, 1.0, marks=pytest.mark.slow),
        (3, 5, 1.0),
        pytest.param(3, 5, 1e-7, marks=pytest.mark.slow),
        (6, 3, 1e-7),
        (1, 3, 0.5),
    ],
)
def test_digits_hold_for_fifty_relaxation_times(ridge, size, width, lam):
    model, features, labels, w0 = make(size, width, 2, ridge, lam, seed=3)
    slowest = model.rates.numpy().min()
    target = size - 1
    for t in np.array([0, 1e-3, 1.0, 10.0, 50.0]) / slowest:
        weights = ridge_flow_mp(features, labels, 2, model.coefficient, THETA, w0, t)
        for source, other in [(0, target), (0, 0)]:
            truth = ridge_srel_mp(
                features, labels, model.coefficient, weights, source, other
            )
            ours = model.srel(w0, t, source, other).numpy()[0]
            assert abs(ours / truth - 1) < 1e-10, (
                t,
                source,
                other,
                ours,
                mp.nstr(truth, 15),
            )


def test_identical_examples_stay_defined_though_the_gradient_vanishes():
    features = np.tile([[1.0, -2.0, 0.5]], (3, 1))
    model = PenalizedRegression(features, [0, 0, 0], 2, 1.0, 1.0)
    t = np.array([0.0, 1.0, 50.0, 5000.0]) / model.rates.numpy().max()
    np.testing.assert_allclose(
        model.srel(np.ones((2, 3)), t, 0, 2).numpy(), np.ones(4), rtol=1e-12
    )


def test_a_single_example_stays_defined_however_late():
    """If N = 1, the gradient of the example is that of the mean loss, which is of the order e^{−5000} here."""
    model = PenalizedRegression([[1.0, -2.0, 0.5]], [0], 2, 1.0, 1.0)
    t = np.array([0.0, 50.0, 5000.0]) / model.rates.numpy()[0]
    np.testing.assert_array_equal(model.srel(np.ones((2, 3)), t, 0, 0), 1)


@pytest.mark.parametrize("ridge", ["paper", "loss"])
def test_one_feature_has_one_srel(ridge):
    """If p = 1, eq. 4 is |h'|/|h| for every W and t, even if the gradient is zero or consists of rounding errors only.

    The features are simple numbers, and there are as many examples as classes. Therefore many gradients are zero at the
    start or at the end.
    """
    t, rows = [0.0, 1.0, 10.0, 100.0, 1e4], np.array([0, 0, 1, 1])
    w0 = np.array([[a, b] for a in (0.0, 0.3, 0.5, 1.0) for b in (0.0, 0.5)])[..., None]
    for h in ([1.0, 1.0], [1.0, 3.0], [3.0, -2.0], [2.0, 0.5], [-1.0, 1.0]):
        for labels in ([0, 0], [0, 1], [1, 1]):
            for lam in (0.5, 3.0):
                srel = PenalizedRegression(
                    np.array(h)[:, None], labels, 2, lam, 1.0, ridge
                ).srel(w0, t, rows, [0, 1, 0, 1])
                expected = np.abs([1, h[1] / h[0], h[0] / h[1], 1])
                np.testing.assert_allclose(
                    srel, np.broadcast_to(expected, [8, 5, 4]), rtol=1e-14
                )
    single = PenalizedRegression(
        [[1.0]], [0], 1, 1.0, 1.0, ridge
    )  # N = K = p = 1, with W(0) = W*.
    np.testing.assert_array_equal(single.srel(single.stationary_weights(), t, 0, 0), 1)


def test_equal_examples_of_several_features_late():
    """All gradients tend to zero together. Their factor e^{−θ²μt} decays faster than that of the penalty alone."""
    model = PenalizedRegression(np.ones((2, 2)), [0, 0], 1, 1.0, 1.0)
    t = np.array([0.0, 50.0, 5000.0]) / model.coefficient
    np.testing.assert_array_equal(model.srel([[0.3, 0.7]], t, [0, 0], [0, 1]), 1)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_squares_of_changes_neither_overflow_nor_underflow(scale):
    """S_rel of features s·h, penalty s²λ₁ and weights W/s at time t/s² equals S_rel of h, λ₁ and W at time t."""
    model, features, labels, w0 = make()
    scaled, t = (
        PenalizedRegression(features * scale, labels, 3, LAM * scale**2, THETA),
        np.array([0.0, 1.0]),
    )
    expected = model.srel(w0, t, 1, 4)
    np.testing.assert_allclose(
        scaled.srel(w0 / scale, t / scale**2, 1, 4), expected, rtol=1e-10
    )


def test_features_close_to_zero():
    """Only the penalty matters: the change at x' is c W h', up to a relative difference of the order 1e-160."""
    _, features, labels, w0 = make()
    model = PenalizedRegression(features * 1e-160, labels, 3, LAM, THETA)
    expected = np.linalg.norm(w0 @ features[4]) / np.linalg.norm(w0 @ features[1])
    np.testing.assert_allclose(model.srel(w0, [0.0, 1.0], 1, 4), expected, rtol=1e-12)


def test_unpenalised_srel_is_constant_in_time():
    """Remark at the start of Section 3: for the ℓ2 loss of a linear predictor, S_rel is |⟨h, h'⟩|/‖h‖² at all times."""
    model, features, _, w0 = make(lam=1e-13, ridge="loss")
    constant = abs(features[1] @ features[4]) / (features[1] @ features[1])
    np.testing.assert_allclose(
        model.srel(w0, np.linspace(0, 50, 6), 1, 4).numpy(), constant, rtol=1e-10
    )


def test_no_change_at_the_source_is_nan():
    features = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    model = PenalizedRegression(features, [0, 1, 0], 2, 1.0, 1.0)
    srel = model.srel(np.ones((2, 2)), [0.0, 1.0], [0, 1], [1, 0]).numpy()
    assert np.isnan(srel[:, 0]).all()
    np.testing.assert_array_equal(srel[:, 1], 0.0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"lam": 0.0}, AssumptionError, "positive definite"),
        ({"lam": -1.0}, AssumptionError, "lam = -1"),
        ({"theta": 0.0}, AssumptionError, "theta"),
        ({"ridge": "both"}, OptionError, "'paper', 'loss'"),
        ({"num_classes": 2.5}, ShapeError, "whole number >= 1; given num_classes=2.5"),
        ({"num_classes": 0}, ShapeError, "num_classes=0"),
        ({"num_classes": "two"}, ShapeError, "num_classes='two'"),
        ({"labels": [0, 1]}, ShapeError, "labels"),
        ({"labels": [0, 1, 2]}, ShapeError, "0..1"),
        ({"labels": [0.5, 1, 1]}, ShapeError, "integers"),
        ({"features": [1.0, 2.0, 3.0]}, ShapeError, "features"),
        ({"features": [[1.0, np.nan]] * 3}, AssumptionError, "not finite"),
    ],
)
def test_bad_construction_is_named(change, error, words):
    good = {
        "features": np.ones((3, 2)),
        "labels": [0, 1, 1],
        "num_classes": 2,
        "lam": 1.0,
        "theta": 1.0,
    }
    with pytest.raises(error, match=words):
        PenalizedRegression(**(good | change))


def test_bad_questions_are_named():
    model, _, _, w0 = make()
    with pytest.raises(AssumptionError, match="t = -1"):
        model.weights(w0, [0.0, -1.0])
    with pytest.raises(ShapeError, match="w0"):
        model.weights(w0.T, 0.0)
    with pytest.raises(ShapeError, match="source"):
        model.srel(w0, 0.0, 7, 0)
    with pytest.raises(
        ShapeError, match=r"same shape, but have shapes \(2,\) and \(1,\)"
    ):
        model.srel(w0, 0.0, [0, 1], [0])
    with pytest.raises(ShapeError, match="weights"):
        model.loss(w0[:2])
