"""The finite step in float32, then in float64, then the limit, each for the rows that are still unresolved."""

import functools
import warnings

import numpy as np

from srel_tf.errors import ModelError, OptionError
from srel_tf.estimators.exact import ExactEstimator
from srel_tf.estimators.limit import LimitEstimator, check_limit
from srel_tf.estimators.plan import MeasurementPlan
from srel_tf.measures.distances import Measure
from srel_tf.result import Matrices

LONGER = (
    1e3,
    1e5,
)  # The limit is compared with steps that are longer by these factors.


class AutoEstimator:
    """The finite step in float32, and in float64 for the rows that float32 does not resolve.

    For a row that is not resolved in float64, the limit is tried. An entry of the limit is valid only if a step that is
    `LONGER` times as long agrees with it within the tolerance. For each row, the method with the most valid entries is
    used.
    """

    def __init__(self, plan: MeasurementPlan) -> None:
        self._plan = plan
        self._exact = ExactEstimator(plan)

    def __call__(self, learning_rate: float) -> dict[str, Matrices]:
        """Return {measure: Matrices} for one η."""
        rates = np.broadcast_to(learning_rate, [len(self._plan.probe.sources)])
        matrices = self._exact(rates)
        unresolved = _unresolved_rows(matrices)
        if not unresolved.any() or self._exact_in_float64 is None:
            return matrices
        matrices = row_by_row(
            matrices, self._exact_in_float64(_only(unresolved, rates))
        )
        unresolved = _unresolved_rows(matrices)
        if not unresolved.any() or self._limit is None:
            return matrices
        limit = self._limit(rates)
        for times in LONGER:
            longer_step = self._exact_in_float64(_only(unresolved, times * rates))
            confirmed = {
                name: agreeing(measure, limit[name], longer_step[name])
                for name, measure in self._plan.measures.items()
            }
            matrices = row_by_row(matrices, confirmed)
        return matrices

    @functools.cached_property
    def _plan_in_float64(self) -> MeasurementPlan | None:
        """The plan in float64. None, with a warning, if the model does not run in float64."""
        try:
            return self._plan.in_precision("float64")
        except ModelError as error:
            warnings.warn(
                f"rows that float32 does not resolve stay invalid: {error}",
                stacklevel=7,
            )
            return None

    @functools.cached_property
    def _exact_in_float64(self) -> ExactEstimator | None:
        """The finite step in float64, made when first needed. None if the model does not run in float64."""
        return (
            None
            if self._plan_in_float64 is None
            else ExactEstimator(self._plan_in_float64)
        )

    @functools.cached_property
    def _limit(self) -> LimitEstimator | None:
        """The limit in float64, made when first needed. None for update rules and measures that have no limit."""
        assert self._plan_in_float64 is not None
        try:
            check_limit(self._plan_in_float64)
        except OptionError:
            return None
        return LimitEstimator(self._plan_in_float64)


def _only(rows: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return η for these rows, and NaN for the others, so that the engine leaves them out."""
    return np.where(rows, rates, np.nan)


def agreeing(measure: Measure, limit: Matrices, step: Matrices) -> Matrices:
    """Return the matrices of the limit, valid only where limit and `step` are valid and agree within the tolerance."""
    with np.errstate(invalid="ignore"):
        agree = np.abs(limit.srel - step.srel) <= measure.tolerance * (
            1 + np.abs(limit.srel)
        )
    valid = limit.valid & step.valid & agree
    return limit._replace(valid=valid, srel=np.where(valid, limit.srel, np.nan))


def _unresolved_rows(matrices: dict[str, Matrices]) -> np.ndarray:
    """Return which rows have an entry that is finite but not valid, for any measure, bool [n_s]."""
    of_measures = []
    for m in matrices.values():
        numbers = np.isfinite(m.numerator) & np.isfinite(m.denominator)[:, None]
        of_measures.append((numbers & ~m.valid).any(axis=1))
    return np.any(of_measures, axis=0)


def row_by_row(
    first: dict[str, Matrices], second: dict[str, Matrices]
) -> dict[str, Matrices]:
    """For each measure and source, return the row with more valid entries; the row of `first` if both have as many."""
    return {
        name: _better_rows(matrices, second[name]) for name, matrices in first.items()
    }


def _better_rows(first: Matrices, second: Matrices) -> Matrices:
    better = second.valid.sum(axis=1) > first.valid.sum(axis=1)

    def chosen(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(better if a.ndim == 1 else better[:, None], b, a)

    return Matrices(*(chosen(a, b) for a, b in zip(first, second, strict=True)))
