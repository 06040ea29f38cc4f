"""Stochastic gradient descent of Sections 4 and 5.

The flows of these sections are the small-step limits of `modified_sgd` and `diagonal_sgd`. All runs start from the same
w(0), or each run starts from its own row of w(0). If no inputs are given, each run draws its own random inputs. The
random inputs of step k depend only on `seed` and k, not on a global random state.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import (
    ArrayLike,
    as_count,
    as_learning_rate,
    as_positive,
    as_tensor,
    check_last_axis,
    inner,
    nan_unless,
)
from srel_tf.theory.diagonal import quadratic_srel

Update: TypeAlias = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def modified_sgd(
    w_star: ArrayLike,
    w0: ArrayLike,
    learning_rate: float,
    steps: int,
    *,
    runs: int | None = None,
    batch_size: int = 1,
    inputs: ArrayLike | None = None,
    seed: int = 0,
) -> tf.Tensor:
    """Algorithm 1: w ← w + η · mean_batch[1{y > 0} (y − ⟨w, x⟩) x], with y = max(0, ⟨w*, x⟩).

    Args:
        w_star: w*, [n].
        w0: w(0), [n], or [R, n] with one row per run.
        learning_rate: η > 0. With β = 1 in Definition 5, step k corresponds to time kη of the flow.
        steps: Number of updates.
        runs: Number R of independent runs. None means one run, without the axis R.
        batch_size: Examples per step; 1 in the paper.
        inputs: The x of every step, [steps, batch, n] (the same for all runs) or [steps, R, batch, n]. If None, the
            inputs are drawn from N(0, I).
        seed: Seed of the random inputs; unused if `inputs` is given.

    Returns:
        Iterates w_0, …, w_steps: [steps + 1, n], or [steps + 1, R, n].

    Raises:
        AssumptionError: η is not positive, or a run diverges.
        ShapeError: Shapes of arrays disagree, or a count of steps, runs or examples is not a whole number.

    Example:
        >>> from srel_tf import theory
        >>> iterates = theory.modified_sgd([1.0], [0.0], learning_rate=0.5, steps=2, inputs=[[[1.0]], [[1.0]]])
        >>> print(iterates.numpy().ravel())
        [0.   0.5  0.75]
    """
    return _iterate(
        _modified_update,
        w_star,
        w0,
        learning_rate,
        steps,
        runs,
        batch_size,
        inputs,
        seed,
    )


def relu_sgd(
    w_star: ArrayLike,
    w0: ArrayLike,
    learning_rate: float,
    steps: int,
    *,
    runs: int | None = None,
    batch_size: int = 1,
    inputs: ArrayLike | None = None,
    seed: int = 0,
) -> tf.Tensor:
    """Plain mini-batch SGD on the ℓ2 risk E ½ (max(0, ⟨w*, x⟩) − max(0, ⟨w, x⟩))² of a ReLU gate (Figure 10).

    The update follows the gradient of the risk: it contains the prediction max(0, ⟨w, x⟩), and is zero if the gate is
    shut. The update of `modified_sgd` contains ⟨w, x⟩ instead. Arguments, result and errors are the same as in
    `modified_sgd`.

    Example:
        At w(0) = −1 the gate is shut at x = 1, so the gradient of the risk is zero.

        >>> from srel_tf import theory
        >>> iterates = theory.relu_sgd([1.0], [-1.0], learning_rate=0.5, steps=1, inputs=[[[1.0]]])
        >>> print(iterates.numpy().ravel())
        [-1. -1.]
    """
    return _iterate(
        _relu_update, w_star, w0, learning_rate, steps, runs, batch_size, inputs, seed
    )


def diagonal_sgd(
    w_star: ArrayLike,
    w0: ArrayLike,
    learning_rate: float,
    steps: int,
    *,
    runs: int | None = None,
    batch_size: int = 1,
    inputs: ArrayLike | None = None,
    seed: int = 0,
) -> tf.Tensor:
    """SGD of eq. 15: w ← w + 2η (Σ_p x_p (w*_p² − w_p²)) x ⊙ w, with features β_pp(x) = x_p.

    Step k corresponds to time k of the flow with θ = η. Arguments, result and errors are the same as in `modified_sgd`.

    Example:
        >>> from srel_tf import theory
        >>> iterates = theory.diagonal_sgd([2.0], [1.0], learning_rate=0.1, steps=1, inputs=[[[1.0]]])
        >>> print(iterates.numpy().ravel())
        [1.  1.6]
    """
    return _iterate(
        _diagonal_update,
        w_star,
        w0,
        learning_rate,
        steps,
        runs,
        batch_size,
        inputs,
        seed,
    )


def diagonal_sgd_srel(
    weights: ArrayLike,
    w_star: ArrayLike,
    beta_target: ArrayLike,
    beta_source: ArrayLike,
    learning_rate: float,
) -> tf.Tensor:
    """S_rel of Definition 1 on the risk of eq. 15 at given iterates, from eqs. 26 and 28 with d = 2.

    The change of a prediction is computed from these equations, not as the difference of two predictions.

    Args:
        weights: Iterates, [..., n].
        w_star: w*, [n].
        beta_target: Features at x', [n].
        beta_source: Features at x, [n].
        learning_rate: Length η > 0 of the fictitious step.

    Returns:
        [...]; NaN where the residual Σ_p β_p (w*_p² − w_p²) is exactly zero.

    Raises:
        ShapeError: Vectors have the wrong shape.
        AssumptionError: η is not positive.

    Example:
        >>> from srel_tf import theory
        >>> srel = theory.diagonal_sgd_srel([[1.0, 1.0]], [2.0, 2.0], [1.0, 3.0], [1.0, 1.0], learning_rate=0.01)
        >>> print(srel.numpy().round(3))
        [2.]
    """
    weights = as_tensor(weights, "weights")
    w_star = as_tensor(w_star, "w_star", 1)
    source = as_tensor(beta_source, "beta_source", 1)
    check_last_axis(weights, w_star.shape[0], "weights", "as many as w_star")
    step_length = as_learning_rate(learning_rate)
    residual = tf.reduce_sum(source * (w_star - weights) * (w_star + weights), -1)
    step = 2 * step_length * residual
    srel = quadratic_srel(weights, beta_target, source, step)
    return nan_unless(residual != 0, srel)


def _modified_update(w: tf.Tensor, x: tf.Tensor, w_star: tf.Tensor) -> tf.Tensor:
    """Compute the mean of 1{y > 0} (y − ⟨w, x⟩) x, [R, n], from w [R, n], x [R, batch, n] and w* [n]."""
    label = tf.nn.relu(tf.linalg.matvec(x, w_star))
    error = label - _inner(x, w)
    is_positive = tf.cast(label > 0, tf.float64)
    return tf.reduce_mean((is_positive * error)[..., None] * x, -2)


def _relu_update(w: tf.Tensor, x: tf.Tensor, w_star: tf.Tensor) -> tf.Tensor:
    """Compute the mean of 1{⟨w, x⟩ > 0} (y − max(0, ⟨w, x⟩)) x, with the arguments of `_modified_update`."""
    preactivation = _inner(x, w)
    error = tf.nn.relu(tf.linalg.matvec(x, w_star)) - tf.nn.relu(preactivation)
    is_active = tf.cast(preactivation > 0, tf.float64)
    return tf.reduce_mean((is_active * error)[..., None] * x, -2)


def _diagonal_update(w: tf.Tensor, x: tf.Tensor, w_star: tf.Tensor) -> tf.Tensor:
    """Compute the mean of 2 (Σ_p x_p (w*_p² − w_p²)) x ⊙ w, with the arguments of `_modified_update`."""
    error = _inner(x, (w_star - w) * (w_star + w))
    return tf.reduce_mean(2 * error[..., None] * x * w[..., None, :], -2)


def _inner(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """Compute ⟨x, w⟩ for every example of the batch, [R, B], from x [R, B, n] and w [R, n]."""
    return inner(x, w[..., None, :])


def _iterate(
    update: Update,
    w_star: ArrayLike,
    w0: ArrayLike,
    learning_rate: float,
    steps: int,
    runs: int | None,
    batch_size: int,
    inputs: ArrayLike | None,
    seed: int,
) -> tf.Tensor:
    """Check the arguments of `modified_sgd`, and run w ← w + η update(w, x, w*)."""
    w_star = as_tensor(w_star, "w_star", 1)
    start = as_tensor(w0, "w0", (1, 2))
    step_length = as_positive(learning_rate, "learning_rate", "a step of SGD")
    dimension = w_star.shape[0]
    check_last_axis(start, dimension, "w0", "as many as w_star")
    steps = as_count(steps, "steps", 0)
    batch_size = as_count(batch_size, "batch_size")
    runs = None if runs is None else as_count(runs, "runs")
    single = runs is None and start.shape.rank == 1

    start = _start_of_runs(start, runs)
    given = None
    if inputs is not None:
        given = _given_inputs(inputs, steps, start.shape[0], dimension)
        batch_size = given.shape[-2]
    rate = tf.constant(step_length, tf.float64)
    iterates = start[None]
    if steps:
        count, key = tf.constant(steps), tf.constant(seed)
        later = _scan(update, start, w_star, rate, count, given, batch_size, key)
        iterates = tf.concat([iterates, later], 0)
    last = iterates[-1].numpy()
    if not np.isfinite(last).all():
        raise AssumptionError(
            f"SGD diverged with learning_rate={step_length:g}; take a smaller step."
        )
    return iterates[:, 0] if single else iterates


@tf.function(autograph=False)
def _scan(
    update: Update,
    start: tf.Tensor,
    w_star: tf.Tensor,
    rate: tf.Tensor,
    steps: tf.Tensor,
    inputs: tf.Tensor | None,
    batch_size: int,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Compute the iterates after each step, [steps, R, n]. The function is traced once per update rule and shape.

    Args:
        update: Function from w [R, n], x [R, batch, n] and w* [n] to the mean update [R, n].
        start: [R, n].
        w_star: w*, [n].
        rate: η, a scalar.
        steps: Number of updates, a scalar.
        inputs: x, [steps, batch, n] or [steps, R, batch, n]. If None, x is drawn from N(0, I).
        batch_size: Examples per step.
        seed: Seed of the random inputs, a scalar.
    """
    shape = [start.shape[0], batch_size, start.shape[1]]

    def inputs_at(step: tf.Tensor) -> tf.Tensor:
        if inputs is not None:
            return tf.broadcast_to(inputs[step], shape)
        return tf.random.stateless_normal(
            shape, tf.stack([seed, step]), dtype=tf.float64
        )

    def advance(w: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return w + rate * update(w, inputs_at(step), w_star)

    return tf.scan(advance, tf.range(steps), initializer=start)


def _start_of_runs(start: tf.Tensor, runs: int | None) -> tf.Tensor:
    """Return one start for each run, [R, n], from w(0) of shape [n] or [R, n]."""
    if start.shape.rank == 1:
        return tf.tile(start[None], [runs or 1, 1])
    if runs not in (None, start.shape[0]):
        raise ShapeError(
            f"w0 has {start.shape[0]} starts for {runs} runs; give one start, or one per run."
        )
    return start


def _given_inputs(
    inputs: ArrayLike,
    steps: int,
    runs: int,
    dimension: int,
) -> tf.Tensor:
    """Check inputs [steps, batch, n] or [steps, R, batch, n]."""
    checked = as_tensor(inputs, "inputs", (3, 4))
    shape = tuple(checked.shape)
    if shape[0] != steps or shape[-1] != dimension:
        raise ShapeError(
            f"inputs must have shape [{steps}, batch, {dimension}] or [{steps}, runs, batch, {dimension}]; given "
            f"{shape}."
        )
    if len(shape) == 4 and shape[1] not in (1, runs):
        raise ShapeError(
            f"inputs {shape} hold {shape[1]} runs, but there are {runs} runs; give inputs for each run, or one set "
            "[steps, batch, n] for all."
        )
    return checked
