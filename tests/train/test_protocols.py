"""Tests of the presets of the replication and of the rules that --update names."""

import numpy as np
import pandas as pd
import pytest

import srel_tf
from srel_tf import OptionError
from srel_tf.files import read_json
from train.classification.command import _out, _parse, main
from train.classification.experiment import SCHEDULES
from train.classification.protocols import PROTOCOLS, preset
from train.classification.rules import parse_rules


def test_options_that_are_given_count():
    args = _parse("--protocol published --dataset cifar10 --epochs 2 --seeds 7".split())  # noqa: SIM905
    assert (args.epochs, args.seeds, args.batch_size, args.optimizer) == (
        2,
        [7],
        256,
        "adam",
    )
    assert (args.test_images, args.augment, args.schedule) == (
        "train",
        "frozen",
        "epoch",
    )
    assert args.classes == ["airplane", "automobile", "ship"]
    assert _parse("--protocol defined --dataset cifar100".split()).batch_size == 25  # noqa: SIM905
    assert (
        _parse(
            ["--protocol", "defined", "--dataset", "cifar10", "--select-top", "3"]
        ).classes
        is None
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_of_all_sets(name):
    for dataset in ("cifar10", "cifar100", "svhn", "digits", "fashion_mnist"):
        options = vars(_parse(["--protocol", name, "--dataset", dataset]))
        assert options.items() >= preset(name, dataset).items()
        parse_rules(options["update"], options["measures"], options["learning_rate"])
    with pytest.raises(OptionError, match=r"'text'.*defined"):
        preset("text", "digits")


def test_each_protocol_has_a_run_directory_of_its_own():
    named = [
        str(_out(_parse(["--protocol", name, "--dataset", "folder:a/b"])))
        for name in PROTOCOLS
    ]
    assert named == [f"runs/folder-a-b-{name}" for name in PROTOCOLS]
    assert str(_out(_parse([]))) == "runs/digits-cnn"
    assert str(_out(_parse(["--protocol", "defined", "--out", "here"]))) == "here"


def test_the_published_schedule():
    """With 58 updates per epoch, S_rel is measured after updates 0, 9, …, 54 of each epoch: 7 times."""
    is_due = SCHEDULES["epoch"](9, 58)
    steps = [step for step in range(2 * 58 + 1) if is_due(step)]
    assert steps == [1, 10, 19, 28, 37, 46, 55, 59, 68, 77, 86, 95, 104, 113]
    assert SCHEDULES["updates"](9, 58) == 9
    with pytest.raises(OptionError, match="--every 0"):
        SCHEDULES["epoch"](0, 58)


def test_rules():
    rules = parse_rules(
        ["sgd@1e-3", "sgd", "limit", "fresh_adam"], ["kl", "published_kl"], 1e-4
    )
    assert [tuple(rule) for rule in rules] == [
        ("sgd", 1e-3, "exact", ("kl", "published_kl")),
        ("sgd", None, "exact", ("kl", "published_kl")),
        ("sgd", None, "limit", ("kl",)),
        ("fresh_adam", None, "exact", ("kl", "published_kl")),
    ]
    assert parse_rules(["sgd"], ["kl"], 0.1, 0.5, "auto")[0].learning_rate == 0.5
    beside_auto = parse_rules(["sgd", "limit"], ["kl"], 0.1, estimator="auto")
    assert [rule.estimator for rule in beside_auto] == ["auto", "limit"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sgd@fast"], "'fast' is not a step length"),
        (["sgd@-1"], "'-1' is not a step length"),
        (["sgd@inf"], "'inf' is not a step length"),
        (["sgd@nan"], "'nan' is not a step length"),
        (["limit@1e-3"], "limit η → 0 has no step length"),
        (["sgd", "sgd@0.0001"], "sgd@0.0001 is given twice"),
    ],
)
def test_rules_that_do_not_exist(names, message):
    with pytest.raises(OptionError, match=message):
        parse_rules(names, ["kl"], 1e-4)
    with pytest.raises(OptionError, match="none of the given measures has a limit"):
        parse_rules(["limit"], ["published_kl"], 1e-4)


def test_crossed_holds_the_other_two():
    rules = parse_rules(
        PROTOCOLS["crossed"]["update"], PROTOCOLS["crossed"]["measures"], 1e-4
    )
    of_crossed = {
        (r.update, r.learning_rate or 1e-4, m)
        for r in rules
        if r.estimator == "exact"
        for m in r.measures
    }
    for name in ("defined", "published"):
        for rule in parse_rules(
            PROTOCOLS[name]["update"], PROTOCOLS[name]["measures"], 1e-4
        ):
            assert of_crossed >= {(rule.update, 1e-4, m) for m in rule.measures}
    assert np.isclose([r.learning_rate for r in rules[:3]], [1e-4, 1e-3, 1e-2]).all()


def test_one_training_feeds_all_rules_and_each_measures_what_it_would_alone(
    tmp_path, monkeypatch
):
    small = "--model mlp --epochs 1 --batch-size 200 --every 2 --per-class 2 --seeds 0".split()  # noqa: SIM905
    crossed = ["--measures", "kl", "--update", "sgd@1e-2", "sgd@0.5", "limit"]
    assert main([*small, *crossed, "--out", str(tmp_path / "all")]) == 0
    # Only the first command draws figures.
    monkeypatch.setattr("train.classification.command.report", lambda *_: None)
    assert (
        main(
            [
                *small,
                "--measures",
                "kl",
                "--update",
                "sgd@0.5",
                "--out",
                str(tmp_path / "one"),
            ]
        )
        == 0
    )
    together, alone = (
        srel_tf.read_frame(tmp_path / name / "seed-0/frame.parquet")
        for name in ("all", "one")
    )
    keys = ["update", "estimator", "learning_rate", "measure", "step"]
    assert together.groupby(keys).size().to_list() == [36] * 3 * 2  # rules, steps
    chosen = together[
        (together["learning_rate"] == 0.5) & (together["measure"] == "kl")
    ]
    pd.testing.assert_frame_equal(chosen.reset_index(drop=True), alone)
    digests = [
        read_json(tmp_path / name / "seed-0/seed.json")["weights_sha256"]
        for name in ("all", "one")
    ]
    assert digests[0] == digests[1]
    figures = {path.name for path in (tmp_path / "all/figures").iterdir()}
    assert {"srel-sgd-0.01.png", "srel-sgd-0.5.png", "srel-limit.png"} <= figures
