"""Section 5: degree-d weight-homogeneous feature linear predictors (Definition 6, eqs. 26–31, Theorem 5.1)."""

import math
from collections.abc import Callable

import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory.checks import (
    ArrayLike,
    as_degree,
    as_learning_rate,
    as_tensor,
    nan_unless,
    ratio_or_nan,
)
from srel_tf.theory.flow import feature_flow
from srel_tf.theory.homogeneous_inputs import (
    as_batch,
    as_labels,
    as_residual,
    as_rows,
    as_weights,
    unbatch,
)


class HomogeneousPredictor:
    """Predictor f(W, x) = α(x) + Σ_r ⟨β_r(x), w_r^d⟩, powers taken entry by entry (Definition 6).

    An x with one axis, [n], is a single input, and the results have no axis B. An x with more axes, [B, ...], is a
    batch of B inputs. The loss is ℓ(W, (x, y)) = ½ (y − f(W, x))² (eq. 10).

    The methods raise `ShapeError` for inputs, features, labels or weights of the wrong shape, and `AssumptionError` for
    values that are not finite. `flow` also raises `AssumptionError` for times that are negative or do not ascend.

    Args:
        alpha: α, a function from a batch of B inputs to [B].
        beta: β, a function from a batch of B inputs to [B, r, n].
        degree: d, an integer >= 1.

    Raises:
        AssumptionError: `degree` is not an integer >= 1.

    Example:
        A linear predictor f(w, x) = ⟨w, x⟩ is the case d = 1 with β(x) = x.

        >>> import tensorflow as tf
        >>> from srel_tf import theory
        >>> linear = theory.HomogeneousPredictor(lambda x: tf.zeros(len(x)), lambda x: x[:, None], degree=1)
        >>> weights = [[1.0, 2.0]]
        >>> x_target, x_source = [1.0, 1.0], [2.0, 0.0]
        >>> print(linear(weights, x_target).numpy())
        3.0
        >>> print(linear.srel_limit(weights, x_target, x_source).numpy())
        0.5
        >>> print(linear.proximity(x_target, x_source).numpy())
        2.0
    """

    def __init__(
        self,
        alpha: Callable[[tf.Tensor], tf.Tensor],
        beta: Callable[[tf.Tensor], tf.Tensor],
        degree: int,
    ) -> None:
        self.alpha = alpha
        self.beta = beta
        self.degree = as_degree(degree)

    def __call__(self, weights: ArrayLike, x: ArrayLike) -> tf.Tensor:
        """Definition 6: the predictions f(W, x).

        Args:
            weights: W, [..., r, n].
            x: Inputs, [B, ...], or one input [n].

        Returns:
            [..., B], or [...] for one input.
        """
        batch, single = as_batch(x, "x")
        features = self._features(batch)
        powers = as_weights(weights, features) ** self.degree
        return unbatch(self._offset(batch) + _inner(features, powers), single)

    def srel_limit(
        self,
        weights: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
    ) -> tf.Tensor:
        """Eq. 31: S_rel in the limit of a small fictitious step.

        lim S_rel = |Σ_r ⟨β_r(x') ⊙ β_r(x), w_r^{2(d−1)}⟩| / |Σ_r ⟨β_r(x)², w_r^{2(d−1)}⟩|. The changes of the
        predictions at x' and at x have a common factor, the residual y − f at the source. The residual tends to zero as
        training ends. It is left out of both changes, so the label is not needed.

        Args:
            weights: W, [..., r, n], for example [T, r, n].
            x_target: x', B inputs or one.
            x_source: x, of the shape of `x_target`. Sources and targets are paired in order.

        Returns:
            [..., B], or [...] for one pair; NaN where the denominator is zero.
        """
        target, source, single = self._feature_pair(x_target, x_source)
        checked_weights = as_weights(weights, source)
        no_step = tf.zeros(
            [*checked_weights.shape[:-2], source.shape[0]], checked_weights.dtype
        )
        srel = self._ratio_of_changes(checked_weights, target, source, no_step)
        return unbatch(srel, single)

    def srel(
        self,
        weights: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
        learning_rate: float,
        *,
        label: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> tf.Tensor:
        """Eqs. 26 and 28: S_rel of a finite step η, from the label or the residual at the source.

        With g = η d (y − f(W, x)): f(W⁺, x') − f(W, x') = g Σ_{k=1}^{d} C(d, k) g^{k−1}
        Σ_r ⟨β_r(x') ⊙ β_r(x)^k, w_r^{d(k+1)−2k}⟩. The first factor g is common to the changes at x' and x and is left
        out.

        Args:
            weights: W, [..., r, n].
            x_target: x', B inputs or one.
            x_source: x, of the shape of `x_target`. Sources and targets are paired in order.
            learning_rate: η > 0.
            label: y at the source, [B] or a scalar.
            residual: y − f(W, x) at the source, broadcastable to [..., B]. Give it instead of `label` if the
                subtraction y − f(W, x) would lose digits, for example late in training.

        Returns:
            [..., B], or [...] for one pair; NaN where the residual, or the change at the source, is zero.

        Raises:
            ShapeError: Shapes of arrays disagree, or not exactly one of `label` and `residual` is given.
        """
        target, source, single = self._feature_pair(x_target, x_source)
        checked_weights = as_weights(weights, source)
        if label is not None and residual is None:
            known_residual = self._residual(checked_weights, x_source, label)
        elif residual is not None and label is None:
            full_shape = (*checked_weights.shape[:-2], source.shape[0])
            known_residual = as_residual(residual, full_shape, single)
        else:
            raise ShapeError(
                "Give exactly one of label (y at the source) and residual (y − f at the source)."
            )

        step_length = as_learning_rate(learning_rate)
        step = step_length * self.degree * known_residual
        srel = self._ratio_of_changes(checked_weights, target, source, step)
        return unbatch(nan_unless(known_residual != 0, srel), single)

    def srel_bound(
        self,
        weights: ArrayLike,
        x_target: ArrayLike,
        x_source: ArrayLike,
    ) -> tf.Tensor:
        """Theorem 5.1 (eq. 32): lim S_rel <= P(x, x') Σ_r ‖w_r^{2(d−1)}‖ / |Σ_r ⟨β_r(x)², w_r^{2(d−1)}⟩|.

        The bound depends on the weights, and therefore on time. P(x, x') does not.

        Args:
            weights: W, [..., r, n].
            x_target: x', B inputs or one.
            x_source: x, of the shape of `x_target`. Sources and targets are paired in order.

        Returns:
            [..., B], or [...] for one pair; NaN where the denominator is zero.
        """
        target, source, single = self._feature_pair(x_target, x_source)
        powers = _scaled(as_weights(weights, source)) ** (2 * (self.degree - 1))
        norms = tf.reduce_sum(tf.norm(powers, axis=-1), -1)
        largest_change_target = _proximity(target, source) * norms[..., None]
        change_source = tf.abs(_inner(source**2, powers))
        bound = ratio_or_nan(largest_change_target, change_source)
        return unbatch(bound, single)

    def proximity(self, x_target: ArrayLike, x_source: ArrayLike) -> tf.Tensor:
        """P(x, x') = max_r ‖β_r(x') ⊙ β_r(x)‖ of Theorem 5.1, symmetric in x and x'.

        Args:
            x_target: x', B inputs or one.
            x_source: x, of the shape of `x_target`. Sources and targets are paired in order.

        Returns:
            [B], or a scalar.
        """
        target, source, single = self._feature_pair(x_target, x_source)
        return unbatch(_proximity(target, source), single)

    def moments(self, x: ArrayLike, y: ArrayLike) -> tuple[tf.Tensor, tf.Tensor]:
        """Moments a = E[(y − α(x)) β(x)] and b = E[β(x) ⊗ β(x)] over the given examples.

        Args:
            x: B inputs.
            y: Labels, [B].

        Returns:
            a [r, n] and b [r, n, r, n].
        """
        features, labels = self._training_set(x, y)
        a = tf.einsum("b,brn->rn", labels, features) / len(labels)
        b = tf.einsum("brn,bsm->rnsm", features, features) / len(labels)
        return a, b

    def flow(
        self,
        w0: ArrayLike,
        t: ArrayLike,
        x: ArrayLike,
        y: ArrayLike,
        theta: float,
        rtol: float = 1e-10,
        atol: float = 1e-12,
    ) -> tf.Tensor:
        """Definition 7 (eq. 12): the gradient flow on the mean loss over the given examples, integrated numerically.

        Args:
            w0: Weights at t = 0, [r, n].
            t: Ascending times >= 0, [T]. The flow moves at speed θ: one step of gradient descent with step η advances
                t by η/θ.
            x: B inputs.
            y: Labels, [B].
            theta: θ > 0.
            rtol: Relative tolerance of the integrator.
            atol: Absolute tolerance of the integrator.

        Returns:
            [T, r, n].
        """
        features, labels = self._training_set(x, y)
        return feature_flow(
            features, labels, w0, t, theta, self.degree, rtol=rtol, atol=atol
        )

    def _training_set(self, x: ArrayLike, y: ArrayLike) -> tuple[tf.Tensor, tf.Tensor]:
        """Return β(x), [B, r, n], and y − α(x), [B]."""
        batch, _ = as_batch(x, "x")
        features = self._features(batch)
        labels = as_tensor(y, "y", 1)
        if labels.shape[0] != features.shape[0]:
            given = tuple(labels.shape)
            raise ShapeError(
                f"y must hold {features.shape[0]} labels, one per input, but has shape {given}."
            )
        return features, labels - self._offset(batch)

    def _residual(
        self,
        weights: tf.Tensor,
        x_source: ArrayLike,
        label: ArrayLike,
    ) -> tf.Tensor:
        """Compute y − f(W, x), [..., B]."""
        batch, _ = as_batch(x_source, "x_source")
        labels = as_labels(label, batch.shape[0])
        return labels - self(weights, batch)

    def _ratio_of_changes(
        self,
        weights: tf.Tensor,
        target: tf.Tensor,
        source: tf.Tensor,
        step: tf.Tensor,
    ) -> tf.Tensor:
        """Compute |f(W⁺, x') − f(W, x')| / |f(W⁺, x) − f(W, x)|, or its limit (eq. 31) if the step is zero.

        A weight whose feature at x is zero contributes to neither change and is set to zero. The other weights are
        divided by the largest magnitude s among them, so that no power underflows. As a result, the k-th term of
        eq. 26 is divided by s^{2(d−1)} and by s^{(k−1)(d−2)}. The first of these factors cancels in the ratio. The
        second factor is restored by multiplying g by s^{d−2}.

        Args:
            weights: W, [..., r, n].
            target: β(x'), [B, r, n].
            source: β(x), [B, r, n].
            step: g, [..., B].

        Returns:
            [..., B]; NaN where the change at x is zero.
        """
        counted = tf.where(source != 0, weights[..., None, :, :], 0.0)
        largest = tf.reduce_max(tf.abs(counted), [-2, -1])
        step *= largest ** (self.degree - 2)
        counted = _scaled(counted)
        change_target = self._change_over_step(counted, target, source, step)
        change_source = self._change_over_step(counted, source, source, step)
        return ratio_or_nan(tf.abs(change_target), tf.abs(change_source))

    def _change_over_step(
        self,
        weights: tf.Tensor,
        features: tf.Tensor,
        source: tf.Tensor,
        step: tf.Tensor,
    ) -> tf.Tensor:
        """Compute (f(W⁺, x') − f(W, x')) / g, the sum over k of eq. 26.

        Args:
            weights: W of each pair, [..., B, r, n].
            features: β(x'), [B, r, n].
            source: β(x), [B, r, n].
            step: g, [..., B].

        Returns:
            [..., B].
        """
        d = self.degree
        terms = []
        for k in range(1, d + 1):
            powers = weights ** (d * (k + 1) - 2 * k)
            products = tf.reduce_sum(features * source**k * powers, [-2, -1])
            terms.append(math.comb(d, k) * step ** (k - 1) * products)
        return tf.add_n(terms)

    def _offset(self, batch: tf.Tensor) -> tf.Tensor:
        """Return α of a batch, [B]."""
        return as_rows(self.alpha(batch), batch, "alpha(x)", "[B]", rank=1)

    def _features(self, batch: tf.Tensor) -> tf.Tensor:
        """Return β of a batch, [B, r, n]."""
        return as_rows(self.beta(batch), batch, "beta(x)", "[B, r, n]", rank=3)

    def _feature_pair(
        self, x_target: ArrayLike, x_source: ArrayLike
    ) -> tuple[tf.Tensor, tf.Tensor, bool]:
        """Return β(x') and β(x), [B, r, n] each, and whether a single pair was given."""
        target, single = as_batch(x_target, "x_target")
        source, _ = as_batch(x_source, "x_source")
        if target.shape != source.shape:
            raise ShapeError(
                f"x_target {tuple(target.shape)} and x_source {tuple(source.shape)} must pair up: give both the same "
                "shape."
            )
        return self._features(target), self._features(source), single


def _inner(features: tf.Tensor, powers: tf.Tensor) -> tf.Tensor:
    """Compute Σ_r ⟨features_r, powers_r⟩, [..., B], from features [B, r, n] and powers [..., r, n]."""
    *leading, rows, columns = powers.shape
    flat_powers = tf.reshape(powers, [*leading, 1, rows * columns])
    flat_features = tf.reshape(features, [features.shape[0], -1])
    return tf.matmul(flat_powers, flat_features, transpose_b=True)[..., 0, :]


def _scaled(weights: tf.Tensor) -> tf.Tensor:
    """Divide weights [..., r, n] by their largest magnitude, so that no power underflows.

    The divisor cancels in ratios.
    """
    largest = tf.reduce_max(tf.abs(weights), [-2, -1], keepdims=True)
    return tf.math.divide_no_nan(weights, largest)


def _proximity(target: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
    """Compute max_r ‖β_r(x') ⊙ β_r(x)‖, [B], from features [B, r, n] each."""
    return tf.reduce_max(tf.norm(target * source, axis=-1), -1)
