"""Modules shared by the experiments: data, run directories, processes."""
