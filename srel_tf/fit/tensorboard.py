"""Measurements as TensorBoard summaries: a scalar per class pair and measure, and a heat map of each matrix."""

import importlib.util
import io

import tensorflow as tf

from srel_tf.errors import OptionError, StorageError
from srel_tf.frames.stats import smooth
from srel_tf.plotting import plot_matrix


class TensorBoardWriter:
    """Listener of measurements: call it with each result. The step of a summary is the number of optimizer updates.

    settings: of what is measured. Summaries are named by its update rule; by estimator and η too, where those are not
    the default, so that the curves of several probes of a model stay apart.
    """

    def __init__(self, log_dir, settings):
        if importlib.util.find_spec("tensorboard") is None:  # Checked here: tf.summary fails at its first use only.
            raise OptionError(
                f"log_dir={str(log_dir)!r} needs TensorBoard, which is not installed: pip install tensorboard"
            )
        self._log_dir, self._rule = log_dir, settings.update
        if settings.estimator != "exact":
            self._rule += f"_{settings.estimator}"
        if settings.learning_rate is not None:
            self._rule += f"_{settings.learning_rate:g}"
        try:
            self._writer = tf.summary.create_file_writer(str(log_dir))
        except tf.errors.OpError as error:
            raise OptionError(f"cannot write TensorBoard summaries to {log_dir}: {error.message}") from error

    def __call__(self, result):
        try:
            self._write(result)
        except tf.errors.OpError as error:
            raise StorageError(
                f"cannot write TensorBoard summaries to {self._log_dir}: {error.message}; free space there, or go on "
                "without log_dir"
            ) from error

    def _write(self, result):
        frame = result.to_frame()
        with self._writer.as_default(step=result.step):
            for pair in smooth(frame).itertuples():
                name = f"srel_{self._rule}_{pair.measure}/{pair.source_class} to {pair.target_class}"
                tf.summary.scalar(name, pair.mean)
            for measure, matrix in result.matrices.items():
                if matrix.valid.any():
                    tf.summary.image(f"srel_{self._rule}_{measure}", _as_image(plot_matrix(frame, measure)))
        self._writer.flush()


def _as_image(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return tf.image.decode_png(buffer.getvalue(), channels=4)[None]
