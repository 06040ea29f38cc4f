"""The outcome of one measurement."""

from typing import NamedTuple

import numpy as np

from srel_tf.errors import OptionError
from srel_tf.frames.schema import tidy
from srel_tf.probe import ProbeSet


class Matrices(NamedTuple):
    """One measure: numerator, srel, valid [n_s, n_t] and denominator [n_s]; srel is NaN where valid is False.

    bound [n_s, n_t]: of the rounding error of S. method [n_s]: how each row was computed, one of `frames.METHODS`.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    srel: np.ndarray
    valid: np.ndarray
    bound: np.ndarray
    method: np.ndarray


class SRelResult(NamedTuple):
    """S_rel between all sources (rows) and targets (columns) of a probe, for each measure.

    matrices: {measure: Matrices}; estimator: what was asked, "exact", "limit" or "auto"; learning_rate: η of the
    fictitious step; step: optimizer updates applied before; seconds: what the measurement took.
    """

    probe: ProbeSet
    matrices: dict
    update: str
    estimator: str
    learning_rate: float
    step: int | None
    seconds: float

    def matrix(self, measure):
        """S_rel, float64 [n_s, n_t]: row = source x, column = target x'. NaN where it is undefined or unresolved."""
        return self._of(measure).srel

    def numerator(self, measure):
        """D at each target after each source's update, float64 [n_s, n_t]."""
        return self._of(measure).numerator

    def denominator(self, measure):
        """D at each source after its own update, float64 [n_s]."""
        return self._of(measure).denominator

    def valid(self, measure):
        """Whether the arithmetic resolves each entry, bool [n_s, n_t] (see `srel_tf.numerics.rounding`)."""
        return self._of(measure).valid

    def to_frame(self, run="", seed=None, epoch=np.nan):
        """Tidy frame, one row a (measure, source, target): the columns of `srel_tf.frames.COLUMNS`."""
        return tidy(self, run=run, seed=seed, epoch=epoch)

    def _of(self, measure):
        if measure not in self.matrices:
            raise OptionError(f"{measure!r} was not measured: this result holds {', '.join(self.matrices)}")
        return self.matrices[measure]
