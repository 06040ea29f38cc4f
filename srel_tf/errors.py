"""Named errors. Each message gives the wrong value, the reason and the next step."""

import re


class SRelError(Exception):
    """Base of every error that srel_tf raises on purpose."""


class BackendError(SRelError, RuntimeError):
    """Keras runs on a backend other than TensorFlow."""


class OptionError(SRelError, ValueError):
    """A measure, update rule, estimator, schedule or other option does not exist, or conflicts with another one."""


class ProbeError(SRelError, ValueError):
    """Probe examples, labels, class names or indices that cannot be measured."""


class ModelError(SRelError, ValueError):
    """A model that is not ready (unbuilt, uncompiled) or that the instrument does not support."""


class FrameError(SRelError, ValueError):
    """A frame lacks columns, or holds values, with which a statistic or a figure cannot be computed."""


class AssumptionError(SRelError, ValueError):
    """The theorem behind a closed form has an assumption that is not met; the message names the assumption."""


class ShapeError(SRelError, ValueError):
    """Shapes of arrays disagree with each other, or with the formula that is computed."""


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
