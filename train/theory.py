"""`python -m train.theory`: Figures 6–13 of the paper as frames (Parquet) and pictures (PNG).

python -m train.theory                      all of them, under results/theory
python -m train.theory --figure 7           one of them
python -m train.theory --variant published  Figures 6–9 as the published scripts compute them
python -m train.theory --rise               Figures 6–9 over ten seeds: does S_rel rise? (half a minute)
python -m train.theory --benchmark          eq. 4 against the published procedure, timed
"""

import argparse
import json
import platform
import time
from pathlib import Path

import tensorflow as tf

from srel_tf import write_frame
from srel_tf.plotting import save_figure
from srel_tf.plotting import theory as plots
from train import theory_benchmark, theory_figures


def make(number, variant, seed):
    """The frame and the picture of one figure."""
    if number in theory_figures.PENALIZED:
        frame = theory_figures.penalized(number, variant, seed)
        return frame, plots.plot_penalized(frame)
    if number == 10:
        frame = theory_figures.relu_gate(seed)
        return frame, plots.plot_relu_gate(frame)
    frame, plot = {
        11: (theory_figures.distance, plots.plot_distance),
        12: (theory_figures.flow_pairs, plots.plot_flow_pairs),
        13: (lambda: theory_figures.sgd_pairs(seed), plots.plot_sgd_pairs),
    }[number]
    frame = frame()
    return frame, plot(frame)


def settings(variant, seed):
    """What a figure depends on, saved beside it."""
    gate = theory_figures.GATE
    return {
        "variant": variant,
        "seed": seed,
        "figures_6_to_9": {"K": 2, "n_k": 1000, "dim": 100, "lambda_1": 1.0, "theta": 0.001, "starts": 10, "pairs": 20},
        "figure_10": gate | {"x": "(10, …, 10)", "targets": list(theory_figures.GATE_TARGETS), "w0": "N(0, I)"},
        "figures_11_to_13": {"w_star": [1, 2, 3], "w0_squared": [0.5, 2, 4], "theta": 0.001},
        "figures_12_and_13": {"pairs": list(theory_figures.PAIRS)},
        "figure_13": {"runs": theory_figures.SGD_RUNS, "learning_rate": theory_figures.SGD_STEP},
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__},
    }


def report_rise(out):
    """Write rise.csv and print, for each figure, how S_rel at t = 8000 compares with t = 0 and with t <= 1000."""
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


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m train.theory", description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=int, choices=range(6, 14), help="one figure; all of them by default")
    parser.add_argument("--out", type=Path, default=Path("results/theory"), help="folder (default: %(default)s)")
    parser.add_argument("--variant", choices=("text", "published"), default="text", help="of Figures 6–9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--benchmark", action="store_true", help="time eq. 4 against the published procedure instead")
    parser.add_argument("--rise", action="store_true", help="Figures 6–9 over ten seeds instead: does S_rel rise?")
    options = parser.parse_args(arguments)
    if options.benchmark:
        theory_benchmark.run()
        return
    if options.rise:
        report_rise(options.out)
        return
    numbers = [options.figure] if options.figure else range(6, 10 if options.variant == "published" else 14)
    if options.variant == "published" and max(numbers) > 9:
        parser.error("--variant published is defined for Figures 6–9 alone.")
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "_published" if options.variant == "published" else ""
    for number in numbers:
        start = time.perf_counter()
        frame, figure = make(number, options.variant, options.seed)
        stem = options.out / f"figure_{number:02d}{suffix}"
        write_frame(frame, stem.with_suffix(".parquet"))
        save_figure(figure, stem.with_suffix(".png"))
        print(f"Figure {number}: {stem}.parquet ({len(frame)} rows), {stem}.png, {time.perf_counter() - start:.1f} s")
    note = json.dumps(settings(options.variant, options.seed), indent=2, ensure_ascii=False)
    (options.out / f"settings{suffix}.json").write_text(note + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
