"""Mean and covariance of features, in float64 and bounded memory."""

import torch
from torch import Tensor

ROWS = 4096  # made float64 at once


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) and the covariance (D, D), divided by N, of features (N, D) of any real type; float64.

    On the features' device, or on the CPU where that has no float64.
    """
    if features.device.type == "mps":
        features = features.cpu()
    mean = features.mean(0, dtype=torch.float64)
    # Centered before the products: E[x^2] - E[x]^2 would cancel
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for part in features.split(ROWS):
        rows = part.double() - mean
        covariance.addmm_(rows.T, rows)
    return mean, covariance / len(features)
