"""The result of one measurement."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from srel_tf.errors import OptionError
from srel_tf.frames.schema import tidy
from srel_tf.probe import ProbeSet


class Matrices(NamedTuple):
    """Numerators, denominators and S_rel of one measure, for n_s sources and n_t targets.

    Attributes:
        numerator: D at each target after each source's update, [n_s, n_t].
        denominator: D at each source after its own update, [n_s].
        srel: S_rel, the numerator divided by the denominator, [n_s, n_t]; NaN if `valid` is False.
        valid: Whether the rounding error of each entry is within the measure's tolerance, bool [n_s, n_t].
        bound: Bound on the rounding error of S_rel, [n_s, n_t].
        method: Method by which each row was computed, one of `srel_tf.frames.schema.METHODS`, [n_s].
    """

    numerator: np.ndarray
    denominator: np.ndarray
    srel: np.ndarray
    valid: np.ndarray
    bound: np.ndarray
    method: np.ndarray


class SRelResult(NamedTuple):
    """S_rel between all sources x (rows) and targets x' (columns) of a probe, for each measure D.

    S_rel(x', x) = D(f⁺(x'), f(x')) / D(f⁺(x), f(x)), where f⁺ is the model after one fictitious update on the source x.

    Attributes:
        probe: The examples, n_s sources and n_t targets.
        matrices: {measure: `Matrices`}.
        update: The update rule.
        estimator: The requested estimator: "exact", "limit" or "auto".
        learning_rate: η of the fictitious step.
        step: Number of optimizer updates before the measurement; None if the model has no optimizer.
        seconds: Duration of the measurement.

    Example:
        >>> import keras, numpy as np, srel_tf
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> probe = srel_tf.ProbeSet(np.eye(3, 2), np.ones(3), sources=[0, 1])
        >>> result = srel_tf.measure(model, probe, measures="l1", learning_rate=0.1)
        >>> result.matrix("l1").shape, result.denominator("l1").shape
        ((2, 3), (2,))
        >>> len(result.to_frame())
        6
    """

    probe: ProbeSet
    matrices: dict[str, Matrices]
    update: str
    estimator: str
    learning_rate: float
    step: int | None
    seconds: float

    def matrix(self, measure: str) -> np.ndarray:
        """Return S_rel, float64 [n_s, n_t], with sources x as rows and targets x' as columns; NaN if not valid."""
        return self._matrices_of(measure).srel

    def numerator(self, measure: str) -> np.ndarray:
        """Return D at each target after each source's update, float64 [n_s, n_t]."""
        return self._matrices_of(measure).numerator

    def denominator(self, measure: str) -> np.ndarray:
        """Return D at each source after its own update, float64 [n_s]."""
        return self._matrices_of(measure).denominator

    def valid(self, measure: str) -> np.ndarray:
        """Return whether each entry's rounding error is within the tolerance, bool [n_s, n_t] (`numerics.rounding`)."""
        return self._matrices_of(measure).valid

    def to_frame(
        self, run: str = "", seed: int | None = None, epoch: float = np.nan
    ) -> pd.DataFrame:
        """Return a tidy frame, one row per (measure, source, target), with the columns `srel_tf.frames.COLUMNS`."""
        return tidy(self, run=run, seed=seed, epoch=epoch)

    def _matrices_of(self, measure: str) -> Matrices:
        if measure not in self.matrices:
            raise OptionError(
                f"{measure!r} was not measured: this result holds {', '.join(self.matrices)}"
            )
        return self.matrices[measure]
