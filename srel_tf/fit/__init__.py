"""Measurement inside `model.fit`. Knows Keras callbacks."""
