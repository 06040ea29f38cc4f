"""Tests of `python -m train.classification` from its arguments to its files, on scikit-learn's digits."""

import contextlib
import io
import json
import os
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import pytest

import srel_tf
from tests.made_up import SCHEMA
from train.classification.command import main
from train.common.callbacks import History
from train.common.data import load

# 406 training images: 4 updates an epoch, measured at 0, 2 and 4.
TINY = "--model mlp --epochs 1 --batch-size 100 --every 2 --per-class 2 --update sgd fresh_adam".split()  # noqa: SIM905


class Done(NamedTuple):
    status: int
    out: str
    err: str
    path: Path

    def frame(self, seed=0):
        return srel_tf.read_frame(self.path / f"seed-{seed}" / "frame.parquet")

    def json(self, name):
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def command(path, *arguments, base=TINY):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([*base, "--out", str(path), *map(str, arguments)])
        except SystemExit as refused:  # Raised by argparse.
            status = refused.code
    return Done(status, out.getvalue(), err.getvalue(), Path(path))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return command(tmp_path_factory.mktemp("run"), "--seeds", 0)


def test_it_ends_well_and_leaves_its_files(done):
    assert (done.status, done.err) == (0, "")
    found = {
        str(p.relative_to(done.path)) for p in done.path.rglob("*") if p.is_file()
    } - {".lock"}
    assert found == {
        *(
            "settings.json",
            "environment.json",
            "data.json",
            "pairs.csv",
            "separation.csv",
            "history.csv",
        ),
        *("figures/history.png", "figures/srel-sgd.png", "figures/srel-fresh_adam.png"),
        *("seed-0/frame.parquet", "seed-0/history.csv", "seed-0/seed.json"),
    }


def test_the_frame(done):
    frame = done.frame()
    assert list(frame.columns) == SCHEMA
    assert len(frame) == 3 * 2 * 2 * 6 * 6  # steps, measures, rules, sources, targets
    assert not frame.duplicated(
        ["step", "measure", "update", "source_id", "target_id"]
    ).any()
    assert frame.groupby("step")["epoch"].unique().map(list).to_dict() == {
        0: [0.0],
        2: [0.5],
        4: [1.0],
    }
    assert set(frame["update"]) == {"sgd", "fresh_adam"}
    assert set(frame["measure"]) == {"kl", "l1"}
    assert list(frame["source_class"].unique()) == ["3", "5", "8"]
    constant = frame[["run", "seed", "estimator", "learning_rate"]].drop_duplicates()
    assert constant.to_numpy().tolist() == [
        ["seed-0", 0, "exact", float(np.float32(0.05))]
    ]
    own = frame[(frame["source_id"] == frame["target_id"]) & frame["valid"]]
    assert (own["srel"] == 1).all()
    assert frame["valid"].mean() > 0.9


def test_probe_and_data_are_written_down(done):
    images = load("digits", classes=["3", "5", "8"])
    about = done.json("seed-0/seed.json")
    assert about["updates"] == 4
    assert (
        about["data_fingerprint"]
        == done.json("data.json")["fingerprint"]
        == images.fingerprint
    )
    ids, frame = about["probe_ids"], done.frame()
    assert len(set(ids)) == 6
    # Ids are positions in the whole set. All of these are training images.
    positions = [images.train.ids.tolist().index(i) for i in ids]
    names = [images.class_names[label] for label in images.train.y[positions]]
    assert (
        names
        == frame.drop_duplicates("source_id")["source_class"].tolist()
        == ["3", "3", "5", "5", "8", "8"]
    )


def test_tables(done):
    pairs = srel_tf.read_frame(done.path / "pairs.csv")
    pd.testing.assert_frame_equal(
        pairs, srel_tf.smooth(done.frame()), check_exact=False, rtol=1e-12
    )
    separation = srel_tf.read_frame(done.path / "separation.csv")
    pd.testing.assert_frame_equal(
        separation, srel_tf.separation(done.frame()), check_exact=False, rtol=1e-12
    )
    history = srel_tf.read_frame(done.path / "history.csv")
    assert history[["run", "epoch", "split"]].to_numpy().tolist() == [
        ["seed-0", 1, "train"],
        ["seed-0", 1, "test"],
    ]
    assert history["accuracy"].between(0, 1).all()


def test_what_is_printed(done):
    last = srel_tf.smooth(done.frame()).query("step == 4")
    for (update, measure), rows in last.groupby(["update", "measure"]):
        lines = done.out.splitlines()
        (start,) = [
            i
            for i, line in enumerate(lines)
            if line.startswith(f"Definition 3, {measure}, update {update},")
        ]
        printed = [line.split() for line in lines[start + 3 : start + 6]]
        expected = rows.pivot(
            index="source_class", columns="target_class", values="mean"
        )
        assert printed == [
            [name, *(f"{v:.3f}" for v in expected.loc[name, ["3", "5", "8"]])]
            for name in "358"
        ]
        assert f"{rows['n_valid'].sum()} of 36 entries valid" in lines[start]
    assert "Separation of intra-class from inter-class pairs" in done.out
    assert "Loss (nats) and accuracy" in done.out
    assert "S_rel (sgd): 3 measurements, 6 sources x 6 targets" in done.out
    paths = [
        Path(line.strip())
        for line in done.out.splitlines()
        if line.strip().startswith(str(done.path))
    ]
    assert {p.name for p in paths} >= {
        "frame.parquet",
        "pairs.csv",
        "srel-sgd.png",
        "srel-fresh_adam.png",
    }
    assert all(p.is_file() for p in paths)


def test_an_interrupted_run_goes_again_and_repeats_bit_for_bit(
    done, tmp_path, monkeypatch
):
    def interrupt(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(keras.callbacks.TerminateOnNaN, "on_train_batch_end", interrupt)
    stopped = command(tmp_path, "--seeds", 0, "--update", "sgd")
    assert stopped.status == 130
    assert (
        "interrupted: the measurements so far are saved; the same command with --resume continues"
        in stopped.err
    )
    assert not (tmp_path / "seed-0" / "seed.json").exists()
    whole = done.frame().query("update == 'sgd'").reset_index(drop=True)
    pd.testing.assert_frame_equal(
        stopped.frame(), whole[whole["step"] < 3], check_exact=True
    )

    monkeypatch.undo()
    again = command(tmp_path, "--seeds", 0, "--update", "sgd")
    assert again.status == 0
    pd.testing.assert_frame_equal(again.frame(), whole, check_exact=True)
    assert (
        again.json("seed-0/seed.json")["probe_ids"]
        == done.json("seed-0/seed.json")["probe_ids"]
    )


def test_a_finished_seed_is_kept_and_another_added(done):
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in (done.path / "seed-0").iterdir()
    }
    more = command(done.path, "--seeds", 0, 1)
    assert more.status == 0
    assert "seed 0: measured already" in more.out
    assert {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in (done.path / "seed-0").iterdir()
    } == before
    assert not more.frame(1)["srel"].equals(more.frame(0)["srel"])
    assert set(srel_tf.read_frame(done.path / "pairs.csv")["run"]) == {
        "seed-0",
        "seed-1",
    }
    assert "mean over 2 runs" in more.out


def test_other_settings_are_refused(done):
    refused = command(done.path, "--seeds", 0, "--epochs", 2)
    assert refused.status == 1
    assert "epochs: 1 saved, 2 now" in refused.err
    assert len(done.frame()) == 432


@pytest.mark.filterwarnings("ignore:.*have a NaN or an infinity")
def test_divergence_stops_the_run_and_keeps_what_was_measured(tmp_path):
    rates = ("--learning-rate", 1e30, "--srel-learning-rate", 0.05)
    diverged = command(tmp_path, "--seeds", 0, 1, *rates, "--update", "sgd")
    assert diverged.status == 1
    assert "training loss of seed 0 became nan" in diverged.err
    assert "lower --learning-rate" in diverged.err
    first = diverged.frame().query("step == 0")
    assert len(first) == 2 * 36
    assert first["valid"].mean() > 0.9
    assert not (tmp_path / "seed-0" / "seed.json").exists()
    assert not (tmp_path / "seed-1").exists()


SELECT = ("--seeds", 0, "--select-top", 2, "--measures", "l1", "--update", "sgd")


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    return command(tmp_path_factory.mktemp("selected"), *SELECT)


def test_select_top_keeps_the_classes_of_best_test_accuracy(selected):
    assert selected.status == 0
    selection = selected.json("selection.json")
    accuracy, kept = selection["test_accuracy"], selection["classes"]
    assert list(accuracy) == list("0123456789")
    assert len(kept) == 2
    assert kept == sorted(kept)
    assert min(accuracy[c] for c in kept) >= max(
        v for c, v in accuracy.items() if c not in kept
    )
    sizes = np.bincount(load("digits").test.y)
    # The accuracy of a class is the share of its own test images.
    correct = sizes * [accuracy[c] for c in accuracy]
    np.testing.assert_allclose(correct, correct.round(), atol=1e-9)
    assert list(selected.frame()["source_class"].unique()) == kept
    assert all(
        f"{c}: test accuracy {accuracy[c]:.3f} (kept)" in selected.out for c in kept
    )
    assert selected.out.count("(kept)") == 2


def test_an_interrupted_selection_goes_on_and_chooses_the_same(
    selected, tmp_path, monkeypatch
):
    """The resumed selection repeats no update and saves its choice only at the end of the training."""
    updates = []

    def count(self, batch, logs=None):
        updates.append(int(self.model.optimizer.iterations))
        if updates[-1] == 7 and len(updates) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(History, "on_train_batch_end", count)
    monkeypatch.setattr("train.classification.command._train", lambda *_, **__: None)
    monkeypatch.setattr("train.classification.command.report", lambda *_: None)
    stopped = command(tmp_path, *SELECT)
    assert stopped.status == 130
    assert not (tmp_path / "selection.json").exists()
    refused = command(tmp_path, *SELECT)
    assert refused.status == 1
    assert "the selection of classes was interrupted; 7 updates" in refused.err
    other = command(tmp_path, *SELECT[2:], "--seeds", 1, "--resume")
    assert "seed of the selection: 0 saved, 1 now" in other.err
    assert command(tmp_path, *SELECT, "--resume").status == 0
    assert updates == list(range(1, len(updates) + 1))
    assert len(updates) > 10
    assert (tmp_path / "selection.json").read_bytes() == (
        selected.path / "selection.json"
    ).read_bytes()
    assert not (tmp_path / "selection.parts").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "3", "fox"], r"'digits' has no class 'fox'"),
        (["--classes", "3", "3"], "chosen twice"),
        (["--per-class", 500], r"class 0 has \d+ examples, but 500 are requested"),
        (["--per-class", 0], "per_class=0"),
        (
            ["--measures", "kl", "l3"],
            "unknown measure 'l3'.*kl, l1, l2, raw_l1, raw_l2, published_kl, published_l2",
        ),
        (["--update", "newton"], "unknown update rule 'newton'.*sgd"),
        (["--update", "sgd", "sgd"], "--update sgd sgd"),
        (["--estimator", "guess"], "unknown estimator 'guess'.*exact"),
        (["--model", "vgg"], "unknown model 'vgg'.*resnet18"),
        (["--optimizer", "lion"], "unknown optimizer 'lion'.*adam"),
        (["--learning-rate", -1], r"learning rate -1\.0"),
        (["--srel-learning-rate", 0], r"learning_rate=0\.0"),
        (["--batch-size", 5000], "batch size 5000: give 1 to 406"),
        (["--every", 0], "every=0"),
        (["--epochs", 0], "argument --epochs: 0: give at least 1"),
        (["--seeds", 1, 1], r"argument --seeds: \[1, 1\]: give each value only once"),
        (["--jobs", 0], "argument --jobs: 0: give at least 1"),
        (["--checkpoint-every", 0], "argument --checkpoint-every: 0: give"),
        (["--resume", "--restart"], "argument --restart: not allowed with"),
        (["--seeds", 2**32], "argument --seeds: 4294967296: give at least 0 and less"),
        (["--image-size", 0], "argument --image-size: 0: give at least 1"),
        (["--select-top", 11], "--select-top 11: digits has 10 classes; give 2 to 10"),
        (["--dataset", "folder:nowhere"], "there is no directory nowhere"),
        (["--log-dir", __file__], "cannot write TensorBoard summaries"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(tmp_path, arguments, message):
    failed = command(tmp_path, *arguments)
    assert re.search(message, failed.err), failed.err
    by_argparse = message.startswith("argument")
    assert failed.status == (2 if by_argparse else 1)
    *usage, last = failed.err.splitlines()
    assert "error: " in last
    assert bool(usage) == by_argparse
    assert not list(tmp_path.glob("seed-*/frame.parquet"))


def test_an_output_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    failed = command(tmp_path / "file" / "run")
    assert failed.status == 1
    assert "choose another --out" in failed.err


COMMANDS = [
    *("classification", "regression", "theory", "replication", "errata", "numerics"),
    *("benchmark", "benchmark.storage", "hypotheses", "condense", "figures"),
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_module_is_a_command(name, monkeypatch, capsys):
    """The exit status reaches the shell."""
    monkeypatch.setattr(sys, "argv", [name, "--no-such-option"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"train.{name}", run_name="__main__")
    assert ended.value.code == 2
    assert f"python -m train.{name}: error: " in capsys.readouterr().err


def test_an_error_reaches_the_shell(tmp_path, monkeypatch, capsys):
    arguments = ["classification", "--model", "vgg", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("train.classification", run_name="__main__")
    assert ended.value.code == 1
    assert "error: unknown model 'vgg'" in capsys.readouterr().err
