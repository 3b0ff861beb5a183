"""Disturbances against Pillow and against what their names promise."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from genssl.eval import sensitivity as disturbances
from genssl.eval.sensitivity import DISTURBANCES, PATCH
from genssl.runtime import generator


@pytest.fixture
def images() -> Tensor:
    """Smooth random images, uint8 (8, 3, 32, 32)."""
    coarse = torch.rand(8, 3, 6, 6, generator=generator(0, "test"))
    return (255 * torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")).to(torch.uint8)


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_gray_is_that_of_pillow(images: Tensor) -> None:
    gray = disturbances.desaturate(images, 1.0)
    assert torch.equal(gray[:, 0], gray[:, 1])
    expected = np.asarray(pillow(images[3]).convert("L"), dtype=int)
    assert np.abs(gray[3, 0].numpy().astype(int) - expected).max() <= 1
    half = disturbances.desaturate(images, 0.5)
    assert ((images.int() + gray.int()) / 2 - half).abs().max() <= 1


def test_blur_is_that_of_pillow(images: Tensor) -> None:
    # Pillow approximates the Gaussian by three boxes: smooth images agree to a few levels away from the edges
    for sigma in (1.0, 2.0):
        expected = np.asarray(pillow(images[0]).filter(ImageFilter.GaussianBlur(sigma)), dtype=int)
        blurred = disturbances.blur(images, sigma)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(expected - blurred)[6:-6, 6:-6].max() <= 4


def test_a_share_of_the_images_is_changed(images: Tensor) -> None:
    for change in (disturbances.permute_channels, disturbances.invert, disturbances.mirror):
        changed = change(images, 0.25)
        assert torch.equal(changed[2:], images[2:])
        assert not torch.equal(changed[:2], images[:2])
        assert torch.equal(change(change(images, 1.0), 1.0), images)
    assert torch.equal(disturbances.permute_channels(images, 1.0)[:, 0], images[:, 2])
    assert torch.equal(disturbances.permute_channels(images, 2.0)[:, 1], images[:, 0])


def test_noise_brightness_and_contrast_have_their_size(images: Tensor) -> None:
    middle = (images // 2 + 64).clamp(80, 176)  # nothing is clipped
    noise = (disturbances.add_noise(middle, 10).float() - middle).std()
    # The deviation of a standard deviation of 10 from n = 24,576 values is 10 / sqrt(2 n) = 0.05
    assert abs(float(noise) - 10) < 0.2
    assert (disturbances.brighten(middle, 50).int() - middle == 50).all()
    raised = disturbances.raise_contrast(middle, 1.35).float()
    mean = middle.float().mean((1, 2, 3), keepdim=True)
    assert ((raised - mean) / 1.35 + mean - middle).abs().max() <= 0.5


def test_a_shift_moves_and_repeats_the_edge(images: Tensor) -> None:
    shifted = disturbances.shift(images, 4)
    assert torch.equal(shifted[..., 4:, 4:], images[..., :-4, :-4])
    assert torch.equal(shifted[..., 0, 4:], images[..., 0, :-4])


def patches_of(image: Tensor) -> list[bytes]:
    columns = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (3, rows, columns, 8, 8)
    return [columns[:, i, j].contiguous().numpy().tobytes() for i in range(4) for j in range(4)]


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_patches_change_places_in_pairs(images: Tensor, pairs: int) -> None:
    swapped = disturbances.swap_patches(images, pairs)
    for before, after in zip(map(patches_of, images), map(patches_of, swapped), strict=True):
        assert sorted(before) == sorted(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 2 * pairs
    wide = torch.cat([images, images[..., :5]], 3)  # 37 pixels: the last columns are in no patch
    assert torch.equal(disturbances.swap_patches(wide, pairs)[..., 32:], wide[..., 32:])


def test_stronger_is_farther_and_nothing_is_random(images: Tensor) -> None:
    for disturbance in DISTURBANCES:
        weak, middle, strong = (disturbance.apply(images, strength) for strength in disturbance.strengths)
        distances = [(changed.float() - images.float()).square().mean() for changed in (weak, middle, strong)]
        assert 0 < distances[0] < distances[1] < distances[2], disturbance.name
        assert weak.dtype == torch.uint8
        assert torch.equal(weak, disturbance.apply(images, disturbance.strengths[0]))
        assert disturbance.label(disturbance.strengths[0])
