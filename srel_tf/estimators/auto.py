"""The finite step, in float64 where float32 does not resolve it, and its limit where float64 does not, either."""

import functools
import warnings

import numpy as np

from srel_tf.errors import ModelError, OptionError
from srel_tf.estimators.exact import Exact
from srel_tf.estimators.limit import FirstOrderLimit, check_limit

LONGER = (1e3, 1e5)  # Times the step: steps with which the limit is compared.


class Completed:
    """The finite step in float32, and its rows that float32 does not resolve in float64.

    A step that is below the resolution of float64, too, has the S_rel of its limit, if one of the steps that are
    `LONGER` times as long agrees with the limit within the tolerance. Of each row the method with the most valid
    entries is taken.
    """

    def __init__(self, task):
        self._task = task
        self._single = Exact(task)

    def __call__(self, learning_rate):
        rates = np.broadcast_to(learning_rate, [len(self._task.probe.sources)])
        found = self._single(rates)
        unresolved = _unresolved_rows(found)
        if unresolved.any() and self._double is not None:
            found = row_by_row(found, self._double(np.where(unresolved, rates, np.nan)))
            unresolved = _unresolved_rows(found)
            if unresolved.any() and self._limit is not None:
                limit = self._limit(rates)
                for times in LONGER:
                    longer = self._double(np.where(unresolved, times * rates, np.nan))
                    agree = {name: agreeing(m, limit[name], longer[name]) for name, m in self._measures}
                    found = row_by_row(found, agree)
        return found

    @property
    def _measures(self):
        return self._task.measures.items()

    @functools.cached_property
    def _task_in_float64(self):
        """None, with a warning, where the model has no such form."""
        try:
            return self._task.in_precision("float64")
        except ModelError as error:
            warnings.warn(f"rows that float32 does not resolve stay invalid: {error}", stacklevel=7)
            return None

    @functools.cached_property
    def _double(self):
        """The finite step in float64, made when first needed, or None."""
        return None if self._task_in_float64 is None else Exact(self._task_in_float64)

    @functools.cached_property
    def _limit(self):
        """The limit in float64, made when first needed; None for rules and measures that have none."""
        try:
            check_limit(self._task_in_float64)
        except OptionError:
            return None
        return FirstOrderLimit(self._task_in_float64)


def agreeing(measure, limit, step):
    """`Matrices` of the limit, valid where those of a finite step are and agree within the measure's tolerance."""
    with np.errstate(invalid="ignore"):
        agree = np.abs(limit.srel - step.srel) <= measure.tolerance * (1 + np.abs(limit.srel))
    valid = limit.valid & step.valid & agree
    return limit._replace(valid=valid, srel=np.where(valid, limit.srel, np.nan))


def _unresolved_rows(found):
    """Which rows [n_s] of {measure: Matrices} have an entry that is a number and not valid."""
    rows = []
    for entries in found.values():
        numbers = np.isfinite(entries.numerator) & np.isfinite(entries.denominator)[:, None]
        rows.append((numbers & ~entries.valid).any(axis=1))
    return np.any(rows, axis=0)


def row_by_row(first, second):
    """{measure: Matrices} with the row of each source from the second where more of its entries are valid."""
    return {name: _better_rows(entries, second[name]) for name, entries in first.items()}


def _better_rows(first, second):
    better = second.valid.sum(axis=1) > first.valid.sum(axis=1)
    return type(first)(
        *(np.where(better if a.ndim == 1 else better[:, None], a, b) for a, b in zip(second, first, strict=True))
    )
