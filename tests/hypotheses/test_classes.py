"""The classification claim on made frames: effects by hand, the diagonal, and the error rate."""

import numpy as np
import pytest

from srel_tf import FrameError, smooth
from srel_tf.hypotheses import class_claim
from srel_tf.hypotheses.classes import CLAIMS
from tests.hypotheses.simulate import autocorrelated, most, srel_frame, verdicts

ALWAYS, ABOVE, CONSTANT, FALLS, MORE = (claim for claim, _, _ in CLAIMS)
STEPS = np.arange(0, 90, 9)
IDS = np.arange(6)
CLASSES = dict(zip(IDS, np.repeat(["a", "b"], 3), strict=True))
SOURCE, TARGET = (i.ravel() for i in np.meshgrid(IDS, IDS, indexing="ij"))
SAME = SOURCE // 3 == TARGET // 3
TIME = STEPS / STEPS[-1]


def made(generator, intra, inter, seeds=5, noise=0.3, drift=0.0):
    """log₂ S of intra- and inter-class pairs [steps]; the diagonal is 1; drift: a seed's own slope."""
    logs = np.where(SAME[:, None], intra, inter) + noise * autocorrelated(generator, seeds, 36, len(STEPS))
    logs = logs + drift * generator.normal(size=(seeds, 1, 1)) * TIME
    logs[:, SOURCE == TARGET] = 0
    return srel_frame(np.exp2(logs), STEPS, SOURCE, TARGET, CLASSES, measure="kl")


def of(intra, inter, **options):
    return class_claim(made(np.random.default_rng(0), intra, inter, **options)).set_index("claim")


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
    means = smooth(frame, diagonal=False).set_index(["seed", "source_class", "target_class", "step"])["mean"]
    logs = {pair: np.log2([means.loc[(s, *pair)] for s in range(5)]) for pair in ("aa", "ab", "ba", "bb")}
    gaps = np.array([logs["aa"] - logs["ab"], logs["bb"] - logs["ba"]])
    assert table.loc[ALWAYS, "effect_size"] == pytest.approx((gaps > 0).mean())
    assert table.loc[ABOVE, "effect_size"] == pytest.approx(gaps.mean())
    change = {pair: [np.polyfit(TIME, y, 1)[0] for y in curves] for pair, curves in logs.items()}
    assert table.loc[CONSTANT, "effect_size"] == pytest.approx(np.mean([change["aa"], change["bb"]]))
    assert table.loc[FALLS, "effect_size"] == pytest.approx(np.mean([change["ab"], change["ba"]]))


def test_inter_belongs_to_its_source_class():
    """Intra of c is compared with the pairs that c is the source of, as in Figure 1."""
    frame = made(np.random.default_rng(1), 0 * TIME, -2 + 0 * TIME, noise=0.01)
    frame["srel"] *= np.where((frame["source_class"] == "a") & (frame["target_class"] == "b"), 8, 1)
    assert class_claim(frame).set_index("claim").loc[ALWAYS, "effect_size"] == pytest.approx(0.5)


def test_the_diagonal_alone_lifts_intra():
    frame = made(np.random.default_rng(0), -4 + 0 * TIME, -4 + 0 * TIME)
    without, with_it = (class_claim(frame, diagonal=d).set_index("claim").loc[ABOVE] for d in (False, True))
    assert without["verdict"] == "undecided"
    assert (with_it["verdict"], with_it["effect_size"] > 1.5) == ("supported", True)


def test_error_rate_without_an_effect():
    def simulation(generator):
        return class_claim(made(generator, 0 * TIME, 0 * TIME, noise=0.5, drift=0.3))

    found = verdicts(simulation, 40)
    for claim in (ABOVE, FALLS, MORE):
        assert found[claim]["supported"] <= most(40, 0.025), claim
        assert found[claim]["contradicted"] <= most(40, 0.025), claim
    assert found[ALWAYS]["supported"] == 0
    assert found[CONSTANT]["contradicted"] <= most(40, 0.025)


def test_error_rate_at_the_bound_of_constancy():
    def simulation(generator):
        return class_claim(made(generator, 0.5 * TIME, -3 + 0 * TIME, drift=0.3))

    found = verdicts(simulation, 40, seed=1)[CONSTANT]
    assert found["supported"] + found["contradicted"] <= most(40, 0.05)


def test_mostly_invalid_classes_are_missing():
    frame = made(np.random.default_rng(0), 0 * TIME, -1 - TIME)
    late = frame["step"] > 45
    some = frame["target_id"].isin([0, 3])  # more than half of the entries are lost, the valid ones are a selection
    table = class_claim(frame.assign(valid=~late | some)).set_index("claim")
    early = class_claim(frame[~late]).set_index("claim")
    assert table.loc[FALLS, "effect_size"] == pytest.approx(early.loc[FALLS, "effect_size"])
    assert set(class_claim(frame.assign(valid=frame["step"] < 10))["verdict"]) <= {"supported", "undecided"}
    assert class_claim(frame.assign(valid=frame["step"] < 10)).set_index("claim").loc[FALLS, "verdict"] == "undecided"


def test_frames_without_classes():
    frame = made(np.random.default_rng(0), 0 * TIME, 0 * TIME)
    for wrong in (frame.assign(source_class=""), frame.assign(source_class=None), frame[frame["source_class"] == "a"]):
        with pytest.raises(FrameError, match="source_class must name at least two"):
            class_claim(wrong)
