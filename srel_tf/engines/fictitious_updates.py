"""The outputs f after the fictitious update on each source: w⁺ = w − η ∇ℓ (Definition 1), or another rule."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from srel_tf.gradients.backprop import LossBackprop, SourceGradients
from srel_tf.gradients.batching import row
from srel_tf.gradients.factored import OuterProductGradient
from srel_tf.gradients.network import Network
from srel_tf.updates import UpdateRule


class Update(NamedTuple):
    """The update on one source.

    Attributes:
        outputs: the network after the update, x [n, ...] -> f [n, C].
        before: f at the source before the update, [C].
        zero: 0 if the gradient is finite, else NaN. This number is added to the outputs after the update, because a
            saturated net may return finite outputs in spite of a NaN in the gradient.
    """

    outputs: Callable[[tf.Tensor], tf.Tensor]
    before: tf.Tensor
    zero: tf.Tensor


class Updates(Protocol):
    """The updates on a batch of sources."""

    def __getitem__(self, i: tf.Tensor) -> Update: ...


class LayerwiseUpdates:
    """Updates from one forward and one backward pass of all sources. A new weight is formed when its layer is called.

    Args:
        backprop: the forward and backward passes of the network.
        rule: an elementwise update rule.
        x, y: the sources [n, ...].
        learning_rates: η of each source, [n].
        weights: the weights before the update.
    """

    def __init__(
        self,
        backprop: LossBackprop,
        rule: UpdateRule,
        x: tf.Tensor,
        y: tf.Tensor,
        learning_rates: tf.Tensor,
        weights: list,
    ) -> None:
        self._backprop, self._rule = backprop, rule
        self._learning_rates, self._weights = learning_rates, weights
        self._gradients = SourceGradients(
            backprop, x, y, rule.gradient_factor(learning_rates), weights
        )

    def __getitem__(self, i: tf.Tensor) -> Update:
        gradients, rule, weights = self._gradients, self._rule, self._weights
        learning_rate = tf.gather(self._learning_rates, i)

        def new_weight(k: int) -> tf.Tensor:
            return rule.updated(
                [weights[k]], [gradients.of_weight(k, i)], learning_rate
            )[0]

        def rank_one_step(k: int) -> OuterProductGradient | None:
            return gradients.rank_one_step(k, i) if rule.is_gradient else None

        def outputs(x: tf.Tensor) -> tf.Tensor:
            return self._backprop.read(
                self._backprop.layer_io.outputs(x, new_weight, rank_one_step, weights)
            )

        zero = tf.cast(tf.gather(gradients.zero, i), self._backprop.network.dtype)
        return Update(outputs, tf.gather(gradients.outputs, i), zero)


class WholeUpdates:
    """Updates with all weights formed at once, for any model and rule.

    Args:
        network: the network.
        read_outputs: a function (x, weights) -> f [n, C] that returns the values from which D is computed.
        backprop: the passes of the network; None means one forward and one backward pass per source.
        rule: an update rule.
        x, y, learning_rates, weights: as for `LayerwiseUpdates`.
    """

    def __init__(
        self,
        network: Network,
        read_outputs: Callable[[tf.Tensor, Any], tf.Tensor],
        backprop: LossBackprop | None,
        rule: UpdateRule,
        x: tf.Tensor,
        y: tf.Tensor,
        learning_rates: tf.Tensor,
        weights: list,
    ) -> None:
        self._network, self._read_outputs, self._rule = network, read_outputs, rule
        self._x, self._y, self._learning_rates, self._weights = (
            x,
            y,
            learning_rates,
            weights,
        )
        self._factor = rule.gradient_factor(learning_rates)
        self._gradients = (
            None
            if backprop is None
            else SourceGradients(backprop, x, y, self._factor, weights)
        )

    def __getitem__(self, i: tf.Tensor) -> Update:
        x, y = row(self._x, i), row(self._y, i)
        if self._gradients is None:
            gradients, outputs = self._network.loss_gradient(
                x, y, tf.gather(self._factor, i), self._weights
            )
            before = outputs[0]
        else:
            gradients = [
                self._gradients.of_weight(k, i) for k in range(len(self._weights))
            ]
            before = tf.gather(self._gradients.outputs, i)
        zero = 0.0 * tf.add_n([tf.reduce_sum(g) for g in gradients])
        if not self._rule.elementwise:
            gradients = self._rule.as_in_training(x, y, self._weights, gradients)
        weights = self._rule.updated(self._weights, gradients, self._learning_rates[i])
        return Update(lambda x: self._read_outputs(x, weights), before, zero)
