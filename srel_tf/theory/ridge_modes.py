"""Modes of the ridge-penalised flow of Definition 4. Each mode relaxes at its own rate."""

import numpy as np
import tensorflow as tf


class RidgeModes:
    """Singular vectors H = U S Vᵀ of the features, and the flow of Definition 4 in this basis.

    Every mode relaxes independently with rate μ = c + s²/N, where s is the singular value of the mode. The columns of V
    are also eigenvectors of M: M V = V diag(c + s²/N). M itself is not formed, because this would square the condition
    number of H.

    Args:
        features: H, [N, p].
        one_hot: Labels Y, [N, K].
        coefficient: c.

    Attributes:
        rates: μ, [r] with r = min(N, p), in descending order.
    """

    def __init__(
        self, features: tf.Tensor, one_hot: tf.Tensor, coefficient: float
    ) -> None:
        self._features = features
        self._size, self._width = features.shape
        self._one_hot = one_hot
        self._coefficient = coefficient
        self._singular, self._left, self._right = tf.linalg.svd(
            self._features, full_matrices=False
        )
        gram = self._singular**2 / self._size
        self.rates = self._coefficient + gram
        self._labels_in_modes = tf.matmul(one_hot, self._left, transpose_a=True)
        self._fit = gram / self.rates * self._labels_in_modes  # H W*ᵀ in the modes
        self._stationary_residual = self._residual_at_the_minimum()
        # The fit of a zero row is set to exactly zero, because the singular vectors give it only up to rounding.
        is_row_nonzero = tf.reduce_any(self._features != 0, -1, keepdims=True)
        self._fit_rows = self._left * tf.cast(is_row_nonzero, tf.float64)
        self._stationary_fit = tf.matmul(self._fit_rows, self._fit, transpose_b=True)

    def _residual_at_the_minimum(self) -> tf.Tensor:
        """Compute ρ* = H W*ᵀ − Y, [N, K], without subtracting Y from H W*ᵀ.

        The residual is −U (c/μ) Uᵀ Y minus the part of the labels Y outside the span of U.
        """
        shrunk_labels = self._labels_in_modes * self._coefficient / self.rates
        inside = tf.matmul(self._left, shrunk_labels, transpose_b=True)
        is_left_square = self._left.shape[1] == self._size
        if is_left_square:  # Nothing lies outside the span of U.
            return -inside
        spanned_labels = tf.matmul(self._left, self._labels_in_modes, transpose_b=True)
        return -(inside + self._one_hot - spanned_labels)

    def stationary_weights(self) -> tf.Tensor:
        """W* = (M⁻¹ u_q)_q, [K, p]."""
        modes = self._singular / (self._size * self.rates) * self._labels_in_modes
        return tf.matmul(modes, self._right, transpose_b=True)

    def weights(self, w0: tf.Tensor, elapsed: tf.Tensor) -> tf.Tensor:
        """Theorem 3.1: e^{−Mτ} w_q(0) − expm1(−Mτ) M⁻¹ u_q, [..., T, K, p].

        Args:
            w0: Initial W, [..., K, p].
            elapsed: τ = θ²t, [T].

        Returns:
            [..., T, K, p].
        """
        exponent = -elapsed[:, None, None] * self.rates  # [T, 1, r]
        start = tf.matmul(w0, self._right)  # [..., K, r]
        decayed_start = tf.exp(exponent) * start[..., None, :, :]
        drive = self._singular / self._size * self._labels_in_modes
        driven = tf.math.expm1(exponent) / self.rates * drive
        modes = decayed_start - driven  # [..., T, K, r]
        weights = tf.linalg.matmul(modes, self._right, transpose_b=True)
        if self._right.shape[1] < self._width:
            # In directions outside the span of the features, only the penalty acts.
            unreached = w0 - tf.matmul(start, self._right, transpose_b=True)
            decay = tf.exp(-elapsed * self._coefficient)[:, None, None]
            weights += decay * unreached[..., None, :, :]
        return weights

    def transient(
        self,
        w0: tf.Tensor,
        elapsed: tf.Tensor,
        rows: np.ndarray,
    ) -> tf.Tensor:
        """Compute (W(t) − W*) h divided by e^{−μτ}, where μ is the rate of the slowest mode.

        Args:
            w0: Initial W, [..., K, p].
            elapsed: τ = θ²t, [T].
            rows: Row indices of h, [P].

        Returns:
            [..., T, P, K].
        """
        start = tf.matmul(w0, self._right)  # [..., K, r]
        amplitude = self._singular * start - self._fit
        left = tf.gather(self._fit_rows, rows)  # [P, r]
        modes = left[:, None, :] * amplitude[..., None, :, :]  # [..., P, K, r]
        *leading, count, classes, rank = modes.shape
        flat_modes = tf.reshape(modes, [*leading, count * classes, rank])

        relative_rates = self.rates - self.rates[-1]
        decay = tf.exp(-elapsed[:, None] * relative_rates)  # [T, r]
        flat_sums = tf.matmul(decay, flat_modes, transpose_b=True)  # [..., T, P·K]
        return tf.reshape(flat_sums, [*flat_sums.shape[:-1], count, classes])

    def stationary_change(self, examples: np.ndarray, rows: np.ndarray) -> tf.Tensor:
        """Compute ⟨∇ℓ(W*; example), h⟩ for every class, where h are the features of the given rows.

        The direct form of the gradient of example i at W* is ρ*_i h_i + c W*. The mean gradient at W* is zero, so
        a second form is mean_j (ρ*_i h_i − ρ*_j h_j). The second form is accurate if the examples are nearly equal, and
        it is exactly zero for a single example. The direct form is used if its terms are clearly smaller than the terms
        of the second form, because rounding then loses fewer digits.

        Args:
            examples: Row indices of the examples, [P].
            rows: Row indices of h, [P].

        Returns:
            [P, K].
        """
        chosen = tf.gather(self._features, rows)
        kernel = tf.matmul(chosen, self._features, transpose_b=True)  # ⟨h, h_j⟩, [P, N]
        kernel_own = tf.gather(kernel, examples[:, None], batch_dims=1)  # [P, 1]
        residual_own = tf.gather(self._stationary_residual, examples)  # [P, K]
        own = kernel_own * residual_own
        others = kernel[..., None] * self._stationary_residual  # [P, N, K]
        difference = tf.reduce_mean(own[:, None, :] - others, 1)

        fit = tf.gather(self._stationary_fit, rows)
        penalty = self._coefficient * fit
        size_of_others = tf.reduce_mean(tf.abs(others), 1)
        is_direct = tf.abs(penalty) < size_of_others / 2 - tf.abs(own) / 2
        return tf.where(is_direct, own + penalty, difference)
