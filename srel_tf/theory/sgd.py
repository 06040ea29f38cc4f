"""Stochastic gradient descent whose small-step limit the flows of Sections 4 and 5 are.

Every run starts from the same w(0) (or its own row of it) and draws its own inputs; nothing here depends on
global random state: the draws of step k depend on `seed` and k alone.
"""

import numpy as np
import tensorflow as tf

from srel_tf.errors import AssumptionError, ShapeError
from srel_tf.theory.checks import as_count, as_positive, as_tensor, check_last_axis
from srel_tf.theory.diagonal import quadratic_srel


def modified_sgd(w_star, w0, learning_rate, steps, *, runs=None, batch_size=1, inputs=None, seed=0):
    """Algorithm 1: w ← w + η mean over the batch of 1{y > 0} (y − ⟨w, x⟩) x, with y = max(0, ⟨w*, x⟩).

    Args:
        w_star: [n]. w0: [n], or [R, n] with one start a run.
        learning_rate: η > 0 (β = 1 in Definition 5: step k is the flow's time kη). steps: number of updates.
        runs: R independent runs; None means one, without the axis R. batch_size: 1 in the paper.
        inputs: the x of every step, [steps, batch, n] (shared by the runs) or [steps, R, batch, n];
            None draws x ~ N(0, I).
        seed: of the draws.

    Returns:
        Iterates w_0, …, w_steps: [steps + 1, n], or [steps + 1, R, n].

    Raises:
        AssumptionError: η not positive, or runs that diverge. ShapeError: arrays that do not fit, or counts of steps,
        runs or examples that are no whole numbers.
    """
    w_star = as_tensor(w_star, "w_star", 1)

    def update(w, x):
        label = tf.nn.relu(tf.linalg.matvec(x, w_star))
        error = label - _inner(x, w)
        return tf.reduce_mean((tf.cast(label > 0, tf.float64) * error)[..., None] * x, -2)

    return _iterate(update, w_star, w0, learning_rate, steps, runs, batch_size, inputs, seed)


def relu_sgd(w_star, w0, learning_rate, steps, *, runs=None, batch_size=1, inputs=None, seed=0):
    """Plain mini-batch SGD on the ℓ2 risk E ½ (max(0, ⟨w*, x⟩) − max(0, ⟨w, x⟩))² of a ReLU gate (Figure 10).

    Arguments, shapes and errors as in `modified_sgd`, which leaves out the ReLU of the prediction.
    """
    w_star = as_tensor(w_star, "w_star", 1)

    def update(w, x):
        inner = _inner(x, w)
        error = tf.nn.relu(tf.linalg.matvec(x, w_star)) - tf.nn.relu(inner)
        return tf.reduce_mean((tf.cast(inner > 0, tf.float64) * error)[..., None] * x, -2)

    return _iterate(update, w_star, w0, learning_rate, steps, runs, batch_size, inputs, seed)


def diagonal_sgd(w_star, w0, learning_rate, steps, *, runs=None, batch_size=1, inputs=None, seed=0):
    """The SGD of eq. 15: w ← w + 2η (Σ_p x_p (w*_p² − w_p²)) x ⊙ w, features β_pp(x) = x_p.

    Arguments, shapes and errors as in `modified_sgd`; step k is the time k of the flow with θ = η.
    """
    w_star = as_tensor(w_star, "w_star", 1)

    def update(w, x):
        error = _inner(x, (w_star - w) * (w_star + w))
        return tf.reduce_mean(2 * error[..., None] * x * w[..., None, :], -2)

    return _iterate(update, w_star, w0, learning_rate, steps, runs, batch_size, inputs, seed)


def diagonal_sgd_srel(weights, w_star, beta_target, beta_source, learning_rate):
    """Definition 1 on the risk of eq. 15 at given iterates, by eqs. 26 and 28 with d = 2 (no differencing).

    Args:
        weights: [..., n]. w_star, beta_target, beta_source: [n]. learning_rate: η > 0 of the fictitious step.

    Returns:
        [...]; NaN where the residual Σ_p β_p (w*_p² − w_p²) is exactly zero.
    """
    weights, w_star = as_tensor(weights, "weights"), as_tensor(w_star, "w_star", 1)
    source = as_tensor(beta_source, "beta_source", 1)
    check_last_axis(weights, w_star.shape[0], "weights", "as many as w_star")
    error = tf.reduce_sum(source * (w_star - weights) * (w_star + weights), -1)
    step = 2 * as_positive(learning_rate, "learning_rate", "Definition 1") * error
    srel = quadratic_srel(weights, beta_target, source, step)
    return tf.where(error != 0, srel, tf.constant(np.nan, tf.float64))


def _inner(x, w):
    """⟨x, w⟩ for every example of the batch, [R, B]."""
    return tf.reduce_sum(x * w[..., None, :], -1)


def _iterate(update, w_star, w0, learning_rate, steps, runs, batch_size, inputs, seed):
    w0, step = as_tensor(w0, "w0", (1, 2)), as_positive(learning_rate, "learning_rate", "a step of SGD")
    check_last_axis(w0, w_star.shape[0], "w0", "as many as w_star")
    steps, batch_size = as_count(steps, "steps", 0), as_count(batch_size, "batch_size")
    runs = None if runs is None else as_count(runs, "runs")
    single = runs is None and w0.shape.rank == 1
    if w0.shape.rank == 1:
        w0 = tf.tile(w0[None], [runs or 1, 1])
    elif runs not in (None, w0.shape[0]):
        raise ShapeError(f"w0 has {w0.shape[0]} starts for {runs} runs; give one start, or one a run.")
    if inputs is not None:
        inputs = as_tensor(inputs, "inputs", (3, 4))
        if inputs.shape[0] != steps or inputs.shape[-1] != w_star.shape[0]:
            raise ShapeError(f"inputs must be [{steps}, ..., {w_star.shape[0]}], but has shape {tuple(inputs.shape)}.")
        if inputs.shape.rank == 4 and inputs.shape[1] not in (1, w0.shape[0]):
            raise ShapeError(f"inputs {tuple(inputs.shape)} hold {inputs.shape[1]} runs, but there are {w0.shape[0]}.")
    shape = [w0.shape[0], batch_size, w_star.shape[0]]

    @tf.function
    def scan():
        def advance(w, k):
            if inputs is not None:
                x = inputs[k]
            else:
                x = tf.random.stateless_normal(shape, tf.stack([seed, k]), dtype=tf.float64)
            return w + step * update(w, tf.broadcast_to(x, [shape[0], *x.shape[-2:]]))

        return tf.scan(advance, tf.range(steps), initializer=w0)

    iterates = tf.concat([w0[None], scan()], 0) if steps else w0[None]
    if not np.isfinite(iterates[-1].numpy()).all():
        raise AssumptionError(f"SGD diverged with learning_rate={step:g}; take a smaller step.")
    return iterates[:, 0] if single else iterates
