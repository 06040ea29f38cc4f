"""Compute a reference S_rel with a net that is rebuilt in float64.

For each source: compute the gradient, assign w − ηg to the variables, run the net before and after, and compute D in
NumPy. The code is deliberately simple and slow. This module and `distances` import nothing from srel_tf.

S_rel is computed twice, the second time with weights that are changed by a few units in the last place. The difference
between the two results shows the error of the reference itself. If float64 does not resolve how a step changes the
outputs, this change is computed as an integral of derivatives along the step, in which no digits cancel:
f(w − ηg) − f(w) = −η ∫₀¹ J(w − tηg) g dt.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from train.numerics.distances import srel_row

TOLERANCE = {"kl": 2e-3, "l1": 1e-3, "l2": 1e-3, "raw_l1": 1e-3, "raw_l2": 1e-3}
NEGLIGIBLE = (
    0.05  # Two references agree if they differ by at most this share of the tolerance.
)
NUDGE = 1e-15  # Relative change of the weights for the second computation.
# Numbers of nodes of two quadratures. Their results agree if the derivative is smooth along the step.
ORDERS = (2, 4)
Gradient: TypeAlias = list[tf.Tensor]  # One tensor for each trainable weight.


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Use float64 for layers, losses and penalties that are made within this block."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class Place(NamedTuple):
    """Trainable weights, and the outputs [n, C] of the net with these weights."""

    weights: list
    outputs: np.ndarray


class Reference:
    """S_rel between all examples x with labels y, in float64.

    Args:
        build: () -> compiled model. It is called under the dtype policy float64.
        x: Examples, [n, ...].
        y: Labels, [n].
        softmax: True if the model returns probabilities and its last layer is a Softmax, False if it returns logits.
    """

    def __init__(
        self,
        build: Callable[[], keras.Model],
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        softmax: bool = False,
    ) -> None:
        with double_precision():
            self._net = build()
            # Float64 probabilities close to 0 or 1 have lost digits that the logits have.
            self._logits = (
                keras.Model(self._net.inputs, self._net.layers[-1].input)
                if softmax
                else self._net
            )
        self._x, self._y = tf.constant(x, tf.float64), tf.constant(y)
        self._softmax = softmax
        self._variables = [v.value for v in self._net.trainable_variables]
        self._predict = tf.function(self._outputs, autograph=False, jit_compile=False)
        self._gradient = tf.function(
            self._loss_gradient, autograph=False, jit_compile=False
        )
        self._slope = tf.function(
            self._derivative_along, autograph=False, jit_compile=False
        )

    def srel(
        self, weights: Sequence[np.ndarray], etas: Sequence[float]
    ) -> dict[float, dict[str, np.ndarray]]:
        """Compute S_rel for each η, and for the limit η → 0.

        Args:
            weights: All weights of the model, as for `set_weights`.
            etas: Learning rates of the finite steps.

        Returns:
            {η: {measure: S [n, n]}}. An entry of S is NaN if float64 does not resolve it. η = 0 is the limit.
        """
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

    def _places(self) -> list[Place]:
        """Return the current weights and the nudged weights of the second computation, each with the outputs."""
        draw = np.random.default_rng(0)
        exact = [v.numpy() for v in self._variables]
        nudged = [w * (1 + NUDGE * draw.standard_normal(w.shape)) for w in exact]
        return [
            Place(weights, self._at(weights, self._predict).numpy())
            for weights in (exact, nudged)
        ]

    def _row(
        self,
        places: Sequence[Place],
        gradients: Sequence[Gradient],
        source: int,
        eta: float,
    ) -> dict[str, np.ndarray]:
        """Compute S_rel of one source.

        Args:
            places: The current weights and the nudged weights.
            gradients: For each of `places`, the gradient of the loss of the source.
            source: Index of the source.
            eta: η; 0 for the limit.

        Returns:
            {measure: S [n]}.
        """
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
            integrals = (
                self._integral(places[0], gradients[0], eta, order) for order in ORDERS
            )
            coarse, fine = (
                srel_row(outputs, change, source, self._softmax) for change in integrals
            )
            for m in (m for m in TOLERANCE if row[m] is None):
                row[m] = np.where(close(fine[m], coarse[m], m), fine[m], np.nan)
        return {
            m: np.full(len(self._x), np.nan) if s is None else s for m, s in row.items()
        }

    def _step_change(self, place: Place, gradient: Gradient, eta: float) -> np.ndarray:
        """Return the change of the outputs by the step, [n, C]."""
        after = [w - eta * g for w, g in zip(place.weights, gradient, strict=True)]
        return self._at(after, self._predict).numpy() - place.outputs

    def _limit_change(self, place: Place, gradient: Gradient, eta: float) -> np.ndarray:
        """Return −J g, [n, C]."""
        return -self._at(place.weights, self._slope, gradient).numpy()

    def _integral(
        self, place: Place, gradient: Gradient, eta: float, order: int
    ) -> np.ndarray:
        """Integrate the derivative of the outputs along the step.

        Args:
            place: The weights at which the step begins.
            gradient: g, an array for each weight.
            eta: η.
            order: Number of nodes of the Gauss-Legendre quadrature.

        Returns:
            The change of the outputs by the step, [n, C].
        """
        nodes, shares = np.polynomial.legendre.leggauss(order)
        change = np.zeros_like(place.outputs)
        for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
            on_the_way = [
                w - eta * node * g for w, g in zip(place.weights, gradient, strict=True)
            ]
            change = (
                change
                - eta * share * self._at(on_the_way, self._slope, gradient).numpy()
            )
        return change

    def _at(
        self, weights: Sequence[Any], function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Assign these trainable weights to the net, then return `function(*arguments)`."""
        self._assign(weights)
        return function(*arguments)

    def _assign(self, weights: Sequence[Any]) -> None:
        """Assign the trainable weights."""
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(value)

    def _outputs(self) -> tf.Tensor:
        """Return the logits at all examples, [n, C]."""
        return self._logits(self._x, training=False)

    def _loss_gradient(self, source: tf.Tensor) -> Gradient:
        """Return ∇ℓ of one example, a tensor for each weight."""
        x, y = (tf.gather(a, [source]) for a in (self._x, self._y))
        with tf.GradientTape() as tape:
            outputs = self._net(x, training=False)
            loss = self._net.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=None, training=False
            )
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, self._variables)]

    def _derivative_along(self, direction: Gradient) -> tf.Tensor:
        """Return the derivative of the outputs along a direction of the weights, [n, C].

        The product (Jᵀu) · direction is linear in u. Its derivative with respect to u is J · direction. Unlike
        TensorFlow's forward mode, this method also works for the loops of recurrent layers.
        """
        with tf.GradientTape() as outer:
            u = tf.ones_like(self._outputs())
            outer.watch(u)
            with tf.GradientTape() as inner:
                outputs = self._outputs()
            gradients = inner.gradient(outputs, self._variables, output_gradients=u)
            product = tf.add_n(
                [
                    tf.reduce_sum(g * d)
                    for g, d in zip(gradients, direction, strict=True)
                ]
            )
        return outer.gradient(product, u)


def close(s: np.ndarray, other: np.ndarray, measure: str) -> np.ndarray:
    """Return whether two references agree within `NEGLIGIBLE` tolerances, bool [n]. False if one of them is NaN."""
    with np.errstate(invalid="ignore"):
        return np.abs(s - other) <= NEGLIGIBLE * TOLERANCE[measure] * (1 + np.abs(s))


def is_resolved(outputs: np.ndarray, change: np.ndarray, source: int) -> bool:
    """Return whether the rounding of the outputs is negligible compared with their change at the source."""
    rounding = np.finfo(np.float64).eps * np.abs(outputs).max()
    return (
        rounding <= NEGLIGIBLE * min(TOLERANCE.values()) * np.abs(change[source]).max()
    )
