"""Simulated frames with and without each effect, and counts of the verdicts on them."""

from collections import Counter

import numpy as np
import pandas as pd
from scipy.stats import binom

CONFIDENCE = 0.95
CONSTANT = {
    "epoch": 0.0,
    "measure": "l1",
    "update": "sgd",
    "estimator": "exact",
    "learning_rate": 0.1,
}
STEPS = np.arange(0, 600, 10)
EPOCHS = np.arange(0, 90, 9)
TIME = EPOCHS / EPOCHS[-1]


def srel_frame(srel, steps, source_ids, target_ids, classes=None, **columns):
    """Make an S_rel frame from an array [seed, pair, step]; `classes` is {id: name}."""
    srel = np.asarray(srel, float)
    seed, pair, step = (i.ravel() for i in np.indices(srel.shape))
    sources, targets = np.asarray(source_ids)[pair], np.asarray(target_ids)[pair]
    names = classes or dict.fromkeys({*sources, *targets}, "")
    frame = pd.DataFrame(
        {
            "run": np.char.add("seed-", seed.astype(str)),
            "seed": seed,
            "step": np.asarray(steps)[step],
        }
    )
    frame = frame.assign(
        **CONSTANT, source_id=sources, target_id=targets, srel=srel.ravel()
    )
    frame["source_class"], frame["target_class"] = (
        frame[c].map(names) for c in ("source_id", "target_id")
    )
    return frame.assign(valid=np.isfinite(srel.ravel())).assign(**columns)


def autocorrelated(generator, *shape, memory=0.8):
    """Draw noise of unit variance that is autocorrelated along the last axis."""
    noise = generator.normal(size=shape)
    for t in range(1, shape[-1]):
        noise[..., t] = (
            memory * noise[..., t - 1] + np.sqrt(1 - memory**2) * noise[..., t]
        )
    return noise


def with_distances(
    generator, slope, shared, seeds=5, sources=60, targets=1, steps=(100,), noise=1.0
):
    """Simulate log S = slope · distance + noise.

    `shared` is the size of the noise of each source, which is equal in all seeds. `noise` is that of each entry.
    """
    source = np.tile(np.arange(sources), targets)
    target = np.repeat(np.arange(targets), sources)
    distance = generator.uniform(1, 5, len(source))
    own = noise * generator.normal(size=(seeds, len(source), len(steps)))
    logs = (
        slope * distance[:, None]
        + shared * generator.normal(size=sources)[source][:, None]
        + own
    )
    ids = {"source_id": 100 + source, "target_id": target}
    frame = srel_frame(np.exp(logs), steps, *ids.values())
    return frame, pd.DataFrame({**ids, "distance": distance})


def with_proximity(
    generator, power, shared=0.5, seeds=5, pairs=60, steps=8, noise=0.3, growth=0.0
):
    """Simulate S = P^power times noise.

    `shared` is the size of the noise of each pair, which is equal in all seeds. `noise` is that of each entry. `growth`
    is the log₂ change over the time.
    """
    p = np.exp2(generator.uniform(-4, 4, pairs))
    own = shared * generator.normal(size=pairs)[:, None] + noise * generator.normal(
        size=(seeds, pairs, steps)
    )
    ids = {"source_id": 100 + np.arange(pairs), "target_id": np.arange(pairs)}
    logs = power * np.log2(p)[:, None] + own + growth * np.linspace(0, 1, steps)
    return srel_frame(np.exp2(logs), np.arange(steps), *ids.values()), pd.DataFrame(
        {**ids, "proximity": p}
    )


def ramp(begin, length=60, height=3.0):
    return height * np.clip((STEPS - begin) / length, 0, 1)


def in_time(generator, log2_srel, seeds=5, pairs=4, noise=0.3, memory=0.8, walk=0.0):
    """Simulate pairs with the given log₂ S_rel, [step], plus noise.

    Each pair has its own noise. Each seed has its own random walk of step size `walk`, which is a slow change without a
    trend.
    """
    logs = log2_srel + noise * autocorrelated(
        generator, seeds, pairs, len(STEPS), memory=memory
    )
    logs = logs + walk * generator.normal(size=(seeds, 1, len(STEPS))).cumsum(axis=2)
    logs += generator.normal(size=(pairs, 1))
    return srel_frame(np.exp2(logs), STEPS, 10 + np.arange(pairs), np.arange(pairs))


def risks_of(frame, log_risk, noise=0.05, kinds=("empirical",), generator=None):
    """Simulate noisy risks of each seed from log₂ risk, [step]."""
    generator, parts = generator or np.random.default_rng(0), []
    for kind in kinds:
        for seed in frame["seed"].unique():
            loss = np.exp2(log_risk + noise * generator.normal(size=len(STEPS)))
            parts.append(
                pd.DataFrame(
                    {
                        "run": f"seed-{seed}",
                        "seed": seed,
                        "step": STEPS,
                        "split": kind,
                        "loss": loss,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def with_classes(
    generator,
    intra,
    inter,
    seeds=5,
    noise=0.3,
    drift=0.0,
    pair=0.0,
    example=0.0,
    per_class=10,
):
    """Simulate two classes from log₂ S of intra- and inter-class pairs, [step]. S of the diagonal is 1.

    `drift` is the size of a random slope of each seed. `pair` is the size of random effects of each pair, and `example`
    is that of each source and each target. These effects are equal in all seeds, and act on level and slope. They do
    not change the expected S (not log S) of a class pair.
    """
    n = 2 * per_class
    ids = np.arange(n)
    source, target = (i.ravel() for i in np.meshgrid(ids, ids, indexing="ij"))
    same = source // per_class == target // per_class
    logs = np.where(same[:, None], intra, inter) + noise * autocorrelated(
        generator, seeds, n * n, len(EPOCHS)
    )
    logs = logs + drift * generator.normal(size=(seeds, 1, 1)) * TIME
    for about in (np.ones(len(TIME)), TIME):
        logs = logs + pair * generator.normal(size=(n * n, 1)) * about
        logs = (
            logs
            + example
            * (generator.normal(size=n)[source] + generator.normal(size=n)[target])[
                :, None
            ]
            * about
        )
        logs = logs - np.log(2) / 2 * (pair**2 + 2 * example**2) * about**2
    logs[:, source == target] = 0
    classes = dict(zip(ids, np.repeat(["a", "b"], per_class), strict=True))
    return srel_frame(np.exp2(logs), EPOCHS, source, target, classes, measure="kl")


def verdicts(simulation, times, seed=0):
    """Count the verdicts, {claim: {verdict: count}}, in `times` runs of `simulation`, which returns a table."""
    counts = {}
    for i in range(times):
        table = simulation(np.random.default_rng([seed, i]))
        for claim, verdict in zip(table["claim"], table["verdict"], strict=True):
            counts.setdefault(claim, Counter())[verdict] += 1
    return counts


def most(times, rate):
    """Return a number of errors that is exceeded with probability 0.001, if errors in `times` runs have this rate."""
    return binom.ppf(0.999, times, rate)
