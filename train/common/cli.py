"""Functions that all commands share: exit status, error messages, options with numbers, printed tables."""

import argparse
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from srel_tf import SRelError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Main = Callable[[Sequence[str] | None], int | None]


def command(goes_on: str = "") -> Callable[[Main], Callable[..., int]]:
    """Decorate the function `main(arguments)` of a command. If `arguments` is None, `main` reads the command line.

    Errors that a user can fix, Ctrl-C and SIGTERM become one line on standard error and an exit status.

    Args:
        goes_on: Advice on how to continue an interrupted command. Empty if the command saves no measurements.
    """

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            before, now = (
                (
                    "; earlier measurements are saved",
                    f": the measurements so far are saved; {goes_on}",
                )
                if goes_on
                else ("", "")
            )
            try:
                with interruptible():
                    return main(arguments) or 0
            except SRelError as error:
                message, status = f"error: {error}", 1
            except OSError as error:
                message, status = f"error: {error}{before}", 1
            except KeyboardInterrupt:
                message, status = f"interrupted{now}", 130
            print(message, file=sys.stderr)
            return status

        return run

    return decorate


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGINT (Ctrl-C) within this block.

    SIGINT is set explicitly, because shells start background commands with SIGINT ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def interrupt(*_: object) -> None:
    """Signal handler that raises KeyboardInterrupt."""
    raise KeyboardInterrupt


def at_least(least: int, below: float = float("inf")) -> Callable[[str], int]:
    """Make a `type` for argparse that accepts only whole numbers ≥ `least` and < `below`."""

    def whole_number(text: str) -> int:
        value = int(text)
        if not least <= value < below:
            end = f" and less than {below}" if below < float("inf") else ""
            raise argparse.ArgumentTypeError(f"{value}: give at least {least}{end}")
        return value

    return whole_number


SEED = at_least(0, 2**32)


class Distinct(argparse.Action):
    """Refuse an option with several values if a value occurs twice."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if len(set(values)) < len(values):
            raise argparse.ArgumentError(self, f"{values}: give each value only once")
        setattr(namespace, self.dest, values)


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table under its title."""
    text = table.to_string(index=False, float_format="{:.4g}".format)
    print(f"\n{title}\n{text}", flush=True)
