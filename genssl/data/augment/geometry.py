"""Random resized crops with flips, of a whole batch, as a pair of matrix products."""

import math

import torch
from torch import Tensor

TRIES = 10  # boxes drawn for each crop; the first that fits is used
CROP_CHANCES = 2 * TRIES + 2
RATIO = 4 / 3  # of the longer side to the shorter, at most


def crop_boxes(chances: Tensor, height: int, width: int, smallest: float) -> Tensor:
    """Boxes with a uniform share of the area and a log-uniform ratio of the sides (Szegedy et al. 2015).

    The procedure of torchvision's RandomResizedCrop: of ten boxes the first that fits into the image; where
    none does, the largest central one with an allowed ratio.

    Args:
        chances: (N, CROP_CHANCES) uniform in [0, 1): ten shares, ten ratios, and the position.
        height: of the image, in pixels.
        width: of the image, in pixels.
        smallest: share of the area, in (0, 1].

    Returns:
        (N, 4), whole numbers as float: top, left, height, width.

    Examples:
        >>> chances = torch.rand(2, CROP_CHANCES)
        >>> crop_boxes(chances, height=32, width=32, smallest=0.08).shape
        torch.Size([2, 4])
    """
    # All ten are drawn for every image: no shape, and no later random number, depends on which one fits
    area = height * width * (smallest + (1 - smallest) * chances[:, :TRIES])
    ratio = ((2 * chances[:, TRIES : 2 * TRIES] - 1) * math.log(RATIO)).exp()  # width over height
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.float().argmax(1, keepdim=True)  # of several ones the first
    central = (min(height, round(width * RATIO)), min(width, round(height * RATIO)))
    any_fits = fits.any(1)
    h = torch.where(any_fits, heights.gather(1, first)[:, 0], central[0])
    w = torch.where(any_fits, widths.gather(1, first)[:, 0], central[1])
    top = torch.where(any_fits, _uniform_integer(chances[:, -2], height - h), ((height - h) / 2).floor())
    left = torch.where(any_fits, _uniform_integer(chances[:, -1], width - w), ((width - w) / 2).floor())
    return torch.stack([top, left, h, w], 1)


def _uniform_integer(chance: Tensor, largest: Tensor) -> Tensor:
    """Uniform in 0..largest. With chances of 24 bits, no product rounds up to largest + 1."""
    return (chance * (largest + 1)).floor()


def resized_crop(
    images: Tensor, boxes: Tensor, flips: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Cut a box out of each image, resize it bilinearly, and mirror some.

    Bilinear resizing is a product with one matrix for the rows and one for the columns; mirroring reverses
    the order of the columns.

    Args:
        images: (N, C, H, W), any real type.
        boxes: (N, 4) top, left, height, width, within the image.
        flips: (N,) bool, or None for none.
        size: S, pixels per side of the results; None: the image's own height and width.

    Returns:
        float32 (C, N, H, W), or (C, N, S, S), in the units of `images`: planes, which is how colors are
        computed fast.

    Examples:
        >>> images = torch.arange(16.0).view(1, 1, 4, 4)
        >>> whole = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> resized_crop(images, whole, flips=torch.tensor([True]))[0, 0, 0].tolist()
        [3.0, 2.0, 1.0, 0.0]
    """
    _, channels, height, width = images.shape
    top, left, h, w = boxes.unbind(1)
    # Bilinear weights are products: R (N, S, H) image (N, H, W) C^T (N, W, S)
    rows = interpolation(top, h, height, size=size)
    columns = interpolation(left, w, width, flips, size)
    wide = torch.bmm(images.float().flatten(1, 2), columns.mT)  # (N, C H, S)
    planes = wide.unflatten(1, (channels, height)).unbind(1)
    return torch.stack([torch.bmm(rows, plane) for plane in planes])


def interpolation(
    start: Tensor, length: Tensor, side: int, flips: Tensor | None = None, size: int | None = None
) -> Tensor:
    """The matrices that take `length` of an image's `side` pixels, from `start` on, to `size` pixels.

    Pixel o of the result reads the image at x(o) = start + (o + 1/2) length / size - 1/2, since pixel centers
    lie at halves; pixel i of the image has the weight max(0, 1 - |x(o) - i|). Where the result is smaller
    than the crop, the weights reach as much farther, so that every pixel of the crop counts (as in Pillow).

    Args:
        start: (N,).
        length: (N,).
        side: W.
        flips: (N,) bool; those run from the last pixel to the first.
        size: S; that of the image when None.

    Returns:
        (N, S, W), rows sum to 1.
    """
    pixels = torch.arange(side, dtype=start.dtype, device=start.device)
    if size is not None and size != side:
        return _resampling(start, length, pixels, flips, size)
    inside = (pixels + 0.5) * (length / side)[:, None] - 0.5
    # Clamped to the outermost centers of the crop: where it is enlarged, the first and last x(o) lie beyond
    # them, and would mix in pixels from outside the crop
    inside = inside.clamp_(min=0).minimum((length - 1)[:, None])
    if flips is not None:
        inside = torch.where(flips[:, None], inside.flip(1), inside)
    x = inside + start[:, None]
    return (1 - (x[:, :, None] - pixels).abs_()).clamp_(min=0)


def _resampling(start: Tensor, length: Tensor, pixels: Tensor, flips: Tensor | None, size: int) -> Tensor:
    """`interpolation` to another number of pixels than the image has: (N, size, W)."""
    scale = (length / size)[:, None]
    inside = (torch.arange(size, dtype=start.dtype, device=start.device) + 0.5) * scale - 0.5
    if flips is not None:
        inside = torch.where(flips[:, None], inside.flip(1), inside)
    distance = (start[:, None] + inside)[:, :, None] - pixels
    weights = (1 - distance.abs_() / scale.clamp(min=1)[:, :, None]).clamp_(min=0)
    # Pixels outside the crop do not count, and the others count as much more
    is_inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
    weights = weights * is_inside[:, None, :]
    return weights / weights.sum(2, keepdim=True)
