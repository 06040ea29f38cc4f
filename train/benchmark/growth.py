"""How time and memory grow with the probe: each size and estimator in a process of its own.

`python -m train.benchmark.growth ESTIMATOR POINTS MODEL` measures one and prints it as JSON.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import srel_tf

SIZES = (30, 60, 120, 240, 480, 1000)
QUANTITIES = {"seconds": "time", "memory": "memory above the forward pass"}
LONG = 20.0  # Seconds after which a measurement is not repeated.
VERY_LONG = 200.0  # Seconds after which even the first counts, whose tracing is a few percent of it.


def growth(model, sizes=SIZES, exact_up_to=240, report=print):
    """One row an estimator and size: seconds, forward (s, one pass of the probe), first (s, graph traced), memory and
    peak (bytes). `exact` is left out above `exact_up_to` points. report(row) is called as each comes.

    Raises `srel_tf.SRelError` where a process fails, out of memory for example.
    """
    rows = []
    for points in sizes:
        for estimator in ("limit", "exact"):
            if estimator == "limit" or points <= exact_up_to:
                rows.append(_in_new_process(estimator, points, model))
                report(rows[-1])
    return pd.DataFrame(rows)


def exponents(table):
    """Slopes of log quantity over log points, least squares over all sizes: one row an estimator and quantity.

    NaN where there are fewer than two sizes or a quantity that is not positive.
    """
    rows = []
    for estimator, part in table.groupby("estimator", sort=False):
        for quantity in QUANTITIES:
            known = len(part) > 1 and (part[quantity] > 0).all()
            slope, height = (
                np.polyfit(np.log(part["points"]), np.log(part[quantity]), 1)
                if known
                else (np.nan,) * 2
            )
            sizes = f"{part['points'].min()}–{part['points'].max()}"
            row = {
                "estimator": estimator,
                "quantity": quantity,
                "exponent": slope,
                "factor": np.exp(height),
            }
            rows.append({**row, "points": sizes})
    return pd.DataFrame(rows)


def _in_new_process(estimator, points, model):
    command = [
        sys.executable,
        "-m",
        "train.benchmark.growth",
        estimator,
        str(points),
        model,
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        last = (
            run.stderr.strip().splitlines()
            or ["no message: killed for lack of memory?"]
        )[-1]
        raise srel_tf.SRelError(
            f"{estimator} with {points} points ended with status {run.returncode}: {last}"
        )
    return json.loads(run.stdout.strip().splitlines()[-1])


def measure_one(estimator, points, model):
    """Time and memory of one estimator at one size, in this process: a dict."""
    from train.benchmark.procedures import (  # Loads TensorFlow.
        forward_pass,
        seconds,
        setup,
    )

    it = setup(model, points)
    forward = forward_pass(it.model)
    batches = np.array_split(
        it.x, -(-points // srel_tf.Settings().batch_size)
    )  # As many at a time as a measurement.

    def forward_all():
        for batch in batches:
            forward(batch)

    forward_all()
    passes = [seconds(forward_all) for _ in range(5)]
    before = peak_memory()
    instrument = it.instrument(estimator)
    first = seconds(instrument)
    times = [first if first > VERY_LONG else seconds(instrument)]
    while len(times) < 3 and sum(times) < LONG:
        times.append(seconds(instrument))
    peak = peak_memory()
    about = {
        "estimator": estimator,
        "points": points,
        "seconds": float(np.median(times)),
        "measurements": len(times),
    }
    return {
        **about,
        "first": first,
        "forward": float(np.median(passes)),
        "memory": peak - before,
        "peak": peak,
    }


def peak_memory():
    """Largest resident size of this process so far, bytes.

    Linux's `getrusage` starts from the peak of the process that launched this one; /proc does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        kibibytes = next(
            int(line.split()[1]) for line in lines if line.startswith("VmHWM")
        )
        return kibibytes * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments=None):
    estimator, points, model = sys.argv[1:] if arguments is None else arguments
    from train.classification.experiment import make_repeatable

    make_repeatable(0)
    print(json.dumps(measure_one(estimator, int(points), model)))


if __name__ == "__main__":
    main()
