"""First-order changes of predictions, and the examples that an engine evaluates for them."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class FirstOrder(NamedTuple):
    """First-order changes of C outputs at n_t targets by the updates on n_s sources, per unit of η.

    Attributes:
        link: name of the link from the differentiated variable u to the outputs f (`output_gradients.LINKS`).
        before, before_at_source: f at the targets [n_t, C] and at the sources [n_s, C].
        moved, moved_at_source: δ, the change of u, at the targets [n_s, n_t, C] and at the sources [n_s, C].
        link_derivative, link_derivative_at_source: df/du at the targets [n_t, C] and at the sources [n_s, C].
    """

    link: str
    before: tf.Tensor
    moved: tf.Tensor
    before_at_source: tf.Tensor
    moved_at_source: tf.Tensor
    link_derivative: tf.Tensor | float = 1.0
    link_derivative_at_source: tf.Tensor | float = 1.0


class JoinedExamples(NamedTuple):
    """The targets, followed by the sources that are not targets, so that all sources are included.

    Attributes:
        x: [n, ...].
        column: int [n_s], the position of each source in x.
        n_targets: n_t.
    """

    x: tf.Tensor
    column: np.ndarray
    n_targets: int

    @classmethod
    def of(
        cls, x_sources: tf.Tensor, x_targets: tf.Tensor, source_column: np.ndarray
    ) -> "JoinedExamples":
        """Join the examples.

        `source_column`, int [n_s], is the column of each source among the targets, −1 if the source is not a target.
        """
        n_t = x_targets.shape[0]
        no_target = source_column < 0
        x = tf.concat(
            [x_targets, tf.gather(x_sources, np.flatnonzero(no_target))], axis=0
        )
        column = np.where(no_target, n_t + np.cumsum(no_target) - 1, source_column)
        return cls(x, column, n_t)

    @property
    def are_the_sources(self) -> bool:
        """Return whether x holds exactly the sources, in the same order."""
        return np.array_equal(self.column, np.arange(self.x.shape[0]))

    def split(
        self, outputs: tf.Tensor, link_derivative: tf.Tensor, moved: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Return the fields of `FirstOrder` after `link`, from f and df/du [n, C] and δ [n_s, n, C] at x."""
        targets = np.arange(self.n_targets)
        return (
            tf.gather(outputs, targets),
            moved[:, : self.n_targets],
            tf.gather(outputs, self.column),
            tf.gather(moved, self.column, axis=1, batch_dims=1),
            tf.gather(link_derivative, targets),
            tf.gather(link_derivative, self.column),
        )
