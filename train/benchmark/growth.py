"""Growth of time and memory with the number of probe points. Each size and estimator runs in a separate process."""

import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import srel_tf
from train.benchmark.procedures import forward_pass, seconds, setup
from train.classification.experiment import make_repeatable

SIZES = (30, 60, 120, 240, 480, 1000)
QUANTITIES = {"seconds": "time", "memory": "memory above the forward pass"}
# At most 3 measurements are timed, and no further one after their total time has reached this number of seconds.
LONG = 20.0
# The first measurement is not counted, because it includes tracing. But if it takes more seconds than this, it is the
# only measurement and is counted, because tracing is then only a few percent of its time.
VERY_LONG = 200.0
Row = dict[str, Any]


def growth(
    model: str,
    sizes: Sequence[int] = SIZES,
    exact_up_to: int = 240,
    report: Callable[[Row], object] = print,
) -> pd.DataFrame:
    """Measure time and memory of each estimator and size.

    Args:
        model: A net of `train.models`.
        sizes: Numbers of probe points.
        exact_up_to: Largest size at which `exact` is measured.
        report: Function that is called with each row as soon as the row is measured.

    Returns:
        One row per estimator and size. The columns, in addition to `estimator` and `points`, are

        seconds: median time of a measurement;
        measurements: number of measurements in this median;
        first: seconds of the first measurement, which traces the graph;
        forward: seconds of a forward pass of all probe points;
        memory: bytes by which measuring raised the peak memory above the peak of the forward passes;
        peak: peak memory in bytes.

    Raises:
        SRelError: If a process fails, for example because memory runs out.
    """
    rows = []
    for points in sizes:
        for estimator in ("limit", "exact"):
            if estimator == "limit" or points <= exact_up_to:
                rows.append(_in_new_process(estimator, points, model))
                report(rows[-1])
    return pd.DataFrame(rows)


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Fit log quantity = exponent · log points + log factor by least squares.

    Returns:
        One row per estimator and quantity. The fit is NaN if there are fewer than two sizes, or if the quantity is not
        positive at every size.
    """
    rows = []
    for estimator, part in table.groupby("estimator", sort=False):
        for quantity in QUANTITIES:
            slope = height = np.nan
            if len(part) > 1 and (part[quantity] > 0).all():
                slope, height = np.polyfit(
                    np.log(part["points"]), np.log(part[quantity]), 1
                )
            rows.append(
                {
                    "estimator": estimator,
                    "quantity": quantity,
                    "exponent": slope,
                    "factor": np.exp(height),
                    "points": f"{part['points'].min()}–{part['points'].max()}",
                }
            )
    return pd.DataFrame(rows)


def _in_new_process(estimator: str, points: int, model: str) -> Row:
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as process:
            return process.submit(measure_one, estimator, points, model).result()
    except Exception as error:  # An error of TensorFlow, or BrokenProcessPool if the process was killed.
        raise srel_tf.SRelError(
            f"{estimator} with {points} points failed: {type(error).__name__}: {error}; "
            "if memory ran out, give smaller --sizes or a smaller --exact-up-to"
        ) from error


def measure_one(estimator: str, points: int, model: str) -> Row:
    """Measure time and memory of one estimator at one size, in this process."""
    make_repeatable(0)
    it = setup(model, points)
    forward = forward_pass(it.model)
    # Use the same batch size as a measurement.
    batches = np.array_split(it.x, -(-points // srel_tf.Settings().batch_size))

    def forward_all() -> None:
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
    return {
        "estimator": estimator,
        "points": points,
        "seconds": float(np.median(times)),
        "measurements": len(times),
        "first": first,
        "forward": float(np.median(passes)),
        "memory": peak - before,
        "peak": peak,
    }


def peak_memory() -> int:
    """Read the largest resident size of this process so far, in bytes.

    On Linux, the value is read from /proc, because the value of `getrusage` includes the peak of the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(
            int(line.split()[1]) for line in lines if line.startswith("VmHWM")
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
