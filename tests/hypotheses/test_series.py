"""The conversion of frames to arrays, and the errors for unsuitable frames, which must not give a verdict."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError
from srel_tf.hypotheses import (
    bounded_by_proximity,
    change_points,
    class_claim,
    proximity_trend,
    two_phases,
)
from srel_tf.hypotheses.series import cube, groups, log2, pairs_in_time, series
from tests.hypotheses.simulate import srel_frame

STEPS = np.arange(0, 150, 10)
IDS = [10, 11, 12], [0, 0, 1]
CLASSES = {10: "a", 11: "b", 12: "a", 0: "a", 1: "b"}


def simple(n_seeds=3, seed=0, **columns):
    values = np.random.default_rng(seed).uniform(0.5, 1, (n_seeds, 3, len(STEPS)))
    return srel_frame(values, STEPS, *IDS, CLASSES, **columns), values


def checks():
    """Return each check as a function of the frame only."""
    ids = {"source_id": IDS[0], "target_id": IDS[1]}
    distances = pd.DataFrame({**ids, "distance": [1.0, 2.0, 3.0]})
    proximity = pd.DataFrame({**ids, "proximity": [1.0, 2.0, 3.0]})
    return {
        "two_phases": two_phases,
        "proximity_trend": lambda frame: proximity_trend(frame, distances),
        "bounded_by_proximity": lambda frame: bounded_by_proximity(frame, proximity),
        "class_claim": class_claim,
    }


ALL = pytest.mark.parametrize("check", checks())


def test_rows_land_where_they_belong_whatever_their_order():
    frame, values = simple()
    shuffled = frame.sample(frac=1, random_state=0)
    ((key, rows),) = groups(shuffled)
    found = cube(rows)
    assert key == {
        "name": "",
        "measure": "l1",
        "update": "sgd",
        "estimator": "exact",
    }
    np.testing.assert_array_equal(found.steps, STEPS)
    order = [list(found.pairs).index(pair) for pair in zip(*IDS, strict=True)]
    np.testing.assert_array_equal(found.srel[:, order], values)


@ALL
def test_a_measurement_by_several_methods_is_one(check):
    """Rows are grouped by the requested estimator, not by the method that computed each row."""
    frame, _ = simple(estimator="auto")
    methods = np.resize(["finite_step", "limit", "limit_float64"], len(frame))
    mixed = checks()[check](frame.assign(method=methods))
    assert set(mixed["estimator"]) == {"auto"}
    pd.testing.assert_frame_equal(mixed, checks()[check](frame))


@ALL
def test_unsorted_rows_make_no_difference(check):
    frame, _ = simple()
    shuffled = frame.sample(frac=1, random_state=1)
    expected, *found = (
        checks()[check](f)
        for f in (frame, shuffled, shuffled.set_axis([0] * len(frame)))
    )
    for table in found:
        pd.testing.assert_frame_equal(table, expected, rtol=1e-9)


@ALL
def test_one_seed_is_undecided(check):
    frame, _ = simple(n_seeds=1)
    table = checks()[check](frame)
    assert len(table)
    assert set(table["verdict"]) == {"undecided"}


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_valid_is_undecided(check, value):
    frame, _ = simple()
    table = checks()[check](frame.assign(srel=value))
    assert len(table)
    assert set(table["verdict"]) == {"undecided"}
    assert set(checks()[check](frame.assign(valid=False))["verdict"]) == {"undecided"}


@ALL
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="srel"), r"lacks the columns \['srel'\]"),
        (lambda f: f.drop(columns=["valid", "seed"]), "lacks the columns"),
        (lambda f: f.iloc[:0], "no pairs of two different examples"),
        (
            lambda f: f.assign(source_id=1, target_id=1),
            "no pairs of two different examples",
        ),
        (lambda f: pd.concat([f, f.iloc[:3]]), "3 entries occur twice"),
        (lambda f: f.assign(step=0), "occur twice"),
        (
            lambda f: f.assign(step=f["step"].astype(float).replace(20, np.nan)),
            "step is missing in 9 rows",
        ),
        (lambda f: f.assign(step="early"), "'step' does not hold numbers"),
        (lambda f: f.assign(srel=-f["srel"]), "never negative"),
        (lambda f: f.assign(srel="much"), "'srel' does not hold numbers"),
        (
            lambda f: pd.concat([f, f.assign(run="other")]),
            "seed 0 belongs to several runs",
        ),
        (
            lambda f: pd.concat([f, f[f["seed"] == 0].assign(run="other", seed=9)]),
            "the same to the last bit",
        ),
        (
            lambda f: f.assign(learning_rate=np.where(f["seed"] < 1, 0.1, 1e-5)),
            r"learning_rate is \[1e-05, 0.1\] at step 0",
        ),
        (
            lambda f: f.assign(valid="False"),
            "column 'valid' holds 'False': it must be True or False",
        ),
        (lambda f: f.assign(valid=1), "column 'valid' holds '1'"),
        (lambda f: f.to_dict(), "got dict"),
    ],
)
def test_what_does_not_fit_is_refused(check, change, message):
    with pytest.raises(FrameError, match=message):
        checks()[check](change(simple()[0]))


def test_runs_that_may_agree():
    """Accept a schedule of η, a missing η, S_rel that is constant in time (linear models), and missing `valid`."""
    frame, _ = simple()
    for fine in (
        frame.assign(learning_rate=0.1 / (1 + frame["step"])),
        frame.assign(learning_rate=np.nan),
        frame.assign(srel=frame["source_id"] / 10),
        frame.assign(
            valid=frame["valid"].astype(object).where(frame["step"] > 0, None)
        ),
    ):
        assert len(list(groups(fine))) == 1
    ((_, rows),) = groups(
        frame.assign(valid=frame["valid"].astype(object).where(frame["step"] > 0, None))
    )
    assert rows["srel"].isna().sum() == 9


def test_zero_is_a_value():
    np.testing.assert_array_equal(
        log2(np.array([0.0, 2.0, np.nan, 1e-30])), [-64, 1, np.nan, -64]
    )


def test_probes_are_judged_apart():
    frame, _ = simple()
    both = pd.concat([frame.assign(name=name) for name in ("a", "b")])
    table, alone = two_phases(both), two_phases(frame)
    assert set(alone["name"]) == {""}
    for name in ("a", "b"):
        rows = table[table["name"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows.assign(name=""), alone)


def test_measures_are_judged_apart():
    frame, _ = simple()
    both = pd.concat([frame, frame.assign(measure="l2")])
    table = two_phases(both)
    assert set(table["measure"]) == {"l1", "l2"}
    one, two = (
        table[table["measure"] == m].drop(columns="measure").reset_index(drop=True)
        for m in ("l1", "l2")
    )
    pd.testing.assert_frame_equal(one, two)


def test_runs_without_seeds_are_told_by_their_names():
    frame, _ = simple()
    table = two_phases(frame.assign(seed=pd.array([pd.NA] * len(frame), dtype="Int64")))
    assert table["n_seeds"].max() == 3


def test_a_series_is_what_all_share():
    """A pair that was measured at few steps is left out, and so is a step at which another pair was not measured."""
    frame, values = simple()
    few = (frame["source_id"] == 10) & (frame["step"] > 50)
    gap = (frame["source_id"] == 11) & (frame["step"] == 140)
    ((_, rows),) = groups(frame[~few & ~gap])
    found = series(cube(rows))
    assert list(found.pairs) == [(11, 0), (12, 1)]
    np.testing.assert_array_equal(found.steps, STEPS[:-1])
    np.testing.assert_allclose(found.srel, np.log2(values[:, 1:, :-1]))


def test_mostly_invalid_seeds_and_pairs_are_left_out():
    frame, _ = simple(n_seeds=4)
    lost = (frame["seed"] == 2) | ((frame["source_id"] == 11) & (frame["step"] > 40))
    ((_, rows),) = groups(frame.assign(valid=~lost))
    found = series(cube(rows))
    assert found.seeds == ["seed-0/0", "seed-1/1", "seed-3/3"]
    assert list(found.pairs) == [(10, 0), (12, 1)]


def test_seeds_with_probes_of_their_own_are_compared_by_class_pairs():
    frame, values = simple()
    shifted = frame.assign(source_id=frame["source_id"] + 100 * frame["seed"])
    shifted.loc[shifted["step"] == 70, "valid"] = (
        shifted["source_id"] % 2 == 0
    )  # At step 70, the entries of (b, a) are invalid.
    ((_, rows),) = groups(shifted)
    found = pairs_in_time(rows)
    assert list(found.pairs) == [("a", "a"), ("a", "b"), ("b", "a")]
    np.testing.assert_allclose(found.srel[:, 1, :7], values[:, 2, :7])
    np.testing.assert_allclose(found.srel[:, 2, :7], values[:, 1, :7])
    assert np.isnan(found.srel[:, 2, 7]).all()
    np.testing.assert_allclose(found.srel[:, 0, 7], values[:, 0, 7])
    assert "3 pairs" in two_phases(shifted)["scope"].iloc[0]
    nameless = two_phases(shifted.assign(source_class=""))
    assert (
        nameless["reason"].item()
        == "no pair was measured at 12 steps or more in every seed"
    )


def test_short_series_say_so():
    frame, _ = simple()
    short = frame[frame["step"] < 60]
    (reason,) = two_phases(short)["reason"]
    assert reason == "no pair was measured at 12 steps or more in every seed"
    assert change_points(short).empty
