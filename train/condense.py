"""Summary tables of a classification run, for results/: class pairs, separation, quantiles, verdicts, a few matrices.

python -m train.condense RUN_DIR --out results/cifar10-crossed --matrices 0 198 396

The frames of a run have millions of rows, one for each (step, measure, source, target). The command writes
smaller tables, most of them with one row per measurement or class pair:

    pairs.parquet       Definition 3 for each class pair: `mean`, `median`, … with the diagonal (source = target);
                        `off_mean`, `off_median`, … without the diagonal
    separation.parquet  AUC and ratio of medians of intra- and inter-class pairs, without the diagonal
    quantiles.parquet   quantiles and mean of intra- and inter-class S_rel, without the diagonal
    agreement.parquet   rank correlation and log-log slope of every two measures, over the pairs of one measurement
    verdicts.csv        `srel_tf.hypotheses.class_claim` for each measure and rule
    matrices.parquet    all entries of the first seed for kl and l1, at the steps of --matrices
    history.csv         loss and accuracy of each epoch and seed
    seeds.json          duration, number of updates, checksums and probe of each seed
    settings.json, environment.json     copied from the run directory
"""

import argparse
import functools
import itertools
import operator
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from scipy.stats import linregress

import srel_tf
from srel_tf import FrameError, StoredFrame, hypotheses, rule_names
from srel_tf.files import read_json, write_json
from train.common import cli
from train.common.seed_marks import finished_seeds

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SHOWN = ("kl", "l1")
KEPT = (
    "seed",
    "seconds",
    "updates",
    "parameters",
    "weights_sha256",
    "data_fingerprint",
    "probe_ids",
    "left_out",
)
RULE = ["name", "update", "estimator", "learning_rate"]
# Columns that identify a measurement.
MATRIX = ["run", "seed", "step", "epoch", "measure", *RULE]
PAIR = [*MATRIX, "source_class", "target_class"]


def condense(path: Path, out: Path, steps: Sequence[int] = ()) -> list[str]:
    """Write summaries of the finished seeds of the run directory `path` to `out`.

    Args:
        path: A run directory of `train.classification`.
        out: The directory for the summaries.
        steps: Steps whose matrices are written to matrices.parquet. If empty, this file is not written.

    Returns:
        The names of the files written.

    Raises:
        FrameError: If no seed is finished, or if one of `steps` was not measured.
        RunDirectoryError: If files of a seed have changed since the seed ended.
    """
    seeds = finished_seeds(path)
    if not seeds:
        raise FrameError(
            f"{path} has no finished seed (seed-*/seed.json): run train.classification to the end of a seed first"
        )
    frame = StoredFrame([seed / "frame.parquet" for seed in seeds])
    tables = {"matrices.parquet": matrices(frame, steps)} if steps else {}
    out.mkdir(parents=True, exist_ok=True)
    off = srel_tf.smooth(frame, diagonal=False).rename(
        columns=lambda name: name if name in PAIR else f"off_{name}"
    )
    pairs = srel_tf.smooth(frame).merge(off, on=PAIR)
    tables |= {
        "pairs.parquet": pairs.assign(rule=rule_names(pairs)),
        "separation.parquet": _with_rules(srel_tf.separation(frame)),
        "quantiles.parquet": _with_rules(quantiles(frame)),
        "agreement.parquet": agreement(frame),
        "verdicts.csv": verdicts(frame),
        "history.csv": pd.concat(
            [srel_tf.read_frame(seed / "history.csv") for seed in seeds],
            ignore_index=True,
        ),
    }
    # Delete a matrices.parquet from an earlier call, because it would not belong to these tables.
    (out / "matrices.parquet").unlink(missing_ok=True)
    for name, table in tables.items():
        srel_tf.write_frame(table, out / name)
    for name in ("settings.json", "environment.json"):
        shutil.copyfile(path / name, out / name)
    about = {seed.name: read_json(seed / "seed.json") for seed in seeds}
    write_json(
        out / "seeds.json",
        {seed: {name: read.get(name) for name in KEPT} for seed, read in about.items()},
    )
    return [*tables, "settings.json", "environment.json", "seeds.json"]


def _with_rules(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(rule=rule_names(table))


def quantiles(frame: StoredFrame) -> pd.DataFrame:
    """Compute the quantiles `QUANTILES` and the mean of the valid off-diagonal S_rel.

    One row per measurement and kind of class pairs: "intra" or "inter".
    """
    rows = []
    for piece in frame.pieces([*PAIR, "source_id", "target_id", "srel", "valid"]):
        kept = piece[(piece["source_id"] != piece["target_id"]) & piece["valid"]]
        kind = (kept["source_class"] == kept["target_class"]).map(
            {True: "intra", False: "inter"}
        )
        srel = kept.groupby([*MATRIX, kind.rename("kind")], dropna=False, sort=False)[
            "srel"
        ]
        of_kind = srel.quantile(list(QUANTILES)).unstack().rename(columns="q{}".format)
        rows.append(of_kind.assign(mean=srel.mean(), n_valid=srel.size()).reset_index())
    return pd.concat(rows, ignore_index=True)


def agreement(frame: StoredFrame) -> pd.DataFrame:
    """Compare every two measures over the valid off-diagonal (source, target) pairs of each measurement.

    Returns:
        One row per run, step, rule and two measures, with the columns

        spearman: rank correlation, which does not change under monotone transformations of S;
        slope: least-squares slope of log S of the second measure against log S of the first, over the pairs where both
            S are positive (the slope is 2 if the second S is the square of the first);
        n_valid: number of pairs where both S are positive.
    """
    rows = []
    for key in _keys(frame, [*RULE, "rule", "run"]):
        part = _rows(frame, {name: key[name] for name in (*RULE, "run")})
        part = part[(part["source_id"] != part["target_id"]) & part["valid"]]
        for step, entries in part.groupby("step"):
            by_measure = entries.pivot(
                index=["source_id", "target_id"], columns="measure", values="srel"
            )
            ranks, logs = (
                by_measure.corr("spearman"),
                np.log(by_measure.where(by_measure > 0)),
            )
            for first, second in itertools.combinations(by_measure, 2):
                both = logs[[first, second]].dropna()
                slope = (
                    linregress(both[first], both[second]).slope
                    if len(both) > 2 and both[first].nunique() > 1
                    else np.nan
                )
                found = {
                    "first": first,
                    "second": second,
                    "spearman": ranks.loc[first, second],
                    "slope": slope,
                }
                rows.append({**key, "step": step, **found, "n_valid": len(both)})
    return pd.DataFrame(rows)


def verdicts(frame: StoredFrame) -> pd.DataFrame:
    """Evaluate `hypotheses.class_claim` for each measure and rule, with the rows of one rule in memory at a time."""
    tables = []
    for key in _keys(frame, ["rule", *RULE]):
        rows = _rows(frame, {name: key[name] for name in RULE})
        tables.append(hypotheses.class_claim(rows).assign(rule=key["rule"]))
    return pd.concat(tables, ignore_index=True)


def _keys(frame: StoredFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """List the distinct combinations of values in the columns `names`, each as a dict."""
    columns = ["run", "step", "measure", *RULE]
    found = pd.concat(
        piece[columns].drop_duplicates() for piece in frame.pieces(MATRIX)
    ).drop_duplicates()
    return _with_rules(found)[names].drop_duplicates().to_dict("records")


def _rows(frame: StoredFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    """Read all rows that have the values {column: value} of `key`."""
    stored = {name: value for name, value in key.items() if name != "name"}
    wanted = functools.reduce(
        operator.and_, (pc.field(name) == value for name, value in stored.items())
    )
    rows = frame.read(wanted)
    # Compare the name after reading, because files of earlier versions lack the column `name`.
    return rows[rows["name"] == key["name"]]


def matrices(frame: StoredFrame, steps: Sequence[int]) -> pd.DataFrame:
    """Read the rows of the first seed at `steps` for the measures `SHOWN`."""
    assert frame.dataset is not None  # `condense` refuses a run without rows.
    first = frame.dataset.head(1)["seed"][0].as_py()
    wanted = (
        pc.field("step").isin(list(steps))
        & pc.field("measure").isin(SHOWN)
        & (pc.field("seed") == first)
    )
    rows = frame.read(wanted)
    missing = sorted(set(steps) - set(rows["step"]))
    if missing:
        raise FrameError(
            f"--matrices: steps {missing} of seed {first} were not measured; give measured steps"
        )
    return rows


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.condense", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the tables: results/NAME"
    )
    parser.add_argument(
        "--matrices",
        type=int,
        nargs="*",
        default=[],
        metavar="STEP",
        help="steps whose matrices are written to matrices.parquet",
    )
    options = parser.parse_args(arguments)
    written = condense(options.run_dir, options.out, options.matrices)
    print("written:", *(options.out / name for name in written), sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
