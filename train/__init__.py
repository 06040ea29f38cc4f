"""The experiments of the paper, run from a checkout as `python -m train.NAME`."""

import os
import sys
from types import TracebackType

# Set before TensorFlow is loaded. At the default level its messages about the processor would bury a command's output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(130)


if sys.argv[0] == "-m":
    # A command is starting. Ctrl-C may come while its libraries load, which takes seconds.
    sys.excepthook = _end_quietly
