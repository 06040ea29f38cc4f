"""From what an engine returns to S_rel: D of each change, its ratio, and which entries the arithmetic resolves."""

import functools

import numpy as np
import tensorflow as tf

from srel_tf.measures import outputs as reading
from srel_tf.numerics.rounding import error_bound, last_places_moved, noise_between
from srel_tf.result import Matrices


def of_finite_steps(outputs, kinds, measures, own, method):
    """{measure: Matrices} of the `exact.Outputs` around each update.

    kinds: how to read outputs: kinds[False] for most measures, kinds[True] for those of raw outputs.
    own [n_s]: each source's column or −1. method: what `Matrices.method` calls it.
    """
    before, own_before = outputs.before, outputs.own_before
    at_rest = _with_noise(before, outputs.noisy, kinds[False])
    own_at_rest = _with_noise(own_before, outputs.own_noisy, kinds[False])
    own_after = outputs.own_after
    after_at_sample = tf.gather(outputs.after, outputs.sample, axis=1, batch_dims=1)

    def evaluated(measure):
        """Numerators and denominators, and the noise of them and of updates."""
        change = functools.partial(reading.change, kinds[measure.raw])

        def numerator(old, new):
            return measure.numerator(change(old, new)).numpy()

        def denominator(old, new):
            return measure.denominator(change(old, new)).numpy()

        d, own_d = numerator(before, outputs.after), denominator(own_before, own_after)
        noise = _noise(measure, numerator, before, at_rest)
        own_noise = _noise(measure, denominator, own_before, own_at_rest)
        of_own_update = _noise(measure, denominator, own_after, outputs.own_sampled)
        of_sample = _noise(measure, numerator, after_at_sample, outputs.sampled).max(axis=1, initial=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            of_updates = np.maximum(of_own_update, of_sample) / np.abs(own_d) ** (1 / measure.degree)
        # A row whose few evaluations agree by chance is as noisy as the others.
        known = np.isfinite(own_d) & (own_d != 0)
        of_updates = np.maximum(of_updates, np.median(of_updates[known]) if known.any() else 0)
        return d, own_d, np.broadcast_to(noise, d.shape), own_noise, of_updates

    return {name: assembled(measure, *evaluated(measure), own, method) for name, measure in measures.items()}


def _noise(measure, distance, outputs, again):
    """How far D says that predictions lie apart by rounding, [n]: outputs [n, C] and the same again, [draws, n, C]."""
    return noise_between(measure, distance(outputs, outputs), distance(outputs, again)).max(axis=0)


NEIGHBOURS = 8  # Examples whose noise each example is tried with, for its own may be small by chance.


def _with_noise(before, noisy, kind):
    """Outputs before any update [n, C] with rounding noise, [draws, n, C].

    noisy [DRAWS, n, C]: at perturbed weights. The noise of some other examples is added to each as well (as a share of
    the outputs where these are probabilities), and each is moved by its last places.
    """
    share = before if kind == "probabilities" else tf.ones_like(before)
    noise = tf.math.divide_no_nan(noisy - before, share)
    noise = tf.where(tf.math.is_finite(noise), noise, tf.zeros_like(noise))
    shifts = range(1, min(NEIGHBOURS, before.shape[0]))
    others = [before + share * tf.roll(noise, shift, axis=1) for shift in shifts]
    return tf.concat([noisy, *others, last_places_moved(before)], axis=0)


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
            with np.errstate(invalid="ignore"):
                noise = relative * largest
            return d, own_d, np.broadcast_to(noise[:, None], d.shape), noise, 0.0
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
    of_updates = np.broadcast_to(np.reshape(of_updates, [-1, 1]), numerator.shape)
    if measure.numerator is measure.denominator:
        rows = np.flatnonzero(own >= 0)
        numerator, of_updates = np.array(numerator), np.array(of_updates)
        numerator[rows, own[rows]] = denominator[rows]  # S_rel(x, x) = 1 to the last bit, whatever the update.
        of_updates[rows, own[rows]] = 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        srel = numerator / denominator[:, None]
    bound = error_bound(measure, srel, denominator, noise, own_noise, of_updates)
    valid = np.isfinite(srel) & (bound <= measure.tolerance * (1 + np.abs(srel)))
    methods = np.full(len(denominator), method, dtype=object)
    return Matrices(numerator, denominator, np.where(valid, srel, np.nan), valid, bound, methods)
