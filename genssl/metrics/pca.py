"""Principal components."""

import torch
from torch import Tensor

from genssl.metrics.moments import ROWS, mean_and_covariance


def principal_components(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Project features onto the directions in which they vary most.

    Signs are chosen so that the largest entry of each direction is positive: the same features give the
    same picture.

    Args:
        features: (N, D) of any real type.
        count: how many components; where D is less, the others are zero.

    Returns:
        Projections (N, count) float32 of the centred features, and the share of the total variance along
        each component, (count,) float64, largest first; zeros where nothing varies. Both on the CPU.
    """
    mean, covariance = mean_and_covariance(features)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    directions = _signed(vectors.flip(1)[:, :count])
    parts = [(part.to(mean.device).double() - mean) @ directions for part in features.split(ROWS)]
    total = values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    shares = values.flip(0)[:count].clamp(min=0) / total
    missing = (0, count - directions.shape[1])
    projections = torch.nn.functional.pad(torch.cat(parts).float(), missing)
    return projections.cpu(), torch.nn.functional.pad(shares, missing).cpu()


def _signed(directions: Tensor) -> Tensor:
    """Columns (D, c), each mirrored where its largest entry is negative."""
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()
