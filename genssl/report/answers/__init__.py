"""Answers to the assignment's questions, computed from what was measured, in English or French."""
