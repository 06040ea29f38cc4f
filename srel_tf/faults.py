"""Warnings that explain why entries of a result are not valid."""

import warnings

import numpy as np

from srel_tf.result import Matrices, SRelResult


def warn_of_faults(result: SRelResult) -> None:
    """Warn about sources and targets that cause NaN or infinite entries, and list their ids.

    The row of a source is invalid if its gradient, or its prediction after the update, is not finite. The column of a
    target is invalid if its prediction is not finite.
    """
    probe, of_measures = result.probe, result.matrices.values()
    sources = np.any([_faulty_sources(matrices) for matrices in of_measures], axis=0)
    if sources.any():
        ids = named(probe.ids[probe.sources][sources])
        warnings.warn(
            f"{sources.sum()} of {len(sources)} sources ({ids}) have a NaN or an infinity in their gradient, or in the "
            "prediction after their update: their rows are NaN and not valid",
            stacklevel=3,
        )
    if sources.all():
        return
    targets = np.any(
        [
            np.isnan(matrices.numerator[~sources]).all(axis=0)
            for matrices in of_measures
        ],
        axis=0,
    )
    if targets.any():
        ids = named(probe.ids[probe.targets][targets])
        warnings.warn(
            f"{targets.sum()} of {len(targets)} targets ({ids}) have a NaN or an infinity in their prediction: their "
            "columns are NaN and not valid",
            stacklevel=3,
        )


def unmoved_sources(result: SRelResult) -> np.ndarray:
    """Return which sources may have a zero gradient, bool [n_s].

    These are the sources whose own prediction is exactly the same before and after the update. If a source is not a
    target, the two predictions come from batches of different sizes, and rounding may make them differ. Such a source
    is therefore also returned if no entry of its row is valid.
    """
    of_measures = result.matrices.values()
    unmoved = np.all([matrices.denominator == 0 for matrices in of_measures], axis=0)
    unresolved = ~np.any(
        [matrices.valid.any(axis=1) for matrices in of_measures], axis=0
    )
    return unmoved | (unresolved & (result.probe.own_columns < 0))


def named(ids: np.ndarray) -> str:
    """List the first five ids for a message, as "ids 3, 7"."""
    return (
        "ids "
        + ", ".join(map(repr, ids[:5].tolist()))
        + (", …" if len(ids) > 5 else "")
    )


def _faulty_sources(matrices: Matrices) -> np.ndarray:
    """Return the sources whose denominator is not finite, or whose numerators are all NaN, bool [n_s].

    A source whose update changes nothing is not returned, because its numerators and denominator are 0.
    """
    return ~np.isfinite(matrices.denominator) | np.isnan(matrices.numerator).all(axis=1)
