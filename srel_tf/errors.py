"""Named errors. Each message says what was wrong, with its value, and what to do next."""

import re


class SRelError(Exception):
    """Base of every error that srel_tf raises on purpose."""


class BackendError(SRelError, RuntimeError):
    """Keras runs on a backend other than TensorFlow."""


class OptionError(SRelError, ValueError):
    """A measure, update rule, estimator, schedule or other option that does not exist or does not fit."""


class ProbeError(SRelError, ValueError):
    """Probe examples, labels, class names or indices that cannot be measured."""


class ModelError(SRelError, ValueError):
    """A model that is not ready (unbuilt, uncompiled) or that the instrument does not support."""


class FrameError(SRelError, ValueError):
    """A frame without the columns, or with the values, that a statistic or a figure needs."""


class AssumptionError(SRelError, ValueError):
    """A closed form whose theorem's assumption is not met; the message names the assumption."""


class ShapeError(SRelError, ValueError):
    """Arrays whose shapes do not fit together, or do not fit what a formula takes."""


class StorageError(SRelError, OSError):
    """Files that cannot be written, that have been damaged, or that another process is writing."""


class ChunkError(SRelError, MemoryError):
    """A measurement that does not fit into memory; the message says which chunk size to set."""


def reason_of(error: BaseException) -> str:
    """Return the line of an error that says what failed, also of one that Keras has wrapped in a layer's arguments."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    return re.sub(r"\x1b\[\d*m", "", lines[0]) if lines else type(error).__name__
