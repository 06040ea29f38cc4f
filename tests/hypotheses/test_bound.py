"""Hypothesis 1.1(b) on simulated frames, and its error rate."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError
from srel_tf.hypotheses import bounded_by_proximity
from srel_tf.hypotheses.bound import AS_FAST, IN_TIME, RISES
from tests.hypotheses.simulate import most, verdicts
from tests.hypotheses.simulate import with_proximity as made


def simulation(power, **options):
    return lambda generator: bounded_by_proximity(*made(generator, power, **options))


def of(power, **options):
    return bounded_by_proximity(
        *made(np.random.default_rng(0), power, **options)
    ).set_index("claim")


def test_verdicts_of_known_powers():
    for power, rises, as_fast in ((1, "supported", "supported"), (2, "supported", "supported"),
                                  (0.5, "supported", "contradicted"), (0, "undecided", "contradicted"),
                                  (-1, "contradicted", "contradicted")):  # fmt: skip
        table = of(power)["verdict"]
        assert (table[RISES], table[AS_FAST]) == (rises, as_fast), power


def test_growth_in_time():
    assert of(1, noise=0.02)["verdict"][IN_TIME] == "supported"
    assert of(1, noise=0.02, growth=2)["verdict"][IN_TIME] == "contradicted"
    assert of(1, noise=0.02, growth=2)["effect_size"][IN_TIME] == pytest.approx(
        2 * 3 / 7, abs=0.1
    )


def test_effects_by_hand():
    frame, proximity = made(np.random.default_rng(1), 0.5, seeds=3)
    table = bounded_by_proximity(frame, proximity).set_index("claim")
    logs, log_p = (
        np.log2(frame["srel"].to_numpy().reshape(3, 60, 8)),
        np.log2(proximity["proximity"].to_numpy()),
    )
    highest = logs.max(axis=2)
    assert table.loc[RISES, "effect_size"] == pytest.approx(
        np.mean([np.polyfit(log_p, s, 1)[0] for s in highest])
    )
    over = (logs - log_p[:, None]).max(axis=1)[:, 4:]
    assert table.loc[IN_TIME, "effect_size"] == pytest.approx(
        np.mean([np.polyfit(np.arange(4, 8), y, 1)[0] * 3 for y in over])
    )
    assert (
        f"max S_rel/P = {2 ** (highest - log_p).max():.3g}" in table.loc[RISES, "scope"]
    )


def test_the_jackknife_leaves_out_a_source_with_all_its_pairs():
    """Compare with fits in which each of 20 sources is left out with its 3 targets."""
    frame, proximity = made(np.random.default_rng(1), 0.5, seeds=3)
    for part in (frame, proximity):
        part["source_id"] = 100 + part["source_id"] % 20
    row = bounded_by_proximity(frame, proximity).set_index("claim").loc[RISES]
    highest = np.log2(frame["srel"].to_numpy().reshape(3, 60, 8)).max(axis=2)
    log_p, source = (
        np.log2(proximity["proximity"].to_numpy()),
        proximity["source_id"].to_numpy(),
    )
    fits = [
        np.polyfit(log_p[source != s], highest.mean(axis=0)[source != s], 1)[0]
        for s in np.unique(source)
    ]
    shared = 2.093024 * np.sqrt(19 / 20 * ((fits - np.mean(fits)) ** 2).sum())
    effects = [np.polyfit(log_p, s, 1)[0] for s in highest]
    seeds = 4.302653 * np.std(effects, ddof=1) / np.sqrt(3)
    assert row["ci_high"] - row["effect_size"] == pytest.approx(np.hypot(shared, seeds))


@pytest.mark.parametrize("shared", [pytest.param(0.0, marks=pytest.mark.slow), 2.0])
def test_error_rate_at_the_bound(shared):
    found = verdicts(simulation(0.9, shared=shared), 25)[AS_FAST]
    assert found["supported"] + found["contradicted"] <= most(25, 0.05)


def test_zero_proximity_with_srel_above_zero_refutes():
    frame, proximity = made(np.random.default_rng(0), 1)
    proximity.loc[:2, "proximity"] = 0.0
    row = bounded_by_proximity(frame, proximity).set_index("claim").loc[AS_FAST]
    assert row["verdict"] == "contradicted"
    assert "3 pairs have P = 0, and S_rel > 0 in all 5 seeds" in row["reason"]
    assert row["scope"].startswith("57 pairs")
    frame.loc[
        frame["source_id"].isin([100, 101, 102]) & (frame["seed"] == 4), "srel"
    ] = 0.0  # S_rel of the three pairs is now 0 in one seed.
    assert (
        bounded_by_proximity(frame, proximity)
        .set_index("claim")
        .loc[AS_FAST, "verdict"]
        == "supported"
    )


def test_a_few_pairs_far_above_are_no_support():
    frame, proximity = made(np.random.default_rng(0), 1)
    low = proximity.nsmallest(3, "proximity")["source_id"]
    frame.loc[frame["source_id"].isin(low), "srel"] *= 1e6
    assert (
        bounded_by_proximity(frame, proximity)
        .set_index("claim")
        .loc[AS_FAST, "verdict"]
        != "supported"
    )


def test_few_sources_are_undecided():
    table = bounded_by_proximity(*made(np.random.default_rng(0), 1, pairs=10))
    assert set(table["verdict"]) == {"undecided"}
    assert "10 sources" in table["reason"].iloc[0]
    frame, proximity = made(np.random.default_rng(0), 1)
    assert set(
        bounded_by_proximity(frame, proximity.assign(proximity=1.0))["verdict"]
    ) == {"undecided"}


def test_proximities_that_do_not_fit():
    frame, proximity = made(np.random.default_rng(0), 1)
    mirrored = proximity.rename(
        columns={"source_id": "target_id", "target_id": "source_id"}
    )
    for wrong, message in (
        (proximity.drop(columns="proximity"), r"lacks the columns \['proximity'\]"),
        (proximity.assign(proximity=-1.0), "finite numbers >= 0"),
        (proximity.assign(proximity=np.inf), "finite numbers >= 0"),
        (proximity.assign(step=3), r"depends on x and x' alone"),
        (pd.concat([proximity, mirrored.assign(proximity=1.0)]), "P is symmetric"),
        (pd.concat([proximity, proximity]), "have a second proximity"),
        (
            proximity.assign(source_id=-proximity["source_id"]),
            "no row of the frame has a proximity",
        ),
    ):
        with pytest.raises(FrameError, match=message):
            bounded_by_proximity(frame, wrong)
    assert len(bounded_by_proximity(frame, pd.concat([proximity, mirrored]))) == 3
