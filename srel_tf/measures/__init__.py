"""Measures of how far an update moves a prediction: the reading of outputs, and the distances D. Knows tensors only."""
