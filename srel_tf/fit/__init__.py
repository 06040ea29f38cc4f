"""Measurement during `model.fit`, by Keras callbacks."""
