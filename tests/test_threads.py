"""With other numbers of threads sums are taken in another order: the same numbers within the contract, not more."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import srel_tf

MEASURE = """
import sys, srel_tf
from tests.nets import classifier, digits
x, y = digits(per_class=8)
model = classifier("cnn")
probe = srel_tf.ProbeSet(x, y, sources=range(0, 24, 3))
results = [srel_tf.measure(model, probe, ("kl", "l1"), learning_rate=0.1, estimator=e) for e in ("exact", "limit")]
srel_tf.write_frame(results[0].to_frame(), sys.argv[1])
srel_tf.write_frame(results[1].to_frame(), sys.argv[2])
"""


def test_other_numbers_of_threads_change_nothing_beyond_the_contract(tmp_path):
    running = []
    for threads in ("1", "2"):
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
        files = [str(tmp_path / f"{estimator}-{threads}.parquet") for estimator in ("exact", "limit")]
        command = [sys.executable, "-c", MEASURE, *files]
        env = {**os.environ, **dict.fromkeys(names, threads)}
        running.append(subprocess.Popen(command, cwd=Path(__file__).parents[1], env=env))
    assert [process.wait() for process in running] == [0, 0]
    for estimator in ("exact", "limit"):
        one, two = (srel_tf.read_frame(tmp_path / f"{estimator}-{threads}.parquet") for threads in "12")
        both = one["valid"] & two["valid"]
        assert both.mean() > 0.9
        for measure in ("l1", "kl"):
            of = both & (one["measure"] == measure)
            apart = np.abs(one["srel"][of] - two["srel"][of]) / (1 + one["srel"][of])
            assert apart.max() <= 1e-3
