"""Estimator "auto": for each source the estimator that resolves its row."""

import copy
import functools
import warnings

import numpy as np

from srel_tf import evaluation, resolution
from srel_tf.estimators import Exact, FirstOrderLimit, check_limit, find_passes
from srel_tf.twin import NoTwin, Twin, as_float64


class Auto:
    """`exact` for the sources whose row float32 resolves; for others `limit`, as far as the two are the same.

    How far they are apart at η drowns in rounding there. So the step is enlarged m times: in a smooth net their gap
    grows with η, and is a share 1/m at η itself of what it is at m·η. A unit that crosses its kink within η keeps its
    part in the gap whole at every larger step. Such units are few, and seen at the smaller enlargements.

    What is still open then is measured in float64, on the model's `Twin`, where it has one.
    """

    def __init__(self, task):
        check_limit(task)
        passes, reason = find_passes(task)
        self._task = task
        self._exact = Exact(task, passes)
        passes = copy.copy(passes)
        if passes is not None:
            passes.zeros_are_kinks = True  # The limit stands for a finite step here.
        self._limit = FirstOrderLimit(task, passes, reason, zeros_are_kinks=True)
        # That of this moment, as `passes` have it. A loss in float32 spoils a twin.
        self._loss = task.network.model.loss if passes is not None and passes.loss.in_float64 else None

    def __call__(self, learning_rate):
        """learning_rate: η, or one for each source [n_s], NaN for those to leave out."""
        rates = np.broadcast_to(learning_rate, [len(self._task.probe.sources)])
        outputs = self._exact.outputs(rates)
        exact = self._exact.matrices(outputs)
        still_open = rates_of_open_rows(exact, rates)
        if np.isnan(still_open).all():
            return exact
        changes = self._limit.changes()
        limit = self._limit.matrices(changes)
        steps = [(np.ones(len(rates)), exact)]
        for times in enlargements(outputs, changes, rates):
            steps.append((times, self._exact.matrices(self._exact.outputs(still_open * times))))
        found = {
            name: row_by_row(exact[name], of_limit(measure, limit[name], [(m, at[name]) for m, at in steps]))
            for name, measure in self._task.measures.items()
        }
        return self._in_float64(found, rates_of_open_rows(found, rates))

    def _in_float64(self, found, still_open):
        """{measure: Matrices} with the rows that are still open from the twin, where it resolves more of them."""
        if np.isnan(still_open).all() or self._twin is None:
            return found
        try:
            finer = self._twin(still_open)
        except NoTwin:
            return found
        return {name: row_by_row(entries, finer[name]) for name, entries in found.items()}

    @functools.cached_property
    def _twin(self):
        """`AutoOfTwin`, made when first needed; None where the network has no twin."""
        try:
            return None if self._loss is None else AutoOfTwin(self._task, self._loss)
        except NoTwin:
            return None


class AutoOfTwin:
    """`auto` of the network's `Twin`, at its weights of the moment. Raises `NoTwin`."""

    def __init__(self, task, loss):
        self._twin = Twin(task.network, task.data[0], loss)
        task = task._replace(network=self._twin.network, data=tuple(as_float64(a) for a in task.data))
        with warnings.catch_warnings(action="ignore"):  # They were said of the model itself.
            self._auto = Auto(task)

    def __call__(self, learning_rate):
        self._twin.follow()
        found = self._auto(learning_rate)
        return {name: entries._replace(method=entries.method + "_float64") for name, entries in found.items()}


def rates_of_open_rows(of_measures, rates):
    """η [n_s] of the sources with an entry that is not valid in one of {measure: Matrices}, NaN for the others."""
    whole = np.all([entries.valid.all(axis=1) for entries in of_measures.values()], axis=0)
    return np.where(whole, np.nan, rates)


# Times 1/m: the share of the gap at m·η that is taken to be there at η. It is a margin, found by trial: of the 165,000
# valid entries of an MLP in the table that `python -m train.numerics` prints two were outside their tolerance with 8
# on one machine, and four with 16 on another; all on the converged net, where single units cross their kinks.
KINKS = 32.0
SEEN = 0.25  # Share of the rounding's bound, which has a margin of 8, above which a gap is seen.


def enlargements(outputs, changes, learning_rate):
    """m [n_s], powers of two: steps m·η of each source at which rounding is a share of about 1/√m, and of 1/m², of
    what it may be.

    outputs: `exact.Outputs` at η; changes: `limit.FirstOrder`, which say how large the change should be.
    """
    noise = np.abs(outputs.noisy.numpy() - outputs.before.numpy())
    noise = noise.max(initial=0, where=np.isfinite(noise))  # Whatever a target is whose prediction is no number.
    change = learning_rate * np.abs((changes.own_slope * changes.own_moved).numpy()).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = resolution.MARGIN * noise / change / 1e-3  # Of rounding over tolerance at η.
    excess = np.where(np.isfinite(excess), excess, 1.0)
    return [2.0 ** np.ceil(np.log2(np.clip(4 * times, 2.0, 2.0**60))) for times in (np.sqrt(excess), excess)]


def of_limit(measure, limit, steps):
    """`Matrices` of the limit, with the bound of its distance to the finite step at η.

    steps: (m [n_s], `Matrices` of the finite step m·η), m growing.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s_limit = limit.numerator / limit.denominator[:, None]
        gap = np.zeros_like(s_limit)
        for times, finite in steps:
            s = finite.numerator / finite.denominator[:, None]
            seen = np.maximum(np.abs(s - s_limit) - SEEN * finite.bound, 0)
            gap = np.fmax(gap, np.minimum(1, KINKS / times)[:, None] * seen)  # A step that moves nothing shows nothing.
        bound = limit.bound + gap + finite.bound / times[:, None]
    return evaluation.matrices(measure, limit.numerator, limit.denominator, bound, "limit")


def row_by_row(first, second):
    """`Matrices` with the row of each source from the second where more of its entries are valid."""
    better = second.valid.sum(axis=1) > first.valid.sum(axis=1)
    return type(first)(
        *(np.where(better if a.ndim == 1 else better[:, None], a, b) for a, b in zip(second, first, strict=True))
    )
