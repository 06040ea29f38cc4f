"""The experiments of the paper, run from a checkout as `python -m train.NAME`."""

import os
import sys
from types import TracebackType

# The log level is set before TensorFlow is loaded, because its notes on the processor would bury the commands' output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(130)


if sys.argv[0] == "-m":  # This is a command, whose libraries take a while to load.
    sys.excepthook = _end_quietly
