"""The errors that srel_tf raises. Each message gives the wrong value, the reason and a remedy."""

import re


class SRelError(Exception):
    """Base class of all errors that srel_tf itself raises."""


class BackendError(SRelError, RuntimeError):
    """A backend of Keras other than TensorFlow."""


class OptionError(SRelError, ValueError):
    """A measure, update rule, estimator or other option that does not exist, or conflicts with another option."""


class ProbeError(SRelError, ValueError):
    """Examples, labels, class names or indices of a probe that cannot be used."""


class ModelError(SRelError, ValueError):
    """A model that is not ready (unbuilt, uncompiled) or that the instrument does not support."""


class FrameError(SRelError, ValueError):
    """A frame from which a statistic or figure cannot be computed, because of missing columns or unsuitable values."""


class AssumptionError(SRelError, ValueError):
    """A closed form whose theorem has an assumption that is not met. The message names the assumption."""


class ShapeError(SRelError, ValueError):
    """Arrays whose shapes disagree with each other, or with the formula that is computed."""


class StorageError(SRelError, OSError):
    """Files that cannot be read or written, that are damaged, or that another process is writing."""


class ChunkError(SRelError, MemoryError):
    """A measurement that does not fit into memory. The message says what to reduce."""


def reason_of(error: BaseException) -> str:
    """Return the line of an error's message that says what failed.

    If a layer fails, Keras puts a line about the layer before the message. That line is skipped.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    return re.sub(r"\x1b\[\d*m", "", lines[0]) if lines else type(error).__name__
