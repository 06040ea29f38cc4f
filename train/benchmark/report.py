"""Printed output and files of the benchmark: tables in CSV, a description of the machine, a log-log picture."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

import srel_tf
from srel_tf.files import write_json
from srel_tf.plotting import save_figure
from train.common.environment import environment


def machine() -> dict[str, Any]:
    """Collect processor, cores, load and versions, as values that JSON supports."""
    about = {"processor": processor(), "cores": os.cpu_count(), **environment()}
    if hasattr(os, "getloadavg"):
        about["load_average_at_start"] = round(os.getloadavg()[0], 2)
    if util.find_spec("torch"):
        about["torch"] = metadata.version("torch")
    return about


def processor() -> str:
    """Return the name of the processor, or the name of its architecture if the processor's name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show_machine(about: Mapping[str, Any]) -> None:
    """Print the machine and the versions of the main packages."""
    load = about.get("load_average_at_start", "unknown")
    print(
        f"{about['processor']}, {about['cores']} cores, {', '.join(about['devices'])}; load at the start {load}"
    )
    names = ("python", "tensorflow", "keras", "numpy", "torch")
    print(", ".join(f"{n} {about[n]}" for n in names if n in about), flush=True)


def plot_growth(table: pd.DataFrame, fitted: pd.DataFrame) -> Figure:
    """Plot time and memory against the number of probe points, log-log, with the fitted powers as thin lines."""
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        time, memory = figure.subplots(1, 2)
    powers = fitted.set_index(["estimator", "quantity"])
    sizes = sorted(table["points"].unique())
    for ax, quantity, label, unit in (
        (time, "seconds", "time of a measurement (s)", 1.0),
        (memory, "memory", "memory above a forward pass (GB)", 1e9),
    ):
        for (estimator, part), color, marker in zip(
            table.groupby("estimator", sort=False),
            sns.color_palette("colorblind"),
            "oXs",
            strict=False,
        ):
            points = part["points"].to_numpy(float)
            exponent, factor = powers.loc[(estimator, quantity), ["exponent", "factor"]]
            ax.scatter(
                points,
                part[quantity] / unit,
                s=50,
                color=color,
                marker=marker,
                zorder=3,
            )
            if np.isfinite(exponent):
                line = f"{estimator} ∝ n$^{{{exponent:.2f}}}$"
                ax.plot(
                    points,
                    factor * points**exponent / unit,
                    color=color,
                    linewidth=1,
                    label=line,
                )
        ax.set(xscale="log", yscale="log", xlabel="probe points n", ylabel=label)
        ax.set_xticks(sizes, [str(n) for n in sizes])
        ax.set_xticks([], minor=True)
        if ax.lines:
            ax.legend()
    return figure


def write(
    directory: Path,
    part: str,
    about: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
) -> None:
    """Write the results of one part of the benchmark.

    The files are PART.json with options and machine, NAME.csv for each table, and NAME.png for each figure.

    Raises:
        OptionError: If the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            srel_tf.write_frame(table, directory / f"{name}.csv")
        for name, figure in figures.items():
            save_figure(figure, directory / f"{name}.png")
        write_json(directory / f"{part}.json", about)
    except OSError as error:
        raise srel_tf.OptionError(
            f"cannot write to {directory}: {error.strerror}; choose another --out"
        ) from error
