"""Definition 3 and the separation of classes, against plain loops."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from srel_tf import FrameError, frames, separation, smooth
from tests.made_up import probe, result

SETTINGS = ["run", "seed", "step", "epoch", "measure", "update", "estimator", "learning_rate"]


def one_run(run="", seed=None, steps=(0, 9), draw=0, **kwargs):
    """3 cats and 3 dogs as sources, 2 of each as targets, 30% of the entries invalid, ties among the others."""
    animals = probe(3, 2, targets=[0, 1, 4, 5])
    made = [result(animals, step, seed=draw, invalid=0.3, digits=1, **kwargs) for step in steps]
    return pd.concat([r.to_frame(run, seed, epoch=r.step / 9) for r in made], ignore_index=True)


def matrices_of(frame):
    """{settings: rows as dicts}, by a plain loop; a missing seed is a seed of its own."""
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
            values, counted = expected.setdefault((*key, row["source_class"], row["target_class"]), ([], []))
            if diagonal or row["source_id"] != row["target_id"]:
                counted.append(row)
                if row["valid"]:
                    values.append(row["srel"])
    assert len(pairs) == len(expected)
    for pair in pairs.to_dict("records"):
        values, counted = expected[(*key_of(pair), pair["source_class"], pair["target_class"])]
        mean, median = (f(values) if values else math.nan for f in (statistics.fmean, statistics.median))
        assert pair["mean"] == pytest.approx(mean, rel=1e-12, nan_ok=True)
        assert pair["median"] == pytest.approx(median, rel=1e-12, nan_ok=True)
        assert pair["n_valid"] == len(values)
        assert pair["n_pairs"] == len(counted)


def test_number_of_pairs_tells_the_diagonal():
    """3 sources and 2 targets a class, both targets among the sources: 2 of 6 intra-class pairs are the diagonal."""
    frame = one_run(steps=[0])
    for diagonal, intra in ((True, 6), (False, 4)):
        pairs = smooth(frame, diagonal)
        same = pairs["source_class"] == pairs["target_class"]
        assert (pairs.loc[same, "n_pairs"] == intra).all()
        assert (pairs.loc[~same, "n_pairs"] == 6).all()


def test_axes_are_not_swapped():
    frame = one_run(steps=[0]).query("measure == 'kl'")
    chosen = frame[(frame["source_class"] == "cat") & (frame["target_class"] == "dog") & frame["valid"]]
    pair = smooth(frame).query("source_class == 'cat' and target_class == 'dog'")
    assert pair["mean"].item() == pytest.approx(chosen["srel"].mean())


def test_a_class_pair_without_valid_entries_is_nan():
    frame = one_run(steps=[0])
    cats = frame["source_class"] == "cat"
    frame.loc[cats, ["valid", "srel"]] = [False, 5.0]  # what an invalid entry holds does not matter
    pairs = smooth(frame).set_index(["measure", "source_class", "target_class"])
    assert math.isnan(pairs.loc[("kl", "cat", "dog"), "mean"])
    assert pairs.loc[("kl", "cat", "dog"), "n_valid"] == 0
    assert pairs.loc[("kl", "dog", "cat"), "n_valid"] > 0


def auc_by_counting(intra, inter):
    return sum((a > b) + 0.5 * (a == b) for a in intra for b in inter) / (len(intra) * len(inter))


@pytest.mark.parametrize("make", [one_run, several_runs])
def test_separation_by_counting_pairs(make):
    frame = make()
    scores = separation(frame)
    matrices = matrices_of(frame)
    assert len(scores) == len(matrices)
    ties = 0
    for score in scores.to_dict("records"):
        rows = [r for r in matrices[key_of(score)] if r["valid"] and r["source_id"] != r["target_id"]]
        intra = [r["srel"] for r in rows if r["source_class"] == r["target_class"]]
        inter = [r["srel"] for r in rows if r["source_class"] != r["target_class"]]
        ties += len(set(intra) & set(inter))
        assert score["auc"] == pytest.approx(auc_by_counting(intra, inter), rel=1e-12)
        truth = [1] * len(intra) + [0] * len(inter)
        assert score["auc"] == pytest.approx(roc_auc_score(truth, intra + inter), rel=1e-12)
        assert score["median_intra"] == pytest.approx(statistics.median(intra))
        assert score["median_inter"] == pytest.approx(statistics.median(inter))
        assert score["ratio_of_medians"] == pytest.approx(statistics.median(intra) / statistics.median(inter))
        assert (score["n_intra"], score["n_inter"]) == (len(intra), len(inter))
    assert ties  # the draw above has some


def test_perfect_separation_and_none():
    frame = one_run(steps=[0])
    same = frame["source_class"] == frame["target_class"]
    for srel, auc in ((np.where(same, 2.0, 0.5), 1.0), (np.where(same, 0.5, 2.0), 0.0), (1.0, 0.5)):
        assert separation(frame.assign(srel=srel, valid=True))["auc"].tolist() == [auc, auc]


def test_separation_of_one_kind_alone_is_nan():
    frame = one_run(steps=[0])
    scores = separation(frame[frame["source_class"] == frame["target_class"]])
    assert scores[["auc", "median_intra", "median_inter", "ratio_of_medians"]].isna().all(axis=None)
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


def test_frames_that_do_not_fit():
    frame = one_run(steps=[0])
    for function in (smooth, separation):
        with pytest.raises(FrameError, match=r"lacks the columns \['srel', 'valid'\]"):
            function(frame.drop(columns=["srel", "valid"]))
        with pytest.raises(FrameError, match="got dict"):
            function(frame.to_dict())
    for nameless in ("", None):
        with pytest.raises(FrameError, match="source_class is empty"):
            separation(frame.assign(source_class=nameless))


def by_source(frame, limit):
    """The frame with the rows of some (step, source) by `limit`, as estimator "auto" gives them."""
    rows = zip(frame["step"], frame["source_id"], strict=True)
    return frame.assign(estimator=["limit" if row in limit else "exact" for row in rows])


@pytest.mark.parametrize("limit", [{(9, 0), (9, 4)}, {(9, i) for i in range(6)}], ids=["some", "all late ones"])
@pytest.mark.parametrize("seed", [None, 3])
def test_rows_of_auto_are_one_matrix_at_every_step(limit, seed):
    frame = one_run(seed=seed)
    mixed = by_source(frame, limit)
    for statistic in (smooth, separation):
        expected, found = statistic(frame), statistic(mixed)
        assert (found["estimator"] == "auto").all()
        columns = [name for name in expected if name != "estimator"]
        pd.testing.assert_frame_equal(found[columns], expected[columns])


def test_two_estimators_of_the_same_sources_stay_apart():
    exact = one_run(steps=[0])
    both = pd.concat([exact, exact.assign(estimator="limit", srel=2.0)], ignore_index=True)
    auto = by_source(one_run("b"), {(0, 1)})
    pairs = smooth(pd.concat([both, auto], ignore_index=True))
    assert set(map(tuple, pairs[["run", "estimator"]].to_numpy())) == {("", "exact"), ("", "limit"), ("b", "auto")}
    assert len(pairs[pairs["estimator"] == "exact"]) == len(smooth(exact))
    assert (pairs.loc[(pairs["estimator"] == "limit") & (pairs["n_valid"] > 0), "mean"] == 2).all()


def test_finite_steps_and_a_limit_of_other_rates_are_no_auto():
    """η is recorded as it is: the training's is a float32, 0.001 is not; several at a step are several series."""
    rows = [("exact", 1e-3), ("exact", 1e-2), ("limit", float(np.float32(1e-3)))]
    parts = [one_run(steps=[s]).assign(estimator=e, learning_rate=eta) for s in (0, 9) for e, eta in rows]
    apart = smooth(pd.concat(parts, ignore_index=True))
    assert set(zip(apart["estimator"], apart["learning_rate"], strict=True)) == set(rows)
    # One rate of two is measured by auto: its sources come from both estimators.
    mixed = parts[1].copy()
    first = mixed["source_id"] == mixed["source_id"].iloc[0]
    mixed["estimator"] = mixed["estimator"].mask(first, "limit")
    pooled = smooth(pd.concat([parts[0], mixed, parts[3], parts[4]], ignore_index=True))
    found = pooled.groupby("learning_rate")["estimator"].unique().map(list).to_dict()
    assert found == {1e-3: ["exact"], 1e-2: ["auto"]}
    # A schedule changes η from step to step: one series, be a step wholly of one estimator.
    limit = parts[5].assign(learning_rate=5e-3)
    scheduled = smooth(pd.concat([mixed, limit], ignore_index=True))
    assert set(scheduled["estimator"]) == {"auto"}
