"""Figures of S_rel frames, one module a figure; they know no TensorFlow. Each returns a matplotlib Figure."""

from srel_tf.plotting.class_pairs import plot_class_pairs
from srel_tf.plotting.history import plot_history
from srel_tf.plotting.matrix import plot_matrix
from srel_tf.plotting.style import save_figure

__all__ = ["plot_class_pairs", "plot_history", "plot_matrix", "save_figure"]
