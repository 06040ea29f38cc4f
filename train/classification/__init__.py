"""S_rel between classes during training: Figures 2 and 15-19."""
