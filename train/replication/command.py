"""Tables of the replication: each measure under each update rule, and a comparison with the published curves.

python -m train.replication                reads results/*-{defined,published,crossed}/, writes results/replication/

    central.csv    AUC, ratio of medians, Definition 3, trends and shares of valid entries, with intervals over seeds
    claims.csv     the paper's claims, one verdict per dataset, measure and rule (as in `srel_tf.hypotheses`)
    moves.csv      size of the change of predictions by one fictitious step, for runs with matrices.parquet
    adjusted.csv   AUC from matrices.parquet: over all pairs, within rows, and without the scales of sources and targets
    published.csv  the published CIFAR-10 curves compared with our curves of the protocol "published", one row per
                   measure and class pair; written if --published is given
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import srel_tf
from srel_tf import FrameError, OptionError
from srel_tf.files import read_json
from srel_tf.hypotheses import interval
from train.common import cli
from train.replication.tables import (
    INTER,
    INTRA,
    KEY,
    Directories,
    adjusted,
    claims,
    load,
    moves,
    read,
)

PUBLISHED_NAMES = {"plane": "airplane", "car": "automobile"}
PUBLISHED_COLUMNS = ["measure", "run", "step", "source_class", "target_class", "srel"]


def central(directories: Directories) -> pd.DataFrame:
    """Make the central table: one row per (data, protocol, measure, rule, quantity) with mean, low, high over seeds.

    A quantity is one number per seed:

    - auc, median_intra, median_inter: mean over the measured steps after the first epoch.
    - ratio_of_medians: geometric mean over the same steps.
    - intra, inter: Definition 3 with the diagonal, as in the paper; mean over the same steps.
    - off_intra: the same as intra, but without the diagonal.
    - auc_start: AUC at the first measurement.
    - valid: share of valid entries, over all steps.
    - change_intra, change_inter: log₂ change over the training, as in `class_claim`.
    """
    separation = read(directories, "separation.parquet")
    pairs = read(directories, "pairs.parquet")

    def of_runs(table: pd.DataFrame) -> Any:
        return table.groupby([*KEY, "run"], sort=False)

    is_first = separation["step"] == of_runs(separation)["step"].transform("min")
    later = separation[separation["epoch"] >= 1]
    later = of_runs(later.assign(log_ratio=np.log(later["ratio_of_medians"])))
    is_intra = pairs["source_class"] == pairs["target_class"]
    kinds = pairs.assign(kind=is_intra.map({True: INTRA, False: INTER}))
    of_kinds = kinds[pairs["epoch"] >= 1].groupby([*KEY, "run", "kind"], sort=False)
    # `unstack` makes no columns if nothing was measured after the first epoch. `reindex` adds them.
    mean, off_mean = (
        of_kinds[name].mean().unstack().reindex(columns=[INTRA, INTER])
        for name in ("mean", "off_mean")
    )
    counts = of_runs(pairs)[["off_n_valid", "off_n_pairs"]].sum()
    quantities = {
        "auc_start": of_runs(separation[is_first])["auc"].mean(),
        "auc": later["auc"].mean(),
        "ratio_of_medians": np.exp(later["log_ratio"].mean()),
        "median_intra": later["median_intra"].mean(),
        "median_inter": later["median_inter"].mean(),
        INTRA: mean[INTRA],
        INTER: mean[INTER],
        "off_intra": off_mean[INTRA],
        "valid": counts["off_n_valid"] / counts["off_n_pairs"],
    }
    rows = []
    for quantity, values in quantities.items():
        for key, of_seeds in values.groupby(KEY, sort=False):
            effects = of_seeds.dropna().to_numpy()
            mean, low, high = interval(effects)
            numbers = {"mean": mean, "low": low, "high": high, "n_seeds": len(effects)}
            names = dict(zip(KEY, key, strict=True))
            rows.append({**names, "quantity": quantity, **numbers})
    return pd.concat([pd.DataFrame(rows), _trends(directories)], ignore_index=True)


def _trends(directories: Directories) -> pd.DataFrame:
    """Read the estimates of `class_claim` for change_intra and change_inter."""
    verdicts = read(directories, "verdicts.csv")
    names = {
        "intra constant in time": "change_intra",
        "inter decreasing": "change_inter",
    }
    trends = verdicts.assign(quantity=verdicts["claim"].map(names))
    trends = trends.dropna(subset="quantity").rename(
        columns={"effect_size": "mean", "ci_low": "low", "ci_high": "high"}
    )
    return trends[[*KEY, "quantity", "mean", "low", "high", "n_seeds"]]


def read_published(path: Path) -> pd.DataFrame:
    """Read the table of the published curves. Raises `FrameError` if the file lacks a column of this table."""
    curves = srel_tf.read_frame(path)
    missing = [name for name in PUBLISHED_COLUMNS if name not in curves]
    if missing:
        raise FrameError(
            f"{path} lacks the columns {missing}: give the table of the published curves to --published"
        )
    return curves


def as_ours(published: pd.DataFrame) -> pd.DataFrame:
    """Convert the published curves to our class names and step numbers. The published step s is after s + 1 updates."""
    ends = ["source_class", "target_class"]
    names = {end: published[end].replace(PUBLISHED_NAMES) for end in ends}
    return published.assign(step=published["step"] + 1, **names)


def beside_published(pairs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Compare the published curves with the curves of our protocol "published". Both are means over several runs.

    Args:
        pairs: Our class pairs.
        published: The published curves, with the columns `PUBLISHED_COLUMNS`. Step s is the measurement after s + 1
            updates.

    Returns:
        One row per (measure, source class, target class). The columns that need an explanation are:

        - log2_ratio: mean over steps of log₂ (our mean / published mean).
        - correlation: correlation of the two mean curves over time.
        - overlap: share of steps at which the range of our runs overlaps with the range of the published runs. If our
          runs and the published runs are three repetitions each of the same experiment, the ranges overlap at a step
          with probability 1 − 2·3!·3!/6! = 0.9.

    Raises:
        OptionError: If our curves and the published curves have no step in common.
    """
    theirs = as_ours(published)
    pair = ["measure", "source_class", "target_class"]
    ours = pairs[
        pairs["measure"].isin(theirs["measure"].unique())
        & (pairs["update"] == "fresh_adam")
    ]
    spread: dict[str, Any] = {"mean": "mean", "low": "min", "high": "max"}
    a = ours.groupby([*pair, "step"])["mean"].agg(**spread)
    b = theirs.groupby([*pair, "step"])["srel"].agg(**spread)
    both = a.add_suffix("_ours").join(b.add_suffix("_published"), how="inner")
    if both.empty:
        raise OptionError(
            "the published curves and ours have no step in common: run train.classification with --protocol published"
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
    """Format the central table of one run for a terminal: mean [low, high] per (measure, rule)."""
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
        help="directory with the results of train.condense (default: %(default)s)",
    )
    parser.add_argument(
        "--published",
        type=Path,
        help="CSV of the published CIFAR-10 curves, if you have them",
    )
    parser.add_argument("--out", type=Path, help="default: RESULTS/replication")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "replication"
    published = read_published(options.published) if options.published else None
    out.mkdir(parents=True, exist_ok=True)
    report(load(options.results), published, out)


def report(directories: Directories, published: pd.DataFrame | None, out: Path) -> None:
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
    tables = {
        "moves": ("median ‖Δp‖₁ of one fictitious step", moves(directories)),
        "adjusted": (
            "AUC of single matrices, also adjusted for scales",
            adjusted(directories),
        ),
    }
    ours = directories.get(("cifar10", "published"))
    if published is not None and ours:
        curves = beside_published(srel_tf.read_frame(ours / "pairs.parquet"), published)
        tables["published"] = ("published curves and ours", curves)
    for name, (title, table) in tables.items():
        if len(table):
            written.append(srel_tf.write_frame(table, out / f"{name}.csv"))
            cli.show(title, table)
    print("written:", *written, sep="\n  ")
