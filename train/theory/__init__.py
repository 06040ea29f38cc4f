"""Figures 6–13 of the paper, from the closed forms."""
