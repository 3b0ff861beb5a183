"""RandAugment (Cubuk et al. 2020) of a whole batch, with separate operations for each image.

The fourteen operations and ranges are those of torchvision's RandAugment, which fit small images: it takes
translations as a share of the side, not as the paper's pixels of ImageNet; magnitude 9 of 30 moves an image
of 32 pixels by 4. Geometric operations resample bilinearly, and what they uncover is black. An operation runs
on every image, with parameters that change nothing where it was not drawn: no shape depends on chance.

Images are bytes as three planes, or one of gray images: whole numbers in 0..255, float32 (C, N, H, W).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data.augment.color import gray

(
    IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTNESS, COLOR, CONTRAST, SHARPNESS,
    POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE,
) = range(14)  # fmt: skip
OPERATIONS = 14
MAGNITUDES = 30
# What the largest magnitude means; in both directions, except for the bits of posterize
LARGEST_SHEAR = 0.3  # pixels sideways per pixel
LARGEST_SHIFT = 150 / 331  # of the side
LARGEST_ANGLE = math.radians(30)
LARGEST_BLEND = 0.9  # factors 0.1 and 1.9
LARGEST_CUT = 4  # bits that posterize clears
LEVELS = 256


def randaugment(planes: Tensor, kinds: Tensor, signs: Tensor, magnitude: int) -> Tensor:
    """Apply K operations to each image, one after the other.

    Args:
        planes: (C, N, H, W) bytes.
        kinds: (N, K) int64 in 0..13: IDENTITY to EQUALIZE.
        signs: (N, K) of -1 and 1; which way to shear, shift, rotate or blend.
        magnitude: how much, 0..30.

    Examples:
        >>> planes, darker = torch.full((3, 1, 4, 4), 101.0), torch.tensor([[-1]])
        >>> randaugment(planes, torch.tensor([[BRIGHTNESS]]), darker, magnitude=15).unique()
        tensor([55.])
    """
    share = magnitude / MAGNITUDES
    for kind, sign in zip(kinds.unbind(1), signs.unbind(1), strict=True):
        planes = warp(planes, kind, sign * share)
        planes = enhance(planes, kind, sign * share)
        planes = remap(planes, kind, magnitude)
    return planes


def warp(planes: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """Shear (from the top left corner), shift by whole pixels, or rotate (about the center).

    Args:
        planes: (C, N, H, W) bytes.
        kind: (N,); other operations than these five leave the image as it is.
        amount: (N,) share of the largest, in [-1, 1].
    """
    theta = _sources(kind, amount, *planes.shape[2:])
    grid = F.affine_grid(theta, list(planes.transpose(0, 1).shape), align_corners=False)
    images = F.grid_sample(planes.transpose(0, 1), grid, padding_mode="zeros", align_corners=False)
    return images.transpose(0, 1).contiguous().round_()


def _sources(kind: Tensor, amount: Tensor, height: int, width: int) -> Tensor:
    """The matrices (N, 2, 3) from a position in the result to its source; positions run from -1 to 1."""
    # Where another operation was drawn its parameter is 0, and the matrix that of the identity
    angle = LARGEST_ANGLE * amount * (kind == ROTATE)
    shear_x = LARGEST_SHEAR * amount * (kind == SHEAR_X) * height / width
    shear_y = LARGEST_SHEAR * amount * (kind == SHEAR_Y) * width / height
    shift_x = _whole_pixels(amount, width) * (kind == TRANSLATE_X)
    shift_y = _whole_pixels(amount, height) * (kind == TRANSLATE_Y)
    cos, sin = angle.cos(), angle.sin()
    # Rotations are in pixels, and positions in half sides: hence height / width where the two mix
    x = torch.stack([cos, shear_x - sin * height / width, shear_x - shift_x], 1)
    y = torch.stack([shear_y + sin * width / height, cos, shear_y - shift_y], 1)
    return torch.stack([x, y], 1)


def _whole_pixels(amount: Tensor, side: int) -> Tensor:
    """A shift in units of half the side."""
    return (amount * LARGEST_SHIFT * side).trunc() * (2 / side)


def enhance(planes: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """Brightness, color, contrast or sharpness: factor * image + (1 - factor) * reference.

    The reference is black, gray, the mean gray, or the image smoothed.

    Args:
        planes: (C, N, H, W) bytes.
        kind: (N,); other operations than these four leave the image as it is.
        amount: (N,) share of the largest change, in [-1, 1]; factors are 1 + 0.9 amount.
    """
    blends = (kind >= BRIGHTNESS) & (kind <= SHARPNESS)
    rest = -LARGEST_BLEND * amount * blends  # 1 - factor
    shades = gray(planes)
    mean = shades.mean((1, 2)) * rest * (kind == CONTRAST)
    reference = shades.mul_((rest * (kind == COLOR))[:, None, None]).add_(mean[:, None, None])
    smooth = smoothed(planes).mul_((rest * (kind == SHARPNESS))[:, None, None]).add_(reference)
    # Cut to whole numbers, as Pillow and torchvision do; the margin is for sums that miss one by rounding
    return smooth.addcmul_(planes, (1 - rest)[:, None, None]).add_(1e-3).floor_().clamp_(0, LEVELS - 1)


def smoothed(planes: Tensor) -> Tensor:
    """Pillow's SMOOTH: 5 parts a pixel, 1 part each of its eight neighbors; border pixels stay."""
    across = planes[..., :-2] + planes[..., 1:-1]
    across += planes[..., 2:]
    inner = across[:, :, :-2] + across[:, :, 1:-1]
    inner += across[:, :, 2:]
    result = planes.clone()
    result[:, :, 1:-1, 1:-1].mul_(4).add_(inner).div_(13)
    return result


def remap(planes: Tensor, kind: Tensor, magnitude: int) -> Tensor:
    """Posterize, solarize, autocontrast or equalize: a table of 256 levels for each plane.

    Args:
        planes: (C, N, H, W) bytes.
        kind: (N,); other operations than these four leave the image as it is.
        magnitude: 0..30: bits that posterize clears, and how far down from white solarize begins.
    """
    # Each operation maps a level to a level whatever its neighbors are, so a table of 256 says it all
    levels = planes.long().flatten(2)
    ramp = torch.arange(LEVELS, dtype=planes.dtype, device=planes.device)
    step = 2 ** round(LARGEST_CUT * magnitude / MAGNITUDES)
    threshold = (LEVELS - 1) * (1 - magnitude / MAGNITUDES)
    kind = kind[:, None]
    table = torch.where(kind == POSTERIZE, (ramp / step).floor() * step, ramp)  # (N, 256)
    table = torch.where(kind == SOLARIZE, torch.where(ramp >= threshold, LEVELS - 1 - ramp, ramp), table)
    tables = torch.where(kind == AUTOCONTRAST, _stretching(planes, ramp), table)  # (C, N, 256)
    tables = torch.where(kind == EQUALIZE, _equalizing(levels, ramp), tables)
    return tables.gather(2, levels).view_as(planes)


def _stretching(planes: Tensor, ramp: Tensor) -> Tensor:
    """Tables (C, N, 256) that take a plane's darkest level to 0 and its brightest to 255."""
    low, high = planes.amin((2, 3)), planes.amax((2, 3))
    flat = (high == low)[:, :, None]
    span = (high - low).clamp(min=1)[:, :, None]
    stretched = ((ramp - low[:, :, None]) * (LEVELS - 1) / span).floor().clamp_(0, LEVELS - 1)
    return torch.where(flat, ramp, stretched)


def _equalizing(levels: Tensor, ramp: Tensor) -> Tensor:
    """Tables (C, N, 256) that make a plane's levels about equally frequent, as Pillow's equalize does.

    A level goes to the number of pixels below it over a 255th of all pixels but those of the brightest level
    there is, in whole numbers. A plane with fewer than 255 such pixels stays.
    """
    counts = torch.zeros(*levels.shape[:2], LEVELS, device=levels.device)
    counts.scatter_add_(2, levels, torch.ones((), device=levels.device).expand(levels.shape))
    brightest = levels.amax(2, keepdim=True)
    step = ((levels.shape[2] - counts.gather(2, brightest)) / (LEVELS - 1)).floor()
    below = counts.cumsum(2) - counts
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp_(max=LEVELS - 1)
    return torch.where(step == 0, ramp, table)
