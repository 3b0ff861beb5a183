"""Disturbances of real images, weak to strong: what a distance between images should notice.

As Heusel et al. 2017 (figure 3) did for the FID, with the changes that features trained to ignore them miss:
gray, swapped channels and blur.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data.augment.color import WEIGHTS
from genssl.runtime import generator

PATCH = 8  # pixels, the side of a swapped patch


@dataclass(frozen=True)
class Disturbance:
    """A change of images at three strengths.

    Attributes:
        name: as a noun phrase, e.g. "Gaussian blur".
        strengths: from weak to strong.
        label: a strength with its unit, as text.
        apply: uint8 (N, C, H, W) and a strength -> uint8 (N, C, H, W).
    """

    name: str
    strengths: tuple[float, float, float]
    label: Callable[[float], str]
    apply: Callable[[Tensor, float], Tensor]


def desaturate(images: Tensor, amount: float) -> Tensor:
    """Blend every image with its gray version; 1 is gray."""
    gray = (images.float() * images.new_tensor(WEIGHTS, dtype=torch.float32).view(3, 1, 1)).sum(
        1, keepdim=True
    )
    return _bytes(images.float().lerp(gray.expand_as(images), amount))


def permute_channels(images: Tensor, amount: float) -> Tensor:
    """Swap red and blue in a share of the images up to 1; above, rotate the channels of all, red to green."""
    return images.roll(1, 1) if amount > 1 else _of_a_share(images, amount, images.flip(1))


def blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of `sigma` pixels; edges are reflected."""
    from torchvision.transforms.v2 import (
        functional as transforms,
    )  # here: torchvision takes seconds to import

    side = 2 * max(1, round(3 * sigma)) + 1
    blurred: Tensor = transforms.gaussian_blur(images, [side, side], [sigma, sigma])
    return blurred


def add_noise(images: Tensor, std: float) -> Tensor:
    """Add Gaussian noise of `std` gray levels."""
    noise = torch.randn(images.shape, generator=generator(0, "eval")).to(images.device)
    return _bytes(images.float() + std * noise)


def brighten(images: Tensor, levels: float) -> Tensor:
    """Add gray levels to all channels."""
    return _bytes(images.float() + levels)


def raise_contrast(images: Tensor, factor: float) -> Tensor:
    """Scale the differences from the mean of each image."""
    mean = images.float().mean((1, 2, 3), keepdim=True)
    return _bytes(mean + factor * (images.float() - mean))


def invert(images: Tensor, share: float) -> Tensor:
    """Turn a share of the images into photographic negatives."""
    return _of_a_share(images, share, 255 - images)


def mirror(images: Tensor, share: float) -> Tensor:
    """Mirror a share of the images, left to right."""
    return _of_a_share(images, share, images.flip(3))


def shift(images: Tensor, pixels: float) -> Tensor:
    """Shift to the lower right; the edge is repeated."""
    by = int(pixels)
    padded = F.pad(images.float(), (by, 0, by, 0), mode="replicate")
    return padded[..., : images.shape[2], : images.shape[3]].to(torch.uint8)


def swap_patches(images: Tensor, pairs: float) -> Tensor:
    """Swap random pairs of patches of 8 x 8 pixels in every image; what is left over at the edge stays."""
    rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
    inner = images[:, :, : rows * PATCH, : columns * PATCH]
    patches = inner.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH))  # (N, 3, rows, 8, columns, 8)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, rows * columns, 3, 8, 8)
    draws = torch.rand(patches.shape[:2], generator=generator(0, "eval")).to(images.device)
    order = draws.argsort(1)
    chosen = order[:, : 2 * min(int(pairs), order.shape[1] // 2)]
    # The second of each pair takes the place of the first
    source = torch.arange(order.shape[1], device=images.device).expand_as(order).clone()
    source.scatter_(1, chosen, chosen.unflatten(1, (-1, 2)).flip(2).flatten(1))
    swapped = patches.gather(1, source[:, :, None, None, None].expand_as(patches))
    result = images.clone()
    swapped = swapped.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    result[:, :, : rows * PATCH, : columns * PATCH] = swapped.reshape(inner.shape)
    return result


def _of_a_share(images: Tensor, share: float, changed: Tensor) -> Tensor:
    """The first `share` of the images changed: the split is shuffled, so that these are random ones."""
    count = round(share * len(images))
    return torch.cat([changed[:count], images[count:]])


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


PERMUTED = {0.5: "red and blue swapped in 50%", 1.0: "in all images", 2.0: "all three rotated"}
SHARES = (0.25, 0.5, 1.0)
DISTURBANCES = (
    Disturbance("gray", (0.5, 0.75, 1.0), "{:.0%} of the color lost".format, desaturate),
    Disturbance("channels permuted", (0.5, 1.0, 2.0), PERMUTED.__getitem__, permute_channels),
    Disturbance("blur", (0.5, 1.0, 2.0), "sigma {:g} px".format, blur),
    Disturbance("noise", (5.0, 10.0, 20.0), "std {:g} levels".format, add_noise),
    Disturbance("brightness", (25.0, 50.0, 75.0), "+{:g} levels".format, brighten),
    Disturbance("contrast", (1.35, 1.7, 2.4), "x{:g}".format, raise_contrast),
    Disturbance("negative", SHARES, "{:.0%} of the images".format, invert),
    Disturbance("mirrored", SHARES, "{:.0%} of the images".format, mirror),
    Disturbance("shifted", (2.0, 4.0, 8.0), "{:g} px".format, shift),
    Disturbance("patches swapped", (1.0, 2.0, 4.0), "{:g} pairs".format, swap_patches),
)
