"""What a measurement costs."""
