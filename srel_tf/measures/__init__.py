"""Measure how far an update moves a prediction: interpret the model's outputs, and compute distances D.

These modules depend on tensors only, not on models.
"""
