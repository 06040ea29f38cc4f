"""Frames simulated with and without each effect, and how often a verdict goes wrong on them."""

from collections import Counter

import numpy as np
import pandas as pd
from scipy.stats import binom

CONFIDENCE = 0.95
CONSTANT = {"epoch": 0.0, "measure": "l1", "update": "sgd", "estimator": "exact", "learning_rate": 0.1}


def srel_frame(srel, steps, source_ids, target_ids, classes=None, **columns):
    """A frame of S_rel [seed, pair, step]; classes: {id: name}."""
    srel = np.asarray(srel, float)
    seed, pair, step = (i.ravel() for i in np.indices(srel.shape))
    sources, targets = np.asarray(source_ids)[pair], np.asarray(target_ids)[pair]
    names = classes or dict.fromkeys({*sources, *targets}, "")
    frame = pd.DataFrame({"run": np.char.add("seed-", seed.astype(str)), "seed": seed, "step": np.asarray(steps)[step]})
    frame = frame.assign(**CONSTANT, source_id=sources, target_id=targets, srel=srel.ravel())
    frame["source_class"], frame["target_class"] = (frame[c].map(names) for c in ("source_id", "target_id"))
    return frame.assign(valid=np.isfinite(srel.ravel())).assign(**columns)


def autocorrelated(generator, *shape, memory=0.8):
    """Noise of unit variance with a memory along the last axis."""
    noise = generator.normal(size=shape)
    for t in range(1, shape[-1]):
        noise[..., t] = memory * noise[..., t - 1] + np.sqrt(1 - memory**2) * noise[..., t]
    return noise


def verdicts(simulation, times, seed=0):
    """{claim: {verdict: how often}} in `times` runs of simulation(generator) -> table."""
    counts = {}
    for i in range(times):
        table = simulation(np.random.default_rng([seed, i]))
        for claim, verdict in zip(table["claim"], table["verdict"], strict=True):
            counts.setdefault(claim, Counter())[verdict] += 1
    return counts


def most(times, rate):
    """So many errors of this rate are exceeded once in a thousand draws."""
    return binom.ppf(0.999, times, rate)
