"""Training: the loop, the optimizer and the run."""
