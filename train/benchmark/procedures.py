"""The net and the probe of `train.benchmark`, and the procedures whose times it compares."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import srel_tf
from train.models import build_model

CLASSES = 3
LEARNING_RATE = 1e-4
# A learning rate so small that float32 does not resolve how a step changes the outputs of resnet18.
SMALL = 1e-6


class Setup(NamedTuple):
    """A compiled net and n random images with labels 0, 1, 2, 0, …: x [n, H, W, channels], y [n]."""

    model: keras.Model
    x: np.ndarray
    y: np.ndarray

    @property
    def probe(self) -> srel_tf.ProbeSet:
        return srel_tf.ProbeSet(self.x, self.y)

    def instrument(
        self, estimator: str, learning_rate: float | None = None
    ) -> srel_tf.Instrument:
        """Make an instrument that measures `kl` and `l1` between all pairs."""
        settings = srel_tf.Settings(estimator=estimator, learning_rate=learning_rate)
        return srel_tf.Instrument(self.model, self.probe, settings)


def setup(
    name: str = "resnet18", points: int = 60, shape: tuple[int, ...] = (32, 32, 3)
) -> Setup:
    """Make a net of `train.models`, and images of normally distributed pixels in Keras's floatx."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(points, *shape)).astype(keras.config.floatx())
    model = build_model(name, shape, CLASSES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        loss,
        metrics=["accuracy"],
        jit_compile=False,
    )
    return Setup(model, x, np.arange(points) % CLASSES)


def forward_pass(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Make the traced function x -> outputs [n, C] of the net."""
    return tf.function(lambda x: model(x, training=False), jit_compile=False)


class NaiveLoop:
    """A well-written plain TensorFlow loop: for each source a gradient, an updated copy of the net, and a forward pass.

    The loop body is traced once. For each source, new values are assigned to the weights of the copy. Unlike srel_tf,
    the loop does not check which entries float32 resolves. A call returns {"kl": S_rel, "l1": S_rel}, each [n, n],
    computed from the logits as in the definitions.
    """

    def __init__(self, model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
        self._x, self._y = tf.constant(x), tf.constant(y)
        shadow = keras.models.clone_model(model)
        loss = model.loss

        @tf.function(jit_compile=False)
        def stepped(x: tf.Tensor, y: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(y, model(x, training=False)))
            gradients = tape.gradient(value, model.trainable_variables)
            weights = zip(
                shadow.trainable_variables,
                model.trainable_variables,
                gradients,
                strict=True,
            )
            for copy, w, g in weights:
                copy.assign(w - LEARNING_RATE * g)
            return shadow(targets, training=False)

        self._forward, self._stepped = forward_pass(model), stepped

    def __call__(self) -> dict[str, np.ndarray]:
        before = self._forward(self._x)
        n = len(self._x)
        after = tf.stack(
            [
                self._stepped(self._x[i, None], self._y[i, None], self._x)
                for i in range(n)
            ]
        )
        return {
            name: _srel(distance(before, after)) for name, distance in DISTANCES.items()
        }


def _kl(before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    """KL(g⁺, g) of softmax outputs, Definition 2."""
    p, log_ratio = (
        tf.nn.softmax(after),
        tf.nn.log_softmax(after) - tf.nn.log_softmax(before),
    )
    return tf.reduce_sum(p * log_ratio, axis=-1)


def _l1(before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(tf.nn.softmax(after) - tf.nn.softmax(before)), axis=-1)


DISTANCES = {"kl": _kl, "l1": _l1}


def _srel(moved: tf.Tensor) -> np.ndarray:
    """Divide each row of D [n, n] by its diagonal entry, the change at the source itself."""
    return (moved / tf.linalg.diag_part(moved)[:, None]).numpy()


def published_pair(
    model: keras.Model, x: np.ndarray, y: np.ndarray, source: int, target_class: int
) -> np.ndarray:
    """Measure one (source, class) pair as the published code does.

    The procedure makes a new net and a new Adam, takes one step, and runs forward passes before and after this step.
    """
    targets = tf.constant(x[y == target_class])
    xs, ys = tf.constant(x[[source]]), tf.constant(y[[source]])
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    before = [copy(batch, training=False) for batch in (targets, xs)]
    with tf.GradientTape() as tape:
        loss = model.loss(ys, copy(xs, training=False))
    optimizer.apply_gradients(
        zip(
            tape.gradient(loss, copy.trainable_variables),
            copy.trainable_variables,
            strict=True,
        )
    )
    after = [copy(batch, training=False) for batch in (targets, xs)]
    p, q = ([tf.nn.softmax(outputs) for outputs in side] for side in (before, after))
    numerator, denominator = (
        tf.reduce_mean(old * (tf.math.log(old) - new), axis=-1)
        for old, new in zip(p, q, strict=True)
    )
    return (numerator / (denominator + 1e-8)).numpy()


def seconds(function: Callable[[], object]) -> float:
    """Measure the wall-clock time of one call in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: Mapping[str, int],
    each: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Time functions that are called in turn, so that other load on the machine slows all of them alike.

    Args:
        functions: {name: function}. Each is called once, without timing, before the rounds begin.
        rounds: {name: number of rounds in which the function is called}.
        each: {name: number of calls per round}, 1 by default.

    Returns:
        {name: seconds of each timed call}.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for turn in range(max(rounds.values())):
        for name, function in functions.items():
            if turn < rounds[name]:
                times[name] += [
                    seconds(function) for _ in range((each or {}).get(name, 1))
                ]
    return times
