"""Section 4: the flow of Algorithm 1 on a ReLU gate with realisable labels (Definition 5, Theorems 4.1 and 4.3)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import (
    ArrayLike,
    as_learning_rate,
    as_positive,
    as_tensor,
    as_times,
    as_vector_pair,
    check_last_axis,
    check_positive_definite,
    inner,
    ratio_or_nan,
)
from srel_tf.theory.gate_modes import GateModes, passed_share


class _Arguments(NamedTuple):
    """Checked arguments of the S_rel methods of a gate.

    Attributes:
        w0: w(0), [n].
        target: x', [P, n].
        source: x, [P, n].
        single: Whether one pair of vectors [n] was given.
    """

    w0: tf.Tensor
    target: tf.Tensor
    source: tf.Tensor
    single: bool


class ReLUGate:
    """The ODE of Algorithm 1 for f(w, x) = max(0, ⟨w, x⟩) with labels max(0, ⟨w*, x⟩) (Definition 5, eq. 5).

    dw/dt = β M (w* − w),  M = E[1{⟨w*, x⟩ > 0} x xᵀ]. One step of Algorithm 1 with step η advances t by η/β on
    average.

    The methods raise `ShapeError` for vectors of the wrong shape, and `AssumptionError` for negative times.

    Args:
        w_star: The ground truth w*, [n].
        second_moment: M, [n, n], symmetric positive definite. None means x ~ N(0, I), where M = I/2 for every w*.
        beta: β > 0.

    Raises:
        AssumptionError: M is not symmetric and positive definite, as Theorem 4.1 assumes, or β is not positive.
        ShapeError: `w_star` or M has the wrong shape.

    Example:
        >>> from srel_tf import theory
        >>> gate = theory.ReLUGate(w_star=[1.0, 1.0])
        >>> print(gate.weights([0.0, 0.0], [0.0, 2.0]).numpy().round(4))
        [[0.     0.    ]
         [0.6321 0.6321]]
        >>> srel = gate.srel([0.5, 0.5], [0.0, 2.0], x_target=[2.0, 1.0], x_source=[1.0, 1.0], learning_rate=0.01)
        >>> print(srel.numpy().round(3))
        [1.5 1.5]
    """

    def __init__(
        self,
        w_star: ArrayLike,
        second_moment: ArrayLike | None = None,
        beta: float = 1.0,
    ) -> None:
        self.w_star = as_tensor(w_star, "w_star", 1)
        self.dimension = self.w_star.shape[0]
        if not self.dimension:
            raise ShapeError("w_star must hold at least one weight; given w_star = [].")
        self.beta = as_positive(beta, "beta", "Definition 5")
        if second_moment is None:
            second_moment = tf.eye(self.dimension, dtype=tf.float64) / 2
        self.second_moment = as_tensor(second_moment, "second_moment", 2)
        check_last_axis(
            self.second_moment, self.dimension, "second_moment", "as many as w_star"
        )
        self._eigenvalues, eigenvectors = check_positive_definite(
            self.second_moment, "second_moment"
        )
        self._modes = GateModes(self.w_star, self.rates, eigenvectors)

    @property
    def rates(self) -> tf.Tensor:
        """Relaxation rates β m of the modes, [n], ascending, per unit of time."""
        return self.beta * self._eigenvalues

    def weights(self, w0: ArrayLike, t: ArrayLike) -> tf.Tensor:
        """Theorem 4.1 (eqs. 6 and 7): w(t) = e^{−βMt} w(0) − expm1(−βMt) w*, where w* is M⁻¹z of the paper.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T] (or a scalar, T = 1).

        Returns:
            [T, n].

        Raises:
            AssumptionError: A time is negative.
            ShapeError: `w0` has the wrong shape.
        """
        return self._modes.weights(self._vector(w0, "w0"), as_times(t))

    def srel(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """Compute the exact S_rel of Algorithm 1's update (eq. 9) for a finite step, from eqs. 19 and 20.

        With α₁ = ⟨w(t), x'⟩ and α₂ = η β ⟨w* − w(t), x⟩ ⟨x, x'⟩, the prediction at x' changes by
        max(0, α₁ + α₂) − max(0, α₁) = φ' α₂, where φ' ∈ [0, 1] is the share of α₂ that passes the ReLU at x'. The
        share at x is φ. The factor ηβ⟨w* − w(t), x⟩ is common to the changes at x' and x, and tends to zero as training
        ends. This factor is left out: S_rel = φ' |⟨x, x'⟩| / (φ ‖x‖²).

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.
            learning_rate: Length η > 0 of the fictitious step.

        Returns:
            [T], or [T, P]. NaN where the prediction at the source does not change: if ⟨w*, x⟩ <= 0, if
            ⟨w* − w(t), x⟩ = 0, or if the gate is shut at x before and after the step.

        Raises:
            AssumptionError: A time is negative, or η is not positive.
            ShapeError: Vectors have the wrong shape.
        """
        checked = self._arguments(w0, x_target, x_source)
        step = self.beta * as_learning_rate(learning_rate)
        times = as_times(t)
        residual = self._modes.residual(checked.w0, times, checked.source)

        overlap = inner(checked.target, checked.source)  # ⟨x, x'⟩, [P]
        square = tf.reduce_sum(checked.source**2, -1)  # ‖x‖², [P]
        common_factor = step * residual.mantissa
        before_target = self._modes.preactivation(checked.w0, times, checked.target)
        before_source = self._modes.preactivation(checked.w0, times, checked.source)
        share_target = passed_share(before_target, residual, common_factor * overlap)
        share_source = passed_share(before_source, residual, common_factor * square)

        is_positive = self._margin(checked.source) > 0
        is_updated = is_positive & (residual.mantissa != 0)
        change_target = share_target * tf.abs(overlap)
        change_source = tf.where(
            is_updated, share_source * square, tf.zeros_like(share_source)
        )
        srel = ratio_or_nan(change_target, change_source)
        return srel[:, 0] if checked.single else srel

    def change_bound(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """Lemma 4.2 (eq. 18): a bound on how much the update on x changes the prediction at x'.

        |max(0, ⟨w⁺, x'⟩) − max(0, ⟨w, x'⟩)| <= ηβ 1{⟨w*, x⟩ > 0} |⟨x, x'⟩| |⟨e^{−βMt}(w(0) − w*), x⟩|.

        Args:
            w0: w(0), [n].
            t: Times >= 0, [T].
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.
            learning_rate: Length η > 0 of the fictitious step.

        Returns:
            The bound, [T] or [T, P].
        """
        checked = self._arguments(w0, x_target, x_source)
        step = self.beta * as_learning_rate(learning_rate)
        times = as_times(t)
        residual = self._modes.residual(checked.w0, times, checked.source)
        is_positive = self._margin(checked.source) > 0
        is_updated = tf.cast(is_positive, tf.float64)
        overlap = tf.abs(inner(checked.target, checked.source))
        size_of_residual = tf.abs(residual.mantissa)
        bound = (
            step * is_updated * overlap * size_of_residual * tf.exp(residual.logarithm)
        )
        return bound[:, 0] if checked.single else bound

    @staticmethod
    def late_lower_bound(x_target: ArrayLike, x_source: ArrayLike) -> tf.Tensor:
        """Theorem 4.3 (eq. 23): |⟨x, x'⟩| / ‖x‖², the lower bound of S_rel at late times.

        The theorem assumes ⟨w*, x⟩ > 0 and ⟨w*, x'⟩ > 0. S_rel equals the bound as soon as no ReLU clips.

        Args:
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.

        Returns:
            A scalar, or [P].
        """
        target, source = as_vector_pair(x_target, x_source, ("x_target", "x_source"))
        overlap = tf.abs(inner(target, source))
        return ratio_or_nan(overlap, tf.reduce_sum(source**2, -1))

    def late_time(
        self,
        w0: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
    ) -> tf.Tensor:
        """Compute a time t* of Theorem 4.3 after which no ReLU clips, so that S_rel equals the lower bound.

        The time follows from |⟨w(t) − w*, v⟩| <= e^{−βm₁t} ‖w(0) − w*‖ ‖v‖, where m₁ is the smallest eigenvalue of M.

        Args:
            w0: w(0), [n].
            x_target: x', [n] or [P, n].
            x_source: x, of the same shape.
            learning_rate: Length η > 0 of the fictitious step.

        Returns:
            The time, a scalar or [P].

        Raises:
            AssumptionError: ⟨w*, x⟩ or ⟨w*, x'⟩ is not positive; Theorem 4.3 makes no claim in this case.
        """
        checked = self._arguments(w0, x_target, x_source)
        step = self.beta * as_learning_rate(learning_rate)
        distance = tf.norm(checked.w0 - self.w_star)
        source_norm = tf.norm(checked.source, axis=-1)
        latest = tf.zeros([checked.source.shape[0]], tf.float64)
        for x, name in ((checked.target, "x'"), (checked.source, "x")):
            margin = self._positive_margin(x, name)
            overlap = tf.abs(inner(x, checked.source))
            reach = tf.norm(x, axis=-1) + step * source_norm * overlap
            largest_swing = distance * reach
            unclipped_after = tf.math.log(largest_swing / margin) / self.rates[0]
            latest = tf.maximum(latest, unclipped_after)
        return latest[0] if checked.single else latest

    def _arguments(
        self,
        w0: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
    ) -> _Arguments:
        """Check w(0) [n], and x' and x, [n] or [P, n]."""
        target, source = as_vector_pair(x_target, x_source, ("x_target", "x_source"))
        check_last_axis(source, self.dimension, "x_source", "as many as w_star")
        return _Arguments(
            w0=self._vector(w0, "w0"),
            target=tf.reshape(target, [-1, self.dimension]),
            source=tf.reshape(source, [-1, self.dimension]),
            single=source.shape.rank == 1,
        )

    def _vector(self, value: ArrayLike, name: str) -> tf.Tensor:
        """Check a vector [n]."""
        vector = as_tensor(value, name, 1)
        check_last_axis(vector, self.dimension, name, "as many as w_star")
        return vector

    def _margin(self, x: tf.Tensor) -> tf.Tensor:
        """Compute ⟨w*, x⟩, [P], from x [P, n]."""
        return inner(x, self.w_star)

    def _positive_margin(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """Compute ⟨w*, x⟩, [P]; raise `AssumptionError` unless each is positive."""
        margin = self._margin(x)
        smallest = margin.numpy().min(initial=np.inf)
        if smallest <= 0:
            raise AssumptionError(
                f"Theorem 4.3 assumes ⟨w*, {name}⟩ > 0; the smallest given is {smallest:g}."
            )
        return margin
