"""Times of all procedures of the benchmark. They are called in turn in one process.

Times depend on the machine. Only their ratios carry over to another machine.
"""

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from train.benchmark.procedures import (
    CLASSES,
    LEARNING_RATE,
    SMALL,
    NaiveLoop,
    Setup,
    forward_pass,
    interleaved,
    published_pair,
    setup,
)

FORWARD, PUBLISHED = "forward pass", "published procedure"
AUTO, AUTO_REPEATS = (
    f"auto at η = {SMALL:g}",
    2,
)  # `auto` is slow at this η, because most rows need float64.
EACH = {FORWARD: 10, PUBLISHED: 2}  # Number of calls per round.


def has_torch() -> bool:
    """Return whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def comparison(
    name: str = "resnet18",
    points: int = 60,
    repeats: int = 5,
    torch_repeats: int = 2,
    shape: tuple[int, ...] = (32, 32, 3),
) -> pd.DataFrame:
    """Time all procedures; `torch_repeats=0` leaves the torch.func recipes out.

    The time of the published procedure is scaled up from the timed (source, class) pairs to all pairs. Each procedure
    is called once before it is timed. This first call traces the graphs of srel_tf and of the naive loop.

    Returns:
        One row per procedure, with the columns

        procedure: name of the procedure;
        timings: number of timed calls;
        seconds: median time of a call;
        forward_passes: `seconds` divided by the seconds of one forward pass;
        published_over_it: seconds of the published procedure divided by `seconds`.
    """
    it = setup(name, points, shape)
    procedures = _in_tensorflow(it)
    rounds = dict.fromkeys(procedures, repeats) | {AUTO: min(repeats, AUTO_REPEATS)}
    if torch_repeats:
        # PyTorch is an optional extra.
        from train.benchmark.torch_recipes import recipes

        in_torch = recipes(it.model, it.x, it.y, LEARNING_RATE)
        procedures |= in_torch
        rounds |= dict.fromkeys(in_torch, torch_repeats)
    return ratios(interleaved(procedures, rounds, EACH), pairs=points * CLASSES)


def ratios(times: Mapping[str, Sequence[float]], pairs: int) -> pd.DataFrame:
    """Make the table of `comparison` from {procedure: seconds of each call}.

    One call of the published procedure measures one (source, class) pair. Its time is multiplied by `pairs`.
    """
    seconds = pd.Series({name: float(np.median(t)) for name, t in times.items()})
    seconds[PUBLISHED] *= pairs
    return pd.DataFrame(
        {
            "procedure": list(times),
            "timings": [len(t) for t in times.values()],
            "seconds": seconds.to_numpy(),
            "forward_passes": (seconds / seconds[FORWARD]).to_numpy(),
            "published_over_it": (seconds[PUBLISHED] / seconds).to_numpy(),
        }
    )


def _in_tensorflow(it: Setup) -> dict[str, Callable[[], object]]:
    forward, x = forward_pass(it.model), tf.constant(it.x)
    pairs = itertools.cycle(itertools.product(range(len(it.y)), range(CLASSES)))
    return {
        FORWARD: lambda: forward(x),
        "limit": it.instrument("limit"),
        "exact": it.instrument("exact"),
        AUTO: it.instrument("auto", SMALL),
        "naive loop": NaiveLoop(it.model, it.x, it.y),
        PUBLISHED: lambda: published_pair(it.model, it.x, it.y, *next(pairs)),
    }
