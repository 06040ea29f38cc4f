"""From what an engine returns to S_rel: D of each change, its ratio, and which entries the arithmetic resolves."""

import functools

import numpy as np
import tensorflow as tf

from srel_tf import predictions as reading
from srel_tf import resolution
from srel_tf.result import Matrices


def of_finite_steps(outputs, kinds, measures, own, gradient):
    """{measure: Matrices} of the `exact.Outputs` around each update.

    kinds: how to read outputs: kinds[False] for most measures, kinds[True] for those of raw outputs.
    own [n_s]: each source's column or −1; gradient [n_s]: relative error of the direction of its ∇ℓ.
    """

    @functools.cache
    def read(kind):
        """Changes at targets and sources, and what rounding alone changes there."""
        return (
            reading.change(kind, outputs.before, outputs.after),
            reading.change(kind, outputs.own_before, outputs.own_after),
            Noise(kind, outputs.before, outputs.noisy),
            Noise(kind, outputs.own_before, outputs.own_noisy),
        )

    found = {}
    for name, measure in measures.items():
        moved, own_moved, noise, own_noise = read(kinds[measure.raw])
        numerator, denominator = measure.numerator(moved).numpy(), measure.denominator(own_moved).numpy()
        if measure.numerator is measure.denominator:
            numerator = _with_own(numerator, denominator, own)
        srel = _ratio(numerator, denominator)
        bound = resolution.error_bound(
            measure, srel, denominator, noise.of(measure.numerator), own_noise.of(measure.denominator), gradient
        )
        found[name] = matrices(measure, numerator, denominator, bound, "finite_step")
    return found


def of_first_order(changes, kinds, measures, own, gradient):
    """{measure: Matrices} of `limit.FirstOrder` changes; numerator and denominator are per unit of η (KL: of η²)."""
    found = {}
    for name, measure in measures.items():

        def size(before, moved, slope, measure=measure, kind=kinds[measure.raw], sign=-1):
            change = reading.first_order_change(kind, changes.head, before, moved, slope, sign)
            return measure.first_order(change).numpy()

        numerator = size(changes.before, changes.moved, changes.slope)
        denominator = size(changes.own_before, changes.own_moved, changes.own_slope)
        numerator = _with_own(numerator, denominator, own)
        srel = _ratio(numerator, denominator)
        noise = size(changes.before, changes.error, changes.slope, sign=1)
        own_noise = size(changes.own_before, changes.own_error, changes.own_slope, sign=1)
        bound = resolution.first_order_bound(measure, srel, denominator, noise, own_noise, gradient)
        found[name] = matrices(measure, numerator, denominator, bound, "limit")
    return found


def _with_own(numerator, denominator, own):
    """S_rel(x, x) = 1 to the last bit: the numerator at a source's own column is its denominator."""
    numerator = np.array(numerator)
    rows = np.flatnonzero(own >= 0)
    numerator[rows, own[rows]] = denominator[rows]
    return numerator


def _ratio(numerator, denominator):
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return numerator / denominator[:, None]


def matrices(measure, numerator, denominator, bound, method):
    """`Matrices` of one method: an entry is valid if the bound of its error keeps to the measure's tolerance."""
    srel = _ratio(numerator, denominator)
    valid = np.isfinite(srel) & (bound <= measure.tolerance * (1 + np.abs(srel)))
    rows = np.full(len(denominator), method, dtype=object)
    return Matrices(numerator, denominator, np.where(valid, srel, np.nan), valid, bound, rows)


class Noise:
    """Rounding noise of a D at given examples, read from outputs [draws, n, C] at perturbed weights."""

    def __init__(self, kind, before, noisy):
        self.at_rest = reading.change(kind, before, before)
        noisy = tf.concat([noisy, resolution.last_places_moved(before)], axis=0)
        self._perturbed = reading.change(kind, before, noisy)

    def of(self, distance):
        """The largest |D| that no update has caused, [n]."""
        return np.abs(distance(self._perturbed) - distance(self.at_rest)).max(axis=0)
