"""Definition 3 and the separation of classes, compared with plain loops."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from srel_tf import FrameError, separation, smooth
from srel_tf.frames import schema as frames
from tests.made_up import probe, result

SETTINGS = [
    "run",
    "seed",
    "name",
    "step",
    "epoch",
    "measure",
    "update",
    "estimator",
    "learning_rate",
]


def one_run(run="", seed=None, steps=(0, 9), draw=0, name="", **kwargs):
    """Make a frame with 3 cats and 3 dogs as sources and 2 of each as targets.

    30% of the entries are invalid, and there are ties among the valid ones.
    """
    animals = probe(3, 2, targets=[0, 1, 4, 5]).with_name(name)
    made = [
        result(animals, step, seed=draw, invalid=0.3, digits=1, **kwargs)
        for step in steps
    ]
    return pd.concat(
        [r.to_frame(run, seed, epoch=r.step / 9) for r in made], ignore_index=True
    )


def matrices_of(frame):
    """Return {settings: rows as dicts}, by a plain loop. A missing seed counts as a distinct seed."""
    found = {}
    for row in frame.to_dict("records"):
        key = tuple(None if pd.isna(row[name]) else row[name] for name in SETTINGS)
        found.setdefault(key, []).append(row)
    return found


def key_of(row):
    return tuple(None if pd.isna(row[name]) else row[name] for name in SETTINGS)


def several_runs():
    return pd.concat(
        [
            one_run("a", 0, draw=1),
            one_run("b", 1, draw=2),
            one_run("b", 1, draw=3, learning_rate=0.2),
            one_run("b", 1, draw=4, update="fresh_adam"),
            one_run("b", 1, draw=7, name="b"),
            one_run("c", None, draw=5),
            one_run("", None, draw=6),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("make", [one_run, several_runs])
def test_definition_3(make, diagonal):
    frame = make()
    pairs = smooth(frame, diagonal=diagonal)
    expected = {}
    for key, rows in matrices_of(frame).items():
        for row in rows:
            values, counted = expected.setdefault(
                (*key, row["source_class"], row["target_class"]), ([], [])
            )
            if diagonal or row["source_id"] != row["target_id"]:
                counted.append(row)
                if row["valid"]:
                    values.append(row["srel"])
    assert len(pairs) == len(expected)
    for pair in pairs.to_dict("records"):
        values, counted = expected[
            (*key_of(pair), pair["source_class"], pair["target_class"])
        ]
        mean, median = (
            f(values) if values else math.nan
            for f in (statistics.fmean, statistics.median)
        )
        assert pair["mean"] == pytest.approx(mean, rel=1e-12, nan_ok=True)
        assert pair["median"] == pytest.approx(median, rel=1e-12, nan_ok=True)
        assert pair["n_valid"] == len(values)
        assert pair["n_pairs"] == len(counted)


def test_number_of_pairs_tells_the_diagonal():
    """Each class has 3 sources and 2 of them as targets, so 2 of its 6 intra-class pairs are on the diagonal."""
    frame = one_run(steps=[0])
    for diagonal, intra in ((True, 6), (False, 4)):
        pairs = smooth(frame, diagonal)
        same = pairs["source_class"] == pairs["target_class"]
        assert (pairs.loc[same, "n_pairs"] == intra).all()
        assert (pairs.loc[~same, "n_pairs"] == 6).all()


def test_axes_are_not_swapped():
    frame = one_run(steps=[0]).query("measure == 'kl'")
    chosen = frame[
        (frame["source_class"] == "cat")
        & (frame["target_class"] == "dog")
        & frame["valid"]
    ]
    pair = smooth(frame).query("source_class == 'cat' and target_class == 'dog'")
    assert pair["mean"].item() == pytest.approx(chosen["srel"].mean())


def test_a_class_pair_without_valid_entries_is_nan():
    frame = one_run(steps=[0])
    cats = frame["source_class"] == "cat"
    frame.loc[cats, ["valid", "srel"]] = [
        False,
        5.0,
    ]  # The value of an invalid entry is ignored.
    pairs = smooth(frame).set_index(["measure", "source_class", "target_class"])
    assert math.isnan(pairs.loc[("kl", "cat", "dog"), "mean"])
    assert pairs.loc[("kl", "cat", "dog"), "n_valid"] == 0
    assert pairs.loc[("kl", "dog", "cat"), "n_valid"] > 0


def auc_by_counting(intra, inter):
    return sum((a > b) + 0.5 * (a == b) for a in intra for b in inter) / (
        len(intra) * len(inter)
    )


@pytest.mark.parametrize("make", [one_run, several_runs])
def test_separation_by_counting_pairs(make):
    frame = make()
    scores = separation(frame)
    matrices = matrices_of(frame)
    assert len(scores) == len(matrices)
    ties = 0
    for score in scores.to_dict("records"):
        rows = [
            r
            for r in matrices[key_of(score)]
            if r["valid"] and r["source_id"] != r["target_id"]
        ]
        intra = [r["srel"] for r in rows if r["source_class"] == r["target_class"]]
        inter = [r["srel"] for r in rows if r["source_class"] != r["target_class"]]
        ties += len(set(intra) & set(inter))
        assert score["auc"] == pytest.approx(auc_by_counting(intra, inter), rel=1e-12)
        truth = [1] * len(intra) + [0] * len(inter)
        assert score["auc"] == pytest.approx(
            roc_auc_score(truth, intra + inter), rel=1e-12
        )
        assert score["median_intra"] == pytest.approx(statistics.median(intra))
        assert score["median_inter"] == pytest.approx(statistics.median(inter))
        assert score["ratio_of_medians"] == pytest.approx(
            statistics.median(intra) / statistics.median(inter)
        )
        assert (score["n_intra"], score["n_inter"]) == (len(intra), len(inter))
    assert ties  # The data have ties between intra- and inter-class entries.


def test_perfect_separation_and_none():
    frame = one_run(steps=[0])
    same = frame["source_class"] == frame["target_class"]
    for srel, auc in (
        (np.where(same, 2.0, 0.5), 1.0),
        (np.where(same, 0.5, 2.0), 0.0),
        (1.0, 0.5),
    ):
        assert separation(frame.assign(srel=srel, valid=True))["auc"].tolist() == [
            auc,
            auc,
        ]


def test_separation_of_one_kind_alone_is_nan():
    frame = one_run(steps=[0])
    scores = separation(frame[frame["source_class"] == frame["target_class"]])
    assert (
        scores[["auc", "median_intra", "median_inter", "ratio_of_medians"]]
        .isna()
        .all(axis=None)
    )
    assert (scores["n_inter"] == 0).all()
    assert (scores["n_intra"] > 0).all()


def test_a_median_of_zero_has_no_ratio():
    frame = one_run(steps=[0])
    inter = frame["source_class"] != frame["target_class"]
    scores = separation(frame.assign(srel=frame["srel"].where(~inter, 0.0)))
    assert scores["ratio_of_medians"].isna().all()
    assert (scores["median_inter"] == 0).all()


def test_types_are_kept():
    frame = several_runs()
    for table in (smooth(frame), separation(frame)):
        assert (table[SETTINGS].dtypes == frame[SETTINGS].dtypes).all()


def test_frames_of_no_measurements():
    for table in (smooth(frames.empty()), separation(frames.empty())):
        assert len(table) == 0
        assert {*SETTINGS} <= {*table.columns}


def test_a_frame_without_names_is_of_probes_without_names():
    frame = several_runs().query("name == ''")
    for statistic in (smooth, separation):
        without = statistic(frame.drop(columns="name"))
        pd.testing.assert_frame_equal(without, statistic(frame))


def test_frames_that_do_not_fit():
    frame = one_run(steps=[0])
    for function in (smooth, separation):
        with pytest.raises(FrameError, match=r"lacks the columns \['srel', 'valid'\]"):
            function(frame.drop(columns=["srel", "valid"]))
        with pytest.raises(FrameError, match="got dict"):
            function(frame.to_dict())
    for nameless in (
        {"source_class": ""},
        {"source_class": None},
        {"target_class": ""},
    ):
        with pytest.raises(FrameError, match="is empty in some rows"):
            separation(frame.assign(**nameless))


@pytest.mark.parametrize("seed", [None, 3])
def test_rows_of_auto_are_one_matrix(seed):
    """Rows of the estimator "auto" with different methods give the same statistics as rows of one method."""
    exact, auto = (
        one_run(seed=seed, estimator=estimator) for estimator in ("exact", "auto")
    )
    assert set(auto["method"]) == {*frames.METHODS}
    for statistic in (smooth, separation):
        pd.testing.assert_frame_equal(
            statistic(auto), statistic(exact).assign(estimator="auto")
        )


def test_two_probes_of_one_run_by_two_estimators_stay_apart():
    """The probes have different sources, so only the estimator separates them. The means must not become 0.55."""
    cats = [
        result(probe(2, 1, ids=ids), estimator=estimator, measures=["l1"])
        .to_frame("a", 0, 0.0)
        .assign(srel=srel)
        for ids, estimator, srel in (([0, 1], "exact", 0.2), ([2, 3], "limit", 0.9))
    ]
    pairs = smooth(pd.concat(cats, ignore_index=True))
    assert pairs[["estimator", "mean", "n_pairs"]].to_numpy().tolist() == [
        ["exact", 0.2, 4],
        ["limit", 0.9, 4],
    ]


def test_estimators_of_the_same_sources_stay_apart():
    every = [
        one_run(estimator=estimator, draw=i)
        for i, estimator in enumerate(("exact", "limit", "auto"))
    ]
    together = pd.concat(every, ignore_index=True)
    for statistic in (smooth, separation):
        apart = pd.concat([statistic(one) for one in every], ignore_index=True)
        pd.testing.assert_frame_equal(statistic(together), apart)


def test_finite_steps_of_several_rates_stay_apart_and_a_schedule_is_followed():
    rates = [("exact", 1e-3), ("exact", 1e-2), ("auto", 1e-2)]
    parts = [
        one_run(steps=[s], estimator=e, learning_rate=eta)
        for s in (0, 9)
        for e, eta in rates
    ]
    pairs = smooth(pd.concat(parts, ignore_index=True))
    assert set(zip(pairs["estimator"], pairs["learning_rate"], strict=True)) == set(
        rates
    )
    scheduled = smooth(
        pd.concat([parts[2], parts[5].assign(learning_rate=5e-3)], ignore_index=True)
    )
    assert scheduled.groupby("step")["learning_rate"].unique().map(list).to_dict() == {
        0: [1e-2],
        9: [5e-3],
    }
    assert set(scheduled["estimator"]) == {"auto"}
