"""The interval over seeds compared with SciPy, and the error rates of the verdicts."""

import numpy as np
import pytest
from scipy import stats

from srel_tf import OptionError
from srel_tf.hypotheses import COLUMNS
from srel_tf.hypotheses.verdicts import (
    check_confidence,
    decide,
    interval,
    of_bootstrap,
    of_jackknife,
    of_permutations,
    table,
)  # fmt: skip
from tests.hypotheses.simulate import most

NAMES = dict.fromkeys(
    ["hypothesis", "claim", "scope", "measure", "update", "estimator", "effect"], "x"
)


def test_interval_is_students():
    effects = np.array([0.3, -0.1, 0.8, 0.4, 0.45])
    expected = stats.ttest_1samp(effects, 0).confidence_interval(0.9)
    assert interval(effects, 0.9) == pytest.approx((effects.mean(), *expected))


def test_permutations_decide_by_their_share():
    """Without spread over seeds, the interval excludes the shuffled mean if less than 2.5% of draws lie beyond."""
    draws = np.random.default_rng(0).exponential(size=4000)  # skewed
    below, above = of_permutations(draws, 0.95)
    for effect in np.quantile(draws, [0.01, 0.02, 0.03, 0.5, 0.97, 0.98, 0.99]):
        low, high = effect - below, effect + above
        assert (low > draws.mean()) == ((draws >= effect).mean() < 0.025)
        assert (high < draws.mean()) == ((draws <= effect).mean() < 0.025)


def test_jackknife_and_bootstrap_of_a_mean_are_students_error():
    values, generator = (
        np.random.default_rng(0).normal(size=30),
        np.random.default_rng(1),
    )
    expected = stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
    without = (values.sum() - values) / 29
    assert of_jackknife(without, 0.95) == pytest.approx((expected, expected))
    resamples = generator.choice(values, (20000, 30)).mean(axis=1)
    assert of_bootstrap(resamples, 30, 0.95) == pytest.approx(
        (expected, expected), rel=0.03
    )
    assert np.isnan(of_bootstrap(resamples, 1, 0.95)).all()
    assert (
        decide(NAMES, [1.0, 1.1, 0.9], (0, 9), shared=(np.nan, np.nan))["verdict"]
        == "undecided"
    )


def test_what_all_seeds_share_widens_the_interval():
    effects = np.array([0.3, -0.1, 0.8])
    mean, low, high = interval(effects)
    _, wide_low, wide_high = interval(effects, shared=(0.5, 1.0))
    assert wide_high - mean == pytest.approx(np.hypot(high - mean, 1.0))
    assert mean - wide_low == pytest.approx(np.hypot(mean - low, 0.5))


@pytest.mark.parametrize(
    ("effects", "claim", "verdict"),
    [
        ([1.0, 1.1, 0.9], (0, np.inf), "supported"),
        ([-1.0, -1.1, -0.9], (0, np.inf), "contradicted"),
        ([1.0, -1.1, 0.3], (0, np.inf), "undecided"),
        ([1.0, 1.1, 0.9], (-np.inf, 0), "contradicted"),
        ([0.01, 0.02, -0.01], (-0.5, 0.5), "supported"),
        ([0.7, 0.71, 0.69], (-0.5, 0.5), "contradicted"),
        ([0.5, 0.51, 0.49], (-0.5, 0.5), "undecided"),
        (
            [1.0, 1.0, 1.0],
            (0.95, np.inf),
            "undecided",
        ),  # There is no spread, and 2^−3 > 2.5%: three equal signs are too few.
        ([1.0] * 5, (0.95, np.inf), "undecided"),
        ([1.0] * 6, (0.95, np.inf), "supported"),  # 2^−6 < 2.5%
        ([0.0] * 6, (0, np.inf), "contradicted"),  # 0 in all seeds is not > 0.
        ([1.0, 1.1], (0, np.inf), "undecided"),
        ([1.0], (0, np.inf), "undecided"),
        ([], (0, np.inf), "undecided"),
        ([1.0, 1.1, np.nan], (0, np.inf), "undecided"),
        ([np.nan] * 5, (0, np.inf), "undecided"),
    ],
)
def test_the_whole_interval_decides(effects, claim, verdict):
    row = decide(NAMES, effects, claim)
    assert row["verdict"] == verdict
    assert row["n_seeds"] == np.isfinite(effects).sum()
    assert row["reason"]
    assert list(table([row]).columns) == list(COLUMNS)


def test_too_few_seeds_are_named():
    assert (
        "1 seed: an interval over seeds needs 3"
        in decide(NAMES, [1.0], (0, 2))["reason"]
    )
    reason = decide(NAMES, [1.0, 1.0, np.nan, np.nan], (0, 2))["reason"]
    assert "2 of 4 seeds can be judged" in reason
    assert (
        "1 seed: an interval over seeds needs 3"
        in decide(NAMES, [np.nan], (0, 2))["reason"]
    )


@pytest.mark.parametrize(("n", "low", "high"), [(3, 0.0, np.inf), (5, -np.inf, 0.0)])
def test_error_rate_at_the_bound(n, low, high):
    """If the true effect is on the bound, both verdicts are wrong, with a rate of 2.5% each."""
    draws = np.random.default_rng(0).normal(size=(2000, n))
    found = [decide(NAMES, d, (low, high))["verdict"] for d in draws]
    for verdict in ("supported", "contradicted"):
        assert found.count(verdict) <= most(2000, 0.025)
        assert (
            found.count(verdict) >= 2000 * 0.025 / 2
        )  # The rate is not far below 2.5%, as it would be if all verdicts were "undecided".


def test_equivalence_at_its_bound():
    draws = 0.5 + 0.1 * np.random.default_rng(0).normal(size=(2000, 5))
    found = [decide(NAMES, d, (-0.5, 0.5))["verdict"] for d in draws]
    assert found.count("supported") + found.count("contradicted") <= most(2000, 0.05)


def test_a_percentile_bootstrap_over_seeds_would_not_hold_the_rate():
    """A percentile bootstrap over five seeds is not used: it misses the true mean over twice as often as stated."""
    draws, generator = (
        np.random.default_rng(0).normal(size=(500, 5)),
        np.random.default_rng(1),
    )
    means = (
        np.take_along_axis(draws, generator.integers(0, 5, (500, 400 * 5)), 1)
        .reshape(500, 400, 5)
        .mean(2)
    )
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert ((low > 0) | (high < 0)).sum() > 2 * 0.05 * 500


@pytest.mark.parametrize("confidence", [0, 0.4, 1, 95, float("nan")])
def test_confidence_is_checked(confidence):
    with pytest.raises(OptionError, match="confidence="):
        check_confidence(confidence)
