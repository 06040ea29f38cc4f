"""Costs of a measurement."""
