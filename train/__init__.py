"""The experiments of the paper, run from a checkout as `python -m train.NAME`."""

import os
import sys
from types import TracebackType

# Before TensorFlow is loaded: its notes on the processor would bury what the commands print.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(130)


if sys.argv[0] == "-m":  # A command, which takes a while to load its libraries.
    sys.excepthook = _end_quietly
