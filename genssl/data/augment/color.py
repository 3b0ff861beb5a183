"""Color jitter, grayscale and blur of a whole batch, with separate parameters for each image.

Images are three planes, or one of gray images: float32 (C, N, H, W) in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in gray (ITU-R BT.601)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
KERNEL = 5  # pixels that a blur sees in each direction: a sixth of an image of 32
SIGMAS = (0.1, 2.0)  # range of the blur's deviation, in pixels


def gray(planes: Tensor) -> Tensor:
    """(C, N, H, W) -> (N, H, W), a new tensor.

    Examples:
        >>> gray(torch.ones(3, 2, 4, 4)).shape
        torch.Size([2, 4, 4])
    """
    if len(planes) == 1:
        return planes[0].clone()
    red, green, blue = planes.unbind(0)
    return (red * WEIGHTS[0]).add_(green, alpha=WEIGHTS[1]).add_(blue, alpha=WEIGHTS[2])


def blend(planes: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast or saturation: factor * image + (1 - factor) * reference, clamped to [0, 1].

    The reference is black, the image's mean gray, or its gray: whichever `kind` says, per image.

    Args:
        planes: (C, N, H, W).
        kind: (N,) BRIGHTNESS, CONTRAST or SATURATION; anything else counts as brightness.
        factor: (N,), 1 changes nothing, exactly.

    Examples:
        >>> planes = torch.full((3, 1, 2, 2), 0.5)
        >>> blend(planes, torch.tensor([BRIGHTNESS]), torch.tensor([1.5])).unique()
        tensor([0.7500])
    """
    shades = gray(planes)
    # Black needs no term: what is neither contrast nor saturation has the reference 0
    rest = 1 - factor
    mean = shades.mean((1, 2)) * rest * (kind == CONTRAST)
    reference = shades.mul_((rest * (kind == SATURATION))[:, None, None]).add_(mean[:, None, None])
    # Clamped after each blend and not once at the end, as in torchvision: the next one takes an image again
    return torch.addcmul(reference, planes, factor[:, None, None]).clamp_(0, 1)


def turn_hue(planes: Tensor, turn: Tensor) -> Tensor:
    """Turn each image's hue on the color circle, keeping saturation and value (HSV).

    Args:
        planes: (3, N, H, W).
        turn: (N,), in whole circles.

    Examples:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1)
        >>> green = turn_hue(red, torch.tensor([1 / 3]))
        >>> [round(value, 3) for value in green.flatten().tolist()]
        [0.0, 1.0, 0.0]
    """
    # In floats: on bytes, as in Pillow, the hue would have 256 steps, and a small turn would be none
    red, green, blue = planes.unbind(0)
    value = planes.amax(0)
    chroma = value - planes.amin(0)
    hue = _sextants(red, green, blue, value, chroma).add_(6 * turn[:, None, None])
    hue = hue.remainder_(6)
    # With the hue h in sixths of the circle, value v and chroma c (all that saturation is besides v):
    # A channel falls by c clamp(2 - d, 0, 1), d the distance on the circle from the hue opposite to it: 3, 5
    # and 1 for red, green and blue. For the latter two, which may wrap around, d = 3 - |3 - |h - opposite||
    falls = (2 - (hue - 3).abs_(), _wrapped(hue - 5), _wrapped(hue - 1))
    return torch.stack([torch.addcmul(value, chroma, fall.clamp_(0, 1), value=-1) for fall in falls])


def _wrapped(difference: Tensor) -> Tensor:
    """2 minus the distance on a circle of length 6, in place."""
    return difference.abs_().sub_(3).abs_().sub_(1)


def _sextants(red: Tensor, green: Tensor, blue: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """The hue in sixths of the circle, in [-1, 5]; 0 for gray."""
    # Gray has no hue; any will do, since its chroma of 0 multiplies what comes of it
    safe = chroma.clamp(min=1e-12)
    from_green = torch.where(
        value == green, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4)
    )
    return torch.where(value == red, (green - blue).div_(safe), from_green)


def jitter(planes: Tensor, order: Tensor, factors: Tensor, turn: Tensor | None) -> Tensor:
    """Brightness, contrast, saturation and hue, in a separate order for each image.

    Hue costs the most, so it is evaluated once: three blends before it and three after, of which an image
    uses those that its order asks for; the others have factor 1.

    Args:
        planes: (C, N, H, W).
        order: (N, 4) int64, a permutation of BRIGHTNESS, CONTRAST, SATURATION and HUE in each row.
        factors: (N, 3) of the first three.
        turn: (N,) of the hue, in whole circles; None: no hue is turned, as there is none in one plane.

    Examples:
        >>> planes = torch.full((3, 1, 2, 2), 0.5)
        >>> order = torch.tensor([[BRIGHTNESS, CONTRAST, SATURATION, HUE]])
        >>> jitter(planes, order, torch.tensor([[0.5, 1.0, 1.0]]), torch.zeros(1)).unique()
        tensor([0.2500])
    """
    factor = F.pad(factors, (0, 1), value=1.0).gather(1, order)  # (N, 4), in the order of application
    if turn is None:
        return _blends(planes, order, factor)
    # Blends before the hue keep their factor in the first pass, those after it in the second; else it is 1
    after = torch.arange(4, device=order.device) > (order == HUE).float().argmax(1, keepdim=True)
    planes = _blends(planes, order[:, :3], torch.where(after, 1, factor)[:, :3])
    planes = turn_hue(planes, turn)
    return _blends(planes, order[:, 1:], torch.where(after, factor, 1)[:, 1:])


def _blends(planes: Tensor, kinds: Tensor, factors: Tensor) -> Tensor:
    """Apply the blends of `kinds` and `factors`, both (N, K), column by column."""
    for kind, factor in zip(kinds.unbind(1), factors.unbind(1), strict=True):
        planes = blend(planes, kind, factor)
    return planes


def make_gray(planes: Tensor, chosen: Tensor) -> Tensor:
    """Replace the chosen images, (N,) bool, by their gray.

    Examples:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1).expand(3, 2, 1, 1)  # two red images
        >>> planes = make_gray(red, torch.tensor([True, False]))
        >>> [[round(value, 3) for value in image] for image in planes.flatten(1).T.tolist()]
        [[0.299, 0.299, 0.299], [1.0, 0.0, 0.0]]
    """
    return torch.where(chosen[:, None, None], gray(planes), planes)


def blur(planes: Tensor, sigma: Tensor, chosen: Tensor, kernel: int = KERNEL) -> Tensor:
    """Gaussian blur of the chosen images; the border is mirrored.

    Args:
        planes: (C, N, H, W).
        sigma: (N,), in pixels.
        chosen: (N,) bool.
        kernel: odd number of pixels at which the Gaussian is cut off.

    Examples:
        >>> planes = torch.zeros(1, 1, 9, 9)
        >>> planes[0, 0, 4, 4] = 1
        >>> blurred = blur(planes, torch.tensor([1.0]), torch.tensor([True]), kernel=3)
        >>> int((blurred > 0).sum()), round(float(blurred.sum()), 3)
        (9, 1.0)
    """
    # A Gaussian is separable: one matrix blurs the columns, another one the rows (N, S, S)
    rows = blurring(sigma, chosen, planes.shape[2], kernel)
    columns = blurring(sigma, chosen, planes.shape[3], kernel)
    return torch.stack([torch.bmm(torch.bmm(rows, plane), columns.mT) for plane in planes.unbind(0)])


def blurring(sigma: Tensor, chosen: Tensor, size: int, kernel: int) -> Tensor:
    """The matrices (N, S, S) that blur a row of `size` pixels; the identity for those not chosen."""
    reach = kernel // 2
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    weights = (-0.5 * (offsets / sigma[:, None]).square()).exp()
    weights = torch.where(chosen[:, None], weights, (offsets == 0).float())
    weights = weights / weights.sum(1, keepdim=True)
    pixels = torch.arange(size, device=sigma.device)
    last = size - 1
    # Which pixel each tap k reads, mirrored at 0 and at the last one: (S, K)
    source = last - (last - (pixels[:, None] + offsets).abs()).abs()
    taps = (source[:, :, None] == pixels).float()  # (S, K, S)
    return torch.einsum("nk,skt->nst", weights, taps)
