"""The ReLU gate at t = 0, where exact zeros must not become rounding errors of the eigenbasis of M."""

import numpy as np

from srel_tf.theory import ReLUGate


def moment(seed):
    """Make a full matrix of second moments, whose eigenvectors are not the coordinate axes."""
    root = np.random.default_rng(seed).normal(size=(3, 6))
    return root @ root.T


def test_a_source_orthogonal_to_the_gap_is_undefined_at_the_start_alone():
    """⟨w* − w(0), x⟩ = 0 exactly, so the update is zero at t = 0. Later w* − w(t) has another direction."""
    w_star, w0, x_source, x_target = (
        [1.0, 2.0, 4.0],
        [3.0, 1.0, 2.0],
        [3.0, 2.0, 2.0],
        [1.0, 0.5, 2.0],
    )
    for seed in range(6):
        gate = ReLUGate(w_star, moment(seed), beta=1.7)
        srel = gate.srel(w0, [0.0, 0.1, 0.0], x_target, x_source, 0.01).numpy()
        np.testing.assert_array_equal(np.isnan(srel), [True, False, True])
        bound = gate.change_bound(w0, [0.0, 0.1], x_target, x_source, 0.01).numpy()
        assert bound[0] == 0 < bound[1]


def test_a_target_with_an_exactly_shut_gate_does_not_move_at_the_start():
    """If ⟨w(0), x'⟩ = 0 and the step makes it negative, S_rel is exactly zero, not a rounding error."""
    w_star, w0, x_source, x_target = (
        [4.0, 0.5, 2.0],
        [1.0, 1.0, -3.0],
        [1.0, 1.0, 1.0],
        [-3.0, 0.0, -1.0],
    )
    for seed in range(6):
        assert (
            ReLUGate(w_star, moment(seed))
            .srel(w0, 0.0, x_target, x_source, 0.1)
            .numpy()[0]
            == 0
        )


def test_the_start_joins_the_times_after_it():
    generator = np.random.default_rng(1)
    w_star, (x_target, x_source) = (
        np.array([1.0, -2.0, 0.5]),
        generator.normal(size=(2, 40, 3)),
    )
    x_source *= np.sign(x_source @ w_star)[:, None]
    w0 = w_star + np.array([0.6, 1.0, 0.4])
    start, after = (
        ReLUGate(w_star, moment(0))
        .srel(w0, [0.0, 1e-300], x_target, x_source, 0.1)
        .numpy()
    )
    assert (start > 0).sum() > 10
    np.testing.assert_allclose(after, start, rtol=1e-12)
