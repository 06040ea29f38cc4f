"""Tables of S_rel, in memory and on disk. Knows no TensorFlow."""

from srel_tf.frames.schema import COLUMNS

__all__ = ["COLUMNS"]
