"""Measures of how far an update moves a prediction: how outputs are read, and the distances D.

These modules depend on tensors only, not on models.
"""
