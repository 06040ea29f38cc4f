"""Computations behind the list of errata."""
