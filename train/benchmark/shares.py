"""Where the time goes, against the physical limit: the multiply-adds that are needed, at the rate of matrix products.

What is counted is what the numbers themselves need. The bounds that decide which entries are valid, the copying of
patches, activations and the measures are not: they are part of the rest.
"""

import math
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from train.benchmark.procedures import CLASSES, forward_pass, interleaved, setup

SIZE = 3072  # Rows of the square matrices whose product gives the rate.


class LinearMap(NamedTuple):
    """One layer: G groups of a K × O matrix, applied at T positions of each example.

    window: how many of the input's pixels one position of a convolution sees.
    """

    groups: int
    positions: int
    inputs: int
    outputs: int
    has_bias: bool
    first: bool
    pixels: int = 1
    window: int = 1

    @property
    def forward(self):
        """Multiply-adds of one example."""
        return self.groups * self.positions * self.inputs * self.outputs

    def contraction(self, n_s, n_t, m):
        """Multiply-adds of ⟨∇ of n_s losses, ∇ of m outputs at n_t targets⟩, as `srel_tf.gradients.factored` does.

        Products of inputs, or of their pixels, times products of signals, which pay an elementwise pass as well; or
        both gradients formed. The sources are targets: their losses' gradients are the first of the targets' own.
        """
        g, t, k, o = self.groups, self.positions, self.inputs, self.outputs
        pairs, sources = n_s * n_t * g, n_s * t * g * k * o
        formed = (n_t * m * t + n_s * n_t * m) * g * k * o
        of_inputs = t * t * k
        if self.window > 1:
            of_inputs = min(of_inputs, self.pixels**2 * (k // self.window + t * t))
        products = pairs * (of_inputs + m * t * t * o)
        kernel = (
            products if products + 4 * m * pairs * t * t <= formed + sources else formed
        )
        return kernel + (n_s * n_t * m * g * o if self.has_bias else 0)


def linear_maps(model):
    """The convolutions and dense layers of a net of `train.models`, which all have one first layer, in order."""
    maps = []
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            groups = getattr(layer, "groups", 1)
            *window, k, channels = layer.kernel.shape
            positions = math.prod(layer.output.shape[1:-1])
            inputs, outputs = math.prod(window) * k, channels // groups
            over = math.prod(layer.input.shape[1:-1]), math.prod(window)
            maps.append(
                LinearMap(
                    groups, positions, inputs, outputs, layer.use_bias, not maps, *over
                )
            )
    return maps


def needed(maps, n, classes):
    """Multiply-adds of n sources × n targets: rows (estimator, part, multiply_adds).

    S_rel of a softmax sees differences of outputs only, so that the limit needs classes − 1 backward passes. Signals
    need not go back through a first layer.
    """
    forward = sum(a.forward for a in maps)
    backward = sum(a.forward for a in maps if not a.first)
    contraction = sum(a.contraction(n, n, classes - 1) for a in maps)
    parts = [
        ("forward pass", "forward pass", n * forward),
        ("exact", f"{n} forward passes of {n} targets", n * n * forward),
        ("exact", "gradients of the sources", n * (2 * forward + backward)),
        ("limit", "forward pass", n * forward),
        ("limit", f"{classes - 1} backward passes", n * (classes - 1) * backward),
        ("limit", "contractions", contraction),
    ]
    return pd.DataFrame(parts, columns=["estimator", "part", "multiply_adds"])


def shares(name="resnet18", points=60, repeats=5):
    """`needed`, with seconds_at_peak of each part, and share = that over the median measured time of its estimator.

    Returns (table, multiply-adds a second). The rate is the best of the products' timings, the times are medians; all
    are taken in turn.
    """
    it = setup(name, points)
    forward, x = forward_pass(it.model), tf.constant(it.x)
    matrix = tf.random.stateless_normal([SIZE, SIZE], [0, 0])
    product = tf.function(lambda: tf.matmul(matrix, matrix), jit_compile=False)
    procedures = {
        "product": product,
        "forward pass": lambda: forward(x),
        "exact": it.instrument("exact"),
        "limit": it.instrument("limit"),
    }
    times = interleaved(
        procedures,
        dict.fromkeys(procedures, repeats),
        each={"product": 3, "forward pass": 10},
    )
    rate = SIZE**3 / min(times.pop("product"))
    table = needed(linear_maps(it.model), points, CLASSES)
    table["seconds"] = table["estimator"].map(
        {k: float(np.median(t)) for k, t in times.items()}
    )
    table["seconds_at_peak"] = table["multiply_adds"] / rate
    table["share"] = table["seconds_at_peak"] / table["seconds"]
    return table, rate
