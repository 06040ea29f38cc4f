"""Tests of the numbers of the errata against definitions of torch in NumPy, closed forms, counts and loops."""

import math

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import srel_tf
from srel_tf import hypotheses, theory
from srel_tf.files import write_json
from tests.made_up import probe, result
from train.common.seed_marks import mark_as_finished
from train.condense import condense
from train.errata import classification as errata_classification
from train.errata import command as errata
from train.errata import penalized as errata_penalized
from train.errata import protocol as errata_protocol
from train.errata import theorems as errata_theorems
from train.errata import variants
from train.errata.evidence import Evidence
from train.models import build_model

SEEDS = (0, 1, 2)
MEASURES = ("kl", "l1", "published_kl", "published_l2")
RULES = {
    "sgd η=0.0001": ("sgd", 1e-4),
    "fresh_adam": ("fresh_adam", 1e-4),
}
STEPS = {
    "crossed": (0, 8, 12),
    "published": (1, 5, 12),
}  # There are four updates per epoch.


def made_up_run(path, protocol):
    """Write a run directory of three seeds as `train.classification` does, with random entries. Return its frame."""
    animals, frames = probe(4, 3), []
    for seed in SEEDS:
        parts = [
            result(
                animals,
                step,
                MEASURES,
                update,
                eta,
                seed=100 * seed + 10 * r + len(protocol),
            ).to_frame(f"seed-{seed}", seed, step / 4)
            for step in STEPS[protocol]
            for r, (update, eta) in enumerate(RULES.values())
            if protocol == "crossed" or update == "fresh_adam"
        ]
        frames.append(pd.concat(parts, ignore_index=True))
        # Make intra-class entries larger, so that the classes are partly separated.
        same = frames[-1]["source_class"] == frames[-1]["target_class"]
        frames[-1]["srel"] += 0.7 * same
        folder = path / f"seed-{seed}"
        folder.mkdir(parents=True)
        srel_tf.write_frame(frames[-1], folder / "frame.parquet")
        accuracy = [
            (e, s, 0.1 * e + 0.01 * seed + 0.05 * (s == "train"))
            for e in (1, 2, 3)
            for s in ("train", "test")
        ]
        leak = 0.02 * (seed + 1) * (protocol == "published")
        history = [
            (f"seed-{seed}", seed, e, s, 1.0, a + leak * (s == "test"))
            for e, s, a in accuracy
        ]
        columns = ["run", "seed", "epoch", "split", "loss", "accuracy"]
        srel_tf.write_frame(
            pd.DataFrame(history, columns=columns), folder / "history.csv"
        )
        digest = "same" if seed < 2 else protocol
        mark_as_finished(
            folder, {"seed": seed, "seconds": 1.0, "weights_sha256": digest}
        )
    for name in ("settings.json", "environment.json"):
        write_json(path / name, {})
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Write made-up CIFAR-10 runs. Return (Evidence, {protocol: frame})."""
    path, frames = tmp_path_factory.mktemp("errata"), {}
    with pytest.MonkeyPatch.context() as patch:  # The tests do not use the verdicts.
        patch.setattr(
            hypotheses,
            "class_claim",
            lambda frame: hypotheses.undecided(frame, "classification", "", "a test"),
        )
        for protocol in STEPS:
            frames[protocol] = made_up_run(path / protocol, protocol)
            condense(
                path / protocol,
                path / f"results/cifar10-{protocol}",
                (STEPS[protocol][-1],),
            )
    return Evidence(path / "results"), frames


def chosen(frame, measure, rule, first_epoch=0.0):
    """Select the rows of a measure and rule from `first_epoch` on, without the diagonal."""
    update, eta = RULES[rule]
    rows = frame[
        (frame["measure"] == measure)
        & (frame["update"] == update)
        & (frame["learning_rate"] == eta)
    ]
    return rows[
        (rows["epoch"] >= first_epoch) & (rows["source_id"] != rows["target_id"])
    ]


def interval(values):
    """Compute the mean and the 95% t-interval."""
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return pytest.approx((np.mean(values), low, high))


def brute_force_auc(frame, measure, rule):
    """Compute the AUC of each run by counting the (intra, inter) pairs with intra > inter.

    The AUC is averaged over the steps after the first epoch.
    """
    of_runs = []
    for _, run in chosen(frame, measure, rule, 1.0).groupby("run"):
        shares = []
        for _, rows in run.groupby("step"):
            same = (rows["source_class"] == rows["target_class"]).to_numpy()
            intra, inter = rows["srel"].to_numpy()[same], rows["srel"].to_numpy()[~same]
            shares.append((intra[:, None] > inter).mean())
        of_runs.append(np.mean(shares))
    return of_runs


# --- 1–4 -------------------------------------------------------------------------------------------------------


def test_1_torch_kl_div_of_probabilities_at_rest_and_its_range():
    p = np.random.default_rng(0).dirichlet([0.3, 1, 2], size=500)
    # kl_div(input=p, target=p), "mean"
    torch_kl_div = [sum(q * (math.log(q) - q) for q in row) / 3 for row in p]
    np.testing.assert_allclose(
        errata_classification.unmoved_published_kl(p), torch_kl_div, rtol=1e-12
    )
    bracket = errata_classification.entropy_and_square(p)
    np.testing.assert_allclose(
        bracket, stats.entropy(p, axis=1) + np.linalg.norm(p, axis=1) ** 2, rtol=1e-12
    )
    assert (bracket >= 1).all()
    assert (bracket <= math.log(3) + 1 / 3).all()
    corners, uniform = np.eye(3), np.full(3, 1 / 3)
    np.testing.assert_allclose(errata_classification.entropy_and_square(corners), 1)
    np.testing.assert_allclose(
        errata_classification.entropy_and_square(uniform), math.log(3) + 1 / 3
    )
    grid = errata_classification.simplex(6)
    assert len(grid) == math.comb(8, 2)
    np.testing.assert_allclose(grid.sum(axis=1), 1)


def test_1_effect_is_read_from_the_runs(runs, monkeypatch):
    monkeypatch.setattr(
        errata_classification, "srel_at_initialisation", lambda eta: np.ones((2, 2))
    )
    evidence, frames = runs
    found = errata_classification.published_kl(
        evidence._replace(srel=published_curves())
    )
    highest = math.log(3) + 1 / 3
    ratio = "ratio of two values without an update, C = 3"
    assert found[f"{ratio}, highest"] == pytest.approx(highest, rel=1e-5)
    assert found[f"{ratio}, lowest"] == pytest.approx(1 / highest, rel=1e-5)
    for measure in ("kl", "published_kl"):
        auc = found[f"cifar10: auc of {measure}, fresh_adam"]
        of_runs = brute_force_auc(frames["crossed"], measure, "fresh_adam")
        assert auc == interval(of_runs)
    ranks = []
    for _, rows in frames["crossed"].groupby(["run", "step"]):
        both = [
            chosen(rows, measure, "fresh_adam")["srel"].to_numpy()
            for measure in ("kl", "published_kl")
        ]
        ranks.append(stats.spearmanr(*both).statistic)
    name = "cifar10: rank correlation of kl and published_kl, fresh_adam"
    assert found[name] == pytest.approx(np.mean(ranks))
    assert found["published curves, first value, lowest"] == 0.9
    assert found["published curves, first value, highest"] == 1.1
    name = "published curves, share of values in the range of ratios without an update"
    assert found[name] == 0.75


def published_curves():
    return pd.DataFrame(
        {"measure": "published_kl", "step": [0, 0, 9, 9], "srel": [0.9, 1.1, 0.2, 1.4]}
    )


def test_2_first_adam_step_is_algorithm_1_of_kingma_and_ba():
    g = np.concatenate(
        [[0.0, 1e-12, -1e-8, 3.0], np.random.default_rng(0).normal(size=20) * 1e-6]
    )
    m, v = 0.1 * g, 0.001 * g**2
    expected = 1e-4 * (m / (1 - 0.9)) / (np.sqrt(v / (1 - 0.999)) + 1e-8)
    np.testing.assert_allclose(
        errata_classification.first_adam_step(g, 1e-4), expected, rtol=1e-9
    )


def test_2_gradient_against_a_difference_quotient():
    keras.utils.set_random_seed(0)
    model = build_model("mlp", (4, 4, 1), 3)
    x, label = np.random.default_rng(0).normal(size=(1, 4, 4, 1)).astype("float32"), 1
    gradient = errata_classification.loss_gradient(model, x, [label])
    weights = [w.numpy() for w in model.trainable_variables]

    def loss(distance):
        for variable, value, slope in zip(
            model.trainable_variables, weights, parts, strict=True
        ):
            variable.assign(value + distance * slope)
        return stats.entropy([0, 1, 0], np.asarray(keras.ops.softmax(model(x)))[0])

    cuts = np.cumsum([w.size for w in weights])[:-1]
    parts = [
        g.reshape(w.shape)
        for g, w in zip(np.split(gradient, cuts), weights, strict=True)
    ]
    quotient = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert quotient == pytest.approx(gradient @ gradient, rel=1e-3)


def test_3_range_of_the_published_diagonal():
    low, high = errata_classification.diagonal_of_published_l2(3600)
    change = np.random.default_rng(0).normal(size=(20_000, 3))
    change -= change.mean(axis=1, keepdims=True)
    ratio = np.abs(change).mean(axis=1) / np.sqrt((change**2).mean(axis=1))
    assert low <= ratio.min() < low + 1e-4
    assert high >= ratio.max() > high - 1e-4
    np.testing.assert_allclose(
        [low, high], [math.sqrt(2 / 3), math.sqrt(8 / 9)], atol=1e-6
    )


def test_4_root_mean_square_is_bounded_by_the_denominators(runs):
    evidence, frames = runs
    rows = chosen(frames["crossed"], "l1", "fresh_adam")
    rows = rows[(rows["step"] == 12) & (rows["seed"] == 0)]
    smallest = rows["denominator"].min() / 3
    found = errata_classification.epsilon(evidence)
    name = "cifar10: step 12, smallest root mean square of Δp at valid sources"
    assert found[name] == pytest.approx(smallest)
    change = np.random.default_rng(0).normal(size=(100, 3)) ** 3
    made = pd.DataFrame({"denominator": np.abs(change).sum(axis=1), "step": 0})
    bound = errata_classification.smallest_root_mean_square(made)[0]
    assert bound <= np.sqrt((change**2).mean(axis=1)).min()


# --- 5–9 -------------------------------------------------------------------------------------------------------


def test_5_leaked_images_and_accuracies(runs):
    assert errata_protocol.share_trained_on("train") == 1
    assert errata_protocol.share_trained_on("test") == 0
    found = errata_protocol.leaked_test_set(runs[0])
    for name, value in {
        "accuracy on the leaked images": 0.35,
        "accuracy on the training images": 0.36,
        "accuracy on the real test images (cifar10-crossed, the same seeds)": 0.31,
        "number of trainings with the same final weights": 2,
        "accuracy on leaked minus real test images, over seeds, lowest": 0.02,
        "accuracy on leaked minus real test images, over seeds, highest": 0.06,
    }.items():
        assert found[f"cifar10: {name}"] == pytest.approx(value), name


def test_6_coverage_and_width_by_simulation():
    draws = np.random.default_rng(0).normal(size=(200_000, 3))
    mean, band = draws.mean(axis=1), draws.std(axis=1)
    assert np.mean(np.abs(mean) < band) == pytest.approx(
        errata_protocol.band_coverage(3), abs=0.005
    )
    wide = errata_protocol.t_over_population(3) * band
    assert np.mean(np.abs(mean) < wide) == pytest.approx(0.95, abs=0.003)
    low, high = stats.ttest_1samp(draws[0], 0).confidence_interval()
    assert (high - low) / 2 == pytest.approx(wide[0], rel=1e-9)


def test_6_bands_apart_by_loops(runs):
    evidence, _ = runs
    pairs = srel_tf.read_frame(evidence.results / "cifar10-published/pairs.parquet")
    pairs = pairs[
        (pairs["measure"] == "published_kl") & (pairs["update"] == "fresh_adam")
    ]
    of_runs = {
        key: rows["mean"].to_numpy()
        for key, rows in pairs.groupby(["step", "source_class", "target_class"])
    }
    for factor in (1, None):
        apart = []
        for (step, source, target), inter in of_runs.items():
            if source != target:
                intra = of_runs[step, source, source]
                widths = [
                    np.diff(stats.ttest_1samp(v, 0).confidence_interval())[0] / 2
                    for v in (intra, inter)
                ]
                if factor:
                    widths = [factor * np.std(v) for v in (intra, inter)]
                apart.append(np.mean(intra) - widths[0] > np.mean(inter) + widths[1])
        assert len(apart) == 3 * 6
        assert errata_protocol.separated(pairs, factor) == pytest.approx(np.mean(apart))
    assert np.isnan(errata_protocol.separated(pairs[pairs["seed"] == 0], 1))
    assert (
        errata_protocol.separated(pairs, None) < errata_protocol.separated(pairs, 1) < 1
    )


def test_7_diagonal_in_the_average(runs):
    evidence, frames = runs
    found = errata_protocol.diagonal(evidence)
    rows = frames["published"]
    rows = rows[
        (rows["measure"] == "published_kl")
        & (rows["update"] == "fresh_adam")
        & (rows["epoch"] >= 1)
    ]
    rows = rows[rows["source_class"] == rows["target_class"]]
    off_diagonal = rows[rows["source_id"] != rows["target_id"]]
    for name, kept in (("intra", rows), ("off_intra", off_diagonal)):
        values = found[f"cifar10: {name} of published_kl, fresh_adam"]
        assert values == interval(kept.groupby("run")["srel"].mean())
    matrix = np.where(np.eye(20), 1, 0.5)
    assert found["all entries 0.5, k = 20: intra-class average"] == matrix.mean()


@pytest.mark.parametrize(("steps", "a_record"), [(46, 6), (58, 7), (60, 7)])
def test_8_updates_that_are_measured(steps, a_record):
    by_hand = [
        epoch * steps + batch + 1
        for epoch in range(7)
        for batch in range(steps)
        if batch % 9 == 0
    ]
    assert errata_protocol.measured_updates(steps) == by_hand
    assert len(by_hand) == 7 * a_record


def test_8_before_and_after_the_first_update(runs):
    evidence, frames = runs
    found = errata_protocol.epochs_axis(evidence)
    for protocol, step, time in (
        ("crossed", 0, "at initialisation"),
        ("published", 1, "after one update"),
    ):
        rows = frames[protocol]
        rows = rows[
            (rows["step"] == step)
            & (rows["measure"] == "published_l2")
            & (rows["update"] == "fresh_adam")
        ]
        inter = rows[rows["source_class"] != rows["target_class"]]["srel"]
        name = f"cifar10: published_l2, fresh_adam, mean of inter {time}"
        assert found[name] == pytest.approx(inter.mean())


def test_9_class_accuracies_by_simulation():
    seen, deviation = errata_protocol.perfect_accuracy(100, 3, 64)
    rng, labels = np.random.default_rng(0), np.repeat([0, 1, 2], 100)
    accuracies = np.array(
        [
            np.bincount(rng.permutation(labels)[:256], minlength=3) / 100
            for _ in range(4000)
        ]
    )
    assert seen == 256
    assert accuracies.mean() == pytest.approx(256 / 300)
    assert accuracies.std() == pytest.approx(deviation, rel=0.03)
    assert errata_protocol.perfect_accuracy(500, 3, 25) == (1500, 0)


def test_9_denominators_of_published_accuracies(runs):
    counts = np.random.default_rng(0).integers(1000, 2816, 21)
    values = pd.Series((counts / 2816).round(6))
    assert errata_protocol.multiples(values, 2816) == 21
    expected = sum(
        any(round(k / 3000, 6) == value for k in range(3001)) for value in values
    )
    assert errata_protocol.multiples(values, 3000) == expected < 21
    history = pd.DataFrame({"train_accuracy": values, "test_accuracy": values})
    found = errata_protocol.class_accuracies(runs[0]._replace(history=history))
    name = "published test accuracies that are multiples of 1/2816, of 21"
    assert found[name] == 21


# --- 10–22 -----------------------------------------------------------------------------------------------------


def test_10_and_15_coefficient_and_least_error():
    model, labels, w0 = errata_penalized.set_up()
    assert errata_penalized.differentiated_coefficient(
        model, labels, w0[0]
    ) == pytest.approx(1 / 2, rel=1e-6)
    # The sum of the squared distances from e₁ and e₂ is least at their midpoint.
    assert errata_penalized.least_error_to_both() == pytest.approx(
        2 * (0.5**2 + 0.5**2) / 2
    )


def test_13_variance_of_the_inputs():
    for sample, variance in (
        (theory.random_relu_features, 2),
        (variants.published_features, 4),
    ):
        found = errata_penalized.input_variance(sample, 200, 10, 200)
        assert found == pytest.approx(variance, rel=0.1)


def test_12_and_14_average_and_pairs():
    (ratio,) = errata_penalized.divided_by_400(None).values()
    assert ratio == pytest.approx(20)
    found = errata_penalized.pairs_of_both_classes(None)
    name = "published “intra-class” pairs that join the two classes, of 20"
    assert found[name] == 20


def squares(time, a=(1.0, 2.0), b=(1.0, 2.0), w0=(0.5, 0.5), theta=0.1):
    """Compute w² by eq. 36."""
    a, b, w0 = (np.asarray(v) for v in (a, b, w0))
    return a / (b + (a / w0**2 - b) * np.exp(-4 * theta * a * time))


def test_16_theorem_5_3_by_eq_36():
    for target, source in np.random.default_rng(1).normal(size=(20, 2, 2)):
        srel, _, corrected = errata_theorems.theorem_5_3_case(target, source)
        expected = abs(squares(60.0) @ (target * source)) / (squares(60.0) @ source**2)
        assert srel == pytest.approx(expected, rel=1e-12)
        assert corrected <= srel * (1 + 1e-12)
        found = errata_theorems.srel_of_correlated_features(0.0, target, source, 5.0)
        assert found == pytest.approx(
            abs(squares(5.0) @ (target * source)) / (squares(5.0) @ source**2), rel=1e-7
        )
    srel, printed, _ = errata_theorems.theorem_5_3_case([1.0, 0.1], [1.0, 10.0])
    assert printed > 90 * srel
    of_printed, of_corrected = errata_theorems.shares_beyond_the_bound(20)
    assert of_corrected == 0
    assert 0.2 < of_printed < 0.8


def eq_14(time, target, source):
    w2 = squares(
        time, (1.0, 4.0, 9.0), (1.0, 1.0, 1.0), np.sqrt([0.5, 2.0, 4.0]), 0.001
    )
    return np.multiply(target, source) @ w2 / (np.square(source) @ w2)


def test_17_and_21_eq_14():
    targets, sources = np.random.default_rng(0).normal(size=(2, 10_000, 3))
    negative = (eq_14(500.0, targets, sources) < 0).mean()
    found = errata_theorems.absolute_values(None)
    name = "share of 10,000 pairs of N(0, I) with eq. 14 negative, t = 500"
    assert found[name] == negative
    path = np.array([-1.0, -11.0, 1.0]) + np.sqrt([[1.0], [2.0], [100.0]])
    values = np.abs(eq_14(500.0, np.array([-1.0, -11.0, 1.0]), path))
    found = errata_theorems.figure_11()
    for z, value in zip((1, 2, 100), values, strict=True):
        assert found[f"Figure 11: S_rel at z = {z}"] == pytest.approx(value)
    assert found["S_rel at x = x'/10 (1 at x = x')"] == pytest.approx(10)


def test_18_bound_of_theorem_5_1():
    target, source, values = np.array([1.0, 1.0, 0.5]), np.array([2.0, 0.1, 0.3]), []
    for time in (0.0, 100.0, 1000.0):
        w2 = squares(
            time, (1.0, 4.0, 9.0), (1.0, 1.0, 1.0), np.sqrt([0.5, 2.0, 4.0]), 0.001
        )
        values.append(
            np.linalg.norm(target * source) * np.linalg.norm(w2) / (source**2 @ w2)
        )
    found = list(errata_theorems.bound_in_time(None).values())
    assert found[:3] == pytest.approx(values)


def test_19_differences_lose_their_digits():
    srel, resolved = errata_theorems.differenced(
        np.full(10, 14.0), np.full(10, 10.0), steps=1300
    )
    assert resolved[:50].all()
    assert not resolved[-50:].any()
    np.testing.assert_allclose(srel[resolved], 1.4, rtol=2e-3)


def test_22_eq_36_outside_the_range():
    assert max(errata_theorems.theorem_5_2_range(None).values()) < 1e-8


# --- the command -----------------------------------------------------------------------------------------------


def test_all_items_are_there():
    table = errata.items()
    assert list(table.index) == list(range(1, 23))
    assert table["check"].nunique() == 22
    for check in table["check"]:
        room, name = check.split(".")
        assert callable(getattr(errata.ROOMS[room], name))


def test_what_is_missing_is_named(tmp_path, runs):
    for examine in (errata_classification.published_l2, errata_protocol.three_runs):
        *_, last = examine(Evidence(tmp_path))
        assert last.startswith("not measured: ")
        assert last.endswith(" is missing")
        assert not any("is missing" in name for name in examine(runs[0]))


def test_command_writes_the_table(runs, tmp_path, capsys):
    arguments = [
        "--results",
        str(runs[0].results),
        "--out",
        str(tmp_path),
        "--items",
        "3",
        "9",
    ]
    assert errata.main(arguments) == 0
    table = srel_tf.read_frame(tmp_path / "errata.csv")
    assert list(table.columns) == [
        "number",
        "subject",
        "finding",
        "value",
        "low",
        "high",
    ]
    assert set(table["number"]) == {3, 9}
    shown = capsys.readouterr().out
    row = table[table["low"].notna()].iloc[0]
    numbers = "{value:.4g} [{low:.3g}, {high:.3g}]".format(**row)
    assert f"{row['finding']}: {numbers}" in shown
    assert "3. Definition 1 on softmax outputs" in shown
    assert "text: ℓ1 norm for both changes" in shown


def test_missing_curves_are_an_error(tmp_path, capsys):
    assert (
        errata.main(
            ["--published-dir", str(tmp_path), "--items", "9", "--out", str(tmp_path)]
        )
        == 1
    )
    assert "cifar10_srel.csv" in capsys.readouterr().err
