"""What the experiments share: data, run directories, processes."""
