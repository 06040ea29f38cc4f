"""`python -m train.theory`: Figures 6–13 of the paper as frames (Parquet) and pictures (PNG).

python -m train.theory                      all figures, in results/theory
python -m train.theory --figure 7           one figure
python -m train.theory --variant published  Figures 6–9 as the published scripts compute them
python -m train.theory --rise               check over ten seeds whether S_rel of Figures 6–9 rises (half a minute)
python -m train.theory --benchmark          measure the time of eq. 4 and of the published procedure

All figures in a folder have the same settings (settings.json). Figures can be added to a folder or made again, but only
with the seed of the folder.
"""

import argparse
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

from srel_tf import StorageError, write_frame
from srel_tf.files import as_json, differences, read_json, write_json
from srel_tf.plotting import save_figure
from train.benchmark import theory as theory_benchmark
from train.common import cli
from train.common.run_directory import RunDirectoryError
from train.figures import THEORY
from train.theory import figures as theory_figures


def make(number: int, variant: str, seed: int) -> tuple[pd.DataFrame, Figure]:
    """Compute the frame and the picture of one figure."""
    of_number = {
        **dict.fromkeys(
            theory_figures.PENALIZED,
            lambda: theory_figures.penalized(number, variant, seed),
        ),
        10: lambda: theory_figures.relu_gate(seed),
        11: theory_figures.distance,
        12: theory_figures.flow_pairs,
        13: lambda: theory_figures.sgd_pairs(seed),
    }
    frame = of_number[number]()
    return frame, THEORY[number](frame)


def settings(variant: str, seed: int) -> dict[str, Any]:
    """Collect the settings that the figures depend on. They are saved in the folder of the figures.

    The versions are saved, too, but `prepare` does not compare them.
    """
    gate = theory_figures.GATE
    return {
        "variant": variant,
        "seed": seed,
        "figures_6_to_9": {
            "K": 2,
            "n_k": 1000,
            "dim": 100,
            "lambda_1": 1.0,
            "theta": 0.001,
            "starts": 10,
            "pairs": 20,
        },
        "figure_10": gate
        | {
            "x": "(10, …, 10)",
            "targets": list(theory_figures.GATE_TARGETS),
            "w0": "N(0, I)",
        },
        "figures_11_to_13": {
            "w_star": [1, 2, 3],
            "w0_squared": [0.5, 2, 4],
            "theta": 0.001,
        },
        "figures_12_and_13": {"pairs": list(theory_figures.PAIRS)},
        "figure_13": {
            "runs": theory_figures.SGD_RUNS,
            "learning_rate": theory_figures.SGD_STEP,
        },
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__},
    }


def prepare(out: Path, suffix: str, new: Mapping[str, Any]) -> None:
    """Write the settings `new` to the folder `out`, or refuse the folder if its figures have other settings.

    The figures of the variant "published" (suffix "_published") have their own settings file, so that they can share a
    folder with the figures of the text. The settings are written before the first figure, so that an interrupted
    command leaves no figure without settings.

    Raises:
        RunDirectoryError: If the folder holds figures with other settings, or cannot be written.
    """
    file, now = out / f"settings{suffix}.json", as_json(new)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.glob(f"figure_??{suffix}.parquet")):
            refuse_other_settings(out, file, now)
        write_json(file, now)
    except RunDirectoryError:
        raise
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {out}: {error.strerror}; choose another --out"
        ) from error


def refuse_other_settings(out: Path, file: Path, now: Mapping[str, Any]) -> None:
    """Raise `RunDirectoryError` if the settings in `file` differ from `now`. Versions are not compared."""
    try:
        saved = read_json(file)
    except StorageError as error:
        raise RunDirectoryError(
            f"{out} holds figures, but {file.name} with their settings is missing or damaged; choose another --out"
        ) from error
    lines = differences({**saved, "versions": ""}, {**now, "versions": ""})
    if lines:
        raise RunDirectoryError(
            f"{out} holds figures with other settings; choose another --out:\n"
            + "\n".join(lines)
        )


def report_rise(out: Path) -> None:
    """Write rise.csv, and print for each figure whether S_rel at t = 8000 is above its value at t = 0.

    The value at t = 8000 is also compared with the median over t <= 1000.
    """
    frame = theory_figures.rise()
    out.mkdir(parents=True, exist_ok=True)
    print(f"written: {write_frame(frame, out / 'rise.csv')}")
    for (figure, variant, ridge), part in frame.groupby(["figure", "variant", "ridge"]):
        ratio = part["late"] / part["start"]
        print(
            f"Figure {figure}, {variant}, ridge={ridge}: late/start {ratio.median():.3f} ({ratio.min():.3f} to "
            f"{ratio.max():.3f}); late > start in {(ratio > 1).sum()} of {len(part)} seeds, late > median of t <= 1000 "
            f"in {(part['late'] > part['early']).sum()}"
        )


def make_figures(numbers: Iterable[int], out: Path, variant: str, seed: int) -> None:
    """Write the settings, and the frame and the picture of each figure."""
    suffix = "_published" if variant == "published" else ""
    prepare(out, suffix, settings(variant, seed))
    for number in numbers:
        start = time.perf_counter()
        frame, figure = make(number, variant, seed)
        stem = out / f"figure_{number:02d}{suffix}"
        write_frame(frame, stem.with_suffix(".parquet"))
        save_figure(figure, stem.with_suffix(".png"))
        print(
            f"Figure {number}: {stem}.parquet ({len(frame)} rows), {stem}.png, {time.perf_counter() - start:.1f} s"
        )


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.theory", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--figure",
        type=int,
        choices=range(6, 14),
        help="a single figure (default: all)",
    )
    folder = "folder; all its figures have the same settings (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("results/theory"), help=folder)
    parser.add_argument(
        "--variant",
        choices=("text", "published"),
        default="text",
        help="Figures 6–9 as the text or as the published scripts define them (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="make no figures; measure the time of eq. 4 and of the published procedure",
    )
    parser.add_argument(
        "--rise",
        action="store_true",
        help="make no figures; check over ten seeds whether S_rel of Figures 6–9 rises",
    )
    options = parser.parse_args(arguments)
    numbers = (
        [options.figure]
        if options.figure
        else range(6, 10 if options.variant == "published" else 14)
    )
    if options.variant == "published" and max(numbers) > 9:
        parser.error(
            f"--variant published is defined for Figures 6–9 only; given --figure {options.figure}"
        )
    if options.benchmark:
        theory_benchmark.run()
    elif options.rise:
        report_rise(options.out)
    else:
        make_figures(numbers, options.out, options.variant, options.seed)
