"""Tables of S_rel, in memory and on disk. Does not import TensorFlow."""

from srel_tf.frames.schema import COLUMNS

__all__ = ["COLUMNS"]
