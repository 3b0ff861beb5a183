"""Data: sources, cache, batches and augmentation."""
