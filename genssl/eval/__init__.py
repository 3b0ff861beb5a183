"""Evaluation: one file per evaluating command, named after it."""
