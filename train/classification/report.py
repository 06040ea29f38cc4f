"""Tables and figures of a finished run: Definition 3, the separation of classes, loss and accuracy."""

from collections.abc import Sequence

import pandas as pd

import srel_tf
from srel_tf import rule_names
from srel_tf.plotting import plot_class_pairs, plot_history, save_figure
from train.common.run_directory import RunDirectory
from train.figures import file_name


def report(directory: RunDirectory, seeds: Sequence[int]) -> None:
    """Write the tables and figures of these seeds, and print a summary.

    The summary has Definition 3 at the last measured step, the separation of classes at the first and last measured
    step, and loss and accuracy of the first and last epoch.
    """
    frame, history = directory.scan(seeds), directory.histories(seeds)
    pairs, separation = srel_tf.smooth(frame), srel_tf.separation(frame)
    figures = directory.path / "figures"
    figures.mkdir(exist_ok=True)
    written = [
        srel_tf.write_frame(pairs, directory.path / "pairs.csv"),
        srel_tf.write_frame(separation, directory.path / "separation.csv"),
        srel_tf.write_frame(history, directory.path / "history.csv"),
        save_figure(plot_history(history), figures / "history.png"),
    ]
    for rule, rows in pairs.groupby(rule_names(pairs), sort=False):
        written.append(
            save_figure(plot_class_pairs(rows), figures / f"srel-{file_name(rule)}.png")
        )
    _print_pairs(pairs)
    _print_separation(separation)
    _print_history(history)
    print("\nframes, one row per (step, measure, source, target):")
    for seed in seeds:
        print(f"  {directory.seed_path(seed) / 'frame.parquet'}")
    print("tables and figures:")
    for path in written:
        print(f"  {path}")


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["step"] == frame["step"].max()]


def _print_pairs(pairs: pd.DataFrame) -> None:
    last = _last(pairs)
    for (rule, measure), rows in last.groupby(
        [rule_names(last), "measure"], sort=False
    ):
        order = rows["source_class"].unique()
        table = rows.pivot_table(
            "mean", "source_class", "target_class", aggfunc="mean"
        ).reindex(order, axis=0)
        print(
            f"\nDefinition 3, {measure}, update {rule}, step {rows['step'].iloc[0]}, mean over "
            f"{rows['run'].nunique()} runs; row: source class, column: target class; "
            f"{rows['n_valid'].sum()} of {rows['n_pairs'].sum()} entries valid"
        )
        print(
            table.reindex([c for c in order if c in table], axis=1).to_string(
                float_format="{:.3f}".format
            )
        )


def _print_separation(separation: pd.DataFrame) -> None:
    ends = separation["step"].isin([separation["step"].min(), separation["step"].max()])
    of_rules = separation[ends].groupby(
        [rule_names(separation[ends]), "measure", "step"], sort=False
    )
    table = of_rules[["auc", "median_intra", "median_inter", "ratio_of_medians"]].mean()
    print(
        "\nSeparation of intra-class from inter-class pairs, diagonal left out, mean over runs (AUC 0.5: no separation)"
    )
    print(table.to_string(float_format="{:.3f}".format))


def _print_history(history: pd.DataFrame) -> None:
    table = (
        history.groupby(["epoch", "split"])[["loss", "accuracy"]]
        .mean()
        .unstack("split")
    )
    ends = table.iloc[[0, -1]] if len(table) > 1 else table
    print("\nLoss (nats) and accuracy, mean over runs")
    with pd.option_context("display.width", 120):
        print(ends.to_string(float_format="{:.3f}".format))
