"""Numbers behind the list of errata."""
