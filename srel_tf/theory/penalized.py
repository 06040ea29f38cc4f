"""Section 3: penalised linear regression over fixed features with discrete labels (eqs. 3 and 4, Theorems 3.1, 3.2)."""

import numpy as np
import tensorflow as tf

from srel_tf.errors import ShapeError
from srel_tf.theory.checks import (
    as_count,
    as_indices,
    as_positive,
    as_tensor,
    as_times,
    check_last_axis,
    check_option,
    ratio_or_nan,
)


class PenalizedRegression:
    r"""Gradient flow on a ridge-penalised last layer W ∈ R^{K×p} with one-hot labels (Definition 4).

    dw_q/dt = −θ² ∂L/∂w_q = θ² (u_q − M w_q),  M = c I + HᵀH/N,  u_q = (1/N) Σ_{i in class q} h_i.

    Notation: H = features, N = number of rows, K = num_classes. Time is in the paper's unit: the flow
    moves at speed θ², so one step of gradient descent with step η advances t by η/θ².

    Args:
        features: [N, p], the outputs h of the last hidden layer, one training example a row.
        labels: [N], integers in 0..K−1.
        num_classes: K.
        lam: λ₁ > 0 of eq. 3.
        theta: θ > 0 of Definition 4.
        ridge: the coefficient c of W in the gradient, and so of the per-example loss
            ℓ(W; h) = ½‖e_k − W h‖² + (c/2)‖W‖².
            "paper": c = Nλ₁/K, as the text prints M, T and h̃;
            "loss": c = λ₁/K, the gradient of eq. 3 as it stands. They differ by the factor N.

    Raises:
        AssumptionError: λ₁ or θ not positive (Theorem 3.1 needs M positive definite).
        ShapeError: features, labels or class indices that do not fit, or a num_classes that is no whole number.
        OptionError: another `ridge`.
        The methods raise ShapeError for arrays that do not fit and AssumptionError for negative times or values that
        are not finite.

    In the basis of the singular vectors H = U S Vᵀ (the symmetric eigendecomposition M = V diag(c + s²/N) Vᵀ,
    without squaring the condition number), every mode relaxes by itself with rate μ = c + s²/N.

    Ill-conditioned corner: with ridge="loss", labels that W h fits exactly and a tiny λ₁, S_rel late in training is a
    ratio of remainders of the order of c. At λ₁ = 1e-8 it is only good to about 1e-7, since one unit in the last place
    of a feature already moves the true value by 6e-9; at λ₁ = 1e-4 it is right to 4e-11.
    """

    def __init__(self, features, labels, num_classes, lam, theta, ridge="paper"):
        self.features = as_tensor(features, "features", 2)
        self.size, self.width = self.features.shape
        self.num_classes = as_count(num_classes, "num_classes")
        labels = as_indices(labels, "labels", self.num_classes)
        if labels.shape != (self.size,):
            raise ShapeError(f"labels must have shape ({self.size},), one a row of features, not {labels.shape}.")
        self.lam = as_positive(lam, "lam", "Theorem 3.1 needs λ₁ > 0, so that M is positive definite")
        self.theta = as_positive(theta, "theta", "Definition 4 moves at speed θ²")
        self.ridge = check_option(ridge, ("paper", "loss"), "ridge")
        self.coefficient = self.lam / self.num_classes * (self.size if ridge == "paper" else 1)

        self.one_hot = tf.one_hot(labels, self.num_classes, dtype=tf.float64)
        singular, self._left, self._right = tf.linalg.svd(self.features, full_matrices=False)
        gram = singular**2 / self.size
        self._singular = singular
        self._rates = self.coefficient + gram
        self._labels_in_modes = tf.matmul(self.one_hot, self._left, transpose_a=True)  # [K, r]
        self._fit = gram / self._rates * self._labels_in_modes  # W* h of every mode
        self._stationary_residual = self._residual_at_the_minimum()
        # A zero row is fitted by exactly zero, whatever the rounding of the singular vectors says.
        self._fit_rows = self._left * tf.cast(tf.reduce_any(self.features != 0, -1, keepdims=True), tf.float64)
        # Identical features are one point: through one row each, so that S_rel is 1 to the last digit between them.
        _, first, inverse = np.unique(self.features.numpy(), axis=0, return_index=True, return_inverse=True)
        self._point = first[inverse.reshape(-1)]

    def _residual_at_the_minimum(self):
        """ρ* = H W*ᵀ − Y, [N, K], without subtracting the fit from the labels: U (c/μ) Uᵀ and what U does not span."""
        inside = tf.matmul(self._left, self._labels_in_modes * self.coefficient / self._rates, transpose_b=True)
        if self._left.shape[1] == self.size:  # U is square: nothing lies outside its span.
            return -inside
        return -(inside + self.one_hot - tf.matmul(self._left, self._labels_in_modes, transpose_b=True))

    @property
    def rates(self):
        """Relaxation rates θ²μ of the modes, [min(N, p)], per unit of time; the slowest possible is θ²c."""
        return self.theta**2 * self._rates

    def stationary_weights(self):
        """W* = (M⁻¹ u_q)_q, [K, p]: the limit of Theorem 3.1 as t → ∞."""
        modes = self._singular / (self.size * self._rates) * self._labels_in_modes
        return tf.matmul(modes, self._right, transpose_b=True)

    def weights(self, w0, t):
        """Theorem 3.1: the weights at times t.

        Args:
            w0: [K, p], or [I, K, p] for I initial values.
            t: [T], times >= 0 (or a scalar, T = 1), in units where the flow moves at speed θ².

        Returns:
            [T, K, p] (or [I, T, K, p]): e^{−θ²Mt} w_q(0) − expm1(−θ²Mt) M⁻¹ u_q.

        Raises:
            AssumptionError: negative times. ShapeError: w0 that does not fit.
        """
        w0, elapsed = self._initial(w0), self.theta**2 * as_times(t)
        exponent = -elapsed[:, None, None] * self._rates  # [T, 1, r]
        start = tf.matmul(w0, self._right)
        drive = self._singular / self.size * self._labels_in_modes
        modes = tf.exp(exponent) * start[..., None, :, :] - tf.math.expm1(exponent) / self._rates * drive
        weights = tf.linalg.matmul(modes, self._right, transpose_b=True)
        if self._right.shape[1] < self.width:  # Directions that no feature reaches only feel the penalty.
            unreached = w0 - tf.matmul(start, self._right, transpose_b=True)
            weights += tf.exp(-elapsed * self.coefficient)[:, None, None] * unreached[..., None, :, :]
        return weights

    def loss(self, weights, labels="own"):
        """Eq. 3, which has λ₁/2K before ‖W‖² whatever `ridge` is; see `objective` for what the flow descends.

        Args:
            weights: [..., K, p].
            labels: "own", eq. 3; "all" adds up each example's error to every one of the K labels, as the
                published script's broadcasting does (it is no loss of the paper).

        Returns:
            [...].
        """
        check_option(labels, ("own", "all"), "labels")
        return self._data_loss(weights, labels) + self._penalty(weights, self.lam / self.num_classes)

    def objective(self, weights):
        """The function whose gradient Definition 4 descends, [...] from [..., K, p]: eq. 3 if ridge="loss",
        and with Nλ₁/2K before ‖W‖² if ridge="paper"."""
        return self._data_loss(weights, "own") + self._penalty(weights, self.coefficient)

    def srel(self, w0, t, source, target, numerator="theorem"):
        """Theorem 3.2, eq. 4: S_rel (not squared) for D the ℓ2 norm of the change of the K outputs.

        Free of the step length: the predictor is linear in W, so a finite η cancels.

        Args:
            w0: [K, p], or [I, K, p] for I initial values.
            t: [T], times >= 0.
            source, target: rows of `features`, (k, i) and (c, j) in the paper; two integers, or two lists [P].
            numerator: "theorem", eq. 4; "published" takes T = c I + h hᵀ/N in the numerator alone, as the
                published script does (S_rel(x, x) is then not 1, unless N = 1).

        Returns:
            [T]; an axis I comes first if w0 has it, an axis P last if source and target have it. NaN where the
            prediction at the source does not change (a zero feature vector, say). Equal features have S_rel = 1, and
            with one feature (p = 1) it is |h'|/|h|, whatever W is: also where the gradient itself vanishes.

        Raises:
            AssumptionError: negative times. ShapeError: w0 or indices that do not fit. OptionError: `numerator`.
        """
        check_option(numerator, ("theorem", "published"), "numerator")
        w0, times = self._initial(w0), as_times(t)
        source, target = as_indices(source, "source", self.size), as_indices(target, "target", self.size)
        if source.shape != target.shape:
            raise ShapeError(f"source and target must pair up, but have shapes {source.shape} and {target.shape}.")
        examples = np.atleast_1d(source)
        sources, targets = self._point[examples], self._point[np.atleast_1d(target)]

        at_source, at_target = self._transient(w0, times, sources), self._transient(w0, times, targets)
        below, above = self._stationary_change(examples, sources), self._stationary_change(examples, targets)
        # Where the stationary gradient is exactly zero (a single training example) everything shares the factor
        # e^{−θ²μt} of the slowest mode: it is left out, so that it cannot underflow.
        vanishing = tf.reduce_all(tf.concat([below, above], -1) == 0, -1)  # [P]
        slowest = tf.exp(-times * self.rates[-1])[:, None]
        common = tf.where(vanishing, tf.ones_like(slowest), slowest)[..., None]  # [T, P, 1]

        c = self.coefficient
        own, cross = self._inner(sources, sources), self._inner(targets, sources)  # ⟨h, h⟩ and ⟨h', h⟩
        if numerator == "theorem" or self.size == 1:  # They are the same for N = 1.
            change_source = below + common * (c * at_source + own * at_source)
            change_target = above + common * (c * at_target + cross * at_source)
        else:  # The published numerator need not vanish, so nothing is left out.
            change_source = below + slowest[..., None] * (c * at_source + own * at_source)
            fit_source = tf.gather(self._stationary_fit(), sources) + slowest[..., None] * at_source
            fit_target = tf.gather(self._stationary_fit(), targets) + slowest[..., None] * at_target
            label = tf.gather(self.one_hot, examples)
            change_target = c * fit_target + cross * (fit_source / self.size - label)
        # Relative to the largest change at the source, whose square may under- or overflow.
        largest = tf.reduce_max(tf.abs(change_source), -1, keepdims=True)
        relative = (tf.math.divide_no_nan(change, largest) for change in (change_target, change_source))
        srel = ratio_or_nan(*(tf.norm(change, axis=-1) for change in relative))
        if numerator == "theorem" or self.size == 1:
            srel = self._of_multiples(srel, sources, targets)
        return srel if source.ndim else srel[..., 0]

    def _of_multiples(self, srel, sources, targets):
        """S_rel [..., P] with |h'|/|h| where h' is a multiple of h: W, and the rounding of its gradient, cancel."""
        above, below = (tf.reduce_max(tf.abs(self._rows(rows)), -1) for rows in (targets, sources))
        is_multiple = tf.constant((sources == targets) | (self.width == 1)) & (below > 0)
        return tf.where(is_multiple, ratio_or_nan(above, below), srel)

    def _initial(self, w0):
        w0 = as_tensor(w0, "w0", (2, 3))
        check_last_axis(w0, self.width, "w0", "one weight a feature")
        if w0.shape[-2] != self.num_classes:
            raise ShapeError(f"w0 must have {self.num_classes} rows, one a class, but has shape {tuple(w0.shape)}.")
        return w0

    def _rows(self, indices):
        return tf.gather(self.features, indices)

    def _inner(self, rows, others):
        return tf.reduce_sum(self._rows(rows) * self._rows(others), -1)[:, None]

    def _stationary_fit(self):
        """H W*ᵀ, [N, K]."""
        return tf.matmul(self._fit_rows, self._fit, transpose_b=True)

    def _transient(self, w0, times, rows):
        """(W(t) − W*) h / e^{−θ²μt of the slowest mode} for the given rows, [..., T, P, K]."""
        amplitude = self._singular * tf.matmul(w0, self._right) - self._fit  # [..., K, r]
        decay = tf.exp(-times[:, None] * (self.rates - self.rates[-1]))  # [T, r]
        contribution = tf.gather(self._fit_rows, rows)[:, None, :] * amplitude[..., None, :, :]  # [..., P, K, r]
        flat = tf.reshape(contribution, [*contribution.shape[:-3], -1, contribution.shape[-1]])
        moved = tf.matmul(decay, flat, transpose_b=True)
        return tf.reshape(moved, [*moved.shape[:-1], len(rows), self.num_classes])

    def _stationary_change(self, examples, rows):
        """⟨∇ℓ(W*; example), h⟩ for every class and the h of the given rows, [P, K].

        At W* the mean gradient is zero, so a single gradient is the difference ρ*_i h_i − mean_j ρ*_j h_j. Taken
        term by term it keeps its digits when the examples agree, and is exactly zero for a single example. Where its
        terms are much larger than those of the gradient as it stands, ρ*_i h_i + c W*, that keeps more digits.
        """
        kernel = tf.matmul(self._rows(rows), self.features, transpose_b=True)  # [P, N]
        own = tf.gather(kernel, examples[:, None], batch_dims=1)  # [P, 1]
        own = own * tf.gather(self._stationary_residual, examples)  # [P, K]
        others = kernel[..., None] * self._stationary_residual  # [P, N, K]
        penalty = self.coefficient * tf.gather(self._stationary_fit(), rows)
        is_direct = tf.abs(penalty) < tf.reduce_mean(tf.abs(others), 1) / 2 - tf.abs(own) / 2
        return tf.where(is_direct, own + penalty, tf.reduce_mean(own[:, None, :] - others, 1))

    def _data_loss(self, weights, labels):
        weights = as_tensor(weights, "weights")
        check_last_axis(weights, self.width, "weights", "one weight a feature")
        if weights.shape[-2] != self.num_classes:
            raise ShapeError(f"weights must be [..., {self.num_classes}, {self.width}], not {tuple(weights.shape)}.")
        outputs = tf.matmul(self.features, tf.reshape(weights, [-1, self.width]), transpose_b=True)
        outputs = tf.reshape(outputs, [self.size, -1, self.num_classes])  # [N, batch, K]
        if labels == "own":
            errors = tf.reduce_sum((self.one_hot[:, None, :] - outputs) ** 2, [0, 2])
        else:
            every = tf.eye(self.num_classes, dtype=tf.float64)
            errors = tf.add_n([tf.reduce_sum((label - outputs) ** 2, [0, 2]) for label in tf.unstack(every)])
        return tf.reshape(errors / (2 * self.size), weights.shape[:-2])

    @staticmethod
    def _penalty(weights, coefficient):
        return coefficient / 2 * tf.reduce_sum(as_tensor(weights, "weights") ** 2, [-2, -1])
