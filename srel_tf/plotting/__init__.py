"""Figures of S_rel frames. Each function returns a matplotlib Figure. This package does not import TensorFlow."""

from srel_tf.plotting.class_pairs import plot_class_pairs
from srel_tf.plotting.comparison import plot_beside
from srel_tf.plotting.history import plot_history
from srel_tf.plotting.matrix import plot_matrix
from srel_tf.plotting.regression import plot_distances, plot_pairs
from srel_tf.plotting.separation import plot_separation, plot_spread
from srel_tf.plotting.style import save_figure

__all__ = [
    "plot_beside",
    "plot_class_pairs",
    "plot_distances",
    "plot_history",
    "plot_matrix",
    "plot_pairs",
    "plot_separation",
    "plot_spread",
    "save_figure",
]
