"""The options of a measurement, and checks of their values."""

import numbers
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from srel_tf.errors import OptionError
from srel_tf.measures.outputs import CHOICES
from srel_tf.measures.registry import MEASURES
from srel_tf.updates import RULES

ESTIMATORS = ("exact", "limit", "auto")
PRECISIONS = ("auto", "float32", "float64")


@dataclass(frozen=True)
class Settings:
    """The options of a measurement, described in `measure`.

    Raises:
        OptionError: if an option or its value does not exist.

    Example:
        >>> import srel_tf
        >>> srel_tf.Settings(measures="kl", estimator="limit").measures
        ('kl',)
    """

    measures: tuple[str, ...] | str = ("kl", "l1")
    update: str = "sgd"
    learning_rate: float | None = None
    estimator: str = "exact"
    predictions: str = "auto"
    batch_size: int = 128
    precision: str = "auto"
    loss: Callable | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.measures, Iterable):
            raise OptionError(
                f"measures={self.measures!r}: choose from {', '.join(MEASURES)}"
            )
        names = (
            (self.measures,) if isinstance(self.measures, str) else tuple(self.measures)
        )
        object.__setattr__(self, "measures", names)
        for name in names:
            check_choice("measure", name, MEASURES)
        if not names or len(set(names)) < len(names):
            raise OptionError(f"measures={names}: name at least one, and none twice")
        check_choice("update rule", self.update, RULES)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("predictions", self.predictions, CHOICES)
        check_choice("precision", self.precision, PRECISIONS)
        eta = self.learning_rate
        if eta is not None and not (
            _is_number(eta, numbers.Real) and 0 < eta < float("inf")
        ):
            raise OptionError(
                f"learning_rate={eta!r}: give a positive number, or None for the optimizer's learning rate"
            )
        if not _is_number(self.batch_size, numbers.Integral) or self.batch_size < 1:
            raise OptionError(
                f"batch_size={self.batch_size!r}: give a positive number of examples"
            )
        if self.loss is not None and not callable(self.loss):
            raise OptionError(
                f"loss={self.loss!r}: give a function (y_true, y_pred) -> loss, or None for the compiled loss"
            )


def check_choice(option: str, value: Any, choices: Collection[str]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(
            f"unknown {option} {value!r}: choose from {', '.join(choices)}"
        )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
