"""When to measure: a schedule is any `step -> bool`. Step n means that n optimizer updates have been applied."""

from srel_tf.errors import OptionError


def as_schedule(every):
    """Return a `step -> bool` from an int (every that many steps, step 0 included) or from a callable.

    Raises `OptionError` for anything else.
    """
    if callable(every):
        return every
    if isinstance(every, bool) or not hasattr(every, "__index__") or int(every) < 1:
        raise OptionError(f"every={every!r}: give a positive number of steps, or a function from step to bool")
    period = int(every)
    return lambda step: step % period == 0
