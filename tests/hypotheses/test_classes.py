"""The claim on classifiers on simulated frames: effects by hand, the diagonal, and the error rate."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError, smooth
from srel_tf.hypotheses import class_claim
from srel_tf.hypotheses.class_effects import (
    CLAIMS,
    _class_weights,
    _effects_of_run,
    class_effects,
)
from srel_tf.hypotheses.series import cube
from tests.hypotheses.simulate import EPOCHS as STEPS
from tests.hypotheses.simulate import TIME, most, srel_frame, verdicts
from tests.hypotheses.simulate import with_classes as made

ALWAYS, ABOVE, CONSTANT, FALLS, MORE = (claim for claim, _, _ in CLAIMS)


def of(intra, inter, **options):
    return class_claim(
        made(np.random.default_rng(0), intra, inter, **options)
    ).set_index("claim")


def test_the_claim_as_the_paper_has_it():
    table = of(0 * TIME, -1 - 2 * TIME)
    assert (table["verdict"] == "supported").all(), table["verdict"]
    assert table.loc[ABOVE, "effect_size"] == pytest.approx(2, abs=0.2)
    assert table.loc[CONSTANT, "effect_size"] == pytest.approx(0, abs=0.1)
    assert table.loc[FALLS, "effect_size"] == pytest.approx(-2, abs=0.2)
    assert table.loc[MORE, "effect_size"] == pytest.approx(-2, abs=0.2)
    assert (table["scope"] == "2 classes").all()


def test_the_opposite():
    table = of(-2 + 2 * TIME, 1 + 2 * TIME)
    for claim in (ALWAYS, ABOVE, CONSTANT, FALLS):
        assert table.loc[claim, "verdict"] == "contradicted", claim
    assert table.loc[MORE, "verdict"] == "undecided"


def test_effects_by_definition_3():
    frame = made(np.random.default_rng(1), 0 * TIME, -0.1 - TIME)
    table = class_claim(frame).set_index("claim")
    means = smooth(frame, diagonal=False).set_index(
        ["seed", "source_class", "target_class", "step"]
    )["mean"]
    logs = {
        pair: np.log2([means.loc[(s, *pair)] for s in range(5)])
        for pair in ("aa", "ab", "ba", "bb")
    }
    gaps = np.array([logs["aa"] - logs["ab"], logs["bb"] - logs["ba"]])
    assert table.loc[ALWAYS, "effect_size"] == pytest.approx(
        np.mean([np.quantile(g, 0.05) for g in gaps.swapaxes(0, 1)])
    )
    assert table.loc[ABOVE, "effect_size"] == pytest.approx(gaps.mean())
    change = {
        pair: [np.polyfit(TIME, y, 1)[0] for y in curves]
        for pair, curves in logs.items()
    }
    assert table.loc[CONSTANT, "effect_size"] == pytest.approx(
        np.mean([change["aa"], change["bb"]])
    )
    assert table.loc[FALLS, "effect_size"] == pytest.approx(
        np.mean([change["ab"], change["ba"]])
    )


def test_inter_belongs_to_its_source_class():
    """The intra-class mean of c is compared with class pairs whose source class is c, as in Figure 1."""
    frame = made(np.random.default_rng(1), 0 * TIME, -2 + 0 * TIME, noise=0.01)
    frame["srel"] *= np.where(
        (frame["source_class"] == "a") & (frame["target_class"] == "b"), 8, 1
    )
    row = (
        class_claim(frame).set_index("claim").loc[ALWAYS]
    )  # The log₂ gaps are 2 for class b and 2 − 3 for class a.
    assert (row["verdict"], row["effect_size"]) == (
        "contradicted",
        pytest.approx(-1, abs=0.05),
    )


def test_the_diagonal_alone_lifts_intra():
    frame = made(np.random.default_rng(0), -4 + 0 * TIME, -4 + 0 * TIME)
    without, with_it = (
        class_claim(frame, diagonal=d).set_index("claim").loc[ABOVE]
        for d in (False, True)
    )
    assert without["verdict"] == "undecided"
    assert (with_it["verdict"], with_it["effect_size"] > 1) == ("supported", True)


@pytest.mark.parametrize(
    "shared",
    [
        pytest.param({"drift": 0.3}, marks=pytest.mark.slow),
        {"example": 0.5, "pair": 0.5},
    ],
)
def test_error_rate_without_an_effect(shared):
    """The rate also holds if pairs and examples have random effects that are equal in all seeds."""
    found = verdicts(
        lambda g: class_claim(made(g, 0 * TIME, 0 * TIME, **shared), resamples=100), 12
    )
    for claim in (ABOVE, FALLS, MORE):
        assert found[claim]["supported"] + found[claim]["contradicted"] <= most(
            12, 0.05
        ), claim
    assert found[ALWAYS]["supported"] == 0
    assert found[CONSTANT]["contradicted"] <= most(12, 0.025)


def test_the_bootstrap_over_examples_is_that_of_definition_3():
    """Compare one resample with a loop: examples are repeated, and an example is never paired with itself."""
    frame = made(
        np.random.default_rng(1), 0 * TIME, -1 - TIME, seeds=1, pair=0.5, per_class=4
    )
    picked = {"a": [0, 0, 1, 3], "b": [4, 5, 5, 5]}

    part = frame[frame["source_id"] != frame["target_id"]].assign(replicate="seed-0")
    drawn = [np.array(picked[c])[None] for c in "ab"]
    run = cube(part)
    draws = _effects_of_run(run, pd.RangeIndex(8), _class_weights(drawn, 8))
    srel = frame.pivot_table("srel", ["source_id", "target_id"], "step")

    def mean(c, d):
        pairs = [(i, j) for i in picked[c] for j in picked[d] if i != j]
        return np.log2(np.mean([srel.loc[pair] for pair in pairs], axis=0))

    gaps = np.array([mean("a", "a") - mean("a", "b"), mean("b", "b") - mean("b", "a")])
    assert draws[1, 0] == pytest.approx(gaps.mean())
    assert draws[0, 0] == pytest.approx(np.quantile(gaps, 0.05))


def test_resamples_are_drawn_within_classes_with_one_weight_in_all_seeds():
    """The spread of the mean over seeds equals that in a loop over resamples of each class."""
    frame = made(np.random.default_rng(1), 0 * TIME, -1 - TIME, seeds=2, pair=0.5)
    part = frame[frame["source_id"] != frame["target_id"]].assign(
        replicate=frame["run"]
    )
    class_of = pd.Series(np.repeat(["a", "b"], 10), range(20))
    runs = [cube(rows) for _, rows in part.groupby("replicate")]
    effects, draws = class_effects(runs, class_of, 300, np.random.default_rng(0))
    generator, naive = np.random.default_rng(1), []
    for _ in range(300):
        drawn = [first + generator.integers(0, 10, (1, 10)) for first in (0, 10)]
        weights = _class_weights(drawn, 20)
        of_runs = [_effects_of_run(run, class_of.index, weights) for run in runs]
        naive.append(np.mean(of_runs, axis=0)[:, 0])
    spread, mean = np.std(naive, axis=0), np.mean(naive, axis=0)
    np.testing.assert_allclose(draws.std(axis=1), spread, rtol=0.2)
    np.testing.assert_array_less(np.abs(draws.mean(axis=1) - mean), 0.4 * spread)
    once = (class_of.to_numpy() == [["a"], ["b"]]).astype(float)[None]
    single = [_effects_of_run(run, class_of.index, once) for run in runs]
    np.testing.assert_allclose(effects, np.stack(single, axis=1)[:, :, 0])


def test_error_rate_at_the_bound_of_constancy():
    def simulation(generator):
        return class_claim(made(generator, 0.5 * TIME, -3 + 0 * TIME, drift=0.3))

    found = verdicts(simulation, 12, seed=1)[CONSTANT]
    assert found["supported"] + found["contradicted"] <= most(12, 0.05)


def test_few_examples_are_undecided():
    table = class_claim(
        made(np.random.default_rng(0), 0 * TIME, -2 + 0 * TIME, per_class=3)
    )
    assert set(table["verdict"]) == {"undecided"}
    assert table["reason"].iloc[0] == "a class has 3 examples: 8 are needed"


def test_classes_that_do_not_differ_are_not_told_apart():
    """If all S_rel are equal, there is no spread over seeds, and every effect is on its bound."""
    frame = made(np.random.default_rng(0), 0 * TIME, 0 * TIME).assign(srel=1.0)
    verdict = class_claim(frame).set_index("claim")["verdict"]
    assert set(verdict[[ALWAYS, ABOVE, FALLS, MORE]]) == {"undecided"}


def test_three_seeds_that_agree_are_no_support():
    """If the effect is equal in all seeds, its interval has no width, and three seeds are too few for a verdict."""
    logs = np.where(np.arange(400) // 20 // 10 == np.arange(400) % 20 // 10, 0.0, -2.0)
    names = dict(zip(range(20), np.repeat(["a", "b"], 10), strict=True))
    srel = (
        np.exp2(logs)[None, :, None]
        * np.exp2(np.linspace(0, 1e-9, 3))[:, None, None]
        * np.ones(len(STEPS))
    )
    frame = srel_frame(srel, STEPS, np.arange(400) // 20, np.arange(400) % 20, names)
    assert (
        class_claim(frame)
        .set_index("claim")
        .loc[ABOVE, "reason"]
        .startswith("the effect is equal in all 3 seeds")
    )


def test_mostly_invalid_classes_are_missing():
    frame = made(np.random.default_rng(0), 0 * TIME, -1 - TIME)
    late = frame["step"] > 45
    some = frame[
        "target_id"
    ].isin(
        [0, 10]
    )  # Late, only the entries of these targets are valid: less than half, and a biased selection.
    table = class_claim(frame.assign(valid=~late | some)).set_index("claim")
    early = class_claim(frame[~late]).set_index("claim")
    assert table.loc[FALLS, "effect_size"] == pytest.approx(
        early.loc[FALLS, "effect_size"]
    )
    assert set(class_claim(frame.assign(valid=frame["step"] < 10))["verdict"]) <= {
        "supported",
        "undecided",
    }
    assert (
        class_claim(frame.assign(valid=frame["step"] < 10))
        .set_index("claim")
        .loc[FALLS, "verdict"]
        == "undecided"
    )


def test_frames_without_classes():
    frame = made(np.random.default_rng(0), 0 * TIME, 0 * TIME)
    for wrong in (
        frame.assign(source_class=""),
        frame.assign(source_class=None),
        frame[frame["source_class"] == "a"],
    ):
        with pytest.raises(FrameError, match="source_class must hold at least two"):
            class_claim(wrong)
