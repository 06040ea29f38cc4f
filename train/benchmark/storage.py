"""Frames of any length in bounded memory: write made-up measurements in parts, summarise them from the disk.

    python -m train.benchmark.storage --rows 1e8 --dir DIR        10⁸ rows need 3 GB there

Prints rows, bytes, times and the peak of the memory after a tenth of the work and after all of it.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

import srel_tf

CLASSES, PER_CLASS, MEASUREMENTS_A_PART = ["cat", "dog", "owl"], 20, 100
ROWS = (
    2 * (len(CLASSES) * PER_CLASS) ** 2
)  # of a measurement: two measures of all pairs


def parser():
    p = argparse.ArgumentParser(prog="python -m train.benchmark.storage")
    p.add_argument("--rows", type=float, default=1e8)
    p.add_argument("--dir", required=True, help="a new directory, removed at the end")
    return p


def main(arguments=None):
    args = parser().parse_args(arguments)
    measurements = int(np.ceil(args.rows / ROWS))
    with srel_tf.FrameStore(Path(args.dir), write=True) as store:
        write(store, measurements)
        frame = store.scan()
        pairs = timed(
            f"smooth of {frame.num_rows:,} rows", lambda: srel_tf.smooth(frame)
        )
        assert len(pairs) == measurements * 2 * len(CLASSES) ** 2
        assert pairs["n_pairs"].sum() == frame.num_rows == measurements * ROWS
        size = sum(file.stat().st_size for file in store.path.iterdir())
        parts = len(list(store.path.glob("part-*")))
        print(
            f"{size / 1e9:.2f} GB in {parts} parts, {size / frame.num_rows:.1f} bytes a row"
        )
        store.delete()


def write(store, measurements):
    """Rows of measurements 0 … in parts of `MEASUREMENTS_A_PART`."""
    rng, start = np.random.default_rng(0), time.perf_counter()
    for first in range(0, measurements, MEASUREMENTS_A_PART):
        steps = range(first, min(first + MEASUREMENTS_A_PART, measurements))
        store.append(
            pd.concat([made_up(step, rng) for step in steps], ignore_index=True)
        )
        if first <= measurements // 10 < first + MEASUREMENTS_A_PART:
            print(f"a tenth written: peak memory {peak():.0f} MB", flush=True)
    print(
        f"{store.num_rows:,} rows written: {time.perf_counter() - start:.0f} s, peak memory {peak():.0f} MB",
        flush=True,
    )


def made_up(step, rng):
    """Rows of random entries, as a measurement gives them."""
    labels = np.repeat(CLASSES, PER_CLASS)
    n = len(labels)
    denominator, srel = (
        np.repeat(rng.uniform(0.5, 2, 2 * n), n),
        rng.lognormal(size=ROWS),
    )
    return pd.DataFrame(
        {
            **{"run": "made-up", "seed": pd.array([0], "Int64").repeat(ROWS)},
            **{"step": pd.array([step], "Int64").repeat(ROWS), "epoch": step / 100},
            **{"measure": np.repeat(["kl", "l1"], n * n), "update": "sgd"},
            **{"estimator": "exact", "method": "finite_step", "learning_rate": 0.1},
            **{
                "source_id": np.tile(np.repeat(np.arange(n), n), 2),
                "source_class": np.tile(np.repeat(labels, n), 2),
            },
            **{
                "target_id": np.tile(np.arange(n), 2 * n),
                "target_class": np.tile(labels, 2 * n),
            },
            **{
                "numerator": srel * denominator,
                "denominator": denominator,
                "srel": srel,
                "valid": srel < 10,
            },
        }
    )


def timed(what, function):
    start = time.perf_counter()
    result = function()
    print(
        f"{what}: {time.perf_counter() - start:.0f} s, peak memory {peak():.0f} MB",
        flush=True,
    )
    return result


def peak():
    """Largest resident size so far, MB (Linux counts kibibytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
