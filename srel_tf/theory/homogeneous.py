"""Section 5: degree-d weight-homogeneous feature linear predictors (Definition 6, eqs. 26–31, Theorem 5.1)."""

import math

import numpy as np
import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory.checks import as_degree, as_positive, as_tensor, ratio_or_nan
from srel_tf.theory.flow import feature_flow


class HomogeneousPredictor:
    """f(W, x) = α(x) + Σ_r ⟨β_r(x), w_r^d⟩, powers taken entry by entry (Definition 6).

    Args:
        alpha: function of a batch of B inputs, returns [B].
        beta: function of a batch of B inputs, returns [B, r, n].
        degree: d, an integer >= 1.

    An input has at least one axis: x of one axis [n] is a single input, and the axis B is then left out of what
    is returned. The loss is ℓ(W, (x, y)) = ½ (y − f(W, x))² (eq. 10).

    Raises:
        AssumptionError: `degree` is no integer >= 1.
        The methods raise ShapeError for inputs, features, labels or weights that do not fit, and AssumptionError for
        values that are not finite and (`flow`) for times that are negative or do not ascend.
    """

    def __init__(self, alpha, beta, degree):
        self.alpha, self.beta, self.degree = alpha, beta, as_degree(degree)

    def __call__(self, weights, x):
        """Definition 6: [..., B] from weights [..., r, n] and inputs [B, ...] (or one input: [...])."""
        batch, single = self._batch(x, "x")
        beta = self._features(batch)
        powers = self._weights(weights, beta) ** self.degree
        return self._unbatch(self._offset(batch) + self._pair(beta, powers), single)

    def srel_limit(self, weights, x_target, x_source):
        """Eq. 31: S_rel as the fictitious step goes to zero.

        lim S_rel = |Σ_r ⟨β_r(x') ⊙ β_r(x), w_r^{2(d−1)}⟩| / |Σ_r ⟨β_r(x)², w_r^{2(d−1)}⟩|. The residual y − f, which
        vanishes as training ends, is common to both and is left out; the label is not needed.

        Args:
            weights: [..., r, n], for example [T, r, n].
            x_target, x_source: B inputs each, paired, or one each.

        Returns:
            [..., B], or [...]; NaN where the denominator is zero.
        """
        target, source, single = self._feature_pair(x_target, x_source)
        power = self._scaled(weights, source) ** (2 * (self.degree - 1))
        srel = ratio_or_nan(tf.abs(self._pair(target * source, power)), tf.abs(self._pair(source**2, power)))
        return self._unbatch(srel, single)

    def srel(self, weights, x_target, x_source, learning_rate, *, label=None, residual=None):
        """Eqs. 26 and 28: S_rel of a finite step η, from the label y of the source or from its residual.

        With g = η d (y − f(W, x)): f(W⁺, x') − f(W, x') = g Σ_{k=1}^{d} C(d, k) g^{k−1}
        Σ_r ⟨β_r(x') ⊙ β_r(x)^k, w_r^{d(k+1)−2k}⟩. The leading g is common to x' and x and is left out.

        Args:
            weights: [..., r, n]. x_target, x_source: B inputs each, paired, or one each.
            learning_rate: η > 0.
            label: y at the source, [B] or a scalar; or instead
            residual: y − f(W, x) at the source, broadcastable to [..., B], where it is known better than the
                difference of y and f (late in training).

        Returns:
            [..., B], or [...]; NaN where the residual, or the change at the source, is zero.
        """
        if (label is None) == (residual is None):
            raise ShapeError("Give either label (y at the source) or residual (y − f there), not both or neither.")
        target, source, single = self._feature_pair(x_target, x_source)
        weights = self._weights(weights, source)
        if residual is None:
            label = as_tensor(label, "label", (0, 1))
            if label.shape.rank == 1 and label.shape[0] != source.shape[0]:
                raise ShapeError(f"label must hold {source.shape[0]} labels, one a source, not {label.shape[0]}.")
            residual = label - self._values(weights, x_source)
        else:
            residual = as_tensor(residual, "residual")
            residual = residual[..., None] if single else residual
            whole = (*weights.shape[:-2], source.shape[0])
            if not _broadcasts(residual.shape, whole):
                raise ShapeError(f"residual {tuple(residual.shape)} does not broadcast to {whole}, one a source.")
        step = as_positive(learning_rate, "learning_rate", "Definition 1") * self.degree * residual  # g
        changes = [self._change_over_step(weights, features, source, step) for features in (target, source)]
        moved = tf.where(residual != 0, tf.abs(changes[1]), tf.zeros_like(changes[1]))
        return self._unbatch(ratio_or_nan(tf.abs(changes[0]), moved), single)

    def srel_bound(self, weights, x_target, x_source):
        """Theorem 5.1 (eq. 32): lim S_rel <= P(x, x') Σ_r ‖w_r^{2(d−1)}‖ / |Σ_r ⟨β_r(x)², w_r^{2(d−1)}⟩|.

        It depends on the weights, and so on time; P(x, x') alone does not. Arguments and shapes as in
        `srel_limit`.
        """
        target, source, single = self._feature_pair(x_target, x_source)
        power = self._scaled(weights, source) ** (2 * (self.degree - 1))
        norms = tf.reduce_sum(tf.norm(power, axis=-1), -1)[..., None]
        bound = ratio_or_nan(_proximity(target, source) * norms, tf.abs(self._pair(source**2, power)))
        return self._unbatch(bound, single)

    def proximity(self, x_target, x_source):
        """P(x, x') = max_r ‖β_r(x') ⊙ β_r(x)‖ of Theorem 5.1, [B], or a scalar; symmetric in x and x'."""
        target, source, single = self._feature_pair(x_target, x_source)
        return self._unbatch(_proximity(target, source), single)

    def moments(self, x, y):
        """a = E[(y − α(x)) β(x)], [r, n], and b = E[β(x) ⊗ β(x)], [r, n, r, n], over the examples x, y [B]."""
        beta, labels = self._training_set(x, y)
        a = tf.einsum("b,brn->rn", labels, beta) / len(labels)
        return a, tf.einsum("brn,bsm->rnsm", beta, beta) / len(labels)

    def flow(self, w0, t, x, y, theta, rtol=1e-10, atol=1e-12):
        """Definition 7 (eq. 12): the gradient flow on the mean loss over the examples x, y, integrated numerically.

        Args:
            w0: [r, n]. t: [T], ascending times >= 0, in units where the flow moves at speed θ (one step of
                gradient descent with step η advances t by η/θ).
            x, y: B examples and their labels [B]. theta: θ > 0. rtol, atol: tolerances of the integrator.

        Returns:
            [T, r, n].
        """
        beta, labels = self._training_set(x, y)
        return feature_flow(beta, labels, w0, t, theta, self.degree, rtol=rtol, atol=atol)

    def _training_set(self, x, y):
        """β(x), [B, r, n], and y − α(x), [B]."""
        batch, _ = self._batch(x, "x")
        beta, y = self._features(batch), as_tensor(y, "y", 1)
        if y.shape[0] != beta.shape[0]:
            raise ShapeError(f"y must hold {beta.shape[0]} labels, one an input, but has shape {tuple(y.shape)}.")
        return beta, y - self._offset(batch)

    def _change_over_step(self, weights, features, source, step):
        """(f(W⁺, x') − f(W, x')) / g, the sum over k of eq. 26."""
        d = self.degree
        return tf.add_n(
            [
                math.comb(d, k) * step ** (k - 1) * self._pair(features * source**k, weights ** (d * (k + 1) - 2 * k))
                for k in range(1, d + 1)
            ]
        )

    def _values(self, weights, x):
        batch, _ = self._batch(x, "x")
        return self._offset(batch) + self._pair(self._features(batch), weights**self.degree)

    @staticmethod
    def _pair(features, powers):
        """Σ_r ⟨features_r, powers_r⟩: [..., B] from [B, r, n] and [..., r, n]."""
        flat = tf.reshape(powers, [*powers.shape[:-2], 1, powers.shape[-2] * powers.shape[-1]])
        rows = tf.reshape(features, [features.shape[0], -1])
        return tf.matmul(flat, rows, transpose_b=True)[..., 0, :]

    @staticmethod
    def _batch(x, name):
        x = as_tensor(x, name)
        if x.shape.rank == 0:
            raise ShapeError(f"{name} must be one input [n] or a batch [B, ...], not a scalar.")
        return (x[None], True) if x.shape.rank == 1 else (x, False)

    @staticmethod
    def _unbatch(values, single):
        return values[..., 0] if single else values

    def _offset(self, batch):
        alpha = as_tensor(self.alpha(batch), "alpha(x)", 1)
        if alpha.shape[0] != batch.shape[0]:
            raise ShapeError(f"alpha(x) must be [B] with B = {batch.shape[0]}, but has shape {tuple(alpha.shape)}.")
        return alpha

    def _features(self, batch):
        beta = as_tensor(self.beta(batch), "beta(x)", 3)
        if beta.shape[0] != batch.shape[0]:
            raise ShapeError(f"beta(x) must be [B, r, n] with B = {batch.shape[0]}, not {tuple(beta.shape)}.")
        return beta

    def _feature_pair(self, x_target, x_source):
        (target, single), (source, _) = self._batch(x_target, "x_target"), self._batch(x_source, "x_source")
        if target.shape != source.shape:
            raise ShapeError(f"x_target {tuple(target.shape)} and x_source {tuple(source.shape)} must pair up.")
        return self._features(target), self._features(source), single

    @staticmethod
    def _weights(weights, beta):
        weights = as_tensor(weights, "weights")
        if weights.shape.rank < 2 or weights.shape[-2:] != beta.shape[-2:]:
            raise ShapeError(f"weights must be [..., {beta.shape[1]}, {beta.shape[2]}], not {tuple(weights.shape)}.")
        return weights

    def _scaled(self, weights, beta):
        """Divide the weights by their largest magnitude, which cancels in ratios of powers, so that none underflows."""
        weights = self._weights(weights, beta)
        return tf.math.divide_no_nan(weights, tf.reduce_max(tf.abs(weights), [-2, -1], keepdims=True))


def _broadcasts(shape, whole):
    """Whether an array of `shape` broadcasts to `whole` without growing it."""
    return len(shape) <= len(whole) and all(
        size in (1, full) for size, full in zip(reversed(shape), reversed(whole), strict=False)
    )


def _proximity(target, source):
    return tf.reduce_max(tf.norm(target * source, axis=-1), -1)


def linearized_network(model):
    """The linearised network of Lee et al. (2019) as the d = 1 case of Definition 6 (remark below it).

    α(x) = f(W₀, x) − ⟨J(x), W₀⟩ and β(x) = J(x), the network's own Jacobian at its present weights W₀, which are
    copied: training the network afterwards changes nothing here. All P trainable parameters form one row
    (r = 1, n = P), in the order of `model.trainable_variables`.

    Args:
        model: a built Keras model with one output an example, [B, 1] or [B]. Give it dtype float64, or the
            Jacobian has the model's own precision.

    Returns:
        (HomogeneousPredictor, W₀ [1, P]).

    Raises:
        ShapeError: a model that is not built or has more than one output.
    """
    if not model.built:
        raise ShapeError("The model has no weights yet: call it once, or give it an input shape, before linearising.")
    trainable = [tf.identity(v) for v in model.trainable_variables]
    fixed = [tf.identity(v) for v in model.non_trainable_variables]
    start = tf.concat([tf.reshape(tf.cast(v, tf.float64), [-1]) for v in trainable], 0)

    def outputs(x):
        values, _ = model.stateless_call(trainable, fixed, x, training=False)
        if int(np.prod(values.shape[1:])) != 1:
            raise ShapeError(f"Definition 6 has one output an input; the model returns shape {tuple(values.shape)}.")
        return tf.reshape(values, [-1])

    def jacobian(x):
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            values = outputs(x)
        parts = tape.jacobian(values, trainable, unconnected_gradients="zero")
        flat = [tf.reshape(tf.cast(part, tf.float64), [values.shape[0], -1]) for part in parts]
        return tf.cast(values, tf.float64), tf.concat(flat, 1)

    def alpha(x):
        values, slopes = jacobian(x)
        return values - tf.linalg.matvec(slopes, start)

    return HomogeneousPredictor(alpha, lambda x: jacobian(x)[1][:, None, :], degree=1), start[None]
