"""Which entries are numbers, and which are rounding noise. Knows arrays."""
