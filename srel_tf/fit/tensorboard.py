"""Measurements as TensorBoard summaries: a scalar per class pair and measure, and a heat map of each matrix."""

import importlib.util
import io

import tensorflow as tf
from matplotlib.figure import Figure

from srel_tf.errors import OptionError, StorageError
from srel_tf.files import AnyPath
from srel_tf.frames.stats import smooth
from srel_tf.plotting import plot_matrix
from srel_tf.result import SRelResult


class TensorBoardWriter:
    """Listener that writes each result. The step of a summary is the number of optimizer updates.

    The name of a summary contains the probe's name, the update rule, and the estimator if it is not "exact". Therefore
    the curves of several probes of a model stay separate.

    Args:
        log_dir: The TensorBoard directory.

    Raises:
        OptionError: If TensorBoard is not installed, or summaries cannot be written to `log_dir`.
    """

    def __init__(self, log_dir: AnyPath) -> None:
        if (
            importlib.util.find_spec("tensorboard") is None
        ):  # Check this now, because tf.summary would fail only at its first use.
            raise OptionError(
                f"log_dir={str(log_dir)!r} needs TensorBoard, which is not installed: pip install tensorboard"
            )
        self._log_dir = log_dir
        try:
            self._writer = tf.summary.create_file_writer(str(log_dir))
        except tf.errors.OpError as error:
            raise OptionError(
                f"cannot write TensorBoard summaries to {log_dir}: {error.message}; choose another log_dir"
            ) from error

    def __call__(self, result: SRelResult) -> None:
        """Write a result. Raises `StorageError`."""
        try:
            self._write(result)
        except tf.errors.OpError as error:
            raise StorageError(
                f"cannot write TensorBoard summaries to {self._log_dir}: {error.message}; free space there, or "
                "continue without log_dir"
            ) from error

    def _write(self, result: SRelResult) -> None:
        frame = result.to_frame()
        prefix = _prefix(result)
        with self._writer.as_default(step=result.step):
            for pair in smooth(frame).itertuples():
                classes = f"{pair.source_class} to {pair.target_class}"
                tf.summary.scalar(f"{prefix}_{pair.measure}/{classes}", pair.mean)
            for measure, matrices in result.matrices.items():
                if not matrices.valid.any():
                    continue
                figure = plot_matrix(frame, measure)
                image = _as_image(figure)
                tf.summary.image(f"{prefix}_{measure}", image)
        self._writer.flush()


def _prefix(result: SRelResult) -> str:
    estimator = "" if result.estimator == "exact" else result.estimator
    names = ["srel", result.probe.name, result.update, estimator]
    return "_".join(name for name in names if name)


def _as_image(figure: Figure) -> tf.Tensor:
    """Draw a figure as uint8 [1, height, width, 4]."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return tf.image.decode_png(buffer.getvalue(), channels=4)[None]
