"""The finite step: S_rel as Definitions 1 and 2 say."""

import numpy as np
import tensorflow as tf

from srel_tf.engines.finite_step import FiniteStep
from srel_tf.estimators import assemble as evaluation
from srel_tf.estimators.plan import suffix
from srel_tf.updates import RULES


class Exact:
    """The finite step (Definitions 1 and 2)."""

    def __init__(self, task):
        self._task = task
        self._passes, _ = task.passes
        rule = RULES[task.settings.update](task.network)
        own, batch_size = task.probe.own_columns, task.settings.batch_size
        self._engine = FiniteStep(task.network, rule, own, batch_size, self._passes)
        self._method = "finite_step" + suffix(task)

    def __call__(self, learning_rate):
        """{measure: Matrices} for one η, or for one of each source [n_s], NaN for those to leave out."""
        task = self._task
        steps = np.broadcast_to(learning_rate, [len(task.probe.sources)])
        outputs = self._engine(*task.data, tf.constant(steps, task.network.dtype))
        kinds = task.kinds(outputs.before, self._passes)
        return evaluation.of_finite_steps(outputs, kinds, task.measures, task.probe.own_columns, self._method)
