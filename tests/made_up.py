"""Results and frames made by hand, for tests of the code that runs after a measurement."""

import numpy as np

from srel_tf import ProbeSet
from srel_tf.frames.schema import METHODS
from srel_tf.result import Matrices, SRelResult

CLASS_NAMES = ["cat", "dog", "owl"]
# The columns of a frame, in their order.
SCHEMA = [
    *("run", "seed", "name", "step", "epoch", "measure"),
    *("update", "estimator", "method", "learning_rate"),
    *("source_id", "source_class", "target_id", "target_class"),
    *("numerator", "denominator", "srel", "valid"),
]


def probe(per_class=2, classes=2, sources=None, targets=None, ids=None):
    """Return a probe of `per_class` one-pixel examples of each class, one class after the other."""
    y = np.repeat(np.arange(classes), per_class)
    return ProbeSet(
        np.ones((len(y), 1)), y, CLASS_NAMES[:classes], ids, sources, targets
    )


def result(
    probe, step=0, measures=("kl", "l1"), update="sgd", learning_rate=0.1, invalid=0.0, seed=0, digits=15,
    estimator="exact",
):  # fmt: skip
    """Return a result with random entries. A fraction `invalid` is not valid. With few `digits`, some are equal.

    The rows of the estimator "auto" have all methods in turn.
    """
    methods = {"exact": ["finite_step"], "limit": ["limit"], "auto": METHODS}[estimator]
    rng = np.random.default_rng([seed, 0 if step is None else step])
    matrices = {}
    for measure in measures:
        denominator = rng.uniform(0.5, 2, len(probe.sources))
        srel = rng.uniform(0, 3, (len(probe.sources), len(probe.targets))).round(digits)
        numerator = srel * denominator[:, None]
        valid = rng.random(srel.shape) >= invalid
        bound, method = (
            np.zeros_like(srel),
            np.resize(np.array(methods, dtype=object), len(denominator)),
        )
        matrices[measure] = Matrices(
            numerator, denominator, np.where(valid, srel, np.nan), valid, bound, method
        )
    return SRelResult(
        probe, matrices, update, estimator, learning_rate, step, seconds=0.25
    )
