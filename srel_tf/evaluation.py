"""From what an engine returns to S_rel: D of each change, its ratio, and which entries the arithmetic resolves."""

import functools

import numpy as np
import tensorflow as tf

from srel_tf import predictions as reading
from srel_tf.resolution import error_bound, last_places_moved, noise_between
from srel_tf.result import Matrices


def of_finite_steps(outputs, kinds, measures, own, method):
    """{measure: Matrices} of the `exact.Outputs` around each update.

    kinds: how to read outputs: kinds[False] for most measures, kinds[True] for those of raw outputs.
    own [n_s]: each source's column or −1. method: what `Matrices.method` calls it.
    """
    before, own_before = outputs.before, outputs.own_before
    at_rest = tf.concat([outputs.noisy, last_places_moved(before)], axis=0)
    own_at_rest = tf.concat([outputs.own_noisy, last_places_moved(own_before)], axis=0)
    at_sample, columns = tf.gather(before, outputs.sample), outputs.sample.numpy()

    def evaluated(measure):
        """Numerators and denominators, and the noise of them and of updates."""
        change = functools.partial(reading.change, kinds[measure.raw])

        def numerator(old, new):
            return measure.numerator(change(old, new)).numpy()

        def denominator(old, new):
            return measure.denominator(change(old, new)).numpy()

        d, own_d = numerator(before, outputs.after), denominator(own_before, outputs.own_after)
        noise = noise_between(measure, numerator(before, before), numerator(before, at_rest)).max(axis=0)
        own_noise = noise_between(
            measure, denominator(own_before, own_before), denominator(own_before, own_at_rest)
        ).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            s = np.take_along_axis(d, columns, axis=1) / own_d[:, None]
            again = numerator(at_sample, outputs.sampled) / denominator(own_before, outputs.own_sampled)[:, :, None]
            of_updates = noise_between(measure, s, again) / (1 + np.abs(s) ** (1 / measure.degree))
        of_updates = of_updates.max(axis=(0, 2), initial=0, where=np.isfinite(s))
        return d, own_d, np.broadcast_to(noise, d.shape), own_noise, of_updates

    return {name: assembled(measure, *evaluated(measure), own, method) for name, measure in measures.items()}


def of_first_order(changes, again, relative, kinds, measures, own, method):
    """{measure: Matrices} of `limit.FirstOrder` changes; numerator and denominator are per unit of η (KL: of η²).

    again: the same at perturbed weights, from which the noise is read; or none, with `relative` [n_s], its share of the
    largest change that a source causes.
    """

    def evaluated(measure):
        d, own_d = _sizes(measure, kinds[measure.raw], changes)
        if not again:
            root = 1 / measure.degree
            largest = np.maximum(d.max(axis=1, initial=0, where=np.isfinite(d)), own_d) ** root
            return d, own_d, np.broadcast_to((relative * largest)[:, None], d.shape), relative * largest, 0.0
        others = [_sizes(measure, kinds[measure.raw], one) for one in again]
        noise = np.max([noise_between(measure, d, other) for other, _ in others], axis=0)
        own_noise = np.max([noise_between(measure, own_d, other) for _, other in others], axis=0)
        of_row, of_column = (noise.max(axis=axis, keepdims=True) for axis in (1, 0))
        return d, own_d, np.maximum(noise, np.minimum(of_row, of_column)), own_noise, 0.0

    return {name: assembled(measure, *evaluated(measure), own, method) for name, measure in measures.items()}


def _sizes(measure, kind, changes):
    """D [n_s, n_t] and D at the sources [n_s] of `limit.FirstOrder` changes."""
    head = changes.head
    at_targets = reading.first_order_change(kind, head, changes.before, changes.moved, changes.slope)
    at_sources = reading.first_order_change(kind, head, changes.own_before, changes.own_moved, changes.own_slope)
    return measure.first_order(at_targets).numpy(), measure.first_order(at_sources).numpy()


def assembled(measure, numerator, denominator, noise, own_noise, of_updates, own, method):
    """`Matrices` of one method: an entry is valid if the bound of its error keeps to the measure's tolerance."""
    if measure.numerator is measure.denominator:
        numerator = _with_own(numerator, denominator, own)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        srel = numerator / denominator[:, None]
    bound = error_bound(measure, srel, denominator, noise, own_noise, of_updates)
    valid = np.isfinite(srel) & (bound <= measure.tolerance * (1 + np.abs(srel)))
    methods = np.full(len(denominator), method, dtype=object)
    return Matrices(numerator, denominator, np.where(valid, srel, np.nan), valid, bound, methods)


def _with_own(numerator, denominator, own):
    """S_rel(x, x) = 1 to the last bit: the numerator at a source's own column is its denominator."""
    numerator = np.array(numerator)
    rows = np.flatnonzero(own >= 0)
    numerator[rows, own[rows]] = denominator[rows]
    return numerator
