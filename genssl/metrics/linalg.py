"""Mean, covariance and principal components, in float64 and bounded memory."""

import torch
from torch import Tensor

from genssl.runtime import to_float64

ROWS = 4096  # made float64 at once


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) and the covariance (D, D), divided by N, of features (N, D) of any real type; float64.

    On the features' device, or on the CPU where that has no float64.

    Examples:
        >>> mean_and_covariance(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        (tensor([1., 2.], dtype=torch.float64), tensor([[1., 2.],
                [2., 4.]], dtype=torch.float64))
    """
    if features.device.type == "mps":
        features = features.cpu()
    mean = features.mean(0, dtype=torch.float64)
    # Centered before the products: E[x^2] - E[x]^2 would cancel
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for part in features.split(ROWS):
        rows = to_float64(part) - mean
        covariance.addmm_(rows.T, rows)
    return mean, covariance / len(features)


def principal_components(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Project features onto the directions in which they vary most.

    Signs are chosen so that the largest entry of each direction is positive: the same features give the
    same picture.

    Args:
        features: (N, D) of any real type.
        count: how many components; where D is less, the others are zero.

    Returns:
        Projections (N, count) float32 of the centered features, and the share of the total variance along
        each component, (count,) float64, largest first; zeros where nothing varies. Both on the CPU.

    Examples:
        >>> line = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        >>> points, shares = principal_components(line)
        >>> points.shape, [round(share, 3) for share in shares.tolist()]
        (torch.Size([3, 2]), [1.0, 0.0])
    """
    mean, covariance = mean_and_covariance(features)
    # The eigenvectors of the covariance, which eigh gives in ascending order of variance
    values, vectors = torch.linalg.eigh(covariance)
    directions = _signed(vectors.flip(1)[:, :count])
    parts = [(to_float64(part) - mean) @ directions for part in features.split(ROWS)]
    total = values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    shares = values.flip(0)[:count].clamp(min=0) / total
    missing = (0, count - directions.shape[1])
    projections = torch.nn.functional.pad(torch.cat(parts).float(), missing)
    return projections.cpu(), torch.nn.functional.pad(shares, missing).cpu()


def _signed(directions: Tensor) -> Tensor:
    """Columns (D, c), each mirrored where its largest entry is negative."""
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()
