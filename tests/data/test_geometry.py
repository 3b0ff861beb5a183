from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from genssl.data.augment.geometry import CROP_CHANCES, RATIO, crop_boxes, interpolation, resized_crop
from genssl.runtime import generator, uniform

SIZES = [(32, 32), (24, 40), (8, 9)]


def photos(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8, generator=generator(0, "photos"))


def boxes_of(n: int, height: int = 32, width: int = 32, smallest: float = 0.08, key: int = 0) -> Tensor:
    return crop_boxes(uniform((n, CROP_CHANCES), generator(key, "boxes")), height, width, smallest)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_agrees_with_pillow(height: int, width: int) -> None:
    images, boxes = photos(60, height, width), boxes_of(60, height, width)
    result = resized_crop(images, boxes).transpose(0, 1)
    for image, (top, left, h, w), found in zip(images, boxes.int().tolist(), result, strict=True):
        cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
        peer = np.array(cut.resize((width, height), Image.Resampling.BILINEAR))
        # Pillow rounds to bytes after the columns and after the rows: half a level each
        assert np.abs(found.permute(1, 2, 0).numpy() - peer).max() <= 1.001


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [5, 20, 24, 47])
def test_crop_to_another_size_agrees_with_pillow(height: int, width: int, size: int) -> None:
    images, boxes = photos(60, height, width), boxes_of(60, height, width)
    flips = torch.arange(60) % 2 == 0
    result = resized_crop(images, boxes, flips, size).transpose(0, 1)
    assert result.shape == (60, 3, size, size)
    result = torch.where(flips[:, None, None, None], result.flip(3), result)
    for image, (top, left, h, w), found in zip(images, boxes.int().tolist(), result, strict=True):
        cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
        peer = np.array(cut.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(found.permute(1, 2, 0).numpy() - peer).max() <= 1.001


def test_the_images_own_size_changes_nothing() -> None:
    images, boxes = photos(20), boxes_of(20)
    assert torch.equal(resized_crop(images, boxes, size=32), resized_crop(images, boxes))


def test_the_whole_image_is_itself_and_flips_mirror() -> None:
    images = photos(4, 24, 40)
    whole = torch.tensor([0.0, 0, 24, 40]).expand(4, -1)
    flips = torch.tensor([False, True, False, True])
    result = resized_crop(images, whole, flips).transpose(0, 1)
    assert torch.equal(result[~flips], images[~flips].float())
    assert torch.equal(result[flips], images[flips].float().flip(3))
    boxes = boxes_of(4, 24, 40)
    plain = resized_crop(images, boxes)
    assert torch.equal(resized_crop(images, boxes, torch.ones(4, dtype=torch.bool)), plain.flip(3))
    assert torch.equal(resized_crop(images, boxes, ~torch.ones(4, dtype=torch.bool)), plain)


def test_nothing_from_outside_a_crop_shows() -> None:
    images, boxes = photos(20), boxes_of(20)
    other = 255 - images
    for image, changed, (top, left, h, w) in zip(images, other, boxes.int().tolist(), strict=True):
        changed[:, top : top + h, left : left + w] = image[:, top : top + h, left : left + w]
    assert torch.equal(resized_crop(other, boxes), resized_crop(images, boxes))


def test_interpolation_weighs_at_most_two_pixels() -> None:
    matrices = interpolation(torch.tensor([0.0, 5.0, 11.0]), torch.tensor([12.0, 3.0, 1.0]), 12)
    torch.testing.assert_close(matrices.sum(2), torch.ones(3, 12), rtol=0, atol=1e-5)
    assert (matrices > 0).sum(2).max() == 2
    assert torch.equal(matrices[0], torch.eye(12))
    assert (matrices[2, :, 11] == 1).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_boxes_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    n = 3000
    image = torch.zeros(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ratio = [1 / RATIO, RATIO]
        peer = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], ratio) for _ in range(n)])
    boxes = boxes_of(n, height, width)
    measures: list[Callable[[Tensor], Tensor]] = [
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] / (height - box[:, 2]).clamp(min=1),
        lambda box: box[:, 1] / (width - box[:, 3]).clamp(min=1),
    ]
    for measure in measures:
        # The Kolmogorov-Smirnov distance of equal distributions exceeds 1.95 sqrt(2 / n) once in 1000 times
        distance = ks_2samp(measure(boxes).numpy(), measure(peer.float()).numpy()).statistic
        assert distance < 1.95 * (2 / n) ** 0.5


@pytest.mark.parametrize(("height", "width"), [(8, 40), (40, 8), (33, 32), (32, 32)])
def test_where_no_box_fits_it_is_torchvisions_central_one(height: int, width: int) -> None:
    image = torch.zeros(3, height, width)
    peer = RandomResizedCrop.get_params(image, [1.0, 1.0], [1 / RATIO, RATIO])
    chances = uniform((50, CROP_CHANCES), generator(0, "boxes"))
    chances[:, 10:20] = 0.0  # a ratio of 3 / 4, with all the area: too high even for 40 x 8's tenfold height
    chances[:, 10:20] += 0.999 * (height > width)
    assert (crop_boxes(chances, height, width, 1.0) == torch.tensor(peer).float()).all()


def test_the_first_box_that_fits_is_used() -> None:
    chances = torch.full((1, CROP_CHANCES), 0.5)
    # Of 1024 pixels: none wide and one high; 27.7 wide and 37 high; 16 x 16, for a ratio of 1; ...
    chances[0, :10] = torch.tensor([0.32 / 1024, 1.0, 0.25, 0.5, 0.5, 0, 0, 0, 0, 0])
    chances[0, 10:12] = 0.0
    assert crop_boxes(chances, 32, 32, 1e-6).tolist() == [[8, 8, 16, 16]]


def test_small_ratios_are_high_and_large_ones_wide() -> None:
    chances = torch.full((2, CROP_CHANCES), 0.5)
    chances[:, 10:20] = torch.tensor([[0.0], [1.0]])
    # 512 pixels: 19.6 high by 26.1 wide, or the other way round
    assert crop_boxes(chances, 32, 32, 1e-9)[:, 2:].tolist() == [[26, 20], [20, 26]]


def test_places_reach_from_edge_to_edge() -> None:
    chances = torch.full((2, CROP_CHANCES), 0.5)
    chances[:, -2:] = torch.tensor([[0.0, 1 - 2**-24], [1 - 2**-24, 0.0]])  # the largest below 1
    for size in range(8, 100):
        (_, _, h, w), _ = boxes = crop_boxes(chances, size, size, 0.08).tolist()
        assert boxes == [[0, size - w, h, w], [size - h, 0, h, w]]


def test_shares_and_ratios_keep_their_bounds() -> None:
    boxes = boxes_of(2000, smallest=0.2)
    _, _, h, w = boxes.unbind(1)
    # Each side is rounded by at most half a pixel
    assert ((h + 0.5) * (w + 0.5) >= 0.2 * 1024).all()
    assert (((w - 0.5) / (h + 0.5)) <= RATIO + 1e-4).all()
    assert (((h - 0.5) / (w + 0.5)) <= RATIO + 1e-4).all()
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 32


def test_each_image_has_its_own_crop() -> None:
    images, boxes = photos(9), boxes_of(9)
    flips = uniform((9,), generator(0, "flips")) < 0.5
    order = torch.randperm(9, generator=generator(0, "order"))
    expected = resized_crop(images, boxes, flips)[:, order]
    torch.testing.assert_close(resized_crop(images[order], boxes[order], flips[order]), expected)
