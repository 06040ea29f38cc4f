"""Figures 6-13 from the closed forms."""
