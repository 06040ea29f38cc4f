"""Compute S_rel from changes of predictions: by the finite step, by its limit, or by both."""
