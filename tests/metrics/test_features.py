from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genssl.features import extract
from genssl.pixels import to_model
from genssl.runtime import generator


def pictures(n: int) -> Tensor:
    return torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator(0, "test"))


def moments(images: Tensor) -> Tensor:
    return torch.stack([images.mean((1, 2, 3)), images.square().mean((1, 2, 3))], 1)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_every_image_in_its_place_for_every_batch_size(batch_size: int) -> None:
    images = pictures(10)
    found = extract(moments, images, batch_size)
    x = (images.double() + 0.5) / 128 - 1
    expected = torch.stack([x.mean((1, 2, 3)), (x * x).mean((1, 2, 3))], 1)
    torch.testing.assert_close(found, expected.float())


def test_a_batch_at_a_time_in_the_layout_that_networks_like() -> None:
    sizes, ticks = [], []

    def watched(images: Tensor) -> Tensor:
        sizes.append(len(images))
        assert images.is_contiguous(memory_format=torch.channels_last)
        return images.flatten(1)

    extract(watched, pictures(10), 4, lambda done, total: ticks.append((done, total)))
    assert sizes == [4, 4, 2]
    assert ticks == [(4, 10), (8, 10), (10, 10)]


def test_type_and_device_as_asked_for() -> None:
    images = pictures(5)
    assert extract(moments, images).dtype == torch.float32
    assert extract(lambda x: moments(x).bfloat16(), images).dtype == torch.float32
    halves = extract(lambda x: x.flatten(1), images, dtype=torch.float16)
    assert torch.equal(halves.float(), to_model(images).flatten(1))  # pixels are exact in half precision
    assert extract(lambda x: moments(x).to("meta"), images, device="meta").device.type == "meta"
    assert extract(moments, images).device.type == "cpu"


@pytest.mark.parametrize("function", [lambda x: x, lambda x: moments(x)[1:], lambda x: moments(x)[:, 0]])
def test_refuses_what_is_not_a_row_an_image(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, D\)"):
        extract(function, pictures(5))


def test_refuses_no_images() -> None:
    for images in (pictures(0), pictures(1)[0]):
        with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\)"):
            extract(moments, images)
