"""What a measurement costs, side by side in one run: srel_tf's estimators, the plain loop, the published procedure.

    python -m train.benchmark                     the published ResNet-18, 60 sources x 60 targets, 32 x 32 images
    python -m train.benchmark --growth            time and memory from 30 to 1,000 probe points, with exponents
    python -m train.benchmark --training          `fit` with a measurement every ninth step against plain `fit`
    python -m train.benchmark --shares            time against the multiply-adds needed at the machine's peak rate
    python -m train.benchmark --all --out DIR     all four, and tables and a picture in DIR

Where PyTorch is installed, the first has the torch.func recipes too. Ratios are what carries over to another machine.
"""

import argparse
import sys
import time
from pathlib import Path

import tensorflow as tf

from srel_tf import OptionError, SRelError
from train.benchmark import report
from train.benchmark.comparison import comparison, has_torch
from train.benchmark.growth import SIZES, exponents, growth
from train.benchmark.shares import shares
from train.benchmark.training import overhead, training
from train.classification.experiment import make_repeatable
from train.models import ARCHITECTURES


def parser():
    p = argparse.ArgumentParser(
        prog="python -m train.benchmark",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for part, text in (
        ("growth", "time and memory by probe points"),
        ("training", "what it costs during fit"),
    ):
        p.add_argument(f"--{part}", action="store_true", help=text)
    p.add_argument(
        "--shares",
        action="store_true",
        help="where the time goes, as shares of the physical limit",
    )
    p.add_argument(
        "--all",
        action="store_true",
        help="these and the comparison, which is what runs without any",
    )
    p.add_argument(
        "--out",
        type=Path,
        help="directory for tables (CSV), machine (JSON) and a picture",
    )
    p.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        help="gpu: fail without one, and write to results/benchmarks/gpu unless --out is given; cpu: hide GPUs",
    )
    p.add_argument("--model", default="resnet18", choices=ARCHITECTURES)
    p.add_argument(
        "--points",
        type=int,
        default=60,
        help="probe points, of 3 classes (not --growth)",
    )
    p.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="rounds in which the procedures are called in turn",
    )
    p.add_argument(
        "--torch-repeats",
        type=int,
        default=2,
        help="the same of the torch.func recipes; 0: none",
    )
    p.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="probe points of --growth"
    )
    p.add_argument(
        "--exact-up-to",
        type=int,
        default=240,
        help="--growth measures exact up to this many points",
    )
    p.add_argument("--batch-size", type=int, default=256, help="of --training")
    p.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="of --training, in which its kinds of blocks take turns",
    )
    return p


def main(arguments=None):
    """Run the command; the exit status."""
    args = parser().parse_args(arguments)
    chosen = [part for part in PARTS if args.all or getattr(args, part, False)] or [
        "comparison"
    ]
    try:
        _check(args)
        _choose_device(args)
        make_repeatable(0)
        about = report.machine()
        report.print_machine(about)
        for part in chosen:
            start = time.perf_counter()
            tables, figures = PARTS[part](args)
            print(f"  ({part}: {time.perf_counter() - start:.0f} s)", flush=True)
            if args.out:
                options = {k: v for k, v in vars(args).items() if k != "out"}
                report.write(
                    args.out,
                    part,
                    {"machine": about, "options": options},
                    tables,
                    figures,
                )
    except SRelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _choose_device(args):
    if args.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    if args.device != "gpu":
        return
    if not tf.config.get_visible_devices("GPU"):
        raise OptionError(
            "--device gpu: TensorFlow sees no GPU; install tensorflow[and-cuda], or use --device cpu"
        )
    args.out = args.out or Path("results/benchmarks/gpu")


def _check(args):
    least_of = {
        "points": 3,
        "repeats": 1,
        "torch_repeats": 0,
        "exact_up_to": 0,
        "batch_size": 1,
        "rounds": 1,
    }
    for name, least in least_of.items():
        if getattr(args, name) < least:
            raise OptionError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: give at least {least}"
            )
    if min(args.sizes) < 3 or len(set(args.sizes)) < len(args.sizes):
        raise OptionError(
            f"--sizes {' '.join(map(str, args.sizes))}: give different numbers of 3 or more points"
        )


def _comparison(args):
    torch_repeats = args.torch_repeats if has_torch() else 0
    table = comparison(args.model, args.points, args.repeats, torch_repeats)
    report.print_comparison(table, args.model, args.points)
    if args.torch_repeats and not torch_repeats:
        print(
            "torch.func recipes left out: PyTorch is not installed (pip install -e '.[torch]')",
            flush=True,
        )
    return {"comparison": table}, {}


def _growth(args):
    print(
        f"\n{args.model}, each line in a process of its own; exact up to {args.exact_up_to} points (--exact-up-to)"
    )
    table = growth(
        args.model, sorted(args.sizes), args.exact_up_to, report.print_growth_row
    )
    fitted = exponents(table)
    report.print_exponents(fitted)
    return {"growth": table, "growth_exponents": fitted}, {
        "growth": report.plot_growth(table, fitted)
    }


def _training(args):
    table = training(args.model, args.points, args.batch_size, args.rounds)
    medians = overhead(table)
    report.print_training(medians, args.batch_size)
    return {"training": table, "training_overhead": medians.reset_index()}, {}


def _shares(args):
    table, rate = shares(args.model, args.points, args.repeats)
    report.print_shares(table, rate)
    return {"shares": table.assign(multiply_adds_per_second=rate)}, {}


PARTS = {
    "comparison": _comparison,
    "growth": _growth,
    "training": _training,
    "shares": _shares,
}
