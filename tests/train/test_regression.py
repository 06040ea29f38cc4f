"""Tests of `python -m train.regression` from its arguments to its files, on a net that trains in seconds."""

import contextlib
import io
import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

import srel_tf
from train.classification.experiment import DivergedError
from train.regression.command import main
from train.regression.experiment import (
    Watch,
    build,
    draw,
    followed,
    in_time,
    near_and_far,
    probe_points,
    train,
)

SETTINGS = {
    "dimension": 4,
    "examples": 200,
    "iterations": 110,
    "sources": 25,
    "targets": 2,
    "learning-rate": 0.003,
}
BASE = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
SHORT = (
    "--iterations",
    21,
    "--estimator",
    "limit",
)  # For tests that do not look at S_rel.
TINY = [*BASE, "--width", "3", "--depth", "2"]


def command(path, *arguments, base=TINY):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([*base, "--out", str(path), *map(str, arguments)])
        except SystemExit as refused:  # Raised by argparse.
            status = refused.code
    return status, out.getvalue(), err.getvalue(), Path(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return command(tmp_path_factory.mktemp("regression"), "--seeds", 0, 1)


@pytest.fixture(scope="module")
def frame(done):
    return pd.concat(
        [srel_tf.read_frame(done[3] / f"seed-{s}" / "frame.parquet") for s in (0, 1)],
        ignore_index=True,
    )


@pytest.fixture(scope="module")
def settings(done):
    return json.loads((done[3] / "settings.json").read_text(encoding="utf-8"))


def test_it_ends_well_and_leaves_its_files(done):
    status, _, err, path = done
    assert (status, err) == (0, "")
    found = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert found >= {
        *("settings.json", "environment.json", "risks.csv"),
        *(f"figures/figure_0{n}.png" for n in (3, 4, 5)),
        *(
            f"seed-{s}/{name}"
            for s in (0, 1)
            for name in (
                "frame.parquet",
                "distances.parquet",
                "history.csv",
                "seed.json",
            )
        ),
    }


def test_the_data():
    x, y = draw(5000, 3, 7, 0)
    np.testing.assert_allclose(y[:, 0], np.abs(x).sum(axis=1))
    assert np.abs(np.cov(x.T) - np.eye(3)).max() < 0.1
    assert not np.array_equal(draw(5, 3, 7, 0)[0], draw(5, 3, 8, 0)[0])


def test_probe_points(settings):
    x, _, distances = probe_points(settings)
    expected = [[np.linalg.norm(x[t] - x[2 + s]) for s in range(25)] for t in range(2)]
    np.testing.assert_allclose(distances, expected)
    near, far = near_and_far(distances)
    assert (near - 2, far - 2) == (np.argmin(expected[0]), np.argmax(expected[0]))
    assert {near, far} <= set(followed(distances))
    assert len(set(followed(distances))) == 8


def test_what_is_measured_when(frame, settings):
    distances = probe_points(settings)[2]
    near, far = near_and_far(distances)
    for seed in (0, 1):
        mine = frame[frame["seed"] == seed]
        assert not mine.duplicated(["step", "source_id", "target_id"]).any()
        for source in (near, far):  # Figure 4: at each step from 0 on
            pair = mine[(mine["target_id"] == 0) & (mine["source_id"] == source)]
            assert sorted(pair["step"]) == list(range(111))
        at_100 = mine[mine["step"] == 100]  # Figure 3: all sources and targets
        assert set(zip(at_100["source_id"], at_100["target_id"], strict=True)) == {
            (source, target) for source in range(2, 27) for target in (0, 1)
        }
        rest = mine[(mine["step"] == 55)]
        assert set(rest["source_id"]) == {near, far, *followed(distances)}
    assert (frame["measure"] == "l1").all()
    assert (frame["run"] == "seed-" + frame["seed"].astype(str)).all()
    assert frame["valid"].mean() > 0.9
    assert [s for s in range(260) if in_time(s)] == [*range(0, 201, 5), 225, 250]


def test_srel_at_the_start_by_two_forward_passes(frame, settings):
    """Compare with Definition 1: after a real SGD step on the source, change at x' over change at the source."""
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        x, y, distances = probe_points(settings)
        model = build(settings)
        weights = model.get_weights()
        before = model.predict(x, verbose=0)[:, 0]
        for source in near_and_far(distances):
            model.set_weights(weights)
            model.optimizer.learning_rate = settings["learning_rate"]
            model.train_on_batch(x[[source]], y[[source]])
            moved = np.abs(model.predict(x, verbose=0)[:, 0] - before)
            row = frame[(frame["seed"] == 0) & (frame["step"] == 0)].set_index(
                ["source_id", "target_id"]
            )
            for target in (0, 1):
                if (source, target) in row.index and row.loc[(source, target), "valid"]:
                    expected = moved[target] / moved[source]
                    assert row.loc[(source, target), "srel"] == pytest.approx(
                        expected, rel=1e-6
                    )
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def test_it_learns_and_the_risks_are_written(done):
    risks = srel_tf.read_frame(done[3] / "risks.csv")
    assert set(risks["split"]) == {"empirical", "population"}
    for _, part in risks.groupby(["seed", "split"]):
        assert sorted(part["step"]) == [0, 20, 40, 60, 80, 100, 110]
        by_step = part.set_index("step")["loss"]
        assert by_step[110] < 0.5 * by_step[0]


def test_the_environment_is_that_of_the_nets(done):
    assert (
        json.loads((done[3] / "environment.json").read_text(encoding="utf-8"))["floatx"]
        == "float64"
    )


def test_distances_of_inputs_and_features(done, settings):
    of_seed = [
        srel_tf.read_frame(done[3] / f"seed-{s}" / "distances.parquet") for s in (0, 1)
    ]
    for distances in of_seed:
        assert set(distances["metric"]) == {"input", "last-layer features"}
        assert set(distances["step"]) == {100}
        rows = distances[distances["metric"] == "input"]
        expected = probe_points(settings)[2]
        found = rows.pivot(
            index="target_id", columns="source_id", values="distance"
        ).to_numpy()
        np.testing.assert_allclose(found, expected)
    features = [
        d[d["metric"] == "last-layer features"]["distance"].to_numpy() for d in of_seed
    ]
    assert not np.allclose(*features)


def test_progress_and_tables_are_printed(done):
    out = done[1]
    assert "seed 1, step 110 of 110: empirical risk" in out
    assert "S_rel near: ‖x' − x‖ =" in out
    assert "population risk" in out


def test_the_command_keeps_what_is_finished(done):
    before = (done[3] / "seed-0" / "frame.parquet").read_bytes()
    status, out, _, path = command(done[3], "--seeds", 0, 1)
    assert status == 0
    assert "seed 0: measured already" in out
    assert (path / "seed-0" / "frame.parquet").read_bytes() == before
    assert keras.config.floatx() == "float32"  # the command leaves Keras as it was


def test_other_settings_are_refused(done):
    status, _, err, _ = command(done[3], "--seeds", 0, "--batch-size", 16)
    assert status == 1
    assert "batch_size: 32 saved, 16 now" in err


def test_a_sweep_has_a_directory_a_net_and_a_table(tmp_path):
    status, out, err, path = command(
        tmp_path, "--width", 2, 5, "--depth", 1, "--seeds", 0, *SHORT, base=BASE
    )
    assert (status, err) == (0, "")
    table = srel_tf.read_frame(path / "sweep.csv")
    assert table["net"].tolist() == ["width 2, depth 1", "width 5, depth 1"]
    assert {"empirical risk", "population risk"} <= set(table.columns)
    for width in (2, 5):
        settings = json.loads(
            (path / f"width-{width}-depth-1" / "settings.json").read_text(
                encoding="utf-8"
            )
        )
        assert settings["width"] == width
    assert "all nets at step 21" in out


def test_a_net_that_diverges_does_not_end_the_sweep(tmp_path, monkeypatch):
    def train_or_fail(settings, seed, directory):
        if settings["width"] == 2:
            raise DivergedError("the training loss became inf")
        train(settings, seed, directory)

    monkeypatch.setattr("train.regression.command.train", train_or_fail)
    sweep = ("--width", 2, 3, "--depth", 1, "--seeds", 0, *SHORT)
    status, out, err, path = command(tmp_path, *sweep, base=BASE)
    assert status == 1
    assert "width 2, depth 1: the training loss became inf" in out
    assert "1 of 2 nets failed: width 2, depth 1" in err
    assert srel_tf.read_frame(path / "sweep.csv")["net"].tolist() == [
        "width 3, depth 1"
    ]


def test_divergence_is_an_error(tmp_path):
    status, _, err, path = command(
        tmp_path, "--seeds", 0, "--learning-rate", 10, *SHORT
    )
    assert status == 1
    assert "the training loss of seed 0 became" in err
    assert "lower --learning-rate" in err
    assert not (path / "seed-0" / "seed.json").exists()


def test_an_interruption_keeps_what_was_measured(tmp_path, frame, monkeypatch):
    def interrupt(self, step):
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "_look", interrupt)
    status, _, err, path = command(tmp_path, "--seeds", 0)
    assert status == 130
    assert "interrupted: the measurements so far are saved" in err
    assert not (path / "seed-0" / "seed.json").exists()
    kept = srel_tf.read_frame(path / "seed-0" / "frame.parquet")
    # Step 4 is missing if Watch is called before the probes.
    assert sorted(kept["step"].unique()) in ([0, 1, 2, 3], [0, 1, 2, 3, 4])
    keys = ["step", "source_id", "target_id"]
    both = kept.merge(frame[frame["seed"] == 0], on=keys)
    assert len(both) == len(kept)
    # The rows are equal bit for bit to those of the uninterrupted run.
    np.testing.assert_array_equal(both["srel_x"], both["srel_y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", 0], "argument --width: 0: give at least 1"),
        (["--depth", 2, 2], "argument --depth: [2, 2]: give each value only once"),
        (
            ["--seeds", -1],
            "argument --seeds: -1: give at least 0 and less than 4294967296",
        ),
        (["--sources", 1], "argument --sources: 1: give at least 2"),
        (
            ["--batch-size", 300],
            "--batch-size 300: give at most 200, the number of examples",
        ),
        (["--iterations", 0], "argument --iterations: 0: give at least 1"),
        (["--learning-rate", 0], "--learning-rate 0.0: give a positive number"),
        (["--learning-rate", "inf"], "--learning-rate inf: give a positive number"),
        (["--jobs", 0], "argument --jobs: 0: give at least 1"),
        (["--probe-seed", -1], "argument --probe-seed: -1: give at least 0"),
        (["--estimator", "wishful"], "unknown estimator 'wishful'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    status, _, err, path = command(tmp_path / "run", *arguments)
    assert status == (2 if message.startswith("argument") else 1)
    assert message in err
    assert not path.exists()
