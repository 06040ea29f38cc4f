"""Measuring inside `model.fit`. Knows Keras's callbacks."""
