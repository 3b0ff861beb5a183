"""What the dimensions of a latent code do."""

from dataclasses import dataclass

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01


def active_units(means: Tensor) -> int:
    """How many latent dimensions the data move: Var_x E_q[z] > 0.01 (Burda et al. 2016, section 5.2).

    Args:
        means: posterior means, (N, D).
    """
    return int((means.var(0) > ACTIVE_VARIANCE).sum())


@dataclass(frozen=True)
class Profile:
    """Latent codes by class.

    Attributes:
        means: (C, D), the mean code of each class.
        stds: (C, D), its spread within the class.
        counts: (C,), images a class.
        separation: (D,), variance between the class means over the mean variance within classes,
            weighted by class sizes: how much a dimension tells about the class (an F ratio without
            its degrees of freedom).
    """

    means: Tensor
    stds: Tensor
    counts: Tensor
    separation: Tensor


def class_profile(codes: Tensor, labels: Tensor, classes: int) -> Profile:
    """Latent codes (N, D) by label (N,): means, spread, separation; zeros for a class without images."""
    membership = torch.nn.functional.one_hot(labels, classes).to(codes.dtype)  # (N, C)
    counts = membership.sum(0)
    # Means over each class as one matrix product
    share = membership / counts.clamp(min=1)
    means = share.T @ codes
    variances = (share.T @ codes.square() - means.square()).clamp(min=0)
    weight = (counts / counts.sum())[:, None]
    center = (weight * means).sum(0)
    # Analysis of variance: what the class explains, over what it does not
    between = (weight * (means - center).square()).sum(0)
    within = (weight * variances).sum(0)
    return Profile(means, variances.sqrt(), counts, between / within.clamp(min=1e-12))
