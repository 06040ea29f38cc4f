"""Hypothesis 1.1(b) on made frames and on a closed form, and its error rate."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError
from srel_tf.hypotheses import bounded_by_proximity
from srel_tf.hypotheses.bound import _quantile
from srel_tf.hypotheses.phases import NEGLIGIBLE
from tests.hypotheses.simulate import most, srel_frame, verdicts

RISES, BELOW = "S_rel rises with P", "S_rel stays below C·P"


def made(generator, power, shared=0.5, seeds=5, pairs=60, steps=8, noise=0.3):
    """S = P^power times noise, part of which a pair has in all seeds alike."""
    p = np.exp2(generator.uniform(-4, 4, pairs))
    own = shared * generator.normal(size=pairs)[:, None] + noise * generator.normal(size=(seeds, pairs, steps))
    ids = {"source_id": 100 + np.arange(pairs), "target_id": np.arange(pairs)}
    frame = srel_frame(np.exp2(power * np.log2(p)[:, None] + own), np.arange(steps), *ids.values())
    return frame, pd.DataFrame({**ids, "proximity": p})


def simulation(power, **options):
    return lambda generator: bounded_by_proximity(*made(generator, power, **options), resamples=100)


def test_verdicts_of_known_powers():
    for power, rises, below in ((1, "supported", "supported"), (2, "supported", "supported"),
                                (0, "undecided", "contradicted"), (-1, "contradicted", "contradicted")):  # fmt: skip
        table = bounded_by_proximity(*made(np.random.default_rng(0), power)).set_index("claim")["verdict"]
        assert (table[RISES], table[BELOW]) == (rises, below), power


def test_quantiles_of_halves_by_numpy():
    generator = np.random.default_rng(0)
    values, chosen = generator.normal(size=(4, 30)), generator.random((4, 30)) < 0.5
    expected = [np.quantile(v[c], 0.9) for v, c in zip(values, chosen, strict=True)]
    np.testing.assert_allclose(_quantile(values, chosen), expected)
    assert np.isnan(_quantile(values, np.zeros((4, 30), bool))).all()


def test_effects_by_hand():
    frame, proximity = made(np.random.default_rng(1), 0.5, seeds=3)
    table = bounded_by_proximity(frame, proximity).set_index("claim")
    logs, log_p = np.log2(frame["srel"].to_numpy().reshape(3, 60, 8)), np.log2(proximity["proximity"].to_numpy())
    slopes = [np.polyfit(log_p, s.mean(axis=1), 1)[0] for s in logs]
    assert table.loc[RISES, "effect_size"] == pytest.approx(np.mean(slopes))
    over, low = logs.max(axis=2) - log_p, log_p <= np.median(log_p)
    gaps = np.quantile(over[:, low], 0.9, axis=1) - np.quantile(over[:, ~low], 0.9, axis=1)
    assert table.loc[BELOW, "effect_size"] == pytest.approx(gaps.mean())
    assert f"max S_rel/P = {2 ** over.max():.3g}" in table.loc[BELOW, "scope"]


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_error_rate_at_the_smallest_slope(shared):
    found = verdicts(simulation(NEGLIGIBLE, shared=shared), 60)[RISES]
    assert found["supported"] + found["contradicted"] <= most(60, 0.05)


def test_error_rate_of_a_bound_that_holds():
    """S = P · noise: one C serves all, with a factor of 2 to spare."""
    assert verdicts(simulation(1, shared=1.0), 60)[BELOW]["contradicted"] <= most(60, 0.025)


def test_zero_proximity_is_counted():
    frame, proximity = made(np.random.default_rng(0), 1)
    proximity.loc[:2, "proximity"] = 0.0
    table = bounded_by_proximity(frame, proximity)
    assert table["scope"].str.startswith("57 pairs").all()
    assert table["scope"].str.endswith("3 pairs with P = 0 and S_rel > 0").all()


def test_few_pairs_are_undecided():
    table = bounded_by_proximity(*made(np.random.default_rng(0), 1, pairs=10))
    assert set(table["verdict"]) == {"undecided"}
    assert "10 pairs" in table["reason"].iloc[0]
    frame, proximity = made(np.random.default_rng(0), 1)
    assert set(bounded_by_proximity(frame, proximity.assign(proximity=1.0))["verdict"]) == {"undecided"}


def test_proximities_that_do_not_fit():
    frame, proximity = made(np.random.default_rng(0), 1)
    mirrored = proximity.rename(columns={"source_id": "target_id", "target_id": "source_id"})
    for wrong, message in (
        (proximity.drop(columns="proximity"), r"lacks the columns \['proximity'\]"),
        (proximity.assign(proximity=-1.0), "finite numbers, none below zero"),
        (proximity.assign(proximity=np.inf), "finite numbers, none below zero"),
        (proximity.assign(step=3), r"depends on x and x' alone"),
        (pd.concat([proximity, mirrored.assign(proximity=1.0)]), "P is symmetric"),
        (pd.concat([proximity, proximity]), "have a second proximity"),
        (proximity.assign(source_id=-proximity["source_id"]), "no row of the frame has a proximity"),
    ):
        with pytest.raises(FrameError, match=message):
            bounded_by_proximity(frame, wrong)
    assert len(bounded_by_proximity(frame, pd.concat([proximity, mirrored]))) == 2
