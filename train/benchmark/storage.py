"""Peak memory with long frames: write simulated measurements in parts, then summarise them from the disk.

    python -m train.benchmark.storage --rows 1e8 --dir DIR        10⁸ rows need 3 GB in DIR

The command prints times and the numbers of rows and bytes. It also prints the peak memory three times: when a tenth of
the rows is written, when all rows are written, and after the summary. Memory is bounded if the peak hardly grows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import srel_tf
from train.benchmark.growth import peak_memory
from train.benchmark.procedures import seconds
from train.common import cli

CLASSES, PER_CLASS, MEASUREMENTS_A_PART = ["cat", "dog", "owl"], 20, 100
ROWS = (
    2 * (len(CLASSES) * PER_CLASS) ** 2
)  # Rows in one measurement: two measures for all pairs.


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    p = argparse.ArgumentParser(prog="python -m train.benchmark.storage")
    p.add_argument("--rows", type=float, default=1e8)
    p.add_argument(
        "--dir", type=Path, required=True, help="a new directory, removed at the end"
    )
    args = p.parse_args(arguments)
    measurements = int(np.ceil(args.rows / ROWS))
    with srel_tf.FrameStore(args.dir, write=True) as store:
        report("write", seconds(lambda: write(store, measurements)))
        frame, tables = store.scan(), []
        report("smooth", seconds(lambda: tables.append(srel_tf.smooth(frame))))
        assert len(tables[0]) == measurements * 2 * len(CLASSES) ** 2
        assert tables[0]["n_pairs"].sum() == frame.num_rows == measurements * ROWS
        size = sum(file.stat().st_size for file in store.path.iterdir())
        parts = len(list(store.path.glob("part-*")))
        print(
            f"{frame.num_rows:,} rows: {size / 1e9:.2f} GB in {parts} parts, {size / frame.num_rows:.1f} bytes a row"
        )
        store.delete()


def report(what: str, duration: float) -> None:
    """Print a finished task with its duration and the peak memory so far."""
    print(
        f"{what}: {duration:.0f} s, peak memory {peak_memory() / 1e6:.0f} MB",
        flush=True,
    )


def write(store: srel_tf.FrameStore, measurements: int) -> None:
    """Append the given number of measurements, `MEASUREMENTS_A_PART` of them in each part."""
    rng = np.random.default_rng(0)
    for first in range(0, measurements, MEASUREMENTS_A_PART):
        steps = range(first, min(first + MEASUREMENTS_A_PART, measurements))
        store.append(
            pd.concat([made_up(step, rng) for step in steps], ignore_index=True)
        )
        if measurements // 10 in steps:
            print(f"a tenth: peak memory {peak_memory() / 1e6:.0f} MB", flush=True)


def made_up(step: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw random rows in the format of a measurement."""
    n = len(CLASSES) * PER_CLASS
    pairs = pd.MultiIndex.from_product(
        [["kl", "l1"], range(n), range(n)], names=["measure", "source_id", "target_id"]
    ).to_frame(index=False)
    labels = np.repeat(CLASSES, PER_CLASS)
    denominator = np.repeat(rng.uniform(0.5, 2, 2 * n), n)
    srel = rng.lognormal(size=ROWS)
    return pairs.assign(
        run="made-up",
        seed=pd.array([0] * ROWS, dtype="Int64"),
        step=pd.array([step] * ROWS, dtype="Int64"),
        epoch=step / 100,
        update="sgd",
        estimator="exact",
        method="finite_step",
        learning_rate=0.1,
        source_class=labels[pairs["source_id"]],
        target_class=labels[pairs["target_id"]],
        numerator=srel * denominator,
        denominator=denominator,
        srel=srel,
        valid=srel < 10,
    )


if __name__ == "__main__":
    sys.exit(main())
