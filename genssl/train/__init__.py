"""Training: the loop, the optimiser and the run."""
