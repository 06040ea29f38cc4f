"""Compute S_rel from changes of predictions: for the finite step, for its limit, or for both."""
