"""Cost of a measurement: srel_tf's estimators compared with a plain loop and with the published procedure.

    python -m train.benchmark                     the published ResNet-18, 60 sources x 60 targets, 32 x 32 images
    python -m train.benchmark --growth            time and memory from 30 to 1,000 probe points, with exponents
    python -m train.benchmark --training          `fit` with a measurement every 9 steps, compared with plain `fit`
    python -m train.benchmark --all --out DIR     all of these; writes tables and a picture to DIR

If PyTorch is installed, the first command also times the torch.func recipes. Times depend on the machine. Only their
ratios carry over to another machine.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

from srel_tf import OptionError
from train.benchmark import report
from train.benchmark.comparison import comparison, has_torch
from train.benchmark.growth import SIZES, exponents, growth
from train.benchmark.training import EVERY, overhead, training
from train.classification.experiment import make_repeatable
from train.common import cli
from train.models import ARCHITECTURES

Result = tuple[
    dict[str, pd.DataFrame], dict[str, Figure]
]  # (tables, figures), each by file name.


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options."""
    p = argparse.ArgumentParser(
        prog="python -m train.benchmark",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def number(name: str, least: int, default: int, text: str) -> None:
        p.add_argument(name, type=cli.at_least(least), default=default, help=text)

    def part(name: str, text: str) -> None:
        p.add_argument(name, action="store_true", help=text)

    part("--growth", "time and memory for several numbers of probe points")
    part("--training", "cost of measuring during fit")
    part("--all", "the comparison (the default), --growth and --training")
    p.add_argument(
        "--out",
        type=Path,
        help="directory for tables (CSV), options and machine (JSON) and a picture",
    )
    p.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        help="gpu: fail if there is no GPU, and write to results/benchmarks/gpu unless --out is given; cpu: hide GPUs",
    )
    p.add_argument("--model", default="resnet18", choices=ARCHITECTURES)
    number(
        "--points",
        3,
        60,
        "number of probe points, of 3 classes (--growth uses --sizes)",
    )
    number(
        "--repeats", 1, 5, "number of rounds; each round calls the procedures in turn"
    )
    number(
        "--torch-repeats", 0, 2, "number of rounds with the torch.func recipes; 0: none"
    )
    p.add_argument(
        "--sizes",
        type=cli.at_least(3),
        nargs="+",
        default=SIZES,
        help="numbers of probe points for --growth",
    )
    number(
        "--exact-up-to",
        0,
        240,
        "largest number of probe points at which --growth measures exact",
    )
    number("--batch-size", 1, 256, "batch size of --training")
    number(
        "--rounds",
        1,
        5,
        "number of rounds of --training; each round has one block of each kind",
    )
    return p


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(arguments)
    chosen = [part for part in PARTS if args.all or getattr(args, part, False)]
    _choose_device(args)
    make_repeatable(0)
    about = report.machine()
    report.show_machine(about)
    for part in chosen or ["comparison"]:
        start = time.perf_counter()
        tables, figures = PARTS[part](args)
        print(f"  ({part}: {time.perf_counter() - start:.0f} s)", flush=True)
        if args.out:
            options = {k: v for k, v in vars(args).items() if k != "out"}
            details = {"machine": about, "options": options}
            report.write(args.out, part, details, tables, figures)


def _choose_device(args: argparse.Namespace) -> None:
    if args.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    if args.device != "gpu":
        return
    if not tf.config.get_visible_devices("GPU"):
        raise OptionError(
            "--device gpu: TensorFlow does not find a GPU; install tensorflow[and-cuda], or use --device cpu"
        )
    args.out = args.out or Path("results/benchmarks/gpu")


def _comparison(args: argparse.Namespace) -> Result:
    torch_repeats = args.torch_repeats if has_torch() else 0
    table = comparison(args.model, args.points, args.repeats, torch_repeats)
    cli.show(
        f"{args.model}, {args.points} sources × {args.points} targets; median times, with the procedures called in "
        "turn; the published procedure was timed on some (source, class) pairs, and its time is scaled up to all pairs",
        table,
    )
    loops = table.set_index("procedure")["forward_passes"] / args.points
    print(
        f"in units of {args.points} forward passes: exact {loops['exact']:.2f}, naive loop {loops['naive loop']:.2f}"
    )
    if args.torch_repeats and not torch_repeats:
        print(
            "torch.func recipes are left out, because PyTorch is not installed (pip install -e '.[torch]')",
            flush=True,
        )
    return {"comparison": table}, {}


def _growth(args: argparse.Namespace) -> Result:
    print(
        f"\n{args.model}, each size and estimator in a separate process; exact up to {args.exact_up_to} points"
    )
    table = growth(
        args.model,
        sorted(set(args.sizes)),
        args.exact_up_to,
        lambda row: print(
            "  {estimator} {points} points: {seconds:.2f} s".format(**row), flush=True
        ),
    )
    fitted = exponents(table)
    cli.show("seconds and bytes", table)
    cli.show("fitted powers of the number of points", fitted)
    picture = report.plot_growth(table, fitted)
    return {"growth": table, "growth_exponents": fitted}, {"growth": picture}


def _training(args: argparse.Namespace) -> Result:
    table = training(args.model, args.points, args.batch_size, args.rounds)
    medians = overhead(table).reset_index()
    cli.show(
        f"median times of blocks of {EVERY} steps in `fit`, batch size {args.batch_size}, with one measurement or none",
        medians,
    )
    return {"training": table, "training_overhead": medians}, {}


PARTS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "comparison": _comparison,
    "growth": _growth,
    "training": _training,
}
