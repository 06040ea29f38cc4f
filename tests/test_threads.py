"""The number of threads changes the order of sums. Results agree within the guaranteed tolerance, but not exactly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import srel_tf
from tests.nets import classifier, digits

ESTIMATORS = ("exact", "limit")


def measure(directory):
    """Write the frames of both estimators, measured by this process with its own number of threads."""
    x, y = digits(per_class=8)
    model = classifier("cnn")
    probe = srel_tf.ProbeSet(x, y, sources=range(0, 24, 3))
    for estimator in ESTIMATORS:
        result = srel_tf.measure(
            model, probe, ("kl", "l1"), learning_rate=0.1, estimator=estimator
        )
        srel_tf.write_frame(result.to_frame(), Path(directory) / f"{estimator}.parquet")


def test_other_numbers_of_threads_change_nothing_beyond_the_contract(tmp_path):
    """This process has one thread per core. The other process has one thread, or two if there is only one core."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    threads = "1" if os.cpu_count() > 1 else "2"
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.test_threads import measure; measure(sys.argv[1])",
        there,
    ]
    env = {**os.environ, **dict.fromkeys(names, threads)}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], env=env) as process:
        measure(here)
    assert process.returncode == 0
    for estimator in ESTIMATORS:
        one, two = (
            srel_tf.read_frame(path / f"{estimator}.parquet") for path in (here, there)
        )
        both = one["valid"] & two["valid"]
        assert both.mean() > 0.9
        for name in ("l1", "kl"):
            of = both & (one["measure"] == name)
            apart = np.abs(one["srel"][of] - two["srel"][of]) / (1 + one["srel"][of])
            assert apart.max() <= 1e-3
