"""The finite step: S_rel as in Definitions 1 and 2."""

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from srel_tf.engines.finite_step import FiniteStepEngine
from srel_tf.estimators.assemble import from_finite_steps
from srel_tf.estimators.plan import MeasurementPlan
from srel_tf.result import Matrices
from srel_tf.updates import RULES


class ExactEstimator:
    """S_rel of the finite step in the plan's precision."""

    def __init__(self, plan: MeasurementPlan) -> None:
        self._plan = plan
        self._backprop, _ = plan.backprop
        rule = RULES[plan.settings.update](plan.network)
        self._engine = FiniteStepEngine(
            plan.network,
            rule,
            plan.probe.own_columns,
            plan.settings.batch_size,
            self._backprop,
        )

    def __call__(self, learning_rate: ArrayLike) -> dict[str, Matrices]:
        """Return {measure: Matrices} for one η, or for one η per source [n_s]; NaN leaves a source out."""
        plan = self._plan
        rates = np.broadcast_to(learning_rate, [len(plan.probe.sources)])
        outputs = self._engine(*plan.data, tf.constant(rates, plan.network.dtype))
        kinds = plan.kinds(outputs.before, self._backprop)
        method = plan.method("finite_step")
        return from_finite_steps(
            outputs, kinds, plan.measures, plan.probe.own_columns, method
        )
