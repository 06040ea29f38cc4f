"""Tables of S_rel, in memory and on disk. This package does not import TensorFlow."""

from srel_tf.frames.schema import COLUMNS

__all__ = ["COLUMNS"]
