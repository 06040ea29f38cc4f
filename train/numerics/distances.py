"""Distances between predictions, and S_rel, in extended precision, for the reference of `train.numerics`.

The module imports nothing from srel_tf.
"""

import numpy as np

LARGEST_EXPONENT = 11_000  # exp(LARGEST_EXPONENT) is finite in extended precision.


def srel_row(
    logits: np.ndarray,
    change: np.ndarray,
    source: int,
    softmax: bool = False,
    limit: bool = False,
) -> dict[str, np.ndarray]:
    """Compute S_rel of one source: the distance D at each example, divided by D at the source.

    Args:
        logits: Logits before the step, [n, C].
        change: Change of the logits, [n, C].
        source: Index of the source.
        softmax: True if the model returns the softmax of the logits, False if it returns the logits.
        limit: True if `change` is the derivative for the limit η → 0, False if it is the change by a finite step.

    Returns:
        {measure: S [n]}.
    """
    distances = distances_in_the_limit if limit else distances_of_a_step
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = distances(
            np.asarray(logits, np.longdouble),
            np.asarray(change, np.longdouble),
            softmax,
        )
        return {
            measure: (d / d[source]).astype(np.float64) for measure, d in found.items()
        }


def distances_of_a_step(
    logits: np.ndarray, change: np.ndarray, softmax: bool
) -> dict[str, np.ndarray]:
    """Compute D between the predictions before and after a step.

    D is computed from the change of the logits and not from the logits after the step, so that no digits cancel.

    Args:
        logits: Logits before the step, [n, C].
        change: Change of the logits, [n, C].
        softmax: True if the model returns the softmax of the logits, False if it returns the logits.

    Returns:
        {measure: D [n]}.
    """
    log_p = log_softmax(logits)
    d = change_of_log_softmax(log_p, change)
    p, p_plus, small = np.exp(log_p), np.exp(log_p + d), np.abs(d) < 0.1
    terms = np.where(small, p * divergence(np.where(small, d, 0)), p_plus * (d - 1) + p)
    moved = np.where(small, p * np.expm1(np.where(small, d, 0)), p_plus - p)
    return {"kl": terms.sum(axis=-1), **norms(moved, moved if softmax else change)}


def distances_in_the_limit(
    logits: np.ndarray, change: np.ndarray, softmax: bool
) -> dict[str, np.ndarray]:
    """Compute D to leading order in the change of the logits: norms to first order, `kl` to second order.

    Args:
        logits: Logits, [n, C].
        change: Derivative of the logits, [n, C].
        softmax: True if the model returns the softmax of the logits, False if it returns the logits.

    Returns:
        {measure: D [n]}.
    """
    p = np.exp(log_softmax(logits))
    d = change - (p * change).sum(axis=-1, keepdims=True)
    kl = (p * d**2).sum(axis=-1) / 2
    return {"kl": kl, **norms(p * d, p * d if softmax else change)}


def norms(
    of_probabilities: np.ndarray, of_outputs: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the ℓ1 and ℓ2 norms of the changes of probabilities and of outputs [n, C], as {measure: D [n]}."""
    changes = {"": of_probabilities, "raw_": of_outputs}
    return {
        f"{kind}l{order}": np.linalg.norm(change.astype(np.float64), order, axis=-1)
        for kind, change in changes.items()
        for order in (1, 2)
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of logits [..., C]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def change_of_log_softmax(log_p: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Compute log p⁺ − log p = Δz − log Σ p e^Δz.

    First, Δz of the likeliest class is subtracted from all Δz. This does not change the result, and keeps the
    exponentials small if all Δz are large.

    Args:
        log_p: log p, [..., C].
        change: Δz, [..., C].

    Returns:
        [..., C].
    """
    relative = change - np.take_along_axis(
        change, log_p.argmax(axis=-1)[..., None], axis=-1
    )
    spread = np.log1p((np.exp(log_p) * np.expm1(relative)).sum(axis=-1, keepdims=True))
    after = log_p + relative
    top = after.max(axis=-1, keepdims=True)
    log_p_plus = after - top - np.log(np.exp(after - top).sum(axis=-1, keepdims=True))
    large = relative.max(axis=-1, keepdims=True) > LARGEST_EXPONENT
    return np.where(large, log_p_plus - log_p, relative - spread)


def divergence(d: np.ndarray) -> np.ndarray:
    """Compute d e^d − e^d + 1 for d near 0 by the series Σ dᵏ (k − 1) / k! over k ≥ 2, so that no digits cancel."""
    series, term = 0 * d, d
    for k in range(2, 15):
        term = term * d / k
        series = series + (k - 1) * term
    return series
