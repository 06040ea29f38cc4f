"""Separate results from rounding noise. These modules depend on arrays and tensors only, not on models."""
