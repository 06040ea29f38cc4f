"""Ctrl-C and SIGTERM as a request to stop at the next suitable moment."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def first_signal_calls(function: Callable[[], None]) -> Iterator[None]:
    """Within this block, call `function` at the first SIGINT or SIGTERM. Later signals go to the previous handlers.

    Python allows this in the main thread only.
    """
    former_handlers: dict[signal.Signals, Any] = {}

    def restore_handlers() -> None:
        for number, handler in former_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def handle(*_: object) -> None:
        function()
        restore_handlers()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            former_handlers[number] = signal.signal(number, handle)
        yield
    finally:
        restore_handlers()
