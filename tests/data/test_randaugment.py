import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from genssl.data.augment import randaugment as ours
from genssl.data.augment.randaugment import randaugment
from genssl.runtime import generator, uniform

BILINEAR = InterpolationMode.BILINEAR
SIZES = [(32, 32), (24, 40)]

# How far from torchvision, in levels of 255. Geometry: both round the same place, whose last bits differ, to
# a whole number. Blends: both cut to a whole number, and torchvision its gray (or smoothed) reference before,
# which moves the sum by less than 1; so does brightness, whose products are the same. The rest are exact.
Operation = Callable[[Tensor], Tensor]
GEOMETRY = (ours.SHEAR_X, ours.SHEAR_Y, ours.ROTATE)
BLENDS = (ours.BRIGHTNESS, ours.COLOR, ours.CONTRAST, ours.SHARPNESS)


def photos(height: int = 32, width: int = 32) -> Tensor:
    """Smooth images, noise, a dark one with few levels and a flat one: (8, 3, H, W) bytes."""
    smooth = F.interpolate(uniform((5, 3, 9, 9), generator(0, "photos")), (height, width), mode="bicubic")
    noise = uniform((3, 3, height, width), generator(1, "photos"))
    noise[1] = 0.2 + 0.3 * (4 * noise[1]).floor() / 4
    noise[2] = 0.3
    return (torch.cat([smooth, noise]) * 300 - 20).clamp(0, 255).to(torch.uint8)


def planes(images: Tensor) -> Tensor:
    return images.transpose(0, 1).float().contiguous()


def apply(images: Tensor, kinds: Tensor, signs: Tensor, magnitude: int) -> Tensor:
    return randaugment(planes(images), kinds, signs, magnitude).transpose(0, 1)


def pillows_autocontrast(images: Tensor) -> Tensor:
    """torchvision's loses a level where rounding takes a quotient just below a whole number."""
    rows = [ImageOps.autocontrast(peer.to_pil_image(image)) for image in images]
    return torch.stack([peer.pil_to_tensor(row) for row in rows])


def reference(kind: int, amount: float, height: int, width: int) -> Operation:
    """torchvision's operation, as its RandAugment calls it; `amount` is signed, a share of the largest."""

    def affine(shift_x: float = 0, shift_y: float = 0, shear_x: float = 0, shear_y: float = 0) -> Operation:
        shear = [math.degrees(math.atan(shear_x)), math.degrees(math.atan(shear_y))]
        shift = [int(shift_x), int(shift_y)]
        return lambda x: peer.affine(x, 0, shift, 1, shear, BILINEAR, center=[0, 0])

    operations: dict[int, Operation] = {
        ours.IDENTITY: lambda x: x,
        ours.SHEAR_X: affine(shear_x=0.3 * amount),
        ours.SHEAR_Y: affine(shear_y=0.3 * amount),
        ours.TRANSLATE_X: affine(shift_x=150 / 331 * width * amount),
        ours.TRANSLATE_Y: affine(shift_y=150 / 331 * height * amount),
        ours.ROTATE: lambda x: peer.rotate(x, 30 * amount, BILINEAR),
        ours.BRIGHTNESS: lambda x: peer.adjust_brightness(x, 1 + 0.9 * amount),
        ours.COLOR: lambda x: peer.adjust_saturation(x, 1 + 0.9 * amount),
        ours.CONTRAST: lambda x: peer.adjust_contrast(x, 1 + 0.9 * amount),
        ours.SHARPNESS: lambda x: peer.adjust_sharpness(x, 1 + 0.9 * amount),
        ours.POSTERIZE: lambda x: peer.posterize(x, 8 - round(4 * abs(amount))),
        ours.SOLARIZE: lambda x: peer.solarize(x, 255 * (1 - abs(amount))),
        ours.AUTOCONTRAST: pillows_autocontrast,
        ours.EQUALIZE: peer.equalize,
    }
    return operations[kind]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", range(14))
def test_each_operation_agrees_with_torchvision(kind: int, height: int, width: int) -> None:
    images = photos(height, width)
    for magnitude in (0, 9, 21, 30):
        for sign in (-1.0, 1.0):
            found = apply(images, torch.full((8, 1), kind), torch.full((8, 1), sign), magnitude)
            expected = reference(kind, sign * magnitude / 30, height, width)(images).float()
            apart = (found - expected).abs()
            assert apart.max() <= (1 if kind in GEOMETRY or kind in BLENDS else 0)
            if kind in GEOMETRY:
                assert (apart > 0).float().mean() < 0.05  # only near halves
            if magnitude == 30 and kind != ours.IDENTITY:
                assert (found != images).any()


def test_nine_moves_by_four_pixels_of_32() -> None:
    image = photos()[:1]
    for sign in (-1, 1):
        found = apply(image, torch.tensor([[ours.TRANSLATE_X]]), torch.full((1, 1), float(sign)), 9)
        expected = image.float().roll(4 * sign, 3)
        assert torch.equal(found[..., 4:-4], expected[..., 4:-4])
        uncovered = found[..., :4] if sign > 0 else found[..., -4:]
        assert not uncovered.any()


def test_operations_follow_one_another() -> None:
    images = photos()
    kinds = torch.tensor([[k, 13 - k] for k in range(8)])
    signs = torch.tensor([[-1.0, 1.0]]).expand(8, -1)
    once = apply(images, kinds[:, :1], signs[:, :1], 15)
    twice = apply(once, kinds[:, 1:], signs[:, 1:], 15)
    assert torch.equal(apply(images, kinds, signs, 15), twice)


def test_each_image_has_its_own_operation() -> None:
    images = photos()[6:7].expand(14, -1, -1, -1)
    kinds, signs = torch.arange(14)[:, None], (torch.arange(14)[:, None] % 2) * 2.0 - 1
    together = apply(images, kinds, signs, 20)
    for i in range(14):
        assert torch.equal(together[i], apply(images[:1], kinds[i : i + 1], signs[i : i + 1], 20)[0])
    assert ((together != images).flatten(1).any(1)).tolist() == [False] + 13 * [True]


def test_results_are_bytes() -> None:
    images = photos()
    kinds = (uniform((8, 6), generator(0, "kinds")) * 14).long()
    found = apply(images, kinds, torch.ones(8, 6), 30)
    assert torch.equal(found, found.to(torch.uint8).float())


@pytest.mark.parametrize("kind", [ours.AUTOCONTRAST, ours.EQUALIZE])
def test_flat_images_stay(kind: int) -> None:
    images = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(apply(images, torch.tensor([[kind]]), torch.ones(1, 1), 9), images.float())
