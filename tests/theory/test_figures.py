"""The frames and plots of Figures 6–13, and the command that makes them."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srel_tf import read_frame, theory
from srel_tf.errors import FrameError
from srel_tf.plotting import theory as plots
from train.benchmark import theory as theory_benchmark
from train.common.run_directory import RunDirectoryError, write_json
from train.errata import variants
from train.theory import command
from train.theory import figures as theory_figures

ROOT = Path(__file__).parents[2]


def test_frame_of_figures_6_to_9_by_loops():
    frame = theory_figures.penalized(6, seed=4, starts=3, pairs=2, per_class=6)
    features, labels = theory.random_relu_features(10, per_class=6, seed=4)
    source, target = theory.sample_pairs(labels, "inter", 2, seed=5)
    w0 = np.random.default_rng(6).normal(size=(3, 2, 10))
    for ridge in ("paper", "loss"):
        model = theory.PenalizedRegression(features, labels, 2, 1.0, 0.001, ridge)
        part = frame[(frame["ridge"] == ridge) & (frame["quantity"] == "srel")]
        row = part.iloc[50]
        values = [
            model.srel(w, row["time"], i, j).numpy()[0]
            for w in w0
            for i, j in zip(source, target, strict=True)
        ]
        np.testing.assert_allclose(row["mean"], np.mean(values), rtol=1e-12)
        loss = frame[(frame["ridge"] == ridge) & (frame["quantity"] == "loss")].iloc[3]
        values = [model.loss(model.weights(w, loss["time"])[0]).numpy() for w in w0]
        np.testing.assert_allclose(
            [loss["mean"], loss["time"]], [np.mean(values), 300], rtol=1e-12
        )
    assert frame["time"].min() == 0
    assert frame["time"].max() == 8000


def test_rise_reads_start_early_and_late_off_the_figures():
    frame = theory_figures.rise(seeds=[4], starts=2, pairs=2, per_class=6)
    assert (
        len(frame) == 4 * 2 + 4
    )  # Four figures: two ridges in the variant "text", one in the variant "published".
    row = frame[
        (frame["figure"] == 9)
        & (frame["variant"] == "text")
        & (frame["ridge"] == "loss")
    ].iloc[0]
    part = theory_figures.penalized(9, seed=4, starts=2, pairs=2, per_class=6)
    part = part[(part["ridge"] == "loss") & (part["quantity"] == "srel")]
    np.testing.assert_array_equal(
        row[["start", "late"]].astype(float), part["mean"].iloc[[0, -1]]
    )
    np.testing.assert_allclose(
        row["early"], np.median(part["mean"][part["time"] <= 1000])
    )


def test_published_variant_takes_every_departure():
    frame = theory_figures.penalized(
        8, "published", seed=4, starts=2, pairs=2, per_class=6
    )
    features, labels = variants.published_features(10, per_class=6, seed=4)
    pairs = variants.published_pairs(labels, 2, seed=5)
    model, w0 = (
        theory.PenalizedRegression(features, labels, 2, 1.0, 0.001),
        np.random.default_rng(6).normal(size=(2, 2, 10)),
    )
    values = variants.published_srel(model, w0, 0.0, *pairs)[:, 0]
    srel, loss = (frame[frame["quantity"] == q].iloc[0] for q in ("srel", "loss"))
    np.testing.assert_allclose(srel["mean"], np.mean(np.sum(values, 1) / 4), rtol=1e-12)
    np.testing.assert_allclose(
        loss["mean"], np.mean(variants.published_loss(model, w0)), rtol=1e-12
    )


def test_frame_of_figure_13_theory_lies_within_the_spread_of_sgd():
    frame = theory_figures.sgd_pairs(every=100)
    later = frame[frame["step"] > 0]
    standard_error = later["sd"] / np.sqrt(later["runs"])
    # The mean over runs differs from the flow by O(η) and by its standard error.
    assert (np.abs(later["mean"] - later["finite"]) < 4 * standard_error + 0.003).all()
    start = frame[frame["step"] == 0]
    np.testing.assert_allclose(start["mean"], start["finite"], rtol=1e-12)


def test_frame_of_figure_10_marks_where_differences_end(monkeypatch):
    monkeypatch.setitem(theory_figures.GATE, "runs", 3)
    frame = theory_figures.relu_gate()
    assert set(frame["bound"].round(12)) == {1.4}
    defined = frame[np.isfinite(frame["srel_sgd"])]
    late = defined[(defined["step"] > 1000) & defined["resolved"]]
    np.testing.assert_allclose(late["srel_sgd"], 1.4, rtol=2e-3)
    assert not frame[frame["step"] > 8000]["resolved"].any()
    np.testing.assert_allclose(
        frame[frame["step"] > 1000]["srel_flow"], 1.4, rtol=1e-12
    )


def test_command_writes_frame_picture_and_settings(tmp_path, capsys):
    number = 8
    command.main(["--figure", str(number), "--out", str(tmp_path), "--seed", "3"])
    frame = read_frame(tmp_path / f"figure_{number:02d}.parquet")
    assert (frame["figure"] == number).all()
    assert (tmp_path / f"figure_{number:02d}.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 3
    assert f"figure_{number:02d}.png" in capsys.readouterr().out


def test_folder_of_other_settings_is_refused_and_left_as_it_was(tmp_path, capsys):
    (tmp_path / "settings.json").write_text(
        '{"seed": 9}'
    )  # Settings without figures, as a failed command leaves them, are overwritten.
    assert command.main(["--figure", "12", "--out", str(tmp_path)]) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert json.loads(before["settings.json"])["seed"] == 0
    capsys.readouterr()
    assert command.main(["--figure", "11", "--out", str(tmp_path), "--seed", "3"]) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert refused.err.startswith(
        f"error: {tmp_path} holds figures with other settings"
    )
    assert refused.err.splitlines()[1:] == ["  seed: 0 saved, 3 now"]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(RunDirectoryError, match="variant: 'text' saved, 'other' now"):
        command.prepare(tmp_path, "", command.settings("other", 0))
    # The published figures have a separate settings file.
    command.prepare(tmp_path, "_published", command.settings("published", 3))
    assert json.loads((tmp_path / "settings_published.json").read_text())["seed"] == 3

    assert command.main(["--figure", "11", "--out", str(tmp_path)]) == 0
    names = [
        "figure_11.parquet",
        "figure_11.png",
        *sorted(before),
        "settings_published.json",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_other_versions_do_not_bind_a_folder(tmp_path):
    (tmp_path / "figure_12.parquet").touch()
    write_json(
        tmp_path / "settings.json",
        command.settings("text", 0) | {"versions": {"python": "3.0"}},
    )
    command.prepare(tmp_path, "", command.settings("text", 0))
    assert (
        json.loads((tmp_path / "settings.json").read_text())["versions"]
        == command.settings("text", 0)["versions"]
    )


def test_folder_that_does_not_say_what_it_holds_is_refused(tmp_path, capsys):
    (tmp_path / "figure_12.parquet").touch()
    for content in (None, "{"):
        if content:
            (tmp_path / "settings.json").write_text(content)
        assert command.main(["--figure", "12", "--out", str(tmp_path)]) == 1
        assert (
            "holds figures, but settings.json with their settings is missing"
            in capsys.readouterr().err
        )
    assert (
        command.main(["--figure", "12", "--out", str(tmp_path / "figure_12.parquet")])
        == 1
    )
    assert "cannot write to" in capsys.readouterr().err


def test_command_refuses_what_does_not_exist(capsys):
    for arguments in (["--figure", "5"], ["--variant", "published", "--figure", "12"]):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert "error" in capsys.readouterr().err


def test_pictures_name_their_axes_and_draw_the_frame():
    frame = theory_figures.flow_pairs()
    figure = plots.plot_flow_pairs(frame)
    assert len(figure.axes) == 3
    for axes, (_, part) in zip(
        figure.axes, frame.groupby("pair", sort=False), strict=True
    ):
        assert "time" in axes.get_xlabel()
        assert "S_{rel}" in axes.get_ylabel()
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), part["srel"])
    for plot in (
        plots.plot_penalized,
        plots.plot_relu_gate,
        plots.plot_distance,
        plots.plot_sgd_pairs,
    ):
        with pytest.raises(FrameError, match="lacks the columns"):
            plot(frame)
        with pytest.raises(FrameError):
            plot(pd.DataFrame())


def test_published_procedure_of_the_benchmark_is_equation_4():
    features, labels = theory.random_relu_features(5, dimension=8, per_class=6)
    w0 = np.random.default_rng(0).normal(size=(2, 5))
    model = theory.PenalizedRegression(features, labels, 2, 1.0, 0.05)
    value = theory_benchmark.published_srel(
        features, labels, model.coefficient, 0.05, w0, 7.0, 2, 9
    )
    np.testing.assert_allclose(model.srel(w0, 7.0, 2, 9), [value], rtol=1e-9)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_theory_knows_no_training_and_its_pictures_no_tensorflow():
    for path in (ROOT / "srel_tf" / "theory").glob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] not in {"train", "pandas", "matplotlib", "seaborn"}, (
                path.name,
                name,
            )
            if parts[0] == "srel_tf":
                assert parts[1] in {"theory", "errors"}, (path.name, name)
    for file in ("theory.py", "relu_gate.py"):
        for name in imports(ROOT / "srel_tf" / "plotting" / file):
            assert name.split(".")[0] not in {"tensorflow", "keras", "train"}
            assert not name.startswith("srel_tf.theory")
