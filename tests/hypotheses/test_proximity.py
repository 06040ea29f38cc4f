"""Hypothesis 1.1(a) on simulated frames, compared with SciPy and plain loops, and its error rate."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from srel_tf import FrameError, OptionError
from srel_tf.hypotheses import proximity_trend
from srel_tf.hypotheses.proximity import NEARER, TREND
from srel_tf.hypotheses.trend import correlation, higher, shuffled_correlation
from tests.hypotheses.simulate import most, verdicts
from tests.hypotheses.simulate import with_distances as made


def simulation(slope, shared, **options):
    return lambda generator: proximity_trend(
        *made(generator, slope, shared, **options), resamples=100
    )


@pytest.mark.parametrize("shared", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_error_rate_without_a_trend(shared):
    for claim, found in verdicts(simulation(0, shared), 25).items():
        assert found["supported"] + found["contradicted"] <= most(25, 0.05), claim


def test_seeds_alone_would_not_hold_the_rate():
    """Random effects of sources that are equal in all seeds look like a trend, however many seeds there are."""
    wrong = 0
    for i in range(80):
        frame, distances = made(np.random.default_rng([1, i]), 0, 2)
        by_seed = frame["srel"].to_numpy().reshape(5, -1)
        effects = [spearmanr(s, distances["distance"]).statistic for s in by_seed]
        half = 2.776 * np.std(effects, ddof=1) / np.sqrt(5)
        wrong += abs(np.mean(effects)) > half
    assert wrong > 3 * 0.05 * 80


@pytest.mark.parametrize(("slope", "verdict"), [(-1, "supported"), (1, "contradicted")])
def test_a_trend_is_found(slope, verdict):
    assert verdicts(simulation(slope, 0.5, noise=0.5), 10)[TREND][verdict] == 10
    # With 200 sources, the share is 0.975 without a trend and at most 1, so some runs may be undecided.
    found = verdicts(simulation(slope, 0, sources=200, targets=3, noise=0.3), 3)[NEARER]
    assert found[verdict] >= 2
    assert found[verdict] + found["undecided"] == 3


def test_effects_by_scipy():
    frame, distances = made(np.random.default_rng(3), -0.3, 0.5, targets=2)
    table = proximity_trend(frame, distances).set_index("claim")
    rank, share = [], []
    for seed in range(5):
        for target in (0, 1):
            chosen = frame[(frame["seed"] == seed) & (frame["target_id"] == target)]
            far = distances.loc[distances["target_id"] == target, "distance"].to_numpy()
            rank.append(spearmanr(chosen["srel"], far).statistic)
            pairs = list(zip(far, chosen["srel"], strict=True))
            asked = [h for h in pairs if h[0] > far.min()]
            share.append(
                np.mean(
                    [
                        any(low[0] < h[0] and low[1] > h[1] for low in pairs)
                        for h in asked
                    ]
                )
            )
    assert table.loc[TREND, "effect_size"] == pytest.approx(np.mean(rank))
    assert table.loc[NEARER, "effect_size"] == pytest.approx(np.mean(share))


def test_correlation_of_permutations():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=30), generator.normal(size=30)
    orders = generator.permuted(np.tile(np.arange(30), (5, 1)), axis=1)
    np.testing.assert_allclose(
        shuffled_correlation(a, b, orders),
        [spearmanr(a, b[order]).statistic for order in orders],
    )
    holes = np.where(np.arange(30) % 7 == 0, np.nan, b)
    assert correlation(a, holes) == pytest.approx(
        spearmanr(a, holes, nan_policy="omit").statistic
    )
    with_middle = np.where(np.isnan(holes), np.nanmedian(holes), holes)
    np.testing.assert_allclose(
        shuffled_correlation(a, holes, orders),
        [spearmanr(a, with_middle[order]).statistic for order in orders],
        atol=0.02,
    )
    assert np.isnan(correlation(a, np.ones(30)))
    assert np.isnan(shuffled_correlation(a, np.ones(30), orders)).all()


def test_share_without_a_trend_is_what_the_order_of_records_gives():
    """If all orders are equally likely, x_h is higher than all k nearer sources with probability 1/(k + 1)."""
    generator = np.random.default_rng(0)
    rows = generator.permuted(np.tile(np.arange(30.0), (4000, 1)), axis=1)
    shares, without = higher(np.arange(30.0), rows)
    chance = 1 / np.arange(2, 31)
    assert shares.mean() == pytest.approx(
        1 - chance.mean(), abs=4 * shares.std() / np.sqrt(4000)
    )
    assert without.std() == pytest.approx(
        np.sqrt((chance * (1 - chance)).sum()), rel=0.05
    )


def test_perfect_order():
    distance = np.arange(30.0)
    assert tuple(higher(distance, -distance)) == (1, 0)
    assert tuple(higher(distance, distance)) == (0, 29)
    assert higher(distance, np.ones(30))[0] == 0  # Equal is not higher.
    assert tuple(higher(np.repeat(distance, 2), np.repeat(-distance, 2))) == (
        1,
        0,
    )  # The two nearest sources are not counted, because no source is nearer.
    assert tuple(higher(distance, np.where(distance == 3, np.nan, -distance))) == (1, 0)


def test_each_metric_and_step_and_all_steps():
    frame, distances = made(
        np.random.default_rng(0), -1, 0, steps=(100, 200, 400), noise=0.3
    )
    opposite = distances.assign(distance=10 - distances["distance"])
    both = pd.concat(
        [distances.assign(metric="input"), opposite.assign(metric="features")]
    )
    table = proximity_trend(frame, both)
    trend = table[table["claim"] == TREND].set_index("scope")["verdict"]
    steps = ["step 100", "step 200", "step 400", "at all 3 steps"]
    assert trend.to_dict() == {
        **{f"input, {s}": "supported" for s in steps},
        **{f"features, {s}": "contradicted" for s in steps},
    }


def test_one_contrary_step_is_enough():
    frame, distances = made(
        np.random.default_rng(0), -1, 0, steps=(100, 200, 400), noise=0.3
    )
    frame["srel"] = frame["srel"].where(frame["step"] != 200, 1 / frame["srel"])
    table = proximity_trend(frame, distances)
    together = table[(table["claim"] == TREND) & table["scope"].str.contains("all")]
    assert together["verdict"].item() == "contradicted"


def test_a_noisy_step_hides_no_contradiction():
    """Step 100 is undecided and step 200 contradicted: both together are contradicted, at the level for two steps."""
    frame, distances = made(np.random.default_rng(0), 1, 0, steps=(100, 200), noise=0.3)
    frame.loc[(frame["step"] == 100) & (frame["seed"] < 2), "srel"] **= -1
    table = proximity_trend(frame, distances)
    trend = table[table["claim"] == TREND].set_index("scope")
    assert trend.loc["distance, step 100", "verdict"] == "undecided"
    together = trend.loc["distance, at all 2 steps"]
    assert (together["verdict"], together["confidence"]) == ("contradicted", 0.975)


def test_all_steps_show_the_least_favourable_one_at_its_own_level():
    frame, distances = made(np.random.default_rng(0), -0.5, 0, steps=(100, 200, 400))
    table = proximity_trend(frame, distances)
    trend = table[table["claim"] == TREND]
    steps, together = trend.iloc[:3], trend.iloc[3]
    assert together["effect_size"] == steps["effect_size"].max()
    assert (together["verdict"], together["confidence"]) == ("supported", 0.95)


def test_intervals_are_within_what_can_be():
    frame, distances = made(np.random.default_rng(0), -1, 0, sources=200, noise=0.3)
    table = proximity_trend(frame, distances).set_index("claim")
    assert table.loc[NEARER, "ci_high"] <= 1
    assert table.loc[TREND, "ci_low"] >= -1


def test_distances_of_each_seed_and_step_are_used():
    """S_rel falls with the distances of its own step and seed, and has no trend with shuffled distances."""
    frame, distances = made(
        np.random.default_rng(0), -1, 0, steps=(100, 200), noise=0.1
    )
    right = [
        distances.assign(step=s, seed=seed) for s in (100, 200) for seed in range(5)
    ]
    shuffled = [
        d.assign(distance=d["distance"].sample(frac=1, random_state=0).to_numpy())
        for d in right
    ]
    for chosen, verdict in ((right, "supported"), (shuffled, "undecided")):
        every = pd.concat(chosen).astype({"step": "Int64"})
        table = proximity_trend(frame.astype({"step": "Int64", "seed": "Int64"}), every)
        assert set(table.loc[table["claim"] == TREND, "verdict"]) == {verdict}


def test_few_sources_are_undecided():
    table = proximity_trend(*made(np.random.default_rng(0), -1, 0, sources=10))
    assert table["verdict"].tolist() == ["undecided"]
    assert "no target has 20 valid sources" in table["reason"].item()


def test_constant_srel_is_undecided():
    """A constant S_rel has no rank correlation, and so no trend."""
    frame, distances = made(np.random.default_rng(0), 0, 0)
    table = proximity_trend(frame.assign(srel=1.4), distances).set_index("claim")
    assert table.loc[TREND, "verdict"] == "undecided"
    assert (
        table.loc[NEARER, "verdict"] == "undecided"
    )  # The share is the same in every permutation.


def test_distances_that_do_not_fit():
    frame, distances = made(np.random.default_rng(0), 0, 0)
    for wrong, message in (
        (distances.drop(columns="distance"), r"lacks the columns \['distance'\]"),
        (distances.assign(distance=-1.0), "none of them negative"),
        (distances.assign(distance=np.nan), "none of them negative or missing"),
        (pd.concat([distances, distances]), "have a second distance"),
        (distances.assign(source_id=0), "have a second distance"),
        (distances.assign(step=7), "no row of the frame has a distance"),
    ):
        with pytest.raises(FrameError, match=message):
            proximity_trend(frame, wrong)
    for options in ({"min_sources": 2}, {"resamples": 10}, {"confidence": 2}):
        with pytest.raises(OptionError):
            proximity_trend(frame, distances, **options)
