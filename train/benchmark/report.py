"""What the benchmark prints, and the files that it writes: tidy CSV, the machine, a log-log picture."""

import os
from importlib import metadata, util

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

import srel_tf
from srel_tf.plotting import save_figure
from train.benchmark.growth import QUANTITIES
from train.benchmark.shares import SIZE
from train.benchmark.theory import processor
from train.benchmark.training import EVERY
from train.common.environment import environment
from train.common.run_directory import write_json


def machine():
    """Processor, cores, load and versions: a dict that JSON can hold."""
    about = {"processor": processor(), "cores": os.cpu_count(), **environment()}
    if hasattr(os, "getloadavg"):
        about["load_average_at_start"] = round(os.getloadavg()[0], 2)
    if util.find_spec("torch"):
        about["torch"] = metadata.version("torch")
    return about


def print_machine(about):
    load = about.get("load_average_at_start", "unknown")
    print(
        f"{about['processor']}, {about['cores']} cores, {', '.join(about['devices'])}; load at the start {load}"
    )
    names = ("python", "tensorflow", "keras", "numpy", "torch")
    print(
        ", ".join(f"{name} {about[name]}" for name in names if name in about),
        flush=True,
    )


def print_comparison(table, model, points):
    print(f"\n{model}, {points} sources × {points} targets; medians of calls in turn")
    print(
        f"{'':40}{'time':>10}  {'timings':>7}  {'forward passes':>14}  {'published / it':>14}"
    )
    for row in table.itertuples():
        ratios = f"{row.forward_passes:14.1f}  {row.published_over_it:14.1f}"
        print(f"{row.procedure:40}{row.seconds:8.3f} s  {row.timings:7}  {ratios}")
    loops = table.set_index("procedure")["forward_passes"] / points
    print(
        f"in units of {points} forward passes: exact {loops['exact']:.2f}, naive loop {loops['naive loop']:.2f}"
    )
    print(
        "the published procedure is scaled up from the (source, class) pairs that were timed",
        flush=True,
    )


def print_growth_row(row):
    passes = row["seconds"] / row["forward"]
    print(
        f"  {row['estimator']:6}{row['points']:6} points  {row['seconds']:8.2f} s ({passes:7.1f} forward passes; "
        f"{row['first']:.1f} s with tracing)  {row['memory'] / 1e6:7.0f} MB above a forward pass, "
        f"{row['peak'] / 1e9:.2f} GB in all",
        flush=True,
    )


def print_exponents(fitted):
    for row in fitted.itertuples():
        print(
            f"  {row.estimator}: {QUANTITIES[row.quantity]} ∝ points^{row.exponent:.2f}, fitted over {row.points}"
        )


def print_training(medians, batch_size):
    print(
        f"\nblocks of {EVERY} steps of {batch_size} in `fit`, in turn with one measurement or none; medians"
    )
    for row in medians.itertuples():
        print(
            f"  {row.Index:16}{row.seconds:8.3f} s ({row.blocks} blocks)  {row.overhead:+.1%}"
        )


def print_shares(table, rate):
    print(
        f"\nmultiply-adds needed, at the {rate / 1e9:.1f}·10⁹ a second of a product of {SIZE} × {SIZE} matrices"
    )
    for estimator, parts in table.groupby("estimator", sort=False):
        total, time = parts["share"].sum(), parts["seconds"].iloc[0]
        print(
            f"  {estimator}, {time:.3f} s: {total:.0%} of the time is what they need at that rate"
        )
        for row in parts.itertuples():
            print(
                f"    {row.part:32}{row.multiply_adds / 1e9:10.2f}·10⁹  {row.seconds_at_peak:8.3f} s  {row.share:6.1%}"
            )


def plot_growth(table, fitted):
    """Time and memory by the number of probe points, log-log, with the fitted powers as thin lines: a Figure."""
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        axes = figure.subplots(1, 2)
    estimators = list(table["estimator"].unique())
    palette = dict(
        zip(estimators, sns.color_palette("colorblind", len(estimators)), strict=True)
    )
    units = {
        "seconds": ("time of a measurement (s)", 1),
        "memory": ("memory above a forward pass (GB)", 1e9),
    }
    for ax, (quantity, (label, unit)) in zip(axes, units.items(), strict=True):
        data = table.assign(value=table[quantity] / unit)
        common = {
            "hue": "estimator",
            "style": "estimator",
            "palette": palette,
            "legend": False,
            "s": 50,
            "zorder": 3,
        }
        sns.scatterplot(data, x="points", y="value", ax=ax, **common)
        for row in fitted[fitted["quantity"] == quantity].itertuples():
            points = np.array(
                sorted(table.loc[table["estimator"] == row.estimator, "points"]), float
            )
            label_of_line = f"{row.estimator} ∝ n$^{{{row.exponent:.2f}}}$"
            if np.isfinite(row.exponent):
                line = row.factor * points**row.exponent / unit
                ax.plot(
                    points,
                    line,
                    color=palette[row.estimator],
                    linewidth=1,
                    label=label_of_line,
                )
        ax.set(xscale="log", yscale="log", xlabel="probe points n", ylabel=label)
        ax.set_xticks(
            sizes := sorted(table["points"].unique()),
            [str(n) for n in sizes],
            minor=False,
        )
        ax.set_xticks([], minor=True)
        if ax.lines:
            ax.legend(title=None)
    return figure


def write(directory, part, about, tables, figures=None):
    """Write a part of the benchmark: PART.json (options and machine), NAME.csv of each table, NAME.png of each figure.

    Raises `srel_tf.OptionError` where nothing can be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            srel_tf.write_frame(table, directory / f"{name}.csv")
        for name, figure in (figures or {}).items():
            save_figure(figure, directory / f"{name}.png")
        write_json(directory / f"{part}.json", about)
    except OSError as error:
        raise srel_tf.OptionError(
            f"cannot write to {directory}: {error.strerror}; choose another --out"
        ) from error
