"""Section 3: penalised linear regression over fixed features with discrete labels (eqs. 3 and 4, Theorems 3.1, 3.2)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory.checks import (
    ArrayLike,
    as_count,
    as_indices,
    as_positive,
    as_tensor,
    as_times,
    check_last_axis,
    check_option,
    ratio_or_nan,
)
from srel_tf.theory.ridge_modes import RidgeModes


@dataclass(frozen=True)
class _Pairs:
    """P pairs of a source and a target, given by row indices of the features.

    Several rows may have identical features. Each such row is replaced by the first of them, so that S_rel of two
    identical rows is exactly 1. The original rows of the sources are also kept, because identical rows may have
    different labels.

    Attributes:
        examples: Row index of each source as given, [P].
        sources: Index of the first row with the same features as the source, [P].
        targets: Index of the first row with the same features as the target, [P].
        single: Whether one pair was given as two integers.
    """

    examples: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    single: bool


class PenalizedRegression:
    r"""Gradient flow on a ridge-penalised last layer W ∈ R^{K×p} with one-hot labels (Definition 4).

    dw_q/dt = −θ² ∂L/∂w_q = θ² (u_q − M w_q),  M = c I + HᵀH/N,  u_q = (1/N) Σ_{i in class q} h_i.

    H are the features, N is the number of rows, K is `num_classes`. Time is in the paper's unit: the flow moves at
    speed θ², so one step of gradient descent with step η advances t by η/θ². The computation uses the singular vectors
    of H (`srel_tf.theory.ridge_modes`).

    Precision: the least accurate case is ridge="loss" with a tiny λ₁ and labels that W h fits exactly. Late in
    training, S_rel is then a ratio of two tiny changes, both of the order of c. This ratio is accurate to 4e-11 at
    λ₁ = 1e-4, but only to about 1e-7 at λ₁ = 1e-8. At λ₁ = 1e-8 the problem itself is sensitive to rounding: changing
    a feature by one unit in the last place changes the true S_rel by 6e-9.

    The methods raise `ShapeError` for arrays of the wrong shape, and `AssumptionError` for negative times or values
    that are not finite.

    Args:
        features: Outputs h of the last hidden layer, [N, p], one training example per row.
        labels: Integers in 0..K−1, [N].
        num_classes: K.
        lam: λ₁ > 0 of eq. 3.
        theta: θ > 0 of Definition 4.
        ridge: Selects the coefficient c in the per-example loss ℓ(W; h) = ½‖e_k − W h‖² + (c/2)‖W‖². "paper":
            c = Nλ₁/K, as in the definitions of M, T and h̃ in the paper. "loss": c = λ₁/K, as in the gradient of
            eq. 3. The two values of c differ by the factor N.

    Raises:
        AssumptionError: λ₁ or θ is not positive (Theorem 3.1 needs M positive definite).
        ShapeError: Features or labels have wrong shapes or values, or `num_classes` is not a whole number.
        OptionError: `ridge` is neither "paper" nor "loss".

    Example:
        >>> from srel_tf import theory
        >>> features = [[1.0, 0.0], [1.0, 1.0]]
        >>> model = theory.PenalizedRegression(features, [0, 1], num_classes=2, lam=0.1, theta=1.0)
        >>> w0 = [[0.0, 0.0], [0.0, 0.0]]
        >>> print(model.weights(w0, [0.0, 1.0]).shape)
        (2, 2, 2)
        >>> print(model.srel(w0, [0.0], source=0, target=0).numpy())
        [1.]
        >>> print(model.loss(w0).numpy())
        0.5
    """

    def __init__(
        self,
        features: ArrayLike,
        labels: npt.ArrayLike,
        num_classes: int,
        lam: float,
        theta: float,
        ridge: str = "paper",
    ) -> None:
        self.features = as_tensor(features, "features", 2)
        self.size, self.width = self.features.shape
        self.num_classes = as_count(num_classes, "num_classes")

        indices = as_indices(labels, "labels", self.num_classes)
        if indices.shape != (self.size,):
            raise ShapeError(
                f"labels must have shape ({self.size},), one per row of features, not {indices.shape}."
            )
        self.lam = as_positive(
            lam, "lam", "Theorem 3.1 needs λ₁ > 0, so that M is positive definite"
        )
        self.theta = as_positive(theta, "theta", "Definition 4 moves at speed θ²")
        self.ridge = check_option(ridge, ("paper", "loss"), "ridge")
        factor = self.size if ridge == "paper" else 1
        self.coefficient = self.lam / self.num_classes * factor

        self.one_hot = tf.one_hot(indices, self.num_classes, dtype=tf.float64)
        self._modes = RidgeModes(self.features, self.one_hot, self.coefficient)
        self._first_equal_row = _first_equal_rows(self.features.numpy())

    @property
    def rates(self) -> tf.Tensor:
        """Relaxation rates θ²μ of the modes, [min(N, p)], per unit of time; the slowest possible rate is θ²c."""
        return self.theta**2 * self._modes.rates

    def stationary_weights(self) -> tf.Tensor:
        """W* = (M⁻¹ u_q)_q, [K, p]: the limit of Theorem 3.1 as t → ∞."""
        return self._modes.stationary_weights()

    def weights(self, w0: ArrayLike, t: ArrayLike) -> tf.Tensor:
        """Theorem 3.1: the weights e^{−θ²Mt} w_q(0) − expm1(−θ²Mt) M⁻¹ u_q.

        Args:
            w0: Initial W, [K, p], or [I, K, p] for I initial values.
            t: Times >= 0, [T] (or a scalar, T = 1). One step of gradient descent with step η advances t by η/θ².

        Returns:
            [T, K, p] (or [I, T, K, p]).

        Raises:
            AssumptionError: A time is negative.
            ShapeError: `w0` has the wrong shape.
        """
        return self._modes.weights(self._initial(w0), self._elapsed(t))

    def loss(self, weights: ArrayLike) -> tf.Tensor:
        """Eq. 3, in which the coefficient of ‖W‖² is λ₁/2K for both values of `ridge`.

        The flow minimises `objective`, which depends on `ridge`.

        Args:
            weights: W, [..., K, p].

        Returns:
            [...].
        """
        return self._penalized_loss(weights, self.lam / self.num_classes)

    def objective(self, weights: ArrayLike) -> tf.Tensor:
        """The function that the gradient flow of Definition 4 minimises.

        If ridge="loss", the function is eq. 3. If ridge="paper", it is eq. 3 with the coefficient Nλ₁/2K of ‖W‖².

        Args:
            weights: W, [..., K, p].

        Returns:
            [...].
        """
        return self._penalized_loss(weights, self.coefficient)

    def srel(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        source: npt.ArrayLike,
        target: npt.ArrayLike,
    ) -> tf.Tensor:
        """Theorem 3.2, eq. 4: S_rel (not squared), where D is the ℓ2 norm of the change of the K outputs.

        S_rel does not depend on the step length: the predictor is linear in W, so a finite η cancels.

        Args:
            w0: Initial W, [K, p], or [I, K, p] for I initial values.
            t: Times >= 0, [T].
            source: Row index of the source in `features`, an integer or a list [P]; (k, i) in the paper.
            target: Row index of the target in `features`, an integer or a list [P]; (c, j) in the paper.

        Returns:
            [T]. There is a first axis I if `w0` has an axis I, and a last axis P if `source` and `target` are lists.
            NaN where the prediction at the source does not change, for example for a zero feature vector. If source and
            target have equal features, S_rel is 1. With one feature (p = 1), S_rel is |h'|/|h| for every W, even where
            the gradient is zero.

        Raises:
            AssumptionError: A time is negative.
            ShapeError: `w0` or the indices have the wrong shape, or an index is out of range.
        """
        pairs = self._pairs(source, target)
        changes = self._changes(self._initial(w0), self._elapsed(t), pairs)
        srel = self._exact_for_multiples(_ratio_of_norms(*changes), pairs)
        return srel[..., 0] if pairs.single else srel

    def _changes(
        self,
        w0: tf.Tensor,
        elapsed: tf.Tensor,
        pairs: _Pairs,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute the changes of the outputs at target and source in eq. 4, up to a common factor.

        The gradient of the loss of the source is the gradient at W* plus a transient that decays with time:
        change at h' = ⟨∇ℓ(W*), h'⟩ + c (W − W*) h' + ⟨h', h⟩ (W − W*) h.

        Args:
            w0: Initial W, [..., K, p].
            elapsed: τ = θ²t, [T].
            pairs: P pairs.

        Returns:
            Change at the target and change at the source, [..., T, P, K] each.
        """
        modes = self._modes
        stationary_source = modes.stationary_change(pairs.examples, pairs.sources)
        stationary_target = modes.stationary_change(pairs.examples, pairs.targets)
        transient_source = modes.transient(w0, elapsed, pairs.sources)
        transient_target = modes.transient(w0, elapsed, pairs.targets)
        # If the stationary gradient is exactly zero (a single training example), both changes contain the decay
        # e^{−μτ} of the slowest mode as a common factor. This factor is then left out, so that it cannot underflow.
        stationary = tf.concat([stationary_source, stationary_target], -1)  # [P, 2K]
        is_zero = tf.reduce_all(stationary == 0, -1)  # [P]
        slowest = tf.exp(-elapsed * modes.rates[-1])[:, None]  # [T, 1]
        decay = tf.where(is_zero, tf.ones_like(slowest), slowest)  # [T, P]
        decay = decay[..., None]

        c = self.coefficient
        inner_source = self._inner(pairs.sources, pairs.sources)  # ⟨h, h⟩, [P, 1]
        inner_target = self._inner(pairs.targets, pairs.sources)  # ⟨h', h⟩, [P, 1]
        relaxing_source = c * transient_source + inner_source * transient_source
        relaxing_target = c * transient_target + inner_target * transient_source
        change_source = stationary_source + decay * relaxing_source
        change_target = stationary_target + decay * relaxing_target
        return change_target, change_source

    def _exact_for_multiples(self, srel: tf.Tensor, pairs: _Pairs) -> tf.Tensor:
        """Replace S_rel [..., P] by |h'|/|h| if h' = h or p = 1.

        In these cases W cancels in the exact S_rel, but the rounding errors of the general formula do not cancel.
        """
        size_target = tf.reduce_max(tf.abs(self._rows(pairs.targets)), -1)
        size_source = tf.reduce_max(tf.abs(self._rows(pairs.sources)), -1)
        is_same = tf.constant((pairs.sources == pairs.targets) | (self.width == 1))
        return tf.where(
            is_same & (size_source > 0), ratio_or_nan(size_target, size_source), srel
        )

    def _initial(self, w0: ArrayLike) -> tf.Tensor:
        """Check initial weights [K, p] or [I, K, p]."""
        w0 = as_tensor(w0, "w0", (2, 3))
        check_last_axis(w0, self.width, "w0", "one weight per feature")
        if w0.shape[-2] != self.num_classes:
            raise ShapeError(
                f"w0 must have {self.num_classes} rows, one per class, but has shape {tuple(w0.shape)}."
            )
        return w0

    def _pairs(self, source: npt.ArrayLike, target: npt.ArrayLike) -> _Pairs:
        """Check that sources and targets are row indices of the features, and that there are equally many of both."""
        sources = as_indices(source, "source", self.size)
        targets = as_indices(target, "target", self.size)
        if sources.shape != targets.shape:
            raise ShapeError(
                f"source and target must have the same shape, but have shapes {sources.shape} and {targets.shape}."
            )
        source_rows = np.atleast_1d(sources)
        target_rows = np.atleast_1d(targets)

        single = sources.ndim == 0
        return _Pairs(
            examples=source_rows,
            sources=self._first_equal_row[source_rows],
            targets=self._first_equal_row[target_rows],
            single=single,
        )

    def _rows(self, indices: np.ndarray) -> tf.Tensor:
        """Return the features of the given rows, [P, p]."""
        return tf.gather(self.features, indices)

    def _inner(self, rows: np.ndarray, others: np.ndarray) -> tf.Tensor:
        """Compute the inner products of the features of paired rows, [P, 1]."""
        return tf.reduce_sum(self._rows(rows) * self._rows(others), -1)[:, None]

    def _elapsed(self, t: ArrayLike) -> tf.Tensor:
        """Return τ = θ²t, [T], the time in units in which the flow moves at speed 1."""
        return self.theta**2 * as_times(t)

    def _penalized_loss(self, weights: ArrayLike, coefficient: float) -> tf.Tensor:
        """Compute (1/2N) Σ_i ‖e_i − W h_i‖² + (coefficient/2) ‖W‖², [...], from weights [..., K, p]."""
        weights = as_tensor(weights, "weights")
        check_last_axis(weights, self.width, "weights", "one weight per feature")
        if weights.shape[-2] != self.num_classes:
            raise ShapeError(
                f"weights must be [..., {self.num_classes}, {self.width}], not {tuple(weights.shape)}."
            )
        rows = tf.reshape(weights, [-1, self.width])
        outputs = tf.matmul(self.features, rows, transpose_b=True)
        outputs = tf.reshape(outputs, [self.size, -1, self.num_classes])
        errors = self.one_hot[:, None] - outputs  # [N, batch, K]
        square_errors = tf.reduce_sum(errors**2, [0, 2])
        mean_errors = square_errors / (2 * self.size)
        data_loss = tf.reshape(mean_errors, weights.shape[:-2])
        square_norm = tf.reduce_sum(weights**2, [-2, -1])
        return data_loss + coefficient / 2 * square_norm


def _first_equal_rows(features: np.ndarray) -> np.ndarray:
    """Return, for each row of features [N, p], the index of the first row that is equal to it, [N]."""
    _, first, inverse = np.unique(
        features, axis=0, return_index=True, return_inverse=True
    )
    return first[inverse.reshape(-1)]


def _ratio_of_norms(change_target: tf.Tensor, change_source: tf.Tensor) -> tf.Tensor:
    """Compute the ratio of the ℓ2 norms of two changes, [..., K]; NaN where the change at the source is zero."""
    # Both changes are first divided by the largest entry of the change at the source, so that no square underflows or
    # overflows.
    largest = tf.reduce_max(tf.abs(change_source), -1, keepdims=True)
    relative_target = tf.math.divide_no_nan(change_target, largest)
    relative_source = tf.math.divide_no_nan(change_source, largest)
    return ratio_or_nan(
        tf.norm(relative_target, axis=-1), tf.norm(relative_source, axis=-1)
    )
