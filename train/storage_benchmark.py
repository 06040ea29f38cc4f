"""Frames of any length in bounded memory: write made-up measurements in parts, summarise them from the disk.

    python -m train.storage_benchmark --rows 1e8 --dir DIR        10⁸ rows need 3 GB there

Prints rows, bytes, times and the peak of the memory after a tenth of the work and after all of it.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

import srel_tf

CLASSES, PER_CLASS, MEASUREMENTS_A_PART = 3, 20, 100
ROWS = 2 * (CLASSES * PER_CLASS) ** 2  # of a measurement: two measures of all pairs


def parser():
    p = argparse.ArgumentParser(prog="python -m train.storage_benchmark")
    p.add_argument("--rows", type=float, default=1e8)
    p.add_argument("--dir", required=True, help="a new directory, removed at the end")
    return p


def main(arguments=None):
    args = parser().parse_args(arguments)
    measurements = int(np.ceil(args.rows / ROWS))
    with srel_tf.FrameStore(Path(args.dir), write=True) as store:
        write(store, measurements)
        frame = store.scan()
        pairs = timed(f"smooth of {frame.num_rows:,} rows", lambda: srel_tf.smooth(frame))
        assert len(pairs) == measurements * 2 * CLASSES**2
        assert pairs["n_pairs"].sum() == frame.num_rows == measurements * ROWS
        size = sum(file.stat().st_size for file in store.path.iterdir())
        print(f"{size / 1e9:.2f} GB in {len(list(store.path.glob('part-*')))} parts, {size / frame.num_rows:.1f} bytes a row")
        store.delete()


def write(store, measurements):
    """Rows of measurements 0 … in parts of `MEASUREMENTS_A_PART`."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    probe = srel_tf.ProbeSet(np.ones((len(labels), 1)), labels, ["cat", "dog", "owl"])
    recorder, start = srel_tf.recorder.Recorder("made-up", 0), time.perf_counter()
    for step in range(measurements):
        recorder.add(made_up(probe, step, rng), 0, step, measurements)
        if (step + 1) % MEASUREMENTS_A_PART == 0 or step + 1 == measurements:
            store.append(recorder.frame())
            recorder.forget()
        if step + 1 == measurements // 10:
            print(f"a tenth written: peak memory {peak():.0f} MB", flush=True)
    print(f"{store.num_rows:,} rows written: {time.perf_counter() - start:.0f} s, peak memory {peak():.0f} MB", flush=True)


def made_up(probe, step, rng):
    """A result of random entries."""
    n, matrices = len(probe), {}
    for measure in ("kl", "l1"):
        denominator, srel = rng.uniform(0.5, 2, n), rng.lognormal(size=(n, n))
        matrices[measure] = srel_tf.result.Matrices(srel * denominator[:, None], denominator, srel, srel < 10)
    return srel_tf.SRelResult(probe, matrices, "sgd", "exact", 0.1, step, 0.0)


def timed(what, function):
    start = time.perf_counter()
    result = function()
    print(f"{what}: {time.perf_counter() - start:.0f} s, peak memory {peak():.0f} MB", flush=True)
    return result


def peak():
    """Largest resident size so far, MB (Linux counts kibibytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
