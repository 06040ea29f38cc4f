"""How far an update moves a prediction: how outputs are read, and the distances D between them. Knows tensors only."""
