"""Whether representations have collapsed: their spread, their scale, and how many dimensions they use."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.runtime import to_float64

EPSILON = 1e-7  # of the paper, for float32
ROWS = 4096  # made float64 at once


def output_std(z: Tensor) -> float:
    """The mean standard deviation of a channel of the unit-length rows, times sqrt(d).

    The measure of SimSiam (Chen and He 2021, section 4.1). Rows spread evenly over the sphere have
    1/sqrt(d) in each channel, so 1 here; a constant output has 0. It cannot exceed 1, since the
    deviations are those of the rows given (divided by N, not by N - 1).

    Args:
        z: outputs (N, d) of any real type; their lengths do not matter, and a zero row stays zero.

    Returns:
        A number in [0, 1], NaN where z is not finite.

    Raises:
        ValueError: z is not (N, d), or empty.

    Examples:
        >>> output_std(torch.cat([torch.eye(4), -torch.eye(4)]))  # spread over the sphere
        1.0
        >>> output_std(torch.ones(8, 4))  # collapsed
        0.0
    """
    _check(z)
    # On the unit sphere: a loss by cosine does not see lengths, and lengths may shrink without any collapse
    deviations = F.normalize(z.detach().float(), dim=1).std(0, correction=0)
    return float(deviations.mean() * z.shape[1] ** 0.5)


def output_scale(z: Tensor) -> float:
    """The root mean square of the channels' standard deviations, lengths of rows as they are.

    `output_std` and `rankme` ignore a common factor of all rows. A loss that does not can shrink the outputs
    to a point, as VICReg without its variance term (Bardes et al. 2022, section 4.1) does: 0 here.

    Args:
        z: outputs (N, d) of any real type.

    Returns:
        A number from 0 on, in the units of z; NaN where z is not finite.

    Raises:
        ValueError: z is not (N, d), or empty.

    Examples:
        >>> z = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        >>> output_scale(z), output_scale(0.5 * z)  # output_std is the same for both
        (1.0, 0.5)
    """
    _check(z)
    # The mean of the variances, whose root is in the units of z, too
    return float(z.detach().float().var(0, correction=0).mean().sqrt())


def rankme(z: Tensor) -> float:
    """The effective rank of the rows: exp of the entropy of the normalized singular values.

    RankMe (Garrido et al. 2023, equation 1): p_k = s_k / sum(s) + 1e-7, exp(-sum p_k log p_k). The rows
    are neither centered nor scaled, as there. A constant output has 1, an isotropic one nearly
    min(N, d).

    Args:
        z: outputs (N, d) of any real type.

    Returns:
        A number from 1 to min(N, d), up to the 1e-7; 0 where all of z is zero, NaN where z is
        not finite.

    Raises:
        ValueError: z is not (N, d), or empty.

    Examples:
        >>> round(rankme(torch.eye(8)), 3)  # all 8 dimensions are used
        8.0
        >>> round(rankme(torch.ones(8, 8)), 3)  # one is
        1.0
    """
    _check(z)
    values = _singular_values(z.detach())
    total = values.sum()
    if not total > 0:
        return float(total)
    # exp of the entropy: d equal singular values count as d dimensions, one large one as 1
    p = values / total + EPSILON
    return float((-(p * p.log()).sum()).exp())


def _singular_values(z: Tensor) -> Tensor:
    """The min(N, d) singular values, float64, through the smaller of the two Gram matrices.

    The squares cost half of float64's digits: what should be 0 is about 1e-8 of the largest, below EPSILON.
    """
    if z.device.type == "mps":  # has no float64
        z = z.cpu()
    if len(z) < z.shape[1]:
        z = z.T
    gram = torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64, device=z.device)
    for part in z.split(ROWS):
        rows = to_float64(part)
        gram.addmm_(rows.T, rows)
    if not gram.isfinite().all():
        return torch.full((1,), torch.nan)
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt()


def _check(z: Tensor) -> None:
    if z.ndim != 2 or z.numel() == 0:
        raise ValueError(f"outputs must be (N, d) and not empty, not {list(z.shape)}")
