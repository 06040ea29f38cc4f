"""Draw all pictures in results/ again from the saved frames. No training or measurement takes place.

python -m train.figures [--results results] [--published CSV]

    DATA-PROTOCOL/figures/  S_rel of class pairs (Figures 1, 2, 14), loss and accuracy (Figures 15–17), separation of
                            classes, spread of S_rel, matrices
    replication/            our curves and the published curves; only with --published, a CSV of the authors' values
    regression/figures/     Figures 3–5
    theory/                 Figures 6–13
    benchmarks/             growth of time and memory with the number of probe points
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import srel_tf
from srel_tf import plotting
from srel_tf.files import read_json
from srel_tf.plotting import save_figure
from srel_tf.plotting import theory as theory_plots
from train.benchmark import report as benchmark_report
from train.common import cli
from train.common.seed_marks import finished_seeds
from train.regression import report as regression_report
from train.replication.command import as_ours, read_published
from train.replication.tables import load

THEORY = {
    **dict.fromkeys((6, 7, 8, 9), theory_plots.plot_penalized),
    10: theory_plots.plot_relu_gate,
    11: theory_plots.plot_distance,
    12: theory_plots.plot_flow_pairs,
    13: theory_plots.plot_sgd_pairs,
}
Drawing = tuple[str, Figure]  # File name and picture.
DRAWN = {
    "defined": ("kl", "l1"),
    "published": ("published_kl", "published_l2"),
    "crossed": ("kl", "l1", "published_kl"),
}


def file_name(rule: str) -> str:
    """Turn a rule's name into a part of a file name."""
    return re.sub("[^a-z0-9_.]+", "-", rule.replace("η=", ""))


def of_classification(path: Path, protocol: str) -> Iterator[Drawing]:
    """Draw the results of `train.condense` in `path`."""
    frames = {
        name: srel_tf.read_frame(path / f"{name}.parquet")
        for name in ("pairs", "separation", "quantiles")
    }
    classes = list(frames["pairs"]["source_class"].unique())
    yield "history.png", plotting.plot_history(srel_tf.read_frame(path / "history.csv"))
    yield "separation.png", plotting.plot_separation(frames["separation"])
    for rule, rows in frames["pairs"].groupby("rule", sort=False):
        shown = rows[rows["measure"].isin(DRAWN.get(protocol, DRAWN["crossed"]))]
        yield (
            f"pairs-{file_name(str(rule))}.png",
            plotting.plot_class_pairs(shown, classes),
        )
    if protocol == "published":
        # This protocol also measures S_rel of Definitions 1 and 2.
        rows = _smallest_steps(frames["pairs"]).query(
            "update == 'sgd' and measure in ('kl', 'l1')"
        )
        yield "pairs-definitions.png", plotting.plot_class_pairs(rows, classes)
    spread = frames["quantiles"]
    spread = pd.concat(
        [_smallest_steps(spread), spread[spread["estimator"] == "limit"]]
    )
    yield (
        "spread.png",
        plotting.plot_spread(spread[spread["measure"].isin(["kl", "l1"])]),
    )
    if (path / "matrices.parquet").exists():
        matrices = srel_tf.read_frame(path / "matrices.parquet")
        last = _smallest_steps(
            matrices[matrices["step"] == matrices["step"].max()]
        ).query("update == 'sgd'")
        for measure in [m for m in ("kl", "l1") if m in set(last["measure"])]:
            yield f"matrix-{measure}.png", plotting.plot_matrix(last, measure)


def _smallest_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of the finite `sgd` step with the smallest η, and all rows of update `fresh_adam`."""
    sgd = frame[(frame["update"] == "sgd") & (frame["estimator"] != "limit")]
    smallest = sgd[sgd["learning_rate"] == sgd["learning_rate"].min()]
    return pd.concat([smallest, frame[frame["update"] == "fresh_adam"]])


def side_by_side(pairs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Join our curves for update `fresh_adam` and the published curves into one frame for `plot_beside`."""
    theirs = as_ours(published)
    theirs = theirs.assign(mean=theirs["srel"], origin="published")
    ours = pairs[
        (pairs["update"] == "fresh_adam")
        & pairs["measure"].isin(theirs["measure"].unique())
    ]
    both = pd.concat(
        [ours.assign(origin="srel_tf, protocol published"), theirs], ignore_index=True
    )
    columns = ["origin", "run", "step", "measure", "source_class", "target_class"]
    return both[[*columns, "mean"]]


def of_theory(path: Path) -> Iterator[Drawing]:
    """Draw Figures 6–13 from the frames in results/theory."""
    for frame in sorted(path.glob("figure_*.parquet")):
        yield (
            frame.with_suffix(".png").name,
            THEORY[int(frame.stem.split("_")[1])](srel_tf.read_frame(frame)),
        )


def of_regression(path: Path) -> Iterator[Drawing]:
    """Draw Figures 3–5 from the finished seeds in results/regression."""
    seeds = finished_seeds(path)
    frame, distances = (
        pd.concat(
            [srel_tf.read_frame(seed / name) for seed in seeds], ignore_index=True
        )
        for name in ("frame.parquet", "distances.parquet")
    )
    risks = srel_tf.read_frame(path / "risks.csv")
    yield from regression_report.figures(
        frame, distances, risks, read_json(path / "settings.json")
    )


def remake(results: Path, published: Path | None = None) -> Iterator[Path]:
    """Write all pictures and yield their paths."""
    for (_, protocol), path in load(results).items():
        yield from _written(of_classification(path, protocol), path / "figures")
    ours = results / "cifar10-published" / "pairs.parquet"
    if published and ours.exists():
        curves = side_by_side(srel_tf.read_frame(ours), read_published(published))
        drawn = (
            (f"beside-{m}.png", plotting.plot_beside(curves, m))
            for m in curves["measure"].unique()
        )
        yield from _written(drawn, results / "replication")
    if (results / "theory").exists():
        yield from _written(of_theory(results / "theory"), results / "theory")
    if (results / "regression").exists():
        yield from _written(
            of_regression(results / "regression"), results / "regression" / "figures"
        )
    growth = results / "benchmarks" / "growth.csv"
    if growth.exists():
        table, fitted = (
            srel_tf.read_frame(growth.with_stem(name))
            for name in ("growth", "growth_exponents")
        )
        yield from _written(
            [("growth.png", benchmark_report.plot_growth(table, fitted))], growth.parent
        )


def _written(figures: Iterable[Drawing], folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures:
        yield save_figure(figure, folder / name)


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.figures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument(
        "--published",
        type=Path,
        help="CSV of the published CIFAR-10 curves, if you have them",
    )
    options = parser.parse_args(arguments)
    for path in remake(options.results, options.published):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
