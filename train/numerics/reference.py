"""S_rel of a net rebuilt in float64: one gradient, one assigned step, two forward passes, and measures in NumPy.

The code is slow and simple on purpose. It does not import srel_tf.

The error of the reference is estimated by a repetition with weights that differ by a few units in the last place. If
a change is lost in rounding, it is computed as an integral of derivatives along the step, without cancellation:
f(w − ηg) − f(w) = −η ∫₀¹ J(w − tηg) g dt.
"""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

TOLERANCE = {"kl": 2e-3, "l1": 1e-3, "l2": 1e-3, "raw_l1": 1e-3, "raw_l2": 1e-3}
NEGLIGIBLE = 0.05  # Share of the tolerance below which the difference of two references is negligible.
NUDGE = 1e-15  # Relative change of the weights in the repetition.
ORDERS = (
    2,
    4,
)  # Numbers of nodes of two quadratures, which agree if the derivative is smooth along the step.
LARGEST_EXPONENT = 11_000  # e to this power is finite in extended precision.


@contextlib.contextmanager
def double_precision():
    """Make new layers, losses and penalties compute in float64 within the context."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class Place(NamedTuple):
    """Trainable weights, and the outputs [n, C] at these weights."""

    weights: list
    outputs: np.ndarray


class Reference:
    """S_rel between all examples x [n, ...] with labels y [n].

    build: () -> compiled model, called under the dtype policy float64.
    softmax: whether the model returns probabilities; else it returns logits.
    """

    def __init__(self, build, x, y, softmax=False):
        with double_precision():
            self._net = build()
        self._x, self._y = tf.constant(x, tf.float64), tf.constant(y)
        self._softmax = softmax
        self._variables = [v.value for v in self._net.trainable_variables]
        self._predict = tf.function(self._predict, autograph=False, jit_compile=False)
        self._gradient = tf.function(self._gradient, autograph=False, jit_compile=False)
        self._slope = tf.function(self._slope, autograph=False, jit_compile=False)

    def srel(self, weights, etas):
        """Return {η: {measure: S [n, n]}}, NaN where float64 does not resolve S; η = 0 is the limit η → 0."""
        n, keys = len(self._x), (0.0, *etas)
        rows = {
            eta: {measure: np.full((n, n), np.nan) for measure in TOLERANCE}
            for eta in keys
        }
        with double_precision():
            self._net.set_weights(weights)
            places = self._places()
            for source in range(n):
                gradients = [
                    self._at(place.weights, self._gradient, tf.constant(source))
                    for place in places
                ]
                for eta in keys:
                    found = self._row(places, gradients, source, eta)
                    for measure, row in found.items():
                        rows[eta][measure][source] = row
            self._assign(places[0].weights)
        return rows

    def _places(self):
        """Return weights and outputs of the net and of the repetition."""
        draw = np.random.default_rng(0)
        exact = [v.numpy() for v in self._variables]
        nudged = [w * (1 + NUDGE * draw.standard_normal(w.shape)) for w in exact]
        return [
            Place(weights, self._at(weights, self._predict).numpy())
            for weights in (exact, nudged)
        ]

    def _row(self, places, gradients, source, eta):
        """Return {measure: S [n]} of one source."""
        compute = self._limit_change if eta == 0 else self._step_change
        changes = [
            compute(place, g, eta) for place, g in zip(places, gradients, strict=True)
        ]
        first, second = (
            srel_row(place.outputs, change, source, self._softmax, limit=eta == 0)
            for place, change in zip(places, changes, strict=True)
        )
        resolved = eta == 0 or is_resolved(places[0].outputs, changes[0], source)
        row = {
            m: first[m] if resolved and np.all(close(first[m], second[m], m)) else None
            for m in TOLERANCE
        }
        if eta and any(s is None for s in row.values()):
            outputs = places[0].outputs
            coarse, fine = (
                self._integral(places[0], gradients[0], eta, order) for order in ORDERS
            )
            coarse, fine = (
                srel_row(outputs, change, source, self._softmax)
                for change in (coarse, fine)
            )
            for m in (m for m in TOLERANCE if row[m] is None):
                row[m] = np.where(close(fine[m], coarse[m], m), fine[m], np.nan)
        return {
            m: np.full(len(self._x), np.nan) if s is None else s for m, s in row.items()
        }

    def _step_change(self, place, gradient, eta):
        """Compute the change of the outputs due to the step, [n, C]."""
        after = [w - eta * g for w, g in zip(place.weights, gradient, strict=True)]
        return self._at(after, self._predict).numpy() - place.outputs

    def _limit_change(self, place, gradient, eta):
        """−J g [n, C]."""
        return -self._at(place.weights, self._slope, gradient).numpy()

    def _integral(self, place, gradient, eta, order):
        """Compute the change of the outputs by Gauss-Legendre quadrature of its derivative along the step."""
        nodes, shares = np.polynomial.legendre.leggauss(order)
        change = 0.0
        for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
            on_the_way = [
                w - eta * node * g for w, g in zip(place.weights, gradient, strict=True)
            ]
            change = (
                change
                - eta * share * self._at(on_the_way, self._slope, gradient).numpy()
            )
        return change

    def _at(self, weights, function, *arguments):
        """Evaluate `function` on the net with the given trainable weights."""
        self._assign(weights)
        return function(*arguments)

    def _assign(self, weights):
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(value)

    def _predict(self):
        return self._net(self._x, training=False)

    def _gradient(self, source):
        """∇ℓ of one example."""
        x, y = (tf.gather(a, [source]) for a in (self._x, self._y))
        with tf.GradientTape() as tape:
            outputs = self._net(x, training=False)
            loss = self._net.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=None, training=False
            )
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, self._variables)]

    def _slope(self, direction):
        """Compute the derivative of the outputs along a direction in weight space, [n, C].

        Jᵀu is linear in u, so its product with the direction has the derivative J · direction with respect to u.
        Unlike TensorFlow's forward mode, this product also works for the loops of recurrent layers.
        """
        with tf.GradientTape() as outer:
            u = tf.ones_like(self._net(self._x, training=False))
            outer.watch(u)
            with tf.GradientTape() as inner:
                outputs = self._net(self._x, training=False)
            gradients = inner.gradient(outputs, self._variables, output_gradients=u)
            product = tf.add_n(
                [
                    tf.reduce_sum(g * d)
                    for g, d in zip(gradients, direction, strict=True)
                ]
            )
        return outer.gradient(product, u)


def close(s, other, measure):
    """Return whether two references agree, [n]; False where either is not finite."""
    with np.errstate(invalid="ignore"):
        return np.abs(s - other) <= NEGLIGIBLE * TOLERANCE[measure] * (1 + np.abs(s))


def is_resolved(outputs, change, source):
    """Return whether the rounding of the outputs themselves is negligible beside their change at the source."""
    rounding = np.finfo(np.float64).eps * np.abs(outputs).max()
    return (
        rounding <= NEGLIGIBLE * min(TOLERANCE.values()) * np.abs(change[source]).max()
    )


def srel_row(outputs, change, source, softmax=False, limit=False):
    """Return {measure: S [n]}: the change at each example over the change at `source`. outputs, change: [n, C]."""
    distances = distances_in_the_limit if limit else distances_of_a_step
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = distances(
            np.asarray(outputs, np.longdouble),
            np.asarray(change, np.longdouble),
            softmax,
        )
        return {
            measure: (d / d[source]).astype(np.float64) for measure, d in found.items()
        }


def distances_of_a_step(outputs, change, softmax):
    """Return {measure: D [n]} of two predictions, from the first prediction and the change, without cancellation."""
    if softmax:
        log_p, d = np.log(outputs), np.log1p(change / outputs)
    else:
        log_p = log_softmax(outputs)
        d = change_of_log_softmax(log_p, change)
    p, p_plus, small = np.exp(log_p), np.exp(log_p + d), np.abs(d) < 0.1
    terms = np.where(small, p * divergence(np.where(small, d, 0)), p_plus * (d - 1) + p)
    moved = np.where(small, p * np.expm1(np.where(small, d, 0)), p_plus - p)
    return {"kl": terms.sum(axis=-1), **norms(moved, change)}


def distances_in_the_limit(outputs, change, softmax):
    """Return {measure: D [n]} of a change of the outputs to first order, for `kl` to second order."""
    if softmax:
        p, d = outputs, change / outputs
    else:
        p = np.exp(log_softmax(outputs))
        d = change - (p * change).sum(axis=-1, keepdims=True)
    return {"kl": (p * d**2).sum(axis=-1) / 2, **norms(p * d, change)}


def norms(of_probabilities, of_outputs):
    changes = {"": of_probabilities, "raw_": of_outputs}
    return {
        f"{kind}l{order}": np.linalg.norm(change.astype(np.float64), order, axis=-1)
        for kind, change in changes.items()
        for order in (1, 2)
    }


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def change_of_log_softmax(log_p, change):
    """Compute log p⁺ − log p = Δz − log Σ p e^Δz, after subtracting the Δz of the likeliest class."""
    relative = change - np.take_along_axis(
        change, log_p.argmax(axis=-1)[..., None], axis=-1
    )
    spread = np.log1p((np.exp(log_p) * np.expm1(relative)).sum(axis=-1, keepdims=True))
    after = log_p + relative
    top = after.max(axis=-1, keepdims=True)
    spread_of_large = top + np.log(np.exp(after - top).sum(axis=-1, keepdims=True))
    large = relative.max(axis=-1, keepdims=True) > LARGEST_EXPONENT
    return relative - np.where(large, spread_of_large, spread)


def divergence(d):
    """Compute e^d d − e^d + 1 near 0, by its series Σ dᵏ (k − 1) / k!, without cancellation."""
    series, term = 0 * d, d
    for k in range(2, 15):
        term = term * d / k
        series = series + (k - 1) * term
    return series
