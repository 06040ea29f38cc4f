"""The estimator that the settings ask for.

An estimator is made once for a model and a probe, and called at each measurement:
`estimator(learning_rate) -> {measure: Matrices}`.
"""

import warnings

from srel_tf.errors import ModelError, OptionError
from srel_tf.estimators.auto import Completed
from srel_tf.estimators.exact import Exact
from srel_tf.estimators.limit import FirstOrderLimit, check_limit


def make_estimator(task):
    """The estimator that the settings ask for.

    precision "auto" is the model's own for "exact", float64 for "limit", and for "auto" float64 where the model's own
    does not resolve a row.
    """
    settings, own = task.settings, task.network.dtype.name
    kind = FirstOrderLimit if settings.estimator == "limit" else Exact
    if kind is FirstOrderLimit:
        check_limit(task)
    wanted = settings.precision
    if wanted == "auto":
        wanted = {"exact": own, "limit": "float64", "auto": "auto"}[settings.estimator]
    if own == "float64" and wanted == "float32":
        raise OptionError("precision='float32': the model's weights are in float64, of which float32 loses digits")
    if wanted == own or own == "float64":
        return kind(task)
    if wanted == "auto":
        return Completed(task)
    try:
        task = task.in_precision("float64")
    except ModelError as error:
        if settings.precision == "float64":
            raise
        warnings.warn(f"the limit is taken in float32: {error}", stacklevel=5)
    return kind(task)
