"""Comparison of S_rel with a float64 reference on many nets."""
