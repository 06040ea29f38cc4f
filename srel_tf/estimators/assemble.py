"""Compute S_rel from the outputs of an engine: D of each change, the ratio, and its validity."""

import numpy as np
import tensorflow as tf

from srel_tf.engines.finite_step import Outputs
from srel_tf.engines.joined import FirstOrder
from srel_tf.measures.distances import Distance, Measure
from srel_tf.measures.outputs import change_of_outputs, first_order_change
from srel_tf.numerics.rounding import (
    Noise,
    error_bound,
    last_places_moved,
    noise_between,
)
from srel_tf.result import Matrices

# Number of examples whose noise is applied to the outputs at each example: its own noise, which may be small by chance,
# and the noise of other examples.
NEIGHBOURS = 8


def from_finite_steps(
    outputs: Outputs,
    kinds: dict[bool, str],
    measures: dict[str, Measure],
    source_column: np.ndarray,
    method: str,
) -> dict[str, Matrices]:
    """Return the `Matrices` of each measure from outputs before and after each update.

    Args:
        outputs: outputs of the finite-step engine.
        kinds: how the outputs are interpreted: kinds[True] for measures of raw outputs, kinds[False] for all others.
        measures: measures by name.
        source_column: int [n_s], the column of each source among the targets, −1 if it is not a target.
        method: value of `Matrices.method`.
    """
    reader = FiniteStepReader(outputs, kinds)
    return {
        name: assembled(
            measure,
            *reader.distances(measure),
            reader.noise(measure),
            source_column,
            method,
        )
        for name, measure in measures.items()
    }


class FiniteStepReader:
    """Compute D and its noise from the outputs of the finite-step engine."""

    def __init__(self, outputs: Outputs, kinds: dict[bool, str]) -> None:
        self._outputs, self._kinds = outputs, kinds
        self._noisy = _with_noise(outputs.before, outputs.noisy, kinds[False])
        self._noisy_at_source = _with_noise(
            outputs.before_at_source, outputs.noisy_at_source, kinds[False]
        )
        self._after_at_sample = tf.gather(
            outputs.after, outputs.sample, axis=1, batch_dims=1
        )

    def distances(self, measure: Measure) -> tuple[np.ndarray, np.ndarray]:
        """Return the numerators [n_s, n_t] and denominators [n_s]."""
        numerator = self._between(
            measure, measure.numerator, self._outputs.before, self._outputs.after
        )
        return numerator, self._denominator(measure)

    def _denominator(self, measure: Measure) -> np.ndarray:
        outputs = self._outputs
        return self._between(
            measure,
            measure.denominator,
            outputs.before_at_source,
            outputs.after_at_source,
        )

    def noise(self, measure: Measure) -> Noise:
        """Return the noise of D."""
        outputs = self._outputs
        at_targets = self._noise_of(
            measure, measure.numerator, outputs.before, self._noisy
        )
        at_sources = self._noise_of(
            measure,
            measure.denominator,
            outputs.before_at_source,
            self._noisy_at_source,
        )
        shape = (len(at_sources), len(at_targets))
        of_updates = self._noise_of_updates(measure)
        return Noise(
            np.broadcast_to(at_targets, shape),
            at_sources,
            np.broadcast_to(of_updates[:, None], shape),
        )

    def _noise_of_updates(self, measure: Measure) -> np.ndarray:
        """Return the noise of each source's update, as a share of the norm D^(1/degree) at the source, [n_s]."""
        outputs = self._outputs
        at_source = self._noise_of(
            measure,
            measure.denominator,
            outputs.after_at_source,
            outputs.sampled_at_source,
        )
        at_sample = self._noise_of(
            measure, measure.numerator, self._after_at_sample, outputs.sampled
        )
        denominator = self._denominator(measure)
        size = np.abs(denominator) ** (1 / measure.degree)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.maximum(at_source, at_sample.max(axis=1, initial=0)) / size
        # The few evaluations of a row may agree by chance, and its noise would then be underestimated. So the median
        # noise over all rows is used as a lower limit.
        known = np.isfinite(denominator) & (denominator != 0)
        return np.maximum(share, np.median(share[known]) if known.any() else 0)

    def _noise_of(
        self,
        measure: Measure,
        distance: Distance,
        outputs: tf.Tensor,
        outputs_again: tf.Tensor,
    ) -> np.ndarray:
        """Return the largest distance D^(1/degree) from outputs [..., C] to noisy outputs [draws, ..., C]."""
        of_nothing = self._between(measure, distance, outputs, outputs)
        of_noise = self._between(measure, distance, outputs, outputs_again)
        return noise_between(measure.degree, of_nothing, of_noise).max(axis=0)

    def _between(
        self, measure: Measure, distance: Distance, before: tf.Tensor, after: tf.Tensor
    ) -> np.ndarray:
        return distance(
            change_of_outputs(self._kinds[measure.raw], before, after)
        ).numpy()


def _with_noise(before: tf.Tensor, noisy: tf.Tensor, kind: str) -> tf.Tensor:
    """Return several versions of the outputs before any update, with rounding noise, [draws, n, C].

    The versions are:

    - The outputs at perturbed weights.
    - The outputs plus the noise of other examples. For probabilities, the relative noise is used.
    - The outputs with their last digits changed (`last_places_moved`).

    Args:
        before: outputs [n, C].
        noisy: outputs at perturbed weights, [2, n, C].
        kind: how the outputs are interpreted: "raw", "logits" or "probabilities".
    """
    scale = before if kind == "probabilities" else tf.ones_like(before)
    noise = tf.math.divide_no_nan(noisy - before, scale)
    noise = tf.where(tf.math.is_finite(noise), noise, tf.zeros_like(noise))
    shifts = range(1, min(NEIGHBOURS, before.shape[0]))
    with_noise_of_others = [
        before + scale * tf.roll(noise, shift, axis=1) for shift in shifts
    ]
    return tf.concat([noisy, *with_noise_of_others, last_places_moved(before)], axis=0)


def from_first_order(
    changes: FirstOrder,
    changes_again: list[FirstOrder],
    relative_noise: np.ndarray | None,
    kinds: dict[bool, str],
    measures: dict[str, Measure],
    source_column: np.ndarray,
    method: str,
) -> dict[str, Matrices]:
    """Return the `Matrices` of each measure from first-order changes. D is per unit of η (KL: of η²).

    Args:
        changes: first-order changes from an engine.
        changes_again: the same changes at perturbed weights, which give the noise. Empty if `relative_noise` is given.
        relative_noise: [n_s], noise as a share of the largest change that each source causes. None if `changes_again`
            gives the noise.
        kinds, measures, source_column, method: as for `from_finite_steps`.
    """
    matrices = {}
    for name, measure in measures.items():
        kind = kinds[measure.raw]
        numerator, denominator = _first_order_distances(measure, kind, changes)
        if relative_noise is not None:
            noise = _scaled_noise(measure, relative_noise, numerator, denominator)
        else:
            again = [
                _first_order_distances(measure, kind, other) for other in changes_again
            ]
            noise = _noise_of_repetitions(measure, numerator, denominator, again)
        matrices[name] = assembled(
            measure, numerator, denominator, noise, source_column, method
        )
    return matrices


def _first_order_distances(
    measure: Measure, kind: str, changes: FirstOrder
) -> tuple[np.ndarray, np.ndarray]:
    """Return D at the targets [n_s, n_t] and at the sources [n_s]."""
    assert measure.first_order is not None
    at_targets = first_order_change(
        kind, changes.link, changes.before, changes.moved, changes.link_derivative
    )
    at_sources = first_order_change(
        kind,
        changes.link,
        changes.before_at_source,
        changes.moved_at_source,
        changes.link_derivative_at_source,
    )
    return measure.first_order(at_targets).numpy(), measure.first_order(
        at_sources
    ).numpy()


def _scaled_noise(
    measure: Measure,
    relative: np.ndarray,
    numerator: np.ndarray,
    denominator: np.ndarray,
) -> Noise:
    at_targets = numerator.max(axis=1, initial=0, where=np.isfinite(numerator))
    largest = np.maximum(at_targets, denominator) ** (1 / measure.degree)
    with np.errstate(invalid="ignore"):
        noise = relative * largest
    return Noise(
        np.broadcast_to(noise[:, None], numerator.shape),
        noise,
        np.zeros(numerator.shape),
    )


def _noise_of_repetitions(
    measure: Measure,
    numerator: np.ndarray,
    denominator: np.ndarray,
    again: list[tuple[np.ndarray, np.ndarray]],
) -> Noise:
    """Return the noise from repeated evaluations.

    The evaluations of an entry may agree by chance, and its noise would then be underestimated. So a lower limit is
    used: the largest noise in its row or the largest noise in its column, whichever is smaller.
    """
    entries = np.max(
        [noise_between(measure.degree, numerator, other) for other, _ in again], axis=0
    )
    at_sources = np.max(
        [noise_between(measure.degree, denominator, other) for _, other in again],
        axis=0,
    )
    of_row, of_column = (
        entries.max(axis=1, keepdims=True),
        entries.max(axis=0, keepdims=True),
    )
    at_targets = np.maximum(entries, np.minimum(of_row, of_column))
    return Noise(at_targets, at_sources, np.zeros(numerator.shape))


def assembled(
    measure: Measure,
    numerator: np.ndarray,
    denominator: np.ndarray,
    noise: Noise,
    source_column: np.ndarray,
    method: str,
) -> Matrices:
    """Return the `Matrices` of one measure. An entry is valid if its error bound is at most tolerance · (1 + S)."""
    if measure.numerator is measure.denominator:
        # Set S_rel(x, x) to exactly 1.
        rows = np.flatnonzero(source_column >= 0)
        diagonal = rows, source_column[rows]
        numerator, of_updates = np.array(numerator), np.array(noise.of_updates)
        numerator[diagonal] = denominator[rows]
        of_updates[diagonal] = 0
        noise = noise._replace(of_updates=of_updates)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        srel = numerator / denominator[:, None]
    bound = error_bound(measure.degree, srel, denominator, noise)
    valid = np.isfinite(srel) & (bound <= measure.tolerance * (1 + np.abs(srel)))
    methods = np.full(len(denominator), method, dtype=object)
    return Matrices(
        numerator, denominator, np.where(valid, srel, np.nan), valid, bound, methods
    )
