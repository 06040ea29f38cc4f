"""The estimator that the settings ask for.

An estimator is made once for a model and a probe, and called at each measurement:
`estimator(learning_rate) -> {measure: Matrices}`.
"""

import warnings
from collections.abc import Callable
from typing import TypeAlias

from srel_tf.errors import ModelError, OptionError
from srel_tf.estimators.auto import AutoEstimator
from srel_tf.estimators.exact import ExactEstimator
from srel_tf.estimators.limit import LimitEstimator, check_limit
from srel_tf.estimators.plan import MeasurementPlan
from srel_tf.result import Matrices

Estimator: TypeAlias = Callable[[float], dict[str, Matrices]]


def make_estimator(plan: MeasurementPlan) -> Estimator:
    """Return the estimator that the settings ask for.

    precision="auto" means the model's own precision for the estimator "exact", and float64 for "limit". The estimator
    "auto" then uses the model's own precision, and float64 for rows that this precision does not resolve.

    Raises:
        OptionError: if a measure or update rule has no limit, or if precision="float32" and the weights are in float64.
        ModelError: if precision="float64" and the model does not run in float64.
    """
    settings, own = plan.settings, plan.network.dtype.name
    make = LimitEstimator if settings.estimator == "limit" else ExactEstimator
    if settings.estimator == "limit":
        check_limit(plan)
    wanted = settings.precision
    if wanted == "auto":
        wanted = {"exact": own, "limit": "float64", "auto": "auto"}[settings.estimator]
    if own == "float64" and wanted == "float32":
        raise OptionError(
            "precision='float32' would lose digits, because the model's weights are in float64: use precision='auto'"
        )
    if wanted == own or own == "float64":
        return make(plan)
    if wanted == "auto":
        return AutoEstimator(plan)
    try:
        plan = plan.in_precision("float64")
    except ModelError as error:
        if settings.precision == "float64":
            raise
        warnings.warn(f"the limit is computed in float32: {error}", stacklevel=5)
    return make(plan)
