"""Tests of `python -m train.hypotheses` on run directories of each kind, and of the models of the theory as frames."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest

import srel_tf
from srel_tf import hypotheses, theory
from train.common.seed_marks import mark_as_finished
from train.hypotheses import in_steps, main
from train.theory import cases as theory_cases
from train.theory import command as theory_command
from train.theory.figures import MOMENTS, THETA


def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def run_directory(path, classes=False, regression=False, seeds=3, last=400):
    """Write a run directory as a command does. S_rel rises, falls with distance and is larger within a class."""
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        source, target, step = (
            i.ravel()
            for i in np.meshgrid(
                range(2, 26), (0, 1), range(0, last, 10), indexing="ij"
            )
        )
        same = (source % 2) == target
        logs = (
            -0.2 * source
            + 2 * np.minimum(step / 100, 1)
            + 2 * same
            + 0.1 * generator.normal(size=len(step))
        )
        frame = pd.DataFrame(
            {
                "run": f"seed-{seed}",
                "seed": seed,
                "step": step,
                "epoch": step / 10,
                "measure": "l1",
            }
        )
        frame = frame.assign(
            update="sgd",
            estimator="exact",
            learning_rate=0.1,
            source_id=source,
            target_id=target,
        )
        frame = frame.assign(
            srel=np.exp2(logs), numerator=np.exp2(logs), denominator=1.0, valid=True
        )
        names = np.array(["cat", "dog"]) if classes else np.array(["", ""])
        frame = frame.assign(source_class=names[source % 2], target_class=names[target])
        directory = path / f"seed-{seed}"
        directory.mkdir(parents=True)
        srel_tf.write_frame(frame, directory / "frame.parquet")
        steps = np.arange(0, last, 10)
        risks = pd.DataFrame(
            {"run": f"seed-{seed}", "seed": seed, "step": steps, "split": "empirical"}
        )
        srel_tf.write_frame(
            risks.assign(loss=1 + 100 * np.exp(-steps / 30)), directory / "history.csv"
        )
        if regression:
            pairs = frame.loc[
                frame["step"] == 100, ["run", "seed", "step", "source_id", "target_id"]
            ]
            distances = pairs.assign(
                distance=pairs["source_id"].astype(float), metric="input"
            )
            srel_tf.write_frame(distances, directory / "distances.parquet")
        mark_as_finished(directory, {})
    return path


def test_a_regression_run(tmp_path):
    path = run_directory(tmp_path / "run", regression=True)
    status, out, err = command(path)
    assert (status, err) == (0, "")
    table = srel_tf.read_frame(path / "verdicts.csv")
    assert list(table.columns) == ["model", *hypotheses.COLUMNS]
    assert set(table["hypothesis"]) == {"1.1(a)", "1.2", "1.2, Figure 5"}
    verdict = table.set_index("claim")["verdict"]
    assert verdict["S_rel falls with distance"] == "supported"
    assert (
        verdict["S_rel rises while the risk falls rapidly, median pair"] == "supported"
    )
    for claim in table["claim"]:
        assert claim in out
    assert f"written: {path / 'verdicts.csv'}" in out


def test_a_classification_run(tmp_path):
    path = run_directory(tmp_path / "run", classes=True)
    for seed in range(3):  # The history of a classification has epochs, but no steps.
        history = pd.DataFrame(
            {
                "run": [f"seed-{seed}"],
                "seed": [seed],
                "epoch": [1],
                "split": ["train"],
                "loss": [1.0],
            }
        )
        srel_tf.write_frame(history, path / f"seed-{seed}" / "history.csv")
        mark_as_finished(path / f"seed-{seed}", {})
    status, out, err = command(path)
    assert (status, err) == (0, "")
    table = srel_tf.read_frame(path / "verdicts.csv").set_index("claim")
    assert set(table["hypothesis"]) == {
        "1.1(a)",
        "1.2",
        "1.2, Figure 5",
        "classification",
    }
    assert table.loc["intra above inter", "verdict"] == "supported"
    assert (
        table.loc["S_rel falls with distance", "reason"] == "the run has no distances"
    )
    reason = table.loc["S_rel rises while the risk falls rapidly", "reason"]
    assert (
        reason
        == "the risks begin at step 10 (epoch 1), but S_rel begins at step 0: the risks between these steps are unknown"
    )
    assert "intra above inter" in out


def test_a_finished_seed_whose_files_have_changed_is_refused(tmp_path):
    path = run_directory(tmp_path / "run")
    frame = path / "seed-1" / "frame.parquet"
    srel_tf.write_frame(srel_tf.read_frame(frame).iloc[:-1], frame)
    status, _, err = command(path)
    assert status == 1
    assert f"{frame} has changed since it was written" in err
    assert not (path / "verdicts.csv").exists()


def test_one_seed_is_undecided(tmp_path):
    path = run_directory(tmp_path / "run", classes=True, regression=True, seeds=1)
    assert command(path)[0] == 0
    assert set(srel_tf.read_frame(path / "verdicts.csv")["verdict"]) == {"undecided"}


def test_interrupted_seeds_do_not_count(tmp_path):
    path = run_directory(tmp_path / "run")
    (path / "seed-2" / "seed.json").unlink()
    status, out, _ = command(path)
    assert status == 0
    assert f"note: {path / 'seed-2'} is not finished, and is left out" in out
    table = srel_tf.read_frame(path / "verdicts.csv")
    assert table["n_seeds"].max() == 2
    assert set(table["verdict"]) == {"undecided"}


@pytest.mark.parametrize("name", ["frame.parquet", "distances.parquet"])
def test_a_finished_seed_that_lacks_a_file_is_an_error(tmp_path, name):
    path = run_directory(tmp_path / "run", regression=True)
    (path / "seed-1" / name).unlink()
    status, _, err = command(path)
    assert status == 1
    assert f"{path / 'seed-1' / name} has changed since it was written" in err


def test_a_seed_without_what_the_others_have_is_an_error(tmp_path):
    path = run_directory(tmp_path / "run", regression=True)
    (path / "seed-1" / "distances.parquet").unlink()
    mark_as_finished(path / "seed-1", {})
    status, _, err = command(path)
    assert status == 1
    assert f"{path / 'seed-1'}: distances.parquet is missing" in err


@pytest.mark.parametrize(
    "name", ["seed-1/frame.parquet", "seed-1/history.csv", "settings.json"]
)
def test_damaged_files_are_named_errors(tmp_path, name):
    path = run_directory(tmp_path / "run", regression=True)
    (path / name).write_bytes(b"\x00garbage")
    if (path / name).parent != path:
        mark_as_finished(
            (path / name).parent, {}
        )  # As if this content had been written at the end of the seed.
    status, _, err = command(path)
    assert status == 1
    assert str(path / name) in err or "the risks lack the runs ['seed-1/1']" in err


def test_a_sweep_is_its_run_directories(tmp_path):
    for net in ("one", "two"):
        run_directory(tmp_path / net)
    status, _out, err = command(tmp_path)
    assert (status, err) == (0, "")
    assert (tmp_path / "one" / "verdicts.csv").exists()
    assert (tmp_path / "two" / "verdicts.csv").exists()


def test_the_pairs_of_figure_4_are_judged_at_all_their_steps(tmp_path):
    path = run_directory(tmp_path / "run", regression=True)
    (path / "settings.json").write_text(
        json.dumps({"experiment": "regression"}), encoding="utf-8"
    )
    for seed in range(3):
        file = path / f"seed-{seed}" / "frame.parquet"
        frame = srel_tf.read_frame(file)
        followed = (frame["target_id"] == 0) & frame["source_id"].isin([2, 25])
        srel_tf.write_frame(frame[followed | (frame["step"] % 20 == 0)], file)
        mark_as_finished(file.parent, {})
    assert command(path)[0] == 0
    table = srel_tf.read_frame(path / "verdicts.csv")
    pairs = table[
        (table["model"] == "Figure 4's pairs at all their steps")
        & (table["hypothesis"] == "1.2")
    ]
    assert pairs["scope"].str.contains("2 pairs").all()


def test_epochs_become_steps(tmp_path):
    frame = pd.DataFrame({"step": [5, 10, 20], "epoch": [0.5, 1.0, 2.0]})
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5]})
    risks, reason = in_steps(history, frame.iloc[1:])
    assert (risks["step"].tolist(), reason) == ([10, 20], "")
    assert in_steps(history, frame)[0] is None
    assert in_steps(history, frame.assign(epoch=np.nan))[1].startswith(
        "the risks are by epoch"
    )
    assert in_steps(None, frame) == (None, "the run has no risks")


def test_several_directories_and_their_errors(tmp_path):
    one, two = (run_directory(tmp_path / name) for name in ("one", "two"))
    assert command(one, two)[0] == 0
    assert (one / "verdicts.csv").read_bytes() == (two / "verdicts.csv").read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "figure_06.parquet").touch()
    for wrong, message in (
        (tmp_path / "none", "is not a directory"),
        (tmp_path / "empty", "holds no finished seed"),
        (tmp_path / "lost", "holds neither a finished seed nor the settings.json"),
    ):
        status, _, err = command(wrong)
        assert status == 1
        assert message in err
    frame = srel_tf.read_frame(one / "seed-0" / "frame.parquet")
    srel_tf.write_frame(frame.drop(columns="srel"), one / "seed-0" / "frame.parquet")
    frame = srel_tf.read_frame(two / "seed-0" / "frame.parquet")
    srel_tf.write_frame(pd.concat([frame, frame]), two / "seed-0" / "frame.parquet")
    for path in (one, two):
        mark_as_finished(path / "seed-0", {})
    assert "occur twice" in command(two)[2]
    status, _, err = command(one, "--confidence", 3)
    assert status == 1
    assert "confidence=3.0" in err


def test_steps_are_summed_up_unless_asked_for(tmp_path):
    path = run_directory(tmp_path / "run", regression=True)
    for seed in range(3):
        file = path / f"seed-{seed}" / "distances.parquet"
        distances = srel_tf.read_frame(file)
        srel_tf.write_frame(pd.concat([distances, distances.assign(step=150)]), file)
        mark_as_finished(file.parent, {})
    short, every = command(path)[1], command(path, "--all")[1]
    assert "input, at all 2 steps" in short
    assert "input, step 100" not in short
    assert "input, step 100" in every


@pytest.fixture(scope="module")
def cases():
    return {
        "penalised": theory_cases.penalized(6, "paper", pairs=5, per_class=50),
        "gate": theory_cases.relu_gate(),
        "path": theory_cases.path(),
        "pairs": theory_cases.three_pairs(),
        "random": theory_cases.random_pairs(targets=2, sources=20),
    }


@pytest.mark.parametrize("name", ["penalised", "gate", "path", "pairs", "random"])
def test_theory_frames_have_the_schema(cases, name):
    frame = cases[name].frame
    ids = "source_id source_class target_id target_class"
    series = "run seed step epoch measure update estimator learning_rate"
    assert set(frame.columns) == {*f"{series} {ids} srel valid".split()}
    assert frame["seed"].nunique() == 10
    assert not frame.duplicated(["seed", "step", "source_id", "target_id"]).any()
    assert (frame["srel"][frame["valid"]] >= 0).all()
    assert len(hypotheses.two_phases(frame, cases[name].risks))


def test_random_pairs_are_eq_13_in_their_places(cases):
    """Compare with eq. 13, written out here for one initial value."""
    case = cases["random"]
    x = np.random.default_rng(1).normal(size=(22, 3))
    w0_squared = np.divide(*MOMENTS) * np.random.default_rng(0).uniform(
        0.05, 0.95, size=(10, 3)
    )
    row = case.frame[
        (case.frame["seed"] == 4)
        & (case.frame["source_id"] == 7)
        & (case.frame["target_id"] == 1)
    ]
    row = row.set_index("step")["srel"]
    a, b = np.array(MOMENTS[0]), np.array(MOMENTS[1])
    for t in (0.0, 500.0):
        weight = a / (b + (a / w0_squared[4] - b) * np.exp(-4 * THETA * a * t))
        expected = abs((weight * x[1] * x[7]).sum()) / abs((weight * x[7] ** 2).sum())
        assert row[t] == pytest.approx(expected, rel=1e-10)
    pair = case.distances[
        (case.distances["source_id"] == 7) & (case.distances["target_id"] == 1)
    ]
    assert pair["distance"].item() == pytest.approx(np.linalg.norm(x[1] - x[7]))
    pair = case.proximity[
        (case.proximity["source_id"] == 7) & (case.proximity["target_id"] == 1)
    ]
    assert pair["proximity"].item() == pytest.approx(
        np.abs(x[1] * x[7]).max()
    )  # Theorem 5.1, β_rr = x_r


def test_penalised_pairs_in_their_places(cases):
    frame = cases["penalised"].frame
    features, labels = theory.random_relu_features(10, per_class=50, seed=0)
    source, target = theory.sample_pairs(labels, "inter", 5, seed=1)
    w0 = np.random.default_rng(2).normal(size=(10, 2, 10))
    model = theory.PenalizedRegression(features, labels, 2, 1.0, 0.001, "paper")
    chosen = frame[
        (frame["seed"] == 3)
        & (frame["source_id"] == source[2])
        & (frame["target_id"] == target[2])
    ]
    times = chosen["step"].to_numpy()
    np.testing.assert_allclose(
        chosen["srel"], model.srel(w0[3], times, source[2], target[2]).numpy().ravel()
    )
    risks = cases["penalised"].risks
    loss = model.loss(model.weights(w0[3], times)).numpy()
    np.testing.assert_allclose(risks.loc[risks["seed"] == 3, "loss"], loss)


def test_theory_directories_are_known_by_their_settings(tmp_path, monkeypatch, cases):
    saved = theory_command.settings("text", 5)
    (tmp_path / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    (tmp_path / "figure_06.parquet").touch()
    asked = []
    monkeypatch.setattr(
        "train.hypotheses.cases",
        lambda seed: asked.append(seed) or {"one": cases["random"]},
    )
    status, out, err = command(tmp_path)
    assert (status, err, asked) == (0, "", [5])
    table = srel_tf.read_frame(tmp_path / "verdicts.csv")
    assert set(table["model"]) == {"one"}
    assert set(table["hypothesis"]) == {"1.1(a)", "1.1(b)", "1.2", "1.2, Figure 5"}
    assert out.count("one: l1, update sgd, estimator limit") == 1
    assert "computed again" in out
    saved["figures_6_to_9"]["theta"] = 0.5
    (tmp_path / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    status, _, err = command(tmp_path)
    assert status == 1
    assert "figures with settings other than the text's (figures_6_to_9)" in err
