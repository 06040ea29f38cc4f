"""Separation of numbers from rounding noise. This room knows arrays only."""
