"""Seaborn figures from frames; nothing here needs TensorFlow."""
