from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as peer

from genssl.data.augment.color import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    blend,
    blur,
    gray,
    jitter,
    make_gray,
    turn_hue,
)
from genssl.runtime import generator, uniform

ROUNDING = 2e-6
# torchvision's gray has 0.2989 of red where BT.601 has 0.299: 1e-4 of red at most, times |1 - factor| < 1
WEIGHTS_DIFFER = 1.1e-4


def planes(n: int = 6, height: int = 32, width: int = 32, key: int = 0) -> Tensor:
    """Noise, with a gray image, a black, a white and a saturated one among them."""
    images = uniform((n, 3, height, width), generator(key, "photos"))
    for i, color in enumerate([(0.4, 0.4, 0.4), (0, 0, 0), (1, 1, 1), (0, 1, 0.5)][: n - 1]):
        images[i] = torch.tensor(color)[:, None, None]
    return images.transpose(0, 1).contiguous()


def each(operation: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """The peer's result for each image, with its own parameters, as planes."""
    rows = zip(images.unbind(1), *(p.tolist() for p in parameters), strict=True)
    return torch.stack([operation(image, *own) for image, *own in rows], 1)


def test_gray_agrees_with_pillow() -> None:
    levels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator(0, "photos"))
    expected = np.array(Image.fromarray(levels.numpy()).convert("L"))
    found = gray(levels.permute(2, 0, 1)[:, None].float())[0]
    assert np.abs(found.numpy() - expected).max() <= 0.51  # Pillow rounds


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        (BRIGHTNESS, peer.adjust_brightness),
        (CONTRAST, peer.adjust_contrast),
        (SATURATION, peer.adjust_saturation),
    ],
)
def test_blends_agree_with_torchvision(kind: int, operation: Callable[..., Tensor]) -> None:
    images, factors = planes(8), 2 * uniform((8,), generator(1, "factors"))
    found = blend(images, torch.full((8,), kind), factors)
    torch.testing.assert_close(found, each(operation, images, factors), rtol=0, atol=WEIGHTS_DIFFER)


def test_each_image_has_its_own_blend() -> None:
    images = planes(1).expand(-1, 3, -1, -1).contiguous()
    found = blend(images, torch.tensor([BRIGHTNESS, CONTRAST, SATURATION]), torch.full((3,), 0.5))
    for i, operation in enumerate([peer.adjust_brightness, peer.adjust_contrast, peer.adjust_saturation]):
        torch.testing.assert_close(found[:, i], operation(images[:, i], 0.5), rtol=0, atol=WEIGHTS_DIFFER)


@pytest.mark.parametrize("kind", range(4))
def test_factor_one_changes_nothing_at_all(kind: int) -> None:
    images = planes()
    assert torch.equal(blend(images, torch.full((6,), kind), torch.ones(6)), images)


def test_hue_agrees_with_torchvision() -> None:
    images, turns = planes(12), uniform((12,), generator(0, "turns")) - 0.5
    found = turn_hue(images, turns)
    torch.testing.assert_close(found, each(peer.adjust_hue, images, turns), rtol=0, atol=ROUNDING)


def test_hue_turns_on_a_circle() -> None:
    images = planes()
    third = torch.full((6,), 1 / 3)
    torch.testing.assert_close(turn_hue(images, third), images.roll(1, 0), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(turn_hue(images, -third), images.roll(-1, 0), rtol=0, atol=ROUNDING)
    for whole in (-1.0, 0.0, 1.0):
        found = turn_hue(images, torch.full((6,), whole))
        torch.testing.assert_close(found, images, rtol=0, atol=ROUNDING)
    quarter = turn_hue(images, third * 0.75)
    torch.testing.assert_close(quarter.amax(0), images.amax(0), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(quarter.amin(0), images.amin(0), rtol=0, atol=ROUNDING)


def test_jitter_applies_the_operations_in_each_images_order() -> None:
    orders = torch.tensor(list(permutations(range(4))))
    images = planes(1, key=3).expand(-1, 24, -1, -1).contiguous()
    factors = torch.tensor([1.4, 0.6, 1.4]).expand(24, -1)
    found = jitter(images, orders, factors, torch.full((24,), 0.1))
    operations = {
        BRIGHTNESS: lambda x: peer.adjust_brightness(x, 1.4),
        CONTRAST: lambda x: peer.adjust_contrast(x, 0.6),
        SATURATION: lambda x: peer.adjust_saturation(x, 1.4),
        HUE: lambda x: peer.adjust_hue(x, 0.1),
    }
    for i, order in enumerate(orders.tolist()):
        expected = images[:, i]
        for kind in order:
            expected = operations[kind](expected)
        # Two blends use gray; what follows stretches their difference by 1.4 at most
        torch.testing.assert_close(found[:, i], expected, rtol=0, atol=4 * WEIGHTS_DIFFER)
    apart = (found[:, :, None] - found[:, None]).abs().amax((0, 3, 4)) + torch.eye(24)
    assert apart.min() > 4 * WEIGHTS_DIFFER  # so that another order would have failed


def test_jitter_without_hue_keeps_the_order_of_the_rest() -> None:
    images = planes(3)
    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
    factors = torch.tensor([1.4, 0.6, 1.4]).expand(3, -1)
    expected = jitter(images, orders, factors, torch.zeros(3))
    torch.testing.assert_close(jitter(images, orders, factors, None), expected, rtol=0, atol=4 * ROUNDING)


def test_only_the_chosen_become_gray() -> None:
    images, chosen = planes(), torch.tensor([True, False, True, False, False, True])
    found = make_gray(images, chosen)
    assert torch.equal(found[:, ~chosen], images[:, ~chosen])
    expected = peer.rgb_to_grayscale(images[:, 5], num_output_channels=3)
    torch.testing.assert_close(found[:, 5], expected, rtol=0, atol=WEIGHTS_DIFFER)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_blur_agrees_with_torchvision(kernel: int) -> None:
    images, sigmas = planes(8, 12, 20), 0.1 + 1.9 * uniform((8,), generator(0, "sigmas"))
    chosen = torch.arange(8) % 3 != 1
    found = blur(images, sigmas, chosen, kernel)
    expected = each(lambda x, s: peer.gaussian_blur(x, [kernel, kernel], [s, s]), images, sigmas)
    torch.testing.assert_close(found[:, chosen], expected[:, chosen], rtol=0, atol=ROUNDING)
    assert torch.equal(found[:, ~chosen], images[:, ~chosen])


def test_each_image_has_its_own_parameters() -> None:
    n = 10
    images, permuted = planes(n), torch.randperm(n, generator=generator(0, "permuted"))
    orders = uniform((n, 4), generator(0, "orders")).argsort(1)
    factors = 0.5 + uniform((n, 3), generator(0, "factors"))
    turns, sigmas = uniform((n,), generator(0, "turns")), uniform((n,), generator(0, "sigmas")) + 0.1
    chosen = sigmas > 0.5

    def all_of_it(rows: Tensor) -> Tensor:
        result = jitter(images[:, rows], orders[rows], factors[rows], turns[rows])
        return blur(make_gray(result, chosen[rows]), sigmas[rows], chosen[rows])

    expected = all_of_it(torch.arange(n))[:, permuted]
    torch.testing.assert_close(all_of_it(permuted), expected, rtol=0, atol=ROUNDING)
