"""Compute how the update on each source changes all predictions. This room knows gradients and update rules."""
