"""The replication in numbers: what each measure under each update rule says, and what was published.

python -m train.replication                reads results/*-{defined,published,crossed}/, writes results/replication/

    central.csv    the table: AUC, ratio of medians, Definition 3, trends, shares of valid entries, intervals over seeds
    claims.csv     the paper's claims, a verdict a dataset, measure and rule (as `srel_tf.hypotheses` gives them)
    moves.csv      how far one fictitious step moves predictions, where a run has matrices.parquet
    adjusted.csv   AUC within rows, and without the scales of sources and targets, of the same matrices
    published.csv  the published CIFAR-10 curves beside ours of the same protocol, a row a measure and class pair
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import srel_tf
from srel_tf import FrameError, OptionError
from srel_tf.files import read_json
from srel_tf.hypotheses import interval
from train.common import cli
from train.replication.claims import claims
from train.replication.condensed import INTER, INTRA, KEY, Directories, load, read
from train.replication.single_matrices import adjusted, moves

PUBLISHED_NAMES = {"plane": "airplane", "car": "automobile"}
PUBLISHED_COLUMNS = ["measure", "run", "step", "source_class", "target_class", "srel"]


def central(directories: Directories) -> pd.DataFrame:
    """The central table: a row a (data, protocol, measure, rule, quantity) with mean, low, high over the seeds.

    Quantities are of one number a seed. auc, ratio_of_medians (geometric), intra, inter (Definition 3, with the
    diagonal, as the paper has it), off_intra (without it), median_intra, median_inter: means over the measured
    steps after the first epoch. auc_start: at the first measurement. valid: share of valid entries, all steps.
    change_intra, change_inter: log₂ change over the training (`class_claim`).
    """
    separation, pairs = (
        read(directories, "separation.parquet"),
        read(directories, "pairs.parquet"),
    )
    run = [*KEY, "run"]
    first = separation[
        separation["step"] == separation.groupby(run)["step"].transform("min")
    ]
    later = separation[separation["epoch"] >= 1]
    kind = np.where(pairs["source_class"] == pairs["target_class"], INTRA, INTER)
    after = pairs.assign(kind=kind)[pairs["epoch"] >= 1].groupby(
        [*run, "kind"], sort=False
    )
    kinds = pd.Index(
        [INTRA, INTER]
    )  # Also where nothing was measured after the first epoch.
    mean, off = (
        after[name].mean().unstack().reindex(columns=kinds)
        for name in ("mean", "off_mean")
    )
    counts = pairs.groupby(run, sort=False)[["off_n_valid", "off_n_pairs"]].sum()
    of_runs = {
        "auc_start": first.groupby(run, sort=False)["auc"].mean(),
        "auc": later.groupby(run, sort=False)["auc"].mean(),
        "ratio_of_medians": np.exp(
            np.log(later.set_index(run)["ratio_of_medians"])
            .groupby(run, sort=False)
            .mean()
        ),
        "median_intra": later.groupby(run, sort=False)["median_intra"].mean(),
        "median_inter": later.groupby(run, sort=False)["median_inter"].mean(),
        "intra": mean[INTRA],
        "inter": mean[INTER],
        "off_intra": off[INTRA],
        "valid": counts["off_n_valid"] / counts["off_n_pairs"],
    }
    rows = []
    for quantity, values in of_runs.items():
        for key, of_seeds in values.groupby(KEY, sort=False):
            effects = of_seeds.dropna().to_numpy()
            low_high = dict(
                zip(("mean", "low", "high"), interval(effects), strict=True)
            )
            rows.append(
                {
                    **dict(zip(KEY, key, strict=True)),
                    "quantity": quantity,
                    **low_high,
                    "n_seeds": len(effects),
                }
            )
    return pd.concat([pd.DataFrame(rows), _trends(directories)], ignore_index=True)


def _trends(directories: Directories) -> pd.DataFrame:
    """change_intra and change_inter, as `class_claim` estimates them."""
    found = read(directories, "verdicts.csv")
    names = {
        "intra constant in time": "change_intra",
        "inter decreasing": "change_inter",
    }
    found = found[found["claim"].isin(names)]
    found = found.assign(quantity=found["claim"].map(names))
    return found.rename(
        columns={"effect_size": "mean", "ci_low": "low", "ci_high": "high"}
    )[[*KEY, "quantity", "mean", "low", "high", "n_seeds"]]


def read_published(path: Path) -> pd.DataFrame:
    """The published curves; `FrameError` for another table."""
    curves = srel_tf.read_frame(path)
    missing = [name for name in PUBLISHED_COLUMNS if name not in curves]
    if missing:
        raise FrameError(
            f"{path} lacks the columns {missing}: it is not the table of the published curves"
        )
    return curves


def beside_published(pairs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The published curves beside those of our `published` protocol, a row a (measure, source class, target class).

    pairs: our class pairs of rule fresh_adam. published: columns measure, run, epoch, step, source_class, target_class,
    srel, where step s is the measurement after s + 1 updates. Both have several runs; the curves are their means.

    log2_ratio: mean over steps of log₂ of our mean over theirs. correlation: of the two mean curves over time.
    overlap: share of steps at which the ranges of the runs overlap. Two sets of three runs of one experiment overlap
    with probability 1 − 2·3!·3!/6! = 0.9 at a step.
    """
    theirs = published.assign(
        step=published["step"] + 1,
        **{
            end: published[end].replace(PUBLISHED_NAMES)
            for end in ("source_class", "target_class")
        },
    )
    pair = ["measure", "source_class", "target_class"]
    ours = pairs[
        pairs["measure"].isin(theirs["measure"].unique())
        & (pairs["update"] == "fresh_adam")
    ]
    spread = {"mean": "mean", "low": "min", "high": "max"}
    a = ours.groupby([*pair, "step"])["mean"].agg(**spread)
    b = theirs.groupby([*pair, "step"])["srel"].agg(**spread)
    both = a.add_suffix("_ours").join(b.add_suffix("_published"), how="inner")
    if both.empty:
        raise OptionError(
            "the published steps and ours have none in common: measure with --protocol published"
        )
    both["log2_ratio"] = np.log2(both["mean_ours"] / both["mean_published"])
    both["overlap"] = (both["low_ours"] <= both["high_published"]) & (
        both["low_published"] <= both["high_ours"]
    )
    by_pair = both.groupby(pair, sort=False)
    return (
        by_pair[["mean_ours", "mean_published", "log2_ratio", "overlap"]]
        .mean()
        .assign(
            correlation=by_pair.apply(
                lambda g: g["mean_ours"].corr(g["mean_published"]), include_groups=False
            ),
            steps=by_pair.size(),
        )
        .reset_index()
    )


def as_table(found: pd.DataFrame, data: str, protocol: str) -> pd.DataFrame:
    """The central table of one run for a terminal: a row a (measure, rule), mean [low, high] in its cells."""
    part = found[(found["data"] == data) & (found["protocol"] == protocol)]
    cells = part.assign(
        cell=[
            f"{r.mean:.3g} [{r.low:.3g}, {r.high:.3g}]"
            for r in part[["mean", "low", "high"]].itertuples()
        ]
    )
    wide = cells.pivot(index=["measure", "rule"], columns="quantity", values="cell")
    order = (
        part[["measure", "rule"]].drop_duplicates().itertuples(index=False, name=None)
    )
    return wide.loc[list(order), list(part["quantity"].unique())]


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.replication", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="what train.condense wrote",
    )
    parser.add_argument(
        "--published",
        type=Path,
        help="CSV of the published CIFAR-10 curves, if you have them",
    )
    parser.add_argument("--out", type=Path, help="default: RESULTS/replication")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "replication"
    out.mkdir(parents=True, exist_ok=True)
    report(load(options.results), options.published, out)


def report(directories: Directories, published: Path | None, out: Path) -> None:
    """Print and write all tables."""
    found = central(directories)
    written = [srel_tf.write_frame(found, out / "central.csv")]
    for data, protocol in directories:
        seeds = read_json(directories[data, protocol] / "seeds.json")
        print(
            f"\n{data}, protocol {protocol}, {len(seeds)} seeds; mean [95% interval over seeds]"
        )
        with pd.option_context("display.width", 250, "display.max_columns", 20):
            print(as_table(found, data, protocol).to_string())
    verdicts = claims(directories)
    written.append(srel_tf.write_frame(verdicts, out / "claims.csv"))
    counts = (
        verdicts.groupby(["data", "protocol", "claim", "verdict"], sort=False)
        .size()
        .unstack(fill_value=0)
    )
    print(f"\nverdicts, counted over measures and rules\n{counts.to_string()}")
    titles = {
        "moves": "median ‖Δp‖₁ of one step",
        "adjusted": "AUC of single matrices, scales taken away",
    }
    for name, table in (
        ("moves", moves(directories)),
        ("adjusted", adjusted(directories)),
    ):
        if len(table):
            written.append(srel_tf.write_frame(table, out / f"{name}.csv"))
            print(
                f"\n{titles[name]}\n{table.to_string(index=False, float_format='{:.3g}'.format)}"
            )
    if published and ("cifar10", "published") in directories:
        pairs = srel_tf.read_frame(
            directories["cifar10", "published"] / "pairs.parquet"
        )
        curves = beside_published(pairs, read_published(published))
        written.append(srel_tf.write_frame(curves, out / "published.csv"))
        print(
            f"\npublished curves and ours\n{curves.to_string(index=False, float_format='{:.3g}'.format)}"
        )
    print("written:", *written, sep="\n  ")
