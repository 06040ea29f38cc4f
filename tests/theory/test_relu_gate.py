"""Section 4 compared with SciPy and with Definition 1 in mpmath, and its bounds on random instances."""

import mpmath as mp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory import ReLUGate, relu_risk_srel
from srel_tf.theory.exponentials import exponential_sum
from tests.theory.reference import relu_gate_srel_mp


def instance(seed, n=4, spread=1.0):
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(n, 2 * n))
    moment = root @ root.T / (2 * n) + np.diag(np.linspace(0.1, spread, n))
    w_star, w0 = generator.normal(size=(2, n))
    x_source, x_target = generator.normal(size=(2, n)) * generator.choice(
        [0.3, 1.0, 3.0], size=(2, 1)
    )
    return ReLUGate(w_star, moment, beta=1.7), w_star, moment, w0, x_target, x_source


def facing(w_star, x):
    """Return x or −x, whichever has ⟨w*, x⟩ > 0 as Theorem 4.3 assumes."""
    return x if w_star @ x > 0 else -x


def test_weights_solve_definition_5():
    gate, w_star, moment, w0, _, _ = instance(0)
    t = np.linspace(0, 5, 8)
    naive = solve_ivp(
        lambda _, w: 1.7 * moment @ (w_star - w),
        (0, 5),
        w0,
        t_eval=t,
        rtol=1e-11,
        atol=1e-13,
    ).y.T
    np.testing.assert_allclose(
        gate.weights(w0, t).numpy(), naive, rtol=1e-8, atol=1e-10
    )


def test_definition_5_from_the_expectation_itself():
    """The right-hand side of eq. 5, averaged over a sample one example at a time, is dw/dt at t = 0."""
    generator = np.random.default_rng(5)
    w_star, w0, sample = (
        generator.normal(size=3),
        generator.normal(size=3),
        generator.normal(size=(50, 3)),
    )
    moment = np.mean([np.outer(x, x) * (w_star @ x > 0) for x in sample], 0)
    slope = 0.6 * np.mean(
        [(w_star @ x > 0) * (max(0, w_star @ x) - w0 @ x) * x for x in sample], 0
    )
    moved = ReLUGate(w_star, moment, 0.6).weights(w0, 1e-7)[0].numpy() - w0
    np.testing.assert_allclose(moved / 1e-7, slope, rtol=1e-5)


def test_default_moment_is_that_of_symmetric_inputs():
    """x and −x are equally likely under N(0, I), and ⟨w*, ·⟩ > 0 for exactly one of them: M = E[x xᵀ]/2 = I/2."""
    generator = np.random.default_rng(1)
    w_star, half = generator.normal(size=3), generator.normal(size=(40, 3))
    sample = np.concatenate([half, -half])
    moment = np.mean([np.outer(x, x) * (w_star @ x > 0) for x in sample], 0)
    np.testing.assert_allclose(moment, sample.T @ sample / len(sample) / 2, rtol=1e-12)
    np.testing.assert_array_equal(ReLUGate(w_star).second_moment.numpy(), np.eye(3) / 2)


def test_theorem_4_1_start_end_loop_and_restart():
    gate, w_star, _, w0, _, _ = instance(2)
    np.testing.assert_allclose(gate.weights(w0, 0.0)[0].numpy(), w0, rtol=1e-13)
    np.testing.assert_allclose(gate.weights(w0, 1e4)[0].numpy(), w_star, rtol=1e-13)
    t = np.array([0.3, 1.1, 4.0])
    np.testing.assert_allclose(
        gate.weights(w0, t).numpy(),
        [gate.weights(w0, s)[0].numpy() for s in t],
        rtol=1e-13,
    )
    middle = gate.weights(w0, 0.8)[0]
    np.testing.assert_allclose(
        gate.weights(middle, 0.5)[0].numpy(),
        gate.weights(w0, 1.3)[0].numpy(),
        rtol=1e-12,
    )


@pytest.mark.parametrize("eta", [0.01, 0.5])
@pytest.mark.parametrize("seed", range(12))
def test_srel_keeps_its_digits_for_fifty_relaxation_times(seed, eta):
    gate, w_star, moment, w0, x_target, x_source = instance(
        seed, spread=[1.0, 30.0][seed % 2]
    )
    times = np.array([0, 0.1, 1.0, 7.0, 50.0]) / gate.rates.numpy().min()
    ours = gate.srel(w0, times, x_target, x_source, eta).numpy()
    for t, value in zip(times, ours, strict=True):
        truth = relu_gate_srel_mp(w_star, moment, 1.7, w0, t, x_target, x_source, eta)
        if mp.isnan(truth):
            assert np.isnan(value)
        else:
            assert abs(value - truth) <= 1e-10 * truth, (t, value, mp.nstr(truth, 12))


def test_a_small_start_keeps_its_digits_where_the_gate_clips():
    """w* is 10⁸ times as large as w(0): ⟨w*, x⟩ − ⟨w* − w(0), x⟩ would lose half of the digits of ⟨w(0), x⟩."""
    _, w_star, moment, w0, x_target, x_source = instance(4)
    w_star, w0, seen = 1e4 * w_star, 1e-4 * w0, 0
    gate, x_source = ReLUGate(w_star, moment, beta=1.7), facing(w_star, x_source)
    for x in (x_target, -x_target):
        for source in (x_source, x_source + x_target, x_source - x_target):
            for eta in (1e-9, 1e-8):
                truth = relu_gate_srel_mp(w_star, moment, 1.7, w0, 0.0, x, source, eta)
                value = gate.srel(w0, 0.0, x, source, eta).numpy()[0]
                if not mp.isnan(truth):
                    assert abs(value - truth) <= 1e-10 * truth, (
                        value,
                        mp.nstr(truth, 12),
                    )
                    bound = float(ReLUGate.late_lower_bound(x, source))
                    seen += value != 0 and not np.isclose(value, bound)
    assert seen > 0  # Cases in which only a part of the change passes the gate.


def test_clipped_cases_occur_in_the_comparison_above():
    """The instances compared with mpmath include gates that clip; otherwise the comparison would not test clipping."""
    seen = set()
    for seed in range(12):
        gate, _, _, w0, x_target, x_source = instance(
            seed, spread=[1.0, 30.0][seed % 2]
        )
        value = float(gate.srel(w0, 0.1, x_target, x_source, 0.5)[0])
        bound = float(ReLUGate.late_lower_bound(x_target, x_source))
        kinds = {
            "nan": np.isnan(value),
            "zero": value == 0,
            "bound": np.isclose(value, bound),
        }
        seen.add(next((kind for kind, holds in kinds.items() if holds), "part"))
    assert seen == {"nan", "zero", "bound", "part"}


def test_a_mode_that_vanishes_early_does_not_take_srel_with_it():
    """The source has only the faster mode (100 times). At 50 slow relaxation times, its residual is e^{−5000}."""
    gate = ReLUGate([1.0, 1.0], np.diag([1.0, 100.0]))
    srel = gate.srel([0.0, 0.0], [0.0, 1.0, 50.0], [1.0, 2.0], [0.0, 1.0], 1e-3).numpy()
    np.testing.assert_allclose(srel, 2.0, rtol=1e-12)


def test_modes_of_one_rate_keep_their_digits_however_late():
    """Two modes are −2e^{−t/2} and 10e^{−t/2}. At t = 1e20 the logarithms of both are rounded to the same number."""
    w_star, w0, x_target = [1.0, -2.0], [3.0, 3.0], [2.0, -3.0]
    for t in (1e2, 1e10, 1e20, 1e300):
        np.testing.assert_allclose(
            ReLUGate(w_star).srel(w0, t, x_target, w_star, 0.1), [8 / 5], rtol=1e-14
        )
    terms = (
        tf.constant(values, tf.float64)
        for values in ([[-2.0, 10.0]], [0.5, 0.5], [1e12])
    )
    mantissa, logarithm = exponential_sum(*terms)
    np.testing.assert_allclose(
        [mantissa[0, 0], logarithm[0, 0]], [0.8, np.log(10) - 5e11], rtol=1e-15
    )


def test_source_on_the_wrong_side_is_nan():
    gate = ReLUGate([1.0, 0.0])
    assert np.isnan(
        gate.srel([0.3, 0.2], [0.0, 1.0, 99.0], [1.0, 0.0], [-1.0, 0.5], 0.1).numpy()
    ).all()
    orthogonal = gate.srel(
        [1.0, 2.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], 0.1
    ).numpy()  # ⟨w* − w, x⟩ = 0
    assert np.isnan(orthogonal).all()


def test_pairs_batch_like_single_ones():
    gate, _, _, w0, x_target, x_source = instance(3)
    targets, sources, t = (
        np.stack([x_target, x_source]),
        np.stack([x_source, x_source]),
        np.array([0.0, 0.4, 2.0]),
    )
    for method in (gate.srel, gate.change_bound):
        batch = method(w0, t, targets, sources, 0.1).numpy()
        assert batch.shape == (3, 2)
        for p in range(2):
            np.testing.assert_array_equal(
                batch[:, p], method(w0, t, targets[p], sources[p], 0.1).numpy()
            )


def forty_pairs(seed):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(2, 40, 3)) * generator.choice(
        [0.3, 1.0, 3.0], size=(2, 40, 1)
    )


@settings(
    max_examples=25, deadline=None
)  # 25 gates of 40 pairs each: 1,000 instances at three times
@given(seed=st.integers(0, 10**9), log_eta=st.floats(-4, 1))
def test_lemma_4_2_on_random_instances(seed, log_eta):
    gate, w_star, _, w0, _, _ = instance(seed, n=3)
    eta, t, (x_target, x_source) = (
        10**log_eta,
        np.array([0.0, 0.7, 3.0]),
        forty_pairs(seed),
    )
    bound = gate.change_bound(w0, t, x_target, x_source, eta).numpy()
    w = gate.weights(w0, t).numpy()[:, None, :]
    push = (
        eta
        * 1.7
        * (x_source @ w_star > 0)
        * (np.maximum(0, x_source @ w_star) - np.sum(w * x_source, -1))
    )
    after = np.sum((w + push[..., None] * x_source) * x_target, -1)
    change = np.abs(np.maximum(0, after) - np.maximum(0, np.sum(w * x_target, -1)))
    assert (change <= bound * (1 + 1e-9) + 1e-13).all()


def test_lemma_4_2_is_not_vacuous():
    gate, w_star, _, w0, _, _ = instance(1, n=3)
    x_target, x_source = forty_pairs(1)
    x_source = np.array([facing(w_star, x) for x in x_source])
    w = gate.weights(w0, 0.5)[0].numpy()
    push = 0.001 * 1.7 * (x_source @ w_star - x_source @ w)
    change = np.abs(
        np.maximum(0, np.sum((w + push[:, None] * x_source) * x_target, -1))
        - np.maximum(0, x_target @ w)
    )
    ratios = change / gate.change_bound(w0, 0.5, x_target, x_source, 0.001).numpy()[0]
    assert (
        np.mean(np.isclose(ratios, 1, rtol=1e-6)) > 0.25
    )  # The bound is attained if the gate is open at x'.
    assert np.mean(ratios == 0) > 0.25  # The change is zero if the gate is shut.


@settings(max_examples=25, deadline=None)  # 25 gates of 40 pairs each: 1,000 instances
@given(seed=st.integers(0, 10**9), log_eta=st.floats(-4, 1))
def test_theorem_4_3_holds_and_is_attained_after_late_time(seed, log_eta):
    gate, w_star, _, w0, _, _ = instance(seed, n=3)
    x_target, x_source = (
        [facing(w_star, x) for x in points] for points in forty_pairs(seed)
    )
    late = max(0.0, float(np.max(gate.late_time(w0, x_target, x_source, 10**log_eta))))
    times = late * 1.0001 + np.array([1e-6, 1.0, 100.0])
    srel = gate.srel(w0, times, x_target, x_source, 10**log_eta).numpy()
    bound = ReLUGate.late_lower_bound(x_target, x_source).numpy()
    np.testing.assert_allclose(srel, np.tile(bound, (3, 1)), rtol=1e-9)


def test_theorem_4_3_needs_late_times():
    """At early times S_rel can be below the bound. Here it is zero, because the gate is still shut at x'."""
    gate = ReLUGate([1.0, 1.0])
    srel = gate.srel([-3.0, 2.0], [0.0, 20.0], [1.0, 0.1], [0.1, 1.0], 0.01).numpy()
    bound = float(ReLUGate.late_lower_bound([1.0, 0.1], [0.1, 1.0]))
    assert srel[0] == 0 < bound
    np.testing.assert_allclose(srel[1], bound, rtol=1e-12)


def test_differenced_srel_is_right_where_it_says_resolved():
    generator = np.random.default_rng(4)
    w_star, x_target, x_source = (
        np.ones(5),
        generator.uniform(0.5, 1, 5),
        generator.uniform(0.5, 1, 5),
    )
    gaps = 10.0 ** -np.arange(0, 17)
    weights = w_star + gaps[:, None] * generator.normal(size=(17, 5))
    srel, resolved = (
        value.numpy()
        for value in relu_risk_srel(weights, w_star, x_target, x_source, 0.1)
    )
    exact = (x_target @ x_source) / (
        x_source @ x_source
    )  # No ReLU clips, because the weights are near w*.
    assert resolved[:9].all()
    assert not resolved[-3:].any()
    np.testing.assert_allclose(srel[resolved], exact, rtol=3e-3)


def test_differenced_srel_of_a_gate_that_stays_shut_is_an_exact_zero():
    srel, resolved = relu_risk_srel(
        [[1.0, 0.5]], [1.0, 1.0], [-1.0, 0.2], [1.0, 1.0], 1e-3
    )
    assert srel.numpy()[0] == 0
    assert resolved.numpy()[0]


@pytest.mark.parametrize(
    ("moment", "error", "words"),
    [
        (np.diag([1.0, -1.0]), AssumptionError, "positive definite.*-1"),
        (np.diag([1.0, 0.0]), AssumptionError, "positive definite"),
        ([[1.0, 0.5], [0.0, 1.0]], AssumptionError, "symmetric"),
        (np.eye(3), ShapeError, "w_star"),
        (np.ones((3, 2)), ShapeError, "square"),
    ],
)
def test_bad_moments_are_named(moment, error, words):
    with pytest.raises(error, match=words):
        ReLUGate([1.0, 1.0], moment)


def test_bad_questions_are_named():
    gate, x = ReLUGate([1.0, 1.0]), [1.0, 2.0]
    with pytest.raises(ShapeError, match=r"w_star = \[\]"):
        ReLUGate([])
    with pytest.raises(AssumptionError, match="beta"):
        ReLUGate([1.0, 1.0], beta=0.0)
    with pytest.raises(AssumptionError, match="t = -2"):
        gate.srel(x, -2.0, x, x, 0.1)
    with pytest.raises(AssumptionError, match="learning_rate"):
        gate.srel(x, 0.0, x, x, 0.0)
    with pytest.raises(ShapeError, match="x_target"):
        gate.srel(x, 0.0, [x, x], x, 0.1)
    with pytest.raises(ShapeError, match="w0"):
        gate.weights([1.0, 2.0, 3.0], 0.0)
    with pytest.raises(AssumptionError, match=r"Theorem 4\.3"):
        gate.late_time(x, [-1.0, 0.0], x, 0.1)
