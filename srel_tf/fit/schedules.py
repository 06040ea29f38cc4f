"""Schedules: when to measure. A schedule is any `step -> bool`; step n means that n optimizer updates were applied."""

from collections.abc import Callable
from typing import Any

from srel_tf.errors import OptionError

Schedule = Callable[[int], bool]


def as_schedule(every: Any) -> Schedule:
    """Return a function `step -> bool` that is True at the multiples of the int `every`; return a callable unchanged.

    Raises:
        OptionError: If `every` is neither a positive int nor a callable.
    """
    if callable(every):
        return every
    is_integer = hasattr(every, "__index__") and not isinstance(every, bool)
    if not is_integer or int(every) < 1:
        raise OptionError(
            f"every={every!r}: give a positive number of steps, or a function from step to bool"
        )
    period = int(every)
    return lambda step: step % period == 0
