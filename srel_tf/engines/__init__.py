"""Compute how the update on each source changes all predictions. The engines use gradients and update rules."""
