"""Measure S_rel while a ReLU net learns y = ‖x‖₁ (Section 2.2 of the paper: Figures 3, 4 and 5).

python -m train.regression                                        five seeds of the default net
python -m train.regression --jobs 2                               two seeds at a time, each in a separate process
python -m train.regression --width 8 16 64 --depth 1 2 4          nine nets, each with its own run directory
"""

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from srel_tf import OptionError, Settings, SRelError
from train.classification.experiment import DivergedError
from train.common import cli
from train.common.parallel import JobError, run_in_processes
from train.common.run_directory import RunDirectory
from train.regression.experiment import precision, train
from train.regression.report import report, summary


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m train.regression",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--dimension", type=cli.at_least(1), default=20, help="dimension of x"
    )
    p.add_argument(
        "--width",
        type=cli.at_least(1),
        nargs="+",
        action=cli.Distinct,
        default=[16],
        help="number of units of each hidden layer; several values make a sweep",
    )
    p.add_argument(
        "--depth",
        type=cli.at_least(1),
        nargs="+",
        action=cli.Distinct,
        default=[3],
        help="number of hidden layers; several values make a sweep",
    )
    p.add_argument(
        "--examples",
        type=cli.at_least(1),
        default=4000,
        help="number of training examples; each seed draws different examples",
    )
    p.add_argument("--batch-size", type=cli.at_least(1), default=32)
    p.add_argument(
        "--learning-rate",
        type=float,
        default=0.001,
        help="learning rate of SGD, and η of the fictitious step",
    )
    p.add_argument(
        "--iterations",
        type=cli.at_least(1),
        default=2500,
        help="number of optimizer updates; S_rel is measured at each of them",
    )
    p.add_argument(
        "--sources",
        type=cli.at_least(2),
        default=200,
        help="number of sources x_i in Figure 3",
    )
    p.add_argument(
        "--targets",
        type=cli.at_least(1),
        default=2,
        help="number of targets x'; the figures show only the first one",
    )
    p.add_argument(
        "--probe-seed",
        type=cli.at_least(0),
        default=0,
        help="seed of the points x' and x_i, which are the same for all --seeds",
    )
    p.add_argument(
        "--precision",
        choices=["float32", "float64"],
        default="float64",
        help="precision of the net",
    )
    p.add_argument("--estimator", default="exact")
    p.add_argument(
        "--seeds",
        type=cli.SEED,
        nargs="+",
        action=cli.Distinct,
        default=[0, 1, 2, 3, 4],
    )
    p.add_argument(
        "--jobs",
        type=cli.at_least(1),
        default=1,
        help="number of seeds to train at a time, each in a separate process",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/regression"),
        help="run directory; for a sweep, the folder of the run directories",
    )
    return p


@cli.command("the same command runs this seed again")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    run(parser().parse_args(arguments))


def run(args: argparse.Namespace) -> None:
    """Train and measure the missing seeds of each net, then report.

    If a net of a sweep fails, the other nets are still run and appear in the table. An error is raised at the end.
    """
    _check(args)
    nets, done, failed = list(itertools.product(args.width, args.depth)), [], []
    for width, depth in nets:
        name = f"width {width}, depth {depth}"
        settings = {
            k: v for k, v in vars(args).items() if k not in ("seeds", "out", "jobs")
        }
        settings |= {"width": width, "depth": depth}
        print(f"{name}:")
        try:
            path = (
                args.out
                if len(nets) == 1
                else args.out / f"width-{width}-depth-{depth}"
            )
            done.append(_run_net(args, settings, path))
        except (DivergedError, JobError) as error:
            if len(nets) == 1:
                raise
            print(f"  {name}: {error}", flush=True)
            failed.append(name)
    if len(nets) > 1 and done:
        summary(done, args.out)
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(nets)} nets failed: {'; '.join(failed)}; see the reasons above"
        )


class SweepError(SRelError, RuntimeError):
    """Some nets of a sweep failed. The other nets ran to their end."""


def _run_net(
    args: argparse.Namespace, settings: Mapping[str, Any], path: Path
) -> pd.Series:
    """Train the missing seeds of one net, and summarise all seeds of the net."""
    about = {"experiment": "regression", **settings}
    # `RunDirectory` writes the current floatx to environment.json, so make it under the precision of the nets.
    with precision(settings["precision"]):
        directory = RunDirectory(path, about)
    waiting = directory.unfinished(args.seeds)
    if args.jobs > 1 and len(waiting) > 1:
        work = partial(_train_shared, settings, about, path)
        run_in_processes(
            work, waiting, args.jobs, again="the same command runs those seeds again"
        )
    else:
        for seed in waiting:
            train(settings, seed, directory)
    return report(directory, settings, args.seeds)


def _train_shared(
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    path: Path,
    seed: int,
    orphaned: Callable[[], bool],
) -> None:
    """Train one seed in a separate process. The parent process holds the lock of the directory."""
    train(settings, seed, RunDirectory(path, about, shared=True), orphaned)


def _check(args: argparse.Namespace) -> None:
    """Raise `OptionError` for inconsistent values, before a run directory is made."""
    if args.batch_size > args.examples:
        raise OptionError(
            f"--batch-size {args.batch_size}: give at most {args.examples}, the number of examples"
        )
    if not 0 < args.learning_rate < float("inf"):
        raise OptionError(
            f"--learning-rate {args.learning_rate}: give a positive number"
        )
    Settings(("l1",), estimator=args.estimator)
