"""Ctrl-C and SIGTERM: one way to end, in which everything is saved."""

import contextlib
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptible():
    """Within it both signals raise KeyboardInterrupt; so does Ctrl-C where a shell started us to ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def interrupt(*_):
    raise KeyboardInterrupt


@contextlib.contextmanager
def held():
    """Within it both signals wait; a process that is started in it lets them wait until `take`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take():
    """From now on both raise KeyboardInterrupt, those that have waited at once."""
    for number in SIGNALS:
        signal.signal(number, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
