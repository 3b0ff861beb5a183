"""How often each class is taken for each other."""

import math

import torch
from torch import Tensor


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (C, C) int64: row the true class, column the predicted one.

    Args:
        labels: int64 (N,), in [0, classes).
        predicted: int64 (N,), likewise.
        classes: C.

    Raises:
        ValueError: the numbers of labels and predictions differ.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"{list(predicted.shape)} predictions for {list(labels.shape)} labels")
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def class_accuracy(matrix: Tensor) -> Tensor:
    """The share of each class predicted right, (C,) float64; not a number for a class without images."""
    return matrix.diagonal().double() / matrix.sum(1)


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy measured on `n` images drawn independently: sqrt(a (1 - a) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / n)
