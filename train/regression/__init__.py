"""S_rel and distances during a regression (Figures 3–5)."""
