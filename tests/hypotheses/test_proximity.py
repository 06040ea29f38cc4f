"""Hypothesis 1.1(a) on made frames: against SciPy and plain loops, and its error rate."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from srel_tf import FrameError, OptionError
from srel_tf.hypotheses import proximity_trend
from srel_tf.hypotheses.proximity import NEARER, TREND, correlation, nearer_and_higher
from tests.hypotheses.simulate import most, srel_frame, verdicts


def made(generator, slope, shared, seeds=5, sources=60, targets=1, steps=(100,), noise=1.0):
    """log S = slope · distance + noise; a part of the noise (`shared`) belongs to the source, alike in all seeds."""
    source = np.tile(np.arange(sources), targets)
    target = np.repeat(np.arange(targets), sources)
    distance = generator.uniform(1, 5, len(source))
    own = noise * generator.normal(size=(seeds, len(source), len(steps)))
    logs = slope * distance[:, None] + shared * generator.normal(size=sources)[source][:, None] + own
    ids = {"source_id": 100 + source, "target_id": target}
    frame = srel_frame(np.exp(logs), steps, *ids.values())
    return frame, pd.DataFrame({**ids, "distance": distance})


def simulation(slope, shared, **options):
    return lambda generator: proximity_trend(*made(generator, slope, shared, **options), resamples=100)


@pytest.mark.parametrize("shared", [0, 2])
def test_error_rate_without_a_trend(shared):
    for claim, found in verdicts(simulation(0, shared), 80).items():
        assert found["supported"] + found["contradicted"] <= most(80, 0.05), claim


def test_seeds_alone_would_not_hold_the_rate():
    """What a source does to S_rel in all seeds alike is no trend, and no number of seeds tells it from one."""
    wrong = 0
    for i in range(150):
        frame, distances = made(np.random.default_rng([1, i]), 0, 2)
        by_seed = frame["srel"].to_numpy().reshape(5, -1)
        effects = [spearmanr(s, distances["distance"]).statistic for s in by_seed]
        half = 2.776 * np.std(effects, ddof=1) / np.sqrt(5)
        wrong += abs(np.mean(effects)) > half
    assert wrong > 3 * 0.05 * 150


@pytest.mark.parametrize(("slope", "verdict"), [(-1, "supported"), (1, "contradicted")])
def test_a_trend_is_found(slope, verdict):
    assert verdicts(simulation(slope, 0.5, noise=0.5), 10)[TREND][verdict] == 10
    # Noise alone gives 0.975 of 1 with 200 sources: all but a strict order is left undecided.
    assert verdicts(simulation(slope, 0, sources=200, noise=1e-3), 5)[NEARER][verdict] == 5


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
            share.append(np.mean([any(low[0] < h[0] and low[1] > h[1] for low in pairs) for h in asked]))
    assert table.loc[TREND, "effect_size"] == pytest.approx(np.mean(rank))
    assert table.loc[NEARER, "effect_size"] == pytest.approx(np.mean(share))


def test_correlation_of_resamples():
    generator = np.random.default_rng(0)
    a, b = rankdata(generator.normal(size=30)), rankdata(generator.normal(size=30))
    weights = generator.multinomial(30, np.full(30, 1 / 30), size=5)
    expected = [np.corrcoef(np.repeat(a, w), np.repeat(b, w))[0, 1] for w in weights]
    np.testing.assert_allclose(correlation(a, b, weights), expected)
    assert np.isnan(correlation(a, np.ones(30), weights)).all()


def test_share_without_a_trend_is_what_shuffling_gives():
    generator, n = np.random.default_rng(0), 30
    distance = generator.permutation(np.repeat(np.arange(15.0), 2))  # ties
    drawn = [nearer_and_higher(distance, generator.permutation(n).astype(float)) for _ in range(2000)]
    shares = np.array([d[0] for d in drawn])
    _, expected, _ = drawn[0]
    assert shares.mean() == pytest.approx(expected, abs=4 * shares.std() / np.sqrt(2000))
    # Without ties the events are independent, and the deviation is exact.
    distance = np.arange(30.0)
    drawn = [nearer_and_higher(distance, generator.permutation(n).astype(float)) for _ in range(2000)]
    assert np.std([d[0] for d in drawn]) == pytest.approx(drawn[0][2], rel=0.1)


def test_perfect_order():
    distance = np.arange(30.0)
    assert nearer_and_higher(distance, -distance)[0] == 1
    assert nearer_and_higher(distance, distance)[0] == 0
    assert nearer_and_higher(distance, np.ones(30))[0] == 0  # not higher


def test_each_metric_and_step_and_all_steps():
    frame, distances = made(np.random.default_rng(0), -1, 0, steps=(100, 200, 400), noise=0.3)
    opposite = distances.assign(distance=10 - distances["distance"])
    both = pd.concat([distances.assign(metric="input"), opposite.assign(metric="features")])
    table = proximity_trend(frame, both)
    trend = table[table["claim"] == TREND].set_index("scope")["verdict"]
    steps = ["step 100", "step 200", "step 400", "at all 3 steps"]
    assert trend.to_dict() == {
        **{f"input, {s}": "supported" for s in steps},
        **{f"features, {s}": "contradicted" for s in steps},
    }


def test_one_contrary_step_is_enough():
    frame, distances = made(np.random.default_rng(0), -1, 0, steps=(100, 200, 400), noise=0.3)
    frame["srel"] = frame["srel"].where(frame["step"] != 200, 1 / frame["srel"])
    table = proximity_trend(frame, distances)
    together = table[(table["claim"] == TREND) & table["scope"].str.contains("all")]
    assert together["verdict"].item() == "contradicted"


def test_distances_of_each_seed_and_step_are_used():
    """The distance that belongs to another step or seed has no trend."""
    frame, distances = made(np.random.default_rng(0), -1, 0, steps=(100, 200), noise=0.1)
    right = [distances.assign(step=s, seed=seed) for s in (100, 200) for seed in range(5)]
    shuffled = [d.assign(distance=d["distance"].sample(frac=1, random_state=0).to_numpy()) for d in right]
    for chosen, verdict in ((right, "supported"), (shuffled, "undecided")):
        every = pd.concat(chosen).astype({"step": "Int64"})
        table = proximity_trend(frame.astype({"step": "Int64", "seed": "Int64"}), every)
        assert set(table.loc[table["claim"] == TREND, "verdict"]) == {verdict}


def test_few_sources_are_undecided():
    table = proximity_trend(*made(np.random.default_rng(0), -1, 0, sources=10))
    assert table["verdict"].tolist() == ["undecided"]
    assert "no target has 20 valid sources" in table["reason"].item()


def test_constant_srel_is_undecided():
    """It has no ranks, and so no trend."""
    frame, distances = made(np.random.default_rng(0), 0, 0)
    table = proximity_trend(frame.assign(srel=1.4), distances).set_index("claim")
    assert table.loc[TREND, "verdict"] == "undecided"
    assert table.loc[NEARER, "verdict"] == "contradicted"


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
