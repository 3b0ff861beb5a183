"""Random views, as batched functions on the device."""
