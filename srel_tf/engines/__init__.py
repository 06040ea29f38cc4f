"""Changes of all predictions by the update on each source. Knows gradients and update rules."""
