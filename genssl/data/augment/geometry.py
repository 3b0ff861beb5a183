"""Random resized crops with flips, of a batch at once, as a pair of matrix products."""

import math

import torch
from torch import Tensor

TRIES = 10  # boxes drawn for each crop, of which the first that fits is used
CROP_CHANCES = 2 * TRIES + 2
RATIO = 4 / 3  # of the longer side to the shorter, at most


def crop_boxes(chances: Tensor, height: int, width: int, smallest: float) -> Tensor:
    """Boxes with a uniform share of the area and a log-uniform ratio of the sides (Szegedy et al. 2015).

    The procedure of torchvision's RandomResizedCrop: of ten boxes the first that fits into the image; where
    none does, the largest central one with an allowed ratio.

    Args:
        chances: (N, CROP_CHANCES) uniform in [0, 1): ten shares, ten ratios, and the place.
        height: of the image, in pixels.
        width: of the image, in pixels.
        smallest: share of the area, in (0, 1].

    Returns:
        (N, 4), whole numbers as float: top, left, height, width.
    """
    area = height * width * (smallest + (1 - smallest) * chances[:, :TRIES])
    ratio = ((2 * chances[:, TRIES : 2 * TRIES] - 1) * math.log(RATIO)).exp()  # width over height
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.float().argmax(1, keepdim=True)  # of several ones the first
    central = (min(height, round(width * RATIO)), min(width, round(height * RATIO)))
    some = fits.any(1)
    h = torch.where(some, heights.gather(1, first)[:, 0], central[0])
    w = torch.where(some, widths.gather(1, first)[:, 0], central[1])
    top = torch.where(some, _place(chances[:, -2], height - h), ((height - h) / 2).floor())
    left = torch.where(some, _place(chances[:, -1], width - w), ((width - w) / 2).floor())
    return torch.stack([top, left, h, w], 1)


def _place(chance: Tensor, room: Tensor) -> Tensor:
    """A whole number uniform in 0..room. With chances of 24 bits, no product rounds up to room + 1."""
    return (chance * (room + 1)).floor()


def resized_crop(images: Tensor, boxes: Tensor, flips: Tensor | None = None) -> Tensor:
    """Cut a box out of each image, resize it bilinearly to the image's own size, and mirror some.

    Bilinear resizing is a product with one matrix for the rows and one for the columns, each with at most two
    entries in a row; mirroring reverses the order of the columns.

    Args:
        images: (N, 3, H, W), any real type.
        boxes: (N, 4) top, left, height, width, within the image.
        flips: (N,) bool, or None for none.

    Returns:
        float32 (3, N, H, W), in the units of `images`: three planes, which is how colours are computed fast.
    """
    _, channels, height, width = images.shape
    top, left, h, w = boxes.unbind(1)
    rows = interpolation(top, h, height)
    columns = interpolation(left, w, width, flips)
    wide = torch.bmm(images.float().flatten(1, 2), columns.mT)  # (N, 3 H, W)
    planes = wide.unflatten(1, (channels, height)).unbind(1)
    return torch.stack([torch.bmm(rows, plane) for plane in planes])


def interpolation(start: Tensor, length: Tensor, size: int, flips: Tensor | None = None) -> Tensor:
    """The matrices that stretch `length` pixels from `start` on to all `size` pixels.

    Pixel o of the result looks at start + (o + 1/2) length / size - 1/2 (centres lie at halves), held within
    the outermost centres of the crop, so that nothing from outside it shows; the weight of pixel i falls
    linearly from 1 there to 0 one pixel away.

    Args:
        start: (N,).
        length: (N,).
        size: S.
        flips: (N,) bool; those run from the last pixel to the first.

    Returns:
        (N, S, S), rows sum to 1.
    """
    pixels = torch.arange(size, dtype=start.dtype, device=start.device)
    inside = (pixels + 0.5) * (length / size)[:, None] - 0.5
    inside = inside.clamp_(min=0).minimum((length - 1)[:, None])
    if flips is not None:
        inside = torch.where(flips[:, None], inside.flip(1), inside)
    places = inside + start[:, None]
    return (1 - (places[:, :, None] - pixels).abs_()).clamp_(min=0)
