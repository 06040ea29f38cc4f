"""Statements of the paper's Sections 3 and 4 and of its published scripts, checked on the closed forms.

Each test is named after a statement. Tests with "counterexample" or "is_false" in their name show that a statement does
not hold. A number in the name is an item of the list of errata (`train/errata/items.csv`).
"""

import mpmath as mp
import numpy as np
import pytest
import tensorflow as tf

from srel_tf.theory import (
    PenalizedRegression,
    ReLUGate,
    average_pairs,
    random_relu_features,
    relu_risk_srel,
    relu_sgd,
    sample_pairs,
)
from train.errata import variants


def section_3(ridge="paper", per_class=1000, width=10):
    features, labels = random_relu_features(width, per_class=per_class)
    return PenalizedRegression(features, labels, 2, 1.0, 0.001, ridge), features, labels


# --- Section 3 -------------------------------------------------------------------------------------------------


def test_10_gradient_of_equation_3_has_lambda_over_k_not_n_lambda_over_k():
    model, features, labels = section_3()
    weights = tf.Variable(np.random.default_rng(0).normal(size=(2, 10)))
    with tf.GradientTape() as tape:
        loss = model.loss(weights)
    errors = features @ weights.numpy().T - np.eye(2)[labels]
    penalty = tape.gradient(loss, weights).numpy() - errors.T @ features / 2000
    np.testing.assert_allclose(penalty, weights.numpy() * 1.0 / 2, rtol=1e-6, atol=1e-9)
    assert model.coefficient == 1000.0  # As in the printed M, T and h̃.
    assert section_3("loss")[0].coefficient == 0.5
    assert model.coefficient / section_3("loss")[0].coefficient == 2000


def test_10_the_choice_of_the_ridge_changes_srel():
    start, times = np.random.default_rng(1).normal(size=(2, 10)), [0.0, 1000.0, 8000.0]
    paper, loss = (
        section_3(ridge)[0].srel(start, times, 0, 1500).numpy()
        for ridge in ("paper", "loss")
    )
    assert (np.abs(paper / loss - 1) > 1e-3).all()


def test_11_published_numerator_makes_srel_of_a_point_with_itself_differ_from_one():
    model, features, labels = section_3(per_class=20)
    w0, i = np.random.default_rng(1).normal(size=(2, 10)), 3
    np.testing.assert_allclose(model.srel(w0, [0.0, 500.0], i, i), 1, rtol=1e-14)
    published = variants.published_srel(model, w0, [0.0, 500.0], [i], [i])[:, 0]
    assert (np.abs(published - 1) > 0.05).all()
    w, h, c = w0, features[i], model.coefficient
    moved = (
        -np.eye(2)[labels[i]] * (h @ h) + w @ (c * np.eye(10) + np.outer(h, h) / 40) @ h
    )
    theorem = (
        -np.eye(2)[labels[i]] * (h @ h) + w @ (c * np.eye(10) + np.outer(h, h)) @ h
    )
    np.testing.assert_allclose(
        published[0], np.linalg.norm(moved) / np.linalg.norm(theorem), rtol=1e-10
    )


@pytest.mark.parametrize("width", [10, 100])
@pytest.mark.parametrize("ridge", ["paper", "loss"])
def test_11_the_rise_of_srel_in_the_published_figures_comes_from_the_stray_one_over_n(
    width, ridge
):
    """On the published data and pairs, S_rel rises until t = 8000 only with the published numerator of eq. 4."""
    features, labels = variants.published_features(width)
    pairs = variants.published_pairs(labels, seed=1)
    w0 = np.random.default_rng(2).normal(size=(10, 2, width))
    model = PenalizedRegression(features, labels, 2, 1.0, 0.001, ridge)
    theorem = model.srel(w0, [0.0, 8000.0], *pairs).numpy().mean((0, 2))
    published = variants.published_srel(model, w0, [0.0, 8000.0], *pairs).mean((0, 2))
    assert 0.8 < theorem[1] / theorem[0] < 1.25
    assert published[1] / published[0] > 10


def test_late_srel_above_early_srel_in_figure_6_is_false_for_equation_4_counterexample():
    """Section 3.1 concludes from Figures 6–9 that S_rel is larger late than in most of an initial phase.

    With eq. 4 and the stated set-up (p = 10, inter-class), the mean S_rel starts at 4.4, which is above 99% of its
    values from t = 500 on. It ends at 2.9.
    """
    features, labels = random_relu_features(10)
    source, target = sample_pairs(labels, "inter", 20, seed=1)
    w0 = np.random.default_rng(2).normal(size=(10, 2, 10))
    model = PenalizedRegression(features, labels, 2, 1.0, 0.001)
    early = model.srel(w0, np.arange(0.0, 50), source, target).numpy().mean((0, 2))
    late = (
        model.srel(w0, np.arange(500.0, 8001, 10), source, target).numpy().mean((0, 2))
    )
    assert early.min() > np.quantile(late, 0.99)
    assert early[0] > 1.4 * late[-1]


def test_12_published_average_is_twenty_times_too_small():
    srel = np.random.default_rng(0).uniform(size=(4, 20))
    np.testing.assert_allclose(
        average_pairs(srel), [sum(row) / 20 for row in srel], rtol=1e-14
    )
    np.testing.assert_allclose(
        variants.published_average(srel), [sum(row) / 400 for row in srel], rtol=1e-14
    )


def test_13_variance_two_and_deviation_two_are_different_data():
    """Recover the inputs of the first class from the features by least squares: their variance is 2, or 2² = 4."""
    recovered = []
    for sample in (random_relu_features, variants.published_features):
        features, labels = sample(400, dimension=20, per_class=500, seed=2)
        mixing = np.random.default_rng(2).normal(size=(400, 20))
        open_gates = features[labels == 0][0] > 0
        inputs = [
            np.linalg.lstsq(mixing[open_gates], h[open_gates], rcond=None)[0]
            for h in features[labels == 0][:1]
        ]
        for h in features[labels == 0][1:]:
            inputs.append(np.linalg.lstsq(mixing[h > 0], h[h > 0], rcond=None)[0])
        recovered.append(np.var(inputs))
        assert abs(np.mean(inputs) - 1) < 0.1
    np.testing.assert_allclose(recovered, [2, 4], rtol=0.05)


def test_13_14_pairs_of_the_text_and_of_the_published_scripts():
    labels = np.repeat([0, 1], 50)
    for pairs, source_label, target_label in (
        (sample_pairs(labels, "inter", 20, seed=3), 0, 1),
        (sample_pairs(labels, "intra", 20, seed=3), 0, 0),
        (variants.published_pairs(labels, 20, seed=3), 1, 0),
    ):
        source, target = pairs
        assert (labels[source] == source_label).all()
        assert (labels[target] == target_label).all()
        assert len(set(source)) == len(set(target)) == 20
        assert not set(source) & set(target)


def test_15_published_loss_sums_the_error_to_both_labels_and_is_not_equation_3():
    model, features, _ = section_3(per_class=20)
    w = np.random.default_rng(0).normal(size=(2, 10))
    naive = (
        sum(np.sum((np.eye(2)[k] - w @ h) ** 2) for h in features for k in (0, 1)) / 80
        + np.sum(w**2) / 4
    )
    published = variants.published_loss(model, w)
    np.testing.assert_allclose(published, naive, rtol=1e-12)
    assert abs(published / float(model.loss(w)) - 1) > 0.5


# --- Section 4 -------------------------------------------------------------------------------------------------


def test_19_theorem_4_3_is_attained_exactly_at_all_times_if_no_gate_shuts():
    """With open gates, S_rel of the flow equals the bound at all times. It is constant, so it has no two phases."""
    gate = ReLUGate(np.ones(10))
    x, x_target, times = np.full(10, 10.0), np.full(10, 14.0), np.linspace(0, 100, 50)
    srel = gate.srel(np.full(10, 0.5), times, x_target, x, 1e-4).numpy()
    np.testing.assert_allclose(
        srel, float(ReLUGate.late_lower_bound(x_target, x)), rtol=1e-13
    )


def test_19_fluctuation_of_figure_10_at_convergence_is_rounding():
    """If no gate is shut, S_rel is 1.4 at every iterate. Computed by differences, it scatters once w* is reached."""
    w_star, x, x_target = np.ones(10), np.full(10, 10.0), np.full(10, 14.0)
    path = relu_sgd(w_star, np.full(10, 0.5), 0.05, 3000, batch_size=32, seed=0)
    srel, resolved = (
        value.numpy() for value in relu_risk_srel(path, w_star, x_target, x, 1e-4)
    )
    assert resolved[:100].all()
    np.testing.assert_allclose(srel[resolved], 1.4, rtol=2e-3)
    late = srel[2500:]
    assert not resolved[2500:].any()
    assert np.isnan(late).any() or np.abs(late / 1.4 - 1).max() > 0.05
    with mp.workdps(
        60
    ):  # At an unresolved iterate, the same definition with 60 digits gives 1.4.
        w = [mp.mpf(float(v)) for v in path[1500]]
        error = 10 * (mp.mpf(10) - mp.fsum(w))
        stepped = [v + mp.mpf("1e-4") * error * 10 for v in w]
        exact = (14 * mp.fsum(stepped) - 14 * mp.fsum(w)) / (
            10 * mp.fsum(stepped) - 10 * mp.fsum(w)
        )
        assert abs(exact - mp.mpf("1.4")) < 1e-30


@pytest.mark.parametrize("eta", [1e-4, 1.0])
def test_20_with_that_target_srel_is_1_4_whatever_the_weights_are(eta):
    """For x' = 1.4 x, f(w, x') = 1.4 f(w, x), since the gate is positively homogeneous: Figure 10 has no phases."""
    w_star, x = np.ones(10), np.full(10, 10.0)
    weights = np.random.default_rng(0).normal(size=(200, 10))
    srel, resolved = (
        value.numpy() for value in relu_risk_srel(weights, w_star, 1.4 * x, x, eta)
    )
    defined = ~np.isnan(srel)
    assert (
        50 < defined.sum() < 150
    )  # If the gate is shut at the source, S_rel is undefined.
    np.testing.assert_allclose(srel[defined & resolved], 1.4, rtol=1e-9)
    for w in weights[:8]:
        flow = ReLUGate(w_star).srel(w, np.linspace(0, 30, 40), 1.4 * x, x, eta).numpy()
        np.testing.assert_allclose(flow[~np.isnan(flow)], 1.4, rtol=1e-12)


def test_20_the_target_14_gives_the_stated_value_of_figure_10():
    np.testing.assert_allclose(
        ReLUGate.late_lower_bound(np.full(10, 14.0), np.full(10, 10.0)), 1.4, rtol=1e-15
    )


def test_proof_of_theorem_4_3_projections_do_not_decrease_monotonically_counterexample():
    """The proof says that any quantity weighted by e^{−βMt} decreases to 0 in absolute value.

    This is false, because |⟨e^{−Mt}v, x⟩| can rise at first. The theorem still holds, because it only needs the limit.
    """
    gate = ReLUGate([1.0, 1.0], np.diag([1.0, 5.0]))
    gap = gate.weights([2.0, 0.2], [0.0, 0.2, 0.4, 30.0]).numpy() - 1
    projection = np.abs(gap @ [1.0, 1.0])
    assert projection[0] < projection[1] < projection[2]
    assert projection[3] < 1e-12
