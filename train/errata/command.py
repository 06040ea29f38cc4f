"""Errata: disagreements between the paper's text and its published code, each checked by a computation.

python -m train.errata                       reads results/, writes results/replication/errata.csv
python -m train.errata --published-dir DIR   also reads the published curves cifar10_srel.csv, cifar10_history.csv

`items.csv` holds the statement of the text, the behaviour of the code (or what the text implies), and the effect (items
1–9 classification, 10–15 penalised regression, 16–22 the text itself). The checks return findings, which are named
numbers. Findings on classification are read from our runs (`train.condense`); without these runs the command lists what
it could not measure. `results/REPLICATION.md` explains each finding.
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


def items():
    """Read the table of items, indexed by number: columns subject, text, code, effect, check ("module.function")."""
    return pd.read_csv(Path(__file__).with_name("items.csv"), index_col="number")


def findings(check, evidence):
    """Make the rows of one check: columns finding, value, low, high (a 95% interval over seeds, or NaN)."""
    room, name = check.split(".")
    found = getattr(ROOMS[room], name)(evidence)
    values = [(*np.atleast_1d(value), np.nan, np.nan)[:3] for value in found.values()]
    rows = pd.DataFrame(values, columns=["value", "low", "high"], dtype=float)
    rows.insert(0, "finding", list(found))
    return rows


def errata(evidence, numbers):
    """Compute the findings of the items, one row each: columns number, subject, finding, value, low, high."""
    tables = []
    for number, item in items().loc[numbers].iterrows():
        rows = findings(item["check"], evidence)
        rows.insert(0, "number", number)
        rows.insert(1, "subject", item["subject"])
        tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def show(item, rows):
    """Print an item with its findings."""
    print(f"\n{item.name}. {item['subject']}")
    for name in ("text", "code", "effect"):
        line = f"   {name}: {item[name]}"
        print(textwrap.fill(line, 118, subsequent_indent=" " * 6))
    for row in rows.itertuples():
        number = f"{row.value:,.0f}" if row.value.is_integer() else f"{row.value:.4g}"
        value = "" if np.isnan(row.value) else f": {number}"
        interval = "" if np.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
        print(f"   - {row.finding}{value}{interval}")


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    table = items()
    parser = argparse.ArgumentParser(
        prog="python -m train.errata", description=__doc__.splitlines()[0]
    )
    results = "results of train.condense"
    parser.add_argument("--results", type=Path, default=Path("results"), help=results)
    curves = "the published CIFAR-10 curves, if you have them"
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


def _curves(directory):
    names = ("srel", "history") if directory else ()
    return [srel_tf.read_frame(directory / f"cifar10_{name}.csv") for name in names]
