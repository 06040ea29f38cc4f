"""Errata: disagreements between the paper's text and its published code, each checked by a computation.

python -m train.errata                       reads results/, writes results/replication/errata.csv
python -m train.errata --published-dir DIR   also reads the published curves cifar10_srel.csv, cifar10_history.csv

`items.csv` has one row per item: what the text says, what the published code does (or, for items 16–22, what follows
from the text), and the effect. Items 1–9 are on classification, items 10–15 on penalised regression, and items 16–22 on
the text itself.

Each item has a check, which returns findings. A finding is a number with a name. The findings on classification are
read from the results of `train.condense`. If such a result is missing, the command prints "not measured" and names the
missing result. `results/REPLICATION.md` explains each item.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import srel_tf
from train.common import cli
from train.errata import classification, penalized, protocol, theorems
from train.errata.evidence import Evidence

ROOMS = {
    room.__name__.rpartition(".")[2]: room
    for room in (classification, protocol, penalized, theorems)
}


def items() -> pd.DataFrame:
    """Read the table of items, indexed by number. The column check holds "module.function"."""
    return pd.read_csv(Path(__file__).with_name("items.csv"), index_col="number")


def findings(check: str, evidence: Evidence) -> pd.DataFrame:
    """Run one check.

    Args:
        check: "module.function".
        evidence: Results from which the check reads effects.

    Returns:
        One row per finding, with the columns finding, value, low, high. [low, high] is a 95% interval over seeds; both
        are NaN if there is no interval.
    """
    room, name = check.split(".")
    found = getattr(ROOMS[room], name)(evidence)
    values = [(*np.atleast_1d(value), np.nan, np.nan)[:3] for value in found.values()]
    rows = pd.DataFrame(values, columns=["value", "low", "high"], dtype=float)
    rows.insert(0, "finding", list(found))
    return rows


def errata(evidence: Evidence, numbers: Sequence[int]) -> pd.DataFrame:
    """Run the checks of some items.

    Args:
        evidence: Results from which the checks read effects.
        numbers: Numbers of the items.

    Returns:
        One row per finding, with the columns number, subject, finding, value, low, high.
    """
    tables = []
    for number, item in items().loc[list(numbers)].iterrows():
        rows = findings(item["check"], evidence)
        rows.insert(0, "number", number)
        rows.insert(1, "subject", item["subject"])
        tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def show(item: pd.Series, rows: pd.DataFrame) -> None:
    """Print an item with its findings."""
    print(f"\n{item.name}. {item['subject']}")
    for name in ("text", "code", "effect"):
        line = f"   {name}: {item[name]}"
        print(textwrap.fill(line, 118, subsequent_indent=" " * 6))
    for row in rows.to_dict("records"):
        value, low, high = row["value"], row["low"], row["high"]
        number = f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
        shown = "" if np.isnan(value) else f": {number}"
        interval = "" if np.isnan(low) else f" [{low:.3g}, {high:.3g}]"
        print(f"   - {row['finding']}{shown}{interval}")


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    table = items()
    parser = argparse.ArgumentParser(
        prog="python -m train.errata", description=__doc__.splitlines()[0]
    )
    results = "directory with the results of train.condense (default: %(default)s)"
    parser.add_argument("--results", type=Path, default=Path("results"), help=results)
    curves = "directory of the published CIFAR-10 curves, if you have them"
    parser.add_argument("--published-dir", type=Path, metavar="DIR", help=curves)
    numbers = list(table.index)
    parser.add_argument(
        "--items", type=int, nargs="+", choices=numbers, metavar="N", default=numbers
    )
    parser.add_argument("--out", type=Path, help="default: RESULTS/replication")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "replication"
    evidence = Evidence(options.results, *_curves(options.published_dir))
    found = errata(evidence, options.items)
    out.mkdir(parents=True, exist_ok=True)
    written = srel_tf.write_frame(found, out / "errata.csv")
    for number, rows in found.groupby("number", sort=False):
        show(table.loc[number], rows)
    print(f"\nwritten:\n  {written}")


def _curves(directory: Path | None) -> list[pd.DataFrame]:
    """Read the published S_rel curves and accuracies; return an empty list if `directory` is None."""
    if directory is None:
        return []
    files = [directory / f"cifar10_{name}.csv" for name in ("srel", "history")]
    return [srel_tf.read_frame(file) for file in files]
