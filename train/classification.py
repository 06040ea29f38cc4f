"""S_rel while a classifier trains (Section 2.1 and Appendix D of the paper).

python -m train.classification                     scikit-learn's digits, nothing to download
python -m train.classification --dataset cifar10 --classes airplane automobile ship --model resnet18 ...
"""

import argparse
import json
import re
import sys
from pathlib import Path

from srel_tf import OptionError, SRelError
from train.experiment import select_top, train
from train.report import report
from train.runs import RunDirectory, write_json

DIGITS = ["3", "5", "8"]


def parser():
    p = argparse.ArgumentParser(
        prog="python -m train.classification",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--dataset", default="digits", help="digits, folder:DIR, or a TFDS image set by its name")
    p.add_argument("--data-dir", help="where TFDS sets lie prepared (default: TFDS's own directory)")
    p.add_argument("--classes", nargs="+", help=f"names or labels (default: all; of digits {' '.join(DIGITS)})")
    p.add_argument("--select-top", type=int, metavar="K", help="first train on all classes, then keep the K best")
    p.add_argument("--no-download", dest="download", action="store_false", help="never let TFDS download a set")
    p.add_argument("--augment", choices=["none", "frozen"], default="none", help="frozen: the published augmentation")
    p.add_argument("--test-images", choices=["test", "train"], default="test", help="train: as the published code did")
    p.add_argument("--image-size", type=int, help="resize images to this side")
    p.add_argument("--model", default="cnn", help="resnet18, resnet18_cifar, cnn, mlp")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--optimizer", default="sgd", help="adam, sgd, momentum")
    p.add_argument("--learning-rate", type=float, default=0.05)
    p.add_argument("--weight-decay", type=float, default=1e-4, help="L2, added to the gradient")
    p.add_argument("--every", type=int, default=9, help="measure at every that many optimizer updates")
    p.add_argument("--per-class", type=int, default=20, help="probe examples a class, k of Definition 3")
    p.add_argument("--measures", nargs="+", default=["kl", "l1"], help="kl, l1, l2, published_kl, published_l2")
    p.add_argument("--update", nargs="+", default=["sgd"], help="fictitious steps: sgd, optimizer, fresh_adam")
    p.add_argument("--srel-learning-rate", type=float, help="η of the fictitious step (default: the training's)")
    p.add_argument("--estimator", default="exact")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", help="run directory (default: runs/DATASET-MODEL)")
    p.add_argument("--log-dir", help="TensorBoard directory")
    return p


def main(arguments=None):
    """Run the command; the exit status."""
    args = parser().parse_args(arguments)
    try:
        run(args)
    except SRelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; what was measured before is saved", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was measured is saved; the same command runs this seed again", file=sys.stderr)
        return 130
    return 0


def run(args):
    """Train and measure each seed that the run directory does not hold yet, then report on all of them."""
    _check(args)
    not_settings = ("seeds", "out", "log_dir")
    settings = {name: value for name, value in vars(args).items() if name not in not_settings}
    if settings["dataset"] == "digits" and not (settings["classes"] or settings["select_top"]):
        settings["classes"] = DIGITS
    out = Path(args.out or f"runs/{re.sub('[:/]+', '-', settings['dataset'])}-{settings['model']}")
    directory = RunDirectory(out, {k: v for k, v in settings.items() if k not in ("data_dir", "download")})
    if settings["select_top"]:
        settings["classes"] = _selected(directory, settings, args.seeds[0])
    for seed in args.seeds:
        if directory.is_complete(seed):
            print(f"seed {seed}: measured already, kept in {directory.seed_path(seed)}")
            continue
        print(f"seed {seed}:")
        log_dir = args.log_dir and Path(args.log_dir) / f"seed-{seed}"
        train(settings, seed, directory, log_dir)
    report(directory, args.seeds)


def _check(args):
    """`OptionError` for what argparse lets through and no one else would notice."""
    if args.epochs < 1:
        raise OptionError(f"--epochs {args.epochs}: give at least 1")
    for name in ("seeds", "update"):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            raise OptionError(f"--{name} {' '.join(map(str, values))}: name none twice")
    if not all(0 <= seed < 2**32 for seed in args.seeds):
        raise OptionError(f"--seeds {' '.join(map(str, args.seeds))}: give numbers from 0 to 2**32 - 1")


def _selected(directory, settings, seed):
    """The classes of --select-top, chosen once for a run directory."""
    file = directory.path / "selection.json"
    if not file.exists():
        classes, accuracy = select_top(settings, settings["select_top"], seed)
        write_json(file, {"seed": seed, "classes": classes, "test_accuracy": accuracy})
    selection = json.loads(file.read_text(encoding="utf-8"))
    for name, value in selection["test_accuracy"].items():
        print(f"  {name}: test accuracy {value:.3f}{' (kept)' if name in selection['classes'] else ''}")
    return selection["classes"]


if __name__ == "__main__":
    sys.exit(main())
