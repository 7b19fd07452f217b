"""Recovery: a compressed checkpoint is trained on text, and a checkpoint with the same tensors is written."""
