"""How sharp images are, and how varied."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.runtime import to_float64

GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
SHARPNESS = "train_sharpness"  # that of a run's training images, among the numbers kept with its weights
ROWS = 1024  # images, or rows of distances, at once


def sharpness(images: Tensor, device: torch.device | None = None) -> Tensor:
    """The variance of the Laplacian of each image in gray: blurred images have little.

    Pech-Pacheco et al. 2000. Four neighbors, inner pixels only, on the scale of 0..255. Noise is sharp,
    too, so that a number above that of real images is no merit.

    Args:
        images: uint8 (N, C, H, W) of 1 or 3 channels, at least 3 pixels per side.
        device: where to compute, a part of the images at a time; where they are when None.

    Returns:
        (N,) float32 on that device, in squared gray levels.

    Raises:
        ValueError: the shape is another.

    Examples:
        >>> flat, checkered = torch.zeros(4, 4), 255 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2)
        >>> sharpness(torch.stack([flat, checkered])[:, None].to(torch.uint8)).tolist()
        [0.0, 1040400.0]
    """
    if images.ndim != 4 or images.shape[1] not in {1, 3} or min(images.shape[2:]) < 3:
        raise ValueError(
            f"images must be (N, 1 or 3, H, W) of at least 3 pixels per side, not {list(images.shape)}"
        )
    device = device or images.device
    weights = torch.tensor(GRAY if images.shape[1] == 3 else (1.0,), device=device).view(1, -1, 1, 1)
    kernel = torch.tensor(LAPLACIAN, device=device).view(1, 1, 3, 3)
    parts = []
    for part in images.split(ROWS):
        gray = (part.to(device).float() * weights).sum(1, keepdim=True)
        # Second derivatives: their variance is the energy at the highest frequencies
        parts.append(F.conv2d(gray, kernel).flatten(1).var(1, correction=0))
    return torch.cat(parts)


def mean_sharpness(images: Tensor) -> float:
    """The mean of `sharpness` over images, uint8 (N, C, H, W); in float64, N at least 1.

    Examples:
        >>> mean_sharpness(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8))
        0.0
    """
    return float(sharpness(images).cpu().double().mean())


def diversity(x: Tensor) -> float:
    """The mean Euclidean distance between two rows of x (N, D): samples all alike have 0.

    Float64; memory of 1,024 rows of distances.

    Raises:
        ValueError: x is not (N, D), or has fewer than two rows.

    Examples:
        >>> diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        5.0
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"diversity needs features (N, D) of at least two rows, not {list(x.shape)}")
    rows = to_float64(x)
    total = rows.new_zeros(())
    for part in rows.split(ROWS):
        total += torch.cdist(part, rows).sum()
    return float(total) / (len(x) * (len(x) - 1))
