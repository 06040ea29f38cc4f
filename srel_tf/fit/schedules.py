"""Schedules: when to measure. A schedule is any `step -> bool`; step n means that n optimizer updates were applied."""

from collections.abc import Callable
from typing import Any

from srel_tf.errors import OptionError

Schedule = Callable[[int], bool]


def as_schedule(every: Any) -> Schedule:
    """Make a `step -> bool` of an int (every that many steps, step 0 included) or a callable.

    Raises:
        OptionError: If `every` is neither.
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
