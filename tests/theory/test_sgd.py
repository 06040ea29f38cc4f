"""SGD compared with NumPy loops, and with the flows that are its small-step limits."""

import numpy as np
import pytest

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory import (
    DiagonalQuadratic,
    ReLUGate,
    diagonal_sgd,
    diagonal_sgd_srel,
    modified_sgd,
    relu_sgd,
    sgd,
)

STAR, START = np.array([1.0, 2.0, 3.0]), np.array([0.7, -1.4, 2.0])


def algorithm_1(w, x):
    y = max(0.0, STAR @ x)
    return -float(y > 0) * (y - w @ x) * x


def relu_gradient(w, x):
    return -float(w @ x > 0) * (max(0.0, STAR @ x) - max(0.0, w @ x)) * x


def equation_15(w, x):
    return -2 * (x @ (STAR**2 - w**2)) * x * w


CASES = [
    (modified_sgd, algorithm_1),
    (relu_sgd, relu_gradient),
    (diagonal_sgd, equation_15),
]


@pytest.mark.parametrize(("method", "gradient"), CASES)
def test_iterates_are_those_of_a_loop(method, gradient):
    inputs = np.random.default_rng(0).normal(size=(6, 4, 3))
    ours = method(STAR, START, 0.02, 6, inputs=inputs).numpy()
    naive = [START]
    for batch in inputs:
        naive.append(
            naive[-1] - 0.02 * np.mean([gradient(naive[-1], x) for x in batch], 0)
        )
    np.testing.assert_allclose(ours, naive, rtol=1e-12)
    per_run = np.stack([inputs, -2 * inputs], 1)
    runs = method(STAR, START, 0.02, 6, runs=2, inputs=per_run).numpy()
    np.testing.assert_allclose(runs[:, 0], ours, rtol=1e-13)
    np.testing.assert_allclose(
        runs[:, 1], method(STAR, START, 0.02, 6, inputs=-2 * inputs), rtol=1e-13
    )


@pytest.mark.parametrize(("method", "gradient"), CASES)
def test_gradients_are_those_of_the_stated_losses(method, gradient):
    """Compare with finite differences of the loss of one example; for Algorithm 1, of the loss in eq. 8."""
    losses = {
        algorithm_1: lambda w, x: (
            (STAR @ x > 0) * (max(0.0, STAR @ x) - w @ x) ** 2 / 2
        ),
        relu_gradient: lambda w, x: (max(0.0, STAR @ x) - max(0.0, w @ x)) ** 2 / 2,
        equation_15: lambda w, x: (x @ (STAR**2 - w**2)) ** 2 / 2,
    }
    for x in np.random.default_rng(1).normal(size=(8, 3)):
        slope = [
            (losses[gradient](START + e, x) - losses[gradient](START - e, x)) / 2e-6
            for e in 1e-6 * np.eye(3)
        ]
        step = method(STAR, START, 1.0, 1, inputs=x[None, None]).numpy()
        np.testing.assert_allclose(
            step[1] - step[0], -np.array(slope), rtol=1e-6, atol=1e-8
        )


def test_draws_are_repeatable_independent_and_standard_normal():
    one = diagonal_sgd(STAR, START, 0.001, 50, runs=3, seed=7).numpy()
    np.testing.assert_array_equal(
        one, diagonal_sgd(STAR, START, 0.001, 50, runs=3, seed=7)
    )
    assert np.unique(one[-1], axis=0).shape[0] == 3
    assert not np.array_equal(one, diagonal_sgd(STAR, START, 0.001, 50, runs=3, seed=8))
    # The mean step of Algorithm 1 is −η M (w − w*) with M = I/2 under N(0, I). The tolerance is 5 standard errors of
    # 400,000 draws.
    step = modified_sgd(
        STAR, np.tile(START, (4, 1)), 1.0, 1, batch_size=100_000, seed=1
    ).numpy()
    np.testing.assert_allclose(
        (step[1] - step[0]).mean(0), (STAR - START) / 2, atol=5 * 4 / np.sqrt(400_000)
    )


def test_calls_of_one_shape_share_a_trace():
    relu_sgd(STAR, START, 0.01, 3, runs=2)
    count = sgd._scan.experimental_get_tracing_count()
    for seed, steps in ((1, 3), (2, 7)):
        relu_sgd(STAR, 2 * START, 0.02, steps, runs=2, seed=seed)
    assert sgd._scan.experimental_get_tracing_count() == count


def plus_minus(dimension):
    """Return ±√n e_i. The mean of x xᵀ is exactly I, and half of the x have ⟨w*, x⟩ > 0 if w* has no zero entry."""
    return np.sqrt(dimension) * np.concatenate([np.eye(dimension), -np.eye(dimension)])


def endpoint_errors(run, flow, steps=(50, 100, 200, 400)):
    """Return the factors by which the distance of SGD from the flow falls each time the step is halved."""
    errors = [np.linalg.norm(run(count) - flow) for count in steps]
    return np.array(errors[:-1]) / np.array(errors[1:])


def test_algorithm_1_follows_the_flow_and_the_error_halves_with_the_step():
    flow = ReLUGate(STAR).weights(START, 2.0)[0].numpy()
    batch = plus_minus(3)

    def run(count):
        return modified_sgd(
            STAR, START, 2.0 / count, count, inputs=np.tile(batch, (count, 1, 1))
        )[-1].numpy()

    np.testing.assert_allclose(endpoint_errors(run, flow), 2, rtol=0.05)


def test_equation_15_follows_the_flow_and_the_error_halves_with_the_step():
    """One example per step, in a fixed cycle: the noise of this SGD comes only from the order of the examples."""
    flow = DiagonalQuadratic(STAR**2, np.ones(3), 1.0).weights(START, 0.05)[0].numpy()
    batch = plus_minus(3)

    def run(count):
        inputs = np.tile(batch, (count, 1))[:, None, :]
        return diagonal_sgd(STAR, START, 0.05 / (6 * count), 6 * count, inputs=inputs)[
            -1
        ].numpy()

    np.testing.assert_allclose(endpoint_errors(run, flow), 2, rtol=0.05)


def test_random_sgd_scatters_around_the_flow_by_the_root_of_the_step():
    """The root mean square distance of independent runs from the flow at a fixed time falls as √η."""
    flow = (
        DiagonalQuadratic(STAR**2, np.ones(3), 1.0)
        .weights(np.abs(START), 0.1)[0]
        .numpy()
    )
    spread = []
    for count in (100, 400, 1600):
        ends = diagonal_sgd(STAR, np.abs(START), 0.1 / count, count, runs=2000, seed=3)[
            -1
        ].numpy()
        spread.append(np.sqrt(np.mean(np.sum((ends - flow) ** 2, -1))))
    np.testing.assert_allclose(
        np.array(spread[:-1]) / np.array(spread[1:]), 2, rtol=0.15
    )


def test_srel_along_sgd_is_definition_1():
    weights, source, target = (
        np.array([[0.7, 1.4, 2.0], [0.9, 1.9, 2.8]]),
        np.array([0.3, -1.0, 0.5]),
        np.ones(3),
    )
    ours = diagonal_sgd_srel(weights, STAR, target, source, 0.05).numpy()
    for w, value in zip(weights, ours, strict=True):
        stepped = w - 0.05 * equation_15(w, source)
        naive = abs(target @ (stepped**2 - w**2)) / abs(source @ (stepped**2 - w**2))
        np.testing.assert_allclose(value, naive, rtol=1e-10)
    assert np.isnan(diagonal_sgd_srel(STAR, STAR, target, source, 0.05))


def test_bad_input_is_named():
    with pytest.raises(AssumptionError, match="learning_rate"):
        diagonal_sgd(STAR, START, -0.1, 3)
    with pytest.raises(AssumptionError, match="diverged with learning_rate=5"):
        diagonal_sgd(STAR, START, 5.0, 100)
    with pytest.raises(ShapeError, match="2 starts for 3 runs"):
        modified_sgd(STAR, np.stack([START, START]), 0.1, 3, runs=3)
    with pytest.raises(ShapeError, match="inputs"):
        relu_sgd(STAR, START, 0.1, 3, inputs=np.ones((2, 1, 3)))
    with pytest.raises(ShapeError, match="w0"):
        relu_sgd(STAR, START[:2], 0.1, 3)
    with pytest.raises(ShapeError, match="hold 2 runs"):
        relu_sgd(STAR, START, 0.1, 3, inputs=np.ones((3, 2, 1, 3)))
    for count in (
        {"steps": 2.5},
        {"steps": -1},
        {"steps": 3, "runs": 0},
        {"steps": 3, "batch_size": 0},
    ):
        with pytest.raises(ShapeError, match="whole number"):
            relu_sgd(STAR, START, 0.1, **count)
    with pytest.raises(ShapeError, match="must have the same shape"):
        diagonal_sgd_srel(START, STAR, np.ones(2), np.ones(3), 0.1)
