"""Comparison of S_rel with float64 on many nets, as evidence for the contract."""
