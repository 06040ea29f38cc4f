"""Measure S_rel during the training of a classifier (Section 2.1 and Appendix D of the paper).

python -m train.classification                     scikit-learn's digits, without a download
python -m train.classification --dataset cifar10 --classes airplane automobile ship --model resnet18 ...
python -m train.classification --dataset cifar10 --protocol defined       a preset of the replication (`protocols.py`)
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from srel_tf.files import read_json
from train.classification.experiment import SCHEDULES, select_top, train
from train.classification.protocols import PROTOCOLS, preset
from train.classification.report import report
from train.classification.rules import parse_rules
from train.common import cli
from train.common.parallel import run_in_processes
from train.common.run_directory import RunDirectory, RunDirectoryError, remove_store

DIGITS = ["3", "5", "8"]
# Options that do not change the results of a seed. (--protocol only sets the defaults of other options.)
NOT_SETTINGS = "protocol seeds out log_dir jobs checkpoint_every resume restart skip_damaged".split()  # noqa: SIM905


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m train.classification",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        help="preset of the replication: sets the defaults of the options below",
    )
    p.add_argument(
        "--dataset",
        default="digits",
        help="digits, folder:DIR, or a TFDS image set by its name",
    )
    p.add_argument(
        "--data-dir",
        help="directory of prepared TFDS sets (default: TFDS's own directory)",
    )
    p.add_argument(
        "--classes",
        nargs="+",
        help=f"names or labels (default: all; for digits: {' '.join(DIGITS)})",
    )
    p.add_argument(
        "--select-top",
        type=int,
        metavar="K",
        help="first train on all classes, then use the K classes with the best test accuracy",
    )
    p.add_argument(
        "--no-download",
        dest="download",
        action="store_false",
        help="never let TFDS download a set",
    )
    p.add_argument(
        "--augment",
        choices=["none", "frozen"],
        default="none",
        help="frozen: random crop and flip, drawn once for each training image, as published",
    )
    p.add_argument(
        "--test-images",
        choices=["test", "train"],
        default="test",
        help="train: a fifth of the training images, as in the published code",
    )
    p.add_argument(
        "--image-size", type=cli.at_least(1), help="resize images to this side length"
    )
    p.add_argument("--model", default="cnn", help="resnet18, resnet18_cifar, cnn, mlp")
    p.add_argument("--epochs", type=cli.at_least(1), default=10)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--optimizer", default="sgd", help="adam, sgd, momentum")
    p.add_argument("--learning-rate", type=float, default=0.05)
    p.add_argument(
        "--weight-decay",
        type=float,
        default=1e-4,
        help="L2 decay, added to the gradient",
    )
    p.add_argument(
        "--every",
        type=int,
        default=9,
        help="number of optimizer updates between measurements",
    )
    p.add_argument(
        "--schedule",
        choices=list(SCHEDULES),
        default="updates",
        help="what --every counts: all updates of the training, or the updates within each epoch (as published)",
    )
    p.add_argument(
        "--per-class",
        type=int,
        default=20,
        help="number of probe examples per class, k of Definition 3",
    )
    p.add_argument(
        "--measures",
        nargs="+",
        default=["kl", "l1"],
        help="kl, l1, l2, raw_l1, raw_l2, published_kl, published_l2",
    )
    p.add_argument(
        "--update",
        nargs="+",
        default=["sgd"],
        metavar="RULE[@η]",
        help="fictitious steps, all measured during the same training: sgd, optimizer or fresh_adam, each with an "
        "optional η (sgd@1e-3), and limit (sgd with η → 0)",
    )
    p.add_argument(
        "--srel-learning-rate",
        type=float,
        help="η of the fictitious steps without @η (default: η of the training)",
    )
    p.add_argument("--estimator", default="exact")
    p.add_argument(
        "--seeds", type=cli.SEED, nargs="+", action=cli.Distinct, default=[0, 1, 2]
    )
    p.add_argument(
        "--jobs",
        type=cli.at_least(1),
        default=1,
        help="number of seeds to train at a time, each in a separate process",
    )
    p.add_argument(
        "--checkpoint-every",
        type=cli.at_least(1),
        metavar="STEPS",
        help="number of updates between two saves (default: one epoch)",
    )
    interrupted = p.add_mutually_exclusive_group()
    interrupted.add_argument(
        "--resume",
        action="store_true",
        help="continue interrupted seeds from their last saved state",
    )
    interrupted.add_argument(
        "--restart",
        action="store_true",
        help="discard the saved state of interrupted seeds and start them again",
    )
    p.add_argument(
        "--skip-damaged",
        action="store_true",
        help="with --resume: leave out damaged parts of the saved frame",
    )
    p.add_argument(
        "--out",
        help="run directory (default: runs/DATASET-MODEL, or runs/DATASET-PROTOCOL)",
    )
    p.add_argument("--log-dir", help="TensorBoard directory")
    return p


@cli.command("the same command with --resume continues")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    run(_parse(arguments))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options. --protocol sets the defaults of other options."""
    p = parser()
    args = p.parse_args(arguments)
    if args.protocol:
        p.set_defaults(**preset(args.protocol, args.dataset, args.select_top))
        args = p.parse_args(arguments)
    return args


def run(args: argparse.Namespace) -> None:
    """Train and measure the seeds that are not complete in the run directory, then report on all of `args.seeds`."""
    # Raise an error for wrong options before a run directory is made.
    parse_rules(
        args.update,
        args.measures,
        args.learning_rate,
        args.srel_learning_rate,
        args.estimator,
    )
    settings = {
        name: value for name, value in vars(args).items() if name not in NOT_SETTINGS
    }
    if settings["dataset"] == "digits" and not (
        settings["classes"] or settings["select_top"]
    ):
        settings["classes"] = DIGITS
    out = _out(args)
    kept = {k: v for k, v in settings.items() if k not in ("data_dir", "download")}
    directory = RunDirectory(out, kept)
    if settings["select_top"]:
        options = {
            name: getattr(args, name)
            for name in ("resume", "restart", "checkpoint_every")
        }
        settings["classes"] = _selected(directory, settings, args.seeds[0], options)
    waiting = directory.unfinished(args.seeds)
    options = {
        name: getattr(args, name)
        for name in ("log_dir", "resume", "restart", "skip_damaged", "checkpoint_every")
    }
    if args.jobs > 1 and len(waiting) > 1:
        run_in_processes(
            partial(_train_shared, settings, kept, out, options), waiting, args.jobs
        )
    else:
        for seed in waiting:
            print(f"seed {seed}:")
            _train(settings, directory, options, seed)
    report(directory, args.seeds)


def _out(args: argparse.Namespace) -> Path:
    """Return the run directory. Each protocol has a separate one by default, because their settings differ."""
    return Path(
        args.out
        or f"runs/{re.sub('[:/]+', '-', args.dataset)}-{args.protocol or args.model}"
    )


def _train(
    settings: Mapping[str, Any],
    directory: RunDirectory,
    options: Mapping[str, Any],
    seed: int,
    **more: Any,
) -> None:
    log_dir = options["log_dir"] and Path(options["log_dir"]) / f"seed-{seed}"
    train(settings, seed, directory, **{**options, "log_dir": log_dir}, **more)


def _train_shared(
    settings: Mapping[str, Any],
    kept: Mapping[str, Any],
    out: Path,
    options: Mapping[str, Any],
    seed: int,
    orphaned: Callable[[], bool],
) -> None:
    """Train one seed in a separate process. The parent process holds the lock of the directory."""
    _train(
        settings,
        RunDirectory(out, kept, shared=True),
        options,
        seed,
        verbose="lines",
        orphaned=orphaned,
    )


def _selected(
    directory: RunDirectory,
    settings: Mapping[str, Any],
    seed: int,
    options: Mapping[str, Any],
) -> list[str]:
    """Return the classes that --select-top chooses. They are chosen once for each run directory."""
    file = directory.path / "selection.json"
    if not file.exists():
        select_top(settings, settings["select_top"], seed, directory, **options)
    selection = read_selection(file)
    # A process that was killed after the selection may have left its store behind.
    remove_store(directory.path / "selection.parts")
    for name, value in selection["test_accuracy"].items():
        print(
            f"  {name}: test accuracy {value:.3f}{' (kept)' if name in selection['classes'] else ''}"
        )
    return selection["classes"]


def read_selection(file: Path) -> dict[str, Any]:
    """Read and check the classes that --select-top chose. Raises `RunDirectoryError` if the file is damaged."""
    selection = read_json(file)
    accuracy, classes = selection.get("test_accuracy"), selection.get("classes")
    if not (
        isinstance(accuracy, dict)
        and all(isinstance(value, float) for value in accuracy.values())
        and isinstance(classes, list)
        and all(isinstance(name, str) and name in accuracy for name in classes)
    ):
        raise RunDirectoryError(
            f"{file} does not hold a selection of classes: the file is damaged; delete it to select again"
        )
    return selection
