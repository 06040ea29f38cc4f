"""Figure 5's claim on simulated series and risks: the rapid fall and the effects by hand, and the error rate."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError
from srel_tf.hypotheses import two_phases
from srel_tf.hypotheses.risks import CLAIMS, rapid_fall
from tests.hypotheses.simulate import STEPS, in_time, most, ramp, risks_of, verdicts

DURING, FASTER, FIRST = (f"{claim}, median pair" for claim, *_ in CLAIMS)
FALLING = 5 - ramp(0, 150)


def of(log2_srel, log_risk, noise=0.1, **options):
    frame = in_time(np.random.default_rng(0), log2_srel, noise=noise)
    table = two_phases(frame, risks_of(frame, log_risk, **options))
    return table[table["hypothesis"] == "1.2, Figure 5"].set_index("claim")


def test_the_rapid_fall_by_hand():
    steps, log_risk = (
        np.arange(0, 100, 10.0),
        np.array([8, 6, 4, 3, 2, 1, 0, 0, 0, 0.0]),
    )
    # Half and 90% of the fall are done at values of at most 8 − 4 and 8 − 7.2.
    assert rapid_fall(steps, log_risk) == (20, 60)
    assert np.isnan(rapid_fall(steps, log_risk / 10)).all()
    assert np.isnan(rapid_fall(steps, -log_risk)).all()


def test_a_rise_with_the_fall_is_supported():
    table = of(ramp(0, 150), FALLING, kinds=("empirical", "population"))
    assert len(table) == 6
    assert set(table["verdict"]) == {"supported"}
    assert table["scope"].str.contains("90% of its fall done at 1[34]").all()
    assert table.loc[FIRST, "effect_size"].tolist() == pytest.approx(
        [1.5, 1.5], abs=0.3
    )


def test_effects_by_hand():
    frame = in_time(np.random.default_rng(0), ramp(0, 150), noise=0.1, pairs=1)
    table = two_phases(frame, risks_of(frame, FALLING, noise=0.0)).set_index("claim")
    logs, inside = (
        np.log2(frame["srel"].to_numpy().reshape(5, -1)),
        STEPS <= 140,
    )  # 90% of the fall are done at step 135, and 140 is the next measured step.
    fits = [
        [np.polyfit(STEPS[part], y[part], 1)[0] for part in (inside, ~inside)]
        for y in logs
    ]
    rise, rest = np.mean(fits, axis=0)
    assert table.loc[DURING, "effect_size"] == pytest.approx(140 * rise)
    assert table.loc[FASTER, "effect_size"] == pytest.approx(590 * (rise - rest))
    assert table.loc[FIRST, "effect_size"] == pytest.approx(
        (logs[:, 8] - logs[:, 0]).mean()
    )


def test_a_rise_long_after_the_fall_does_not_coincide():
    table = of(ramp(350), FALLING)["verdict"]
    assert table[DURING] != "supported"
    assert table[FASTER] == "contradicted"


def test_a_fall_of_srel_during_the_fall_contradicts():
    assert set(of(-ramp(0, 100) + ramp(250, 100, 4), FALLING)["verdict"]) == {
        "contradicted"
    }


def test_an_initial_fall_is_contrary_evidence():
    dips = np.where(STEPS < 50, -STEPS / 30, np.minimum((STEPS - 50) / 20 - 5 / 3, 3))
    table = of(dips, 5 - ramp(0, 60), noise=0.05)["verdict"]
    assert table[FIRST] == "contradicted"


def test_risks_that_hardly_fall_decide_nothing():
    for log_risk in (0 * STEPS, FALLING / 10, STEPS / 100):
        table = of(ramp(0, 150), log_risk)
        assert set(table["verdict"]) == {"undecided"}
        assert (
            table["reason"]
            == "the empirical risk does not fall to less than half in any seed"
        ).all()


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"walk": 0.2}]
)
def test_srel_without_relation_holds_the_rate(options):
    def simulation(generator):
        frame = in_time(generator, 0 * STEPS, pairs=2, **options)
        return two_phases(frame, risks_of(frame, FALLING, generator=generator))

    found = verdicts(simulation, 25)
    for claim in (DURING, FASTER, FIRST):
        assert found[claim]["supported"] + found[claim]["contradicted"] <= most(
            25, 0.05
        ), claim


def test_srel_that_does_not_move_does_not_rise():
    frame = in_time(np.random.default_rng(0), 0 * STEPS, seeds=6).assign(srel=1.4)
    table = two_phases(frame, risks_of(frame, FALLING)).set_index("claim")
    assert set(table.loc[[DURING, FASTER, FIRST], "verdict"]) == {
        "contradicted"
    }  # Six equal seeds are enough for a verdict.
    five = frame[frame["seed"] < 5]
    table = two_phases(five, risks_of(five, FALLING)).set_index("claim")
    assert set(table.loc[[DURING, FASTER, FIRST], "verdict"]) == {"undecided"}


def test_risks_may_be_measured_at_other_steps():
    frame = in_time(np.random.default_rng(0), ramp(0, 150), noise=0.1)
    risks = risks_of(frame, FALLING)
    coarse = risks[risks["step"] % 50 == 0]
    last = risks[risks["step"] == STEPS[-1]]
    table = two_phases(
        frame, pd.concat([coarse, last]).sample(frac=1, random_state=0)
    ).set_index("claim")
    assert table.loc[DURING, "verdict"] == "supported"


def test_risks_that_do_not_fit():
    frame = in_time(np.random.default_rng(0), ramp(100))
    risks = risks_of(frame, FALLING)
    for wrong, message in (
        (risks.drop(columns="loss"), r"lacks the columns \['loss'\]"),
        (risks[risks["seed"] != 2], r"lack the runs \['seed-2/2'\]"),
        (risks.assign(loss=-1.0), "must be positive"),
        (risks.assign(loss=np.nan), "must be positive"),
        (risks[risks["step"] < 300], "does not span the steps"),
        (pd.concat([risks, risks]), "has a step twice"),
    ):
        with pytest.raises(FrameError, match=message):
            two_phases(frame, wrong)
