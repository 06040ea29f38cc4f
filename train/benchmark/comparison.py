"""All procedures side by side in one process, called in turn: their ratios are what carries over to another machine."""

import importlib.util
import itertools

import numpy as np
import pandas as pd
import tensorflow as tf

from train.benchmark.procedures import (
    CLASSES,
    LEARNING_RATE,
    SMALL,
    NaiveLoop,
    forward_pass,
    interleaved,
    published_pair,
    setup,
)

FORWARD, PUBLISHED = "forward pass", "published procedure"
AUTO, AUTO_REPEATS = f"auto at η = {SMALL:g}", 2  # In float64 above all, which is slow.
EACH = {FORWARD: 10, PUBLISHED: 2}  # Calls in a round.


def has_torch():
    return importlib.util.find_spec("torch") is not None


def comparison(
    name="resnet18", points=60, repeats=5, torch_repeats=2, shape=(32, 32, 3)
):
    """One row a procedure: median seconds, timings, and its ratios forward_passes and published_over_it.

    `torch_repeats` 0 leaves the torch.func recipes out. The published procedure is scaled up from the (source, class)
    pairs that were timed. Each procedure is called once before it is timed; that traces srel_tf's and the loop's graph.
    """
    it = setup(name, points, shape)
    procedures = _in_tensorflow(it)
    rounds = dict.fromkeys(procedures, repeats) | {AUTO: min(repeats, AUTO_REPEATS)}
    if torch_repeats:
        recipes = _in_torch(it)
        procedures |= recipes
        rounds |= dict.fromkeys(recipes, torch_repeats)
    return ratios(interleaved(procedures, rounds, EACH), pairs=points * CLASSES)


def ratios(times, pairs):
    """The table of `comparison` from {procedure: seconds of its calls}; the published procedure consists of `pairs`."""
    table = pd.DataFrame(
        {"procedure": list(times), "timings": [len(t) for t in times.values()]}
    )
    table["seconds"] = [
        float(np.median(t)) * (pairs if name == PUBLISHED else 1)
        for name, t in times.items()
    ]
    whole = table.set_index("procedure")["seconds"]
    table["forward_passes"] = table["seconds"] / whole[FORWARD]
    table["published_over_it"] = whole[PUBLISHED] / table["seconds"]
    return table


def _in_tensorflow(it):
    forward, x = forward_pass(it.model), tf.constant(it.x)
    turns = itertools.cycle(itertools.product(range(len(it.y)), range(CLASSES)))

    def one_pair():
        return published_pair(it.model, it.x, it.y, *next(turns))

    return {
        FORWARD: lambda: forward(x),
        "limit": it.instrument("limit"),
        "exact": it.instrument("exact"),
        AUTO: it.instrument("auto", SMALL),
        "naive loop": NaiveLoop(it.model, it.x, it.y),
        PUBLISHED: one_pair,
    }


def _in_torch(it):
    from train.benchmark.torch_recipes import (  # PyTorch is an optional extra.
        CHUNK,
        Recipes,
    )

    recipes = Recipes(it.model, it.x, it.y, LEARNING_RATE)
    torch = f"torch (threads: {recipes.use_faster_threads()})"
    return {
        f"{torch} forward pass": recipes.forward,
        f"{torch} exact, loop": recipes.exact_loop,
        f"{torch} exact, vmap of {CHUNK}": recipes.exact_vmap,
        f"{torch} limit, jacrev of {CHUNK}": recipes.limit,
    }
