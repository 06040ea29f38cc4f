"""Tests of the tables and pictures of the replication, from made-up runs, against NumPy, SciPy and plain loops."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import srel_tf
from srel_tf.files import read_json, write_json
from tests.made_up import probe, result
from train import condense, figures
from train.common.seed_marks import mark_as_finished
from train.replication import command as replication
from train.replication import tables

RESULTS = Path(__file__).parents[2] / "results"
SEEDS, STEPS = (0, 1, 2), (0, 8, 12)
MEASURES = ("kl", "l1", "published_kl")


def frame_of(seed):
    animals = probe(9, 3, ids=np.arange(27) + 100 * seed)
    parts = []
    for step in STEPS:
        for update, eta in (("sgd", 0.1), ("sgd", 0.01), ("fresh_adam", 0.1)):
            made = result(
                animals.with_name(f"η={eta:g}" if update == "sgd" else ""),
                step,
                MEASURES,
                update,
                eta,
                invalid=0.1,
                seed=[seed, int(eta * 100), len(update)],
            )
            parts.append(made.to_frame(f"seed-{seed}", seed, step / 4))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write a made-up run. Return (run directory, {seed: frame})."""
    path, frames = (
        tmp_path_factory.mktemp("run"),
        {seed: frame_of(seed) for seed in SEEDS},
    )
    for seed, frame in frames.items():
        folder = path / f"seed-{seed}"
        folder.mkdir()
        srel_tf.write_frame(frame, folder / "frame.parquet")
        rows = [
            (f"seed-{seed}", seed, e, s, 1 / e, 0.5)
            for e in (1, 2, 3)
            for s in ("train", "test")
        ]
        history = pd.DataFrame(
            rows, columns=["run", "seed", "epoch", "split", "loss", "accuracy"]
        )
        srel_tf.write_frame(history, folder / "history.csv")
        mark_as_finished(folder, {"seed": seed, "seconds": 1.5, "updates": 12})
    for name in ("settings.json", "environment.json"):
        write_json(path / name, {"name": name})
    return path, frames


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    assert (
        condense.main(
            [
                str(run[0]),
                "--out",
                str(out / "cifar10-crossed"),
                "--matrices",
                "0",
                "12",
            ]
        )
        == 0
    )
    shutil.copytree(out / "cifar10-crossed", out / "cifar10-published")
    return out


def kept(results, name):
    return srel_tf.read_frame(results / "cifar10-crossed" / name)


def entries(run, seed=1, step=8, measure="kl", update="fresh_adam"):
    """Return the valid rows of one matrix without the diagonal, and whether source and target have the same class."""
    frame = run[1][seed]
    rows = frame[
        (frame["step"] == step)
        & (frame["measure"] == measure)
        & (frame["update"] == update)
    ]
    rows = rows[rows["valid"] & (rows["source_id"] != rows["target_id"])]
    return rows, rows["source_class"] == rows["target_class"]


def test_a_seed_whose_files_have_changed_is_refused(run, tmp_path, capsys):
    path = shutil.copytree(run[0], tmp_path / "run")
    (path / "seed-1" / "history.csv").write_text("run\n", encoding="utf-8")
    assert condense.main([str(path), "--out", str(tmp_path / "out")]) == 1
    assert (
        "seed-1/history.csv has changed since it was written" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_rows_that_a_seed_lost_are_named(run, tmp_path):
    path = shutil.copytree(run[0], tmp_path / "run")
    lost = [{"file": "part-3.parquet", "rows": 90, "fault": "is truncated"}]
    mark_as_finished(path / "seed-2", {"seed": 2, "left_out": lost})
    for seed in (0, 1):
        shutil.rmtree(path / f"seed-{seed}")
    condense.condense(path, tmp_path / "out")
    assert read_json(tmp_path / "out" / "seeds.json")["seed-2"]["left_out"] == lost


def test_class_pairs_with_and_without_the_diagonal(run, results):
    pairs = kept(results, "pairs.parquet")
    assert set(pairs["rule"]) == {"sgd η=0.1", "sgd η=0.01", "fresh_adam"}
    assert len(pairs) == len(SEEDS) * len(STEPS) * 3 * len(MEASURES) * 9
    rows, _ = entries(run)
    of = rows[(rows["source_class"] == "dog") & (rows["target_class"] == "dog")]["srel"]
    found = pairs.query(
        "run == 'seed-1' and step == 8 and measure == 'kl' and rule == 'fresh_adam'"
    )
    found = found.query("source_class == 'dog' and target_class == 'dog'").iloc[0]
    assert found["off_mean"] == pytest.approx(of.mean(), rel=1e-12)
    assert (found["off_n_valid"], found["off_n_pairs"]) == (len(of), 72)
    assert found["n_pairs"] == 81
    assert found["mean"] != found["off_mean"]


def test_quantiles(run, results):
    rows, same = entries(run)
    found = kept(results, "quantiles.parquet").query(
        "run == 'seed-1' and step == 8 and measure == 'kl'"
    )
    for kind, of in (("intra", rows[same]), ("inter", rows[~same])):
        row = found[(found["rule"] == "fresh_adam") & (found["kind"] == kind)].iloc[0]
        for q in condense.QUANTILES:
            assert row[f"q{q}"] == pytest.approx(np.quantile(of["srel"], q), rel=1e-12)
        assert (row["mean"], row["n_valid"]) == (
            pytest.approx(of["srel"].mean(), rel=1e-12),
            len(of),
        )


def test_agreement_is_scipys_rank_correlation(run, results):
    parts = [
        entries(run, measure=m)[0].set_index(["source_id", "target_id"])["srel"]
        for m in ("kl", "l1")
    ]
    both = pd.concat(parts, axis=1, join="inner").to_numpy()
    found = kept(results, "agreement.parquet").query(
        "run == 'seed-1' and step == 8 and rule == 'fresh_adam'"
    )
    row = found[(found["first"] == "kl") & (found["second"] == "l1")].iloc[0]
    assert row["spearman"] == pytest.approx(stats.spearmanr(both).statistic, rel=1e-10)
    positive = np.log(both[(both > 0).all(axis=1)])
    assert row["slope"] == pytest.approx(np.polyfit(*positive.T, 1)[0], rel=1e-8)


def test_a_square_has_slope_two_and_the_same_ranks(run, tmp_path):
    for seed, frame in run[1].items():
        squares = frame[frame["measure"] == "l1"].assign(
            measure="kl", srel=lambda f: f["srel"] ** 2
        )
        (tmp_path / f"seed-{seed}").mkdir()
        srel_tf.write_frame(
            pd.concat([frame[frame["measure"] == "l1"], squares]).sort_values(
                ["step", "update"], kind="stable"
            ),
            tmp_path / f"seed-{seed}" / "frame.parquet",
        )
    frame = srel_tf.scan_frame(tmp_path / "seed-0" / "frame.parquet")
    found = condense.agreement(frame)
    np.testing.assert_allclose(
        found["slope"], np.where(found["first"] == "l1", 2, 0.5), rtol=1e-9
    )
    np.testing.assert_allclose(found["spearman"], 1, rtol=1e-12)


def test_matrices_are_rows_of_the_frame(run, results):
    found = kept(results, "matrices.parquet")
    frame = run[1][0]
    expected = frame[frame["step"].isin([0, 12]) & frame["measure"].isin(["kl", "l1"])]
    pd.testing.assert_frame_equal(
        found, expected.reset_index(drop=True), check_dtype=False
    )


def test_verdicts_are_of_one_rule_each(results):
    found = kept(results, "verdicts.csv")
    assert len(found) == 5 * 3 * len(MEASURES)
    assert not found.duplicated(["claim", "measure", "rule"]).any()


def test_the_central_table(run, results):
    found = replication.central(replication.load(results))
    row = found.query(
        "protocol == 'crossed' and measure == 'kl' and rule == 'fresh_adam'"
    ).set_index("quantity")
    aucs = []
    for seed in SEEDS:
        of_steps = []
        for step in (8, 12):  # The steps after the first epoch.
            rows, same = entries(run, seed, step)
            of_steps.append(
                np.mean(
                    rows["srel"][same].to_numpy()[:, None]
                    > rows["srel"][~same].to_numpy()
                )
            )
        aucs.append(np.mean(of_steps))
    half = stats.t.ppf(0.975, 2) * np.std(aucs, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(
        row.loc["auc", ["mean", "low", "high"]].astype(float),
        [np.mean(aucs), np.mean(aucs) - half, np.mean(aucs) + half],
        rtol=1e-10,
    )
    assert row.loc["valid", "mean"] == pytest.approx(0.9, abs=0.02)
    assert {
        "change_intra",
        "change_inter",
        "intra",
        "inter",
        "off_intra",
        "ratio_of_medians",
    } <= set(row.index)


def test_runs_without_a_measurement_after_the_first_epoch(results, tmp_path, capsys):
    short = shutil.copytree(results / "cifar10-crossed", tmp_path / "digits-crossed")
    for name in ("pairs.parquet", "separation.parquet"):
        frame = srel_tf.read_frame(short / name)
        srel_tf.write_frame(frame.assign(epoch=frame["epoch"] / 10), short / name)
    assert replication.main(["--results", str(tmp_path)]) == 0
    quantities = set(replication.central(replication.load(tmp_path))["quantity"])
    assert "auc_start" in quantities
    assert not quantities & {"auc", "intra", "off_intra"}


def test_claims_on_measures_are_paired_by_seed(results):
    separation = kept(results, "separation.parquet")
    claims = replication.claims(replication.load(results))
    new = claims[claims["hypothesis"] == "Section 2.1"]
    auc = (
        separation[separation["epoch"] >= 1]
        .groupby(["rule", "measure", "run"])["auc"]
        .mean()
    )
    row = new.query(
        "protocol == 'crossed' and rule == 'fresh_adam' and measure == 'kl − l1'"
    ).iloc[0]
    gap = (auc["fresh_adam", "kl"] - auc["fresh_adam", "l1"]).mean()
    assert row["effect_size"] == pytest.approx(gap, rel=1e-10)
    assert row["verdict"] in {"supported", "contradicted", "undecided"}
    assert set(new["claim"]) == {
        "no separation",
        "KL separates better than ℓ1",
    }


def test_a_trend_of_a_selection_is_undecided(results):
    directories = replication.load(results)
    claims = replication.claims(directories).query(
        "protocol == 'crossed' and measure == 'kl'"
    )
    of_rule = kept(results, "pairs.parquet").query(
        "step == 12 and measure == 'kl' and rule == 'fresh_adam'"
    )
    share = of_rule["off_n_valid"].sum() / of_rule["off_n_pairs"].sum()
    found = claims[claims["rule"] == "fresh_adam"].set_index("claim")
    assert found["valid_last"].unique() == pytest.approx([share], rel=1e-12)
    trends = list(tables.TRENDS)
    assert (found.loc[trends, "verdict"] == "undecided").all()
    assert (
        found.loc[trends, "reason"]
        .str.startswith(f"only {share:.0%} of the entries")
        .all()
    )
    assert not found.drop(trends)["reason"].str.contains("selection").any()


def test_inter_above_intra_is_no_separation_of_the_kind_that_the_paper_means(
    results, tmp_path
):
    shutil.copytree(results / "cifar10-crossed", tmp_path / "cifar10-crossed")
    file = tmp_path / "cifar10-crossed" / "separation.parquet"
    separation = srel_tf.read_frame(file)
    seeds = separation["seed"].astype(float)
    for auc, verdict in ((0.3, "supported"), (0.5, "supported"), (0.7, "contradicted")):
        srel_tf.write_frame(separation.assign(auc=auc + 0.001 * seeds), file)
        claims = replication.claims(replication.load(tmp_path)).query(
            "claim == 'no separation'"
        )
        assert set(claims["verdict"]) == {verdict}


def test_scales_of_sources_and_targets_taken_away(run, results):
    """The AUC of rows is computed by a loop, and the residuals of log S by subtracting row and column means in turn."""
    found = tables.adjusted(replication.load(results)).query(
        "protocol == 'crossed' and step == 12"
    )
    row = found[(found["measure"] == "kl") & (found["rule"] == "fresh_adam")].iloc[0]
    rows, same = entries(run, seed=0, step=12)
    assert row["auc"] == pytest.approx(
        np.mean(rows["srel"][same].to_numpy()[:, None] > rows["srel"][~same].to_numpy())
    )
    of_rows = []
    for source in rows["source_id"].unique():
        one, kind = rows["source_id"] == source, same
        intra, inter = (
            rows["srel"][one & kind].to_numpy(),
            rows["srel"][one & ~kind].to_numpy(),
        )
        of_rows.append(np.mean(intra[:, None] > inter))
    assert row["auc_rows"] == pytest.approx(np.mean(of_rows))
    left = np.log(rows["srel"])
    for _ in range(200):
        left -= left.groupby(rows["source_id"]).transform("mean")
        left -= left.groupby(rows["target_id"]).transform("mean")
    expected = np.mean(left[same].to_numpy()[:, None] > left[~same].to_numpy())
    assert row["auc_two_way"] == pytest.approx(expected)


def test_a_separation_under_scales_is_found():
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-2, 2, (2, 12))
    i, j = (k.ravel() for k in np.indices((12, 12)))
    entries = pd.DataFrame({"source_id": i, "target_id": j, "same": i % 3 == j % 3})
    entries["srel"] = scales[0][i] * scales[1][j] * np.where(entries["same"], 1.5, 1.0)
    entries = entries[i != j]
    left, same = tables.two_way_residuals(entries), entries["same"].to_numpy()
    assert srel_tf.auc(entries["srel"][same], entries["srel"][~same]) < 0.7
    assert srel_tf.auc(left[same], left[~same]) > 0.99


def test_how_far_a_step_moves_predictions(run, results):
    found = replication.moves(replication.load(results)).query(
        "protocol == 'crossed' and step == 12"
    )
    frame = run[1][0].query("step == 12 and measure == 'l1' and update == 'fresh_adam'")
    own, same = (
        frame["source_id"] == frame["target_id"],
        frame["source_class"] == frame["target_class"],
    )
    row = found[found["rule"] == "fresh_adam"].iloc[0]
    for kind, rows in (("source", own), ("intra", same & ~own), ("inter", ~same)):
        assert row[kind] == pytest.approx(
            np.median(frame.loc[rows, "numerator"]), rel=1e-12
        )


def test_a_step_of_auto_moves_predictions_only_in_rows_of_finite_steps(tmp_path):
    """Changes in rows of the limit are per unit of η, also if the estimator is auto, and must be left out."""
    frame = result(probe(4, 2), measures=["l1"], estimator="auto").to_frame(
        "seed-0", 0, 0.0
    )
    srel_tf.write_frame(frame, tmp_path / "matrices.parquet")
    pairs = srel_tf.smooth(frame).assign(rule="sgd, auto")
    srel_tf.write_frame(pairs, tmp_path / "pairs.parquet")
    (found,) = tables.moves({("made-up", "crossed"): tmp_path}).to_dict("records")
    # The methods of the rows take turns: finite_step, finite_step_float64, then two limits.
    finite = frame[frame["source_id"] % 4 < 2]
    own, same = (
        finite["source_id"] == finite["target_id"],
        finite["source_class"] == finite["target_class"],
    )
    assert found["rule"] == "sgd, auto"
    for kind, rows in (("source", own), ("intra", same & ~own), ("inter", ~same)):
        assert found[kind] == pytest.approx(
            np.median(finite.loc[rows, "numerator"]), rel=1e-12
        )


@pytest.fixture(scope="module")
def published(run):
    """Our own curves of fresh_adam in the published form, doubled. Narrow ranges do then not overlap."""
    frames = pd.concat(run[1].values(), ignore_index=True)
    pairs = srel_tf.smooth(frames[frames["update"] == "fresh_adam"])
    pairs = pairs[pairs["measure"] == "published_kl"]
    return pairs.assign(step=pairs["step"] - 1, srel=2 * pairs["mean"])


def test_beside_the_published_curves(results, published):
    ours = srel_tf.read_frame(results / "cifar10-published" / "pairs.parquet")
    found = replication.beside_published(ours, published)
    assert len(found) == 9
    np.testing.assert_allclose(found["log2_ratio"], -1, rtol=1e-12)
    np.testing.assert_allclose(found["correlation"], 1, rtol=1e-9)
    assert (found["steps"] == len(STEPS)).all()
    same = replication.beside_published(
        ours, published.assign(srel=published["srel"] / 2)
    )
    assert (same["overlap"] == 1).all()
    with pytest.raises(srel_tf.OptionError, match="no step in common"):
        replication.beside_published(ours, published.assign(step=1000))


def test_the_command_prints_and_writes_the_tables(results, published, tmp_path, capsys):
    srel_tf.write_frame(published, tmp_path / "curves.csv")
    arguments = [
        "--results",
        str(results),
        "--out",
        str(tmp_path),
        "--published",
        str(tmp_path / "curves.csv"),
    ]
    assert replication.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "cifar10, protocol crossed, 3 seeds" in printed
    assert {"central.csv", "claims.csv", "published.csv"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_every_picture_again(results, published, tmp_path, capsys):
    srel_tf.write_frame(published, tmp_path / "curves.csv")
    assert (
        figures.main(
            ["--results", str(results), "--published", str(tmp_path / "curves.csv")]
        )
        == 0
    )
    written = {
        line.removeprefix(str(results)) for line in capsys.readouterr().out.splitlines()
    }
    of_crossed = {
        name for name in written if name.startswith("/cifar10-crossed/figures/")
    }
    names = (
        "history",
        "separation",
        "spread",
        "pairs-sgd-0.1",
        "pairs-sgd-0.01",
        "pairs-fresh_adam",
        "matrix-kl",
    )
    assert {f"/cifar10-crossed/figures/{name}.png" for name in names} <= of_crossed
    assert "/replication/beside-published_kl.png" in written
    assert all((results / name.lstrip("/")).stat().st_size > 5000 for name in written)


def test_pictures_of_a_directory_that_is_named_after_no_protocol(results, tmp_path):
    shutil.copytree(results / "cifar10-crossed", tmp_path / "cifar10-mine")
    names = (
        name for name, _ in figures.of_classification(tmp_path / "cifar10-mine", "mine")
    )
    assert "pairs-fresh_adam.png" in names  # The later figures are not drawn.


def test_bad_input_is_told(tmp_path, capsys):
    assert condense.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no finished seed" in capsys.readouterr().err
    assert replication.main(["--results", str(tmp_path)]) == 1
    assert "no results of train.condense" in capsys.readouterr().err


def test_other_csv_than_the_published_curves_is_told(results, tmp_path, capsys):
    (tmp_path / "history.csv").write_text(
        "run,epoch,train_loss\n0,0,0.9\n", encoding="utf-8"
    )
    arguments = [
        "--results",
        str(results),
        "--published",
        str(tmp_path / "history.csv"),
    ]
    assert replication.main([*arguments, "--out", str(tmp_path)]) == 1
    assert "lacks the columns ['measure', 'step'" in capsys.readouterr().err


def test_steps_that_were_not_measured(run, tmp_path):
    with pytest.raises(srel_tf.FrameError, match=r"steps \[5\] of seed 0"):
        condense.condense(run[0], tmp_path, steps=[5])


def test_the_central_table_of_the_text_is_that_of_the_frames():
    text = (RESULTS / "REPLICATION.md").read_text(encoding="utf-8").replace("−", "-")
    table = text.split("| CIFAR-10, 5 seeds |")[1].split("\n\n")[0].splitlines()[2:]
    rules = (
        "sgd η=0.0001",
        "sgd η=0.001",
        "sgd η=0.01",
        "optimizer",
        "fresh_adam",
        "limit",
    )
    found = srel_tf.read_frame(RESULTS / "replication" / "central.csv")
    found = found.query(
        "data == 'cifar10' and protocol == 'crossed' and quantity == 'auc'"
    )
    found = found.set_index(["measure", "rule"])[["mean", "low", "high"]]
    for line in table:
        measure, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        for rule, cell in zip(rules, cells, strict=True):
            told = [float(number) for number in re.findall(r"\d\.\d+", cell)]
            expected = found.loc[measure, rule][: len(told)] if told else ()
            np.testing.assert_allclose(
                told, expected, atol=6e-4, err_msg=f"{measure}, {rule}"
            )


def test_matrices_of_a_former_run_do_not_stay(run, tmp_path):
    condense.condense(run[0], tmp_path, steps=[0])
    condense.condense(run[0], tmp_path)
    assert not (tmp_path / "matrices.parquet").exists()


def test_a_seed_of_another_run_is_refused(run, tmp_path, capsys):
    path = shutil.copytree(run[0], tmp_path / "run")
    mark_as_finished(path / "seed-1", {"seed": 1, "settings": {"name": "another"}})
    assert condense.main([str(path), "--out", str(tmp_path / "out")]) == 1
    assert "seed-1 is not a seed of this run" in capsys.readouterr().err
