import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from genssl.config import DSSLConfig, SimSiamConfig, VAEConfig
from genssl.data.augment import color, randaugment
from genssl.data.augment.geometry import crop_boxes
from genssl.data.augment.views import choose_views
from genssl.errors import UserError
from genssl.pixels import to_bytes, to_model
from genssl.runtime import generator, generators

DIGITS = tuple("0123456789")
OFF: dict[str, Any] = {"crop_scale": 1.0, "flip": "off", "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
LEVEL = 1 / 128  # of the model's range


def photos(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8, generator=generator(0, "photos"))


def views_of(config: SimSiamConfig | DSSLConfig, images: Tensor, key: int = 0) -> tuple[Tensor, ...]:
    views = choose_views(config)
    return views(images, views.draws(len(images), generator(key, "views")))


def alike(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float = 0) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@dataclass
class Chances:
    """What was drawn for one view of one image, read as the documentation of `draws` says."""

    draws: dict[str, list[float]]
    config: SimSiamConfig

    def crop(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        chances = torch.tensor(self.draws["crop"])[None]
        top, left, h, w = crop_boxes(chances, height, width, self.config.crop_scale)[0].int().tolist()
        size, bilinear = [height, width], InterpolationMode.BILINEAR
        image = peer.resized_crop(image, top, left, h, w, size, bilinear, antialias=False)
        return image.flip(2) if self.draws["flip"][0] < 0.5 else image

    def color(self, image: Tensor) -> Tensor:
        whether, *signed = self.draws["jitter"]
        signed = [2 * chance - 1 for chance in signed]
        operations = [
            lambda x: peer.adjust_brightness(x, 1 + self.config.brightness * signed[0]),
            lambda x: peer.adjust_contrast(x, 1 + self.config.contrast * signed[1]),
            lambda x: peer.adjust_saturation(x, 1 + self.config.saturation * signed[2]),
            lambda x: peer.adjust_hue(x, self.config.hue * signed[3]),
        ]
        if whether < self.config.jitter:
            for kind in sorted(range(4), key=self.draws["order"].__getitem__):
                image = operations[kind](image)
        if self.draws["grayscale"][0] < self.config.grayscale:
            image = peer.rgb_to_grayscale(image, 3)
        whether, width = self.draws["blur"]
        if whether < self.config.blur:
            image = peer.gaussian_blur(image, [5, 5], [0.1 + 1.9 * width] * 2)
        return image


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_views_are_torchvisions_one_after_the_other(height: int, width: int) -> None:
    config = SimSiamConfig(
        brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, jitter=0.7, grayscale=0.3, blur=0.5
    )
    views, images = choose_views(config), photos(24, height, width)
    draws = views.draws(24, generator(0, "views"))
    found = views(images, draws)
    for i, image in enumerate(images):
        for v in range(2):
            chances = Chances({name: chance[i, v].tolist() for name, chance in draws.items()}, config)
            expected = 255 * chances.color(chances.crop(image / 255))
            levels = 128 * (found[v][i] + 1) - 0.5
            # The only difference is torchvision's weight of red, 0.2989 for 0.299, which contrast, saturation
            # and gray use: a quarter of 255 * 1e-4 each, times what follows
            torch.testing.assert_close(levels, expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("kind", [SimSiamConfig, DSSLConfig])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 9)])
def test_views_are_images_in_the_models_range(kind: type, height: int, width: int) -> None:
    views = choose_views(kind(blur=0.5))
    found = views(photos(5, height, width), views.draws(5, generator(0, "views")))
    assert len(found) == len(views.names) == (2 if kind is SimSiamConfig else 4)
    for view in found:
        assert view.shape == (5, 3, height, width)
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert view.abs().max() <= 1 - LEVEL / 2 + 1e-6
        assert view.std() > 0.1
    for one, other in pairwise(found):
        assert (one - other).abs().flatten(1).amax(1).min() > LEVEL


@pytest.mark.parametrize("kind", [SimSiamConfig, DSSLConfig])
def test_the_views_of_an_image_depend_on_its_own_draws_alone(kind: type) -> None:
    views, images = choose_views(kind(blur=0.5)), photos(12)
    draws = views.draws(12, generator(0, "views"))
    order = torch.randperm(12, generator=generator(0, "order"))
    found = views(images[order], {name: chance[order] for name, chance in draws.items()})
    # Sums of 32 products may be taken in another order; RandAugment rounds, so that a level may differ
    alike(found[:2], tuple(view[order] for view in views(images, draws)[:2]), 1e-5)
    for one, other in zip(found[2:], views(images, draws)[2:], strict=True):
        assert ((one - other[order]).abs() > 1e-5).float().mean() < 1e-3


@pytest.mark.parametrize("kind", [SimSiamConfig, DSSLConfig])
def test_draws_are_reproducible_and_an_image_has_its_own(kind: type) -> None:
    views = choose_views(kind())
    one, other = (views.draws(6, generator(3, "views")) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(len(chance) == 6 for chance in one.values())
    several = views.draws(6, generators(3, "views", range(6)))
    last = views.draws(2, generators(3, "views", [4, 5]))
    assert all(torch.equal(several[name][4:], last[name]) for name in last)
    assert {name: chance.shape for name, chance in several.items()} == {
        name: chance.shape for name, chance in one.items()
    }


def test_everything_off_is_the_image_itself() -> None:
    images = photos(6)
    alike(views_of(SimSiamConfig(**OFF), images), (to_model(images),) * 2, 1e-6)
    assert torch.equal(to_bytes(views_of(SimSiamConfig(**OFF), images)[0]), images)


@pytest.mark.parametrize(
    ("change", "probability"),
    [
        ({"flip": "on"}, 0.5),
        ({"flip": "auto"}, 0.5),
        ({"jitter": 0.8}, 0.8),
        ({"jitter": 0.3, "hue": 0.0}, 0.3),
        ({"grayscale": 0.2}, 0.2),
        ({"blur": 0.4}, 0.4),
        ({"blur": 1.0}, 1.0),
    ],
)
def test_each_operation_is_as_frequent_as_asked(
    change: dict[str, Any], probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(color, "SIGMAS", (1.0, 2.0))  # the narrowest blurs cannot be seen
    n = 1000
    images = photos(1, 8, 8).expand(n, -1, -1, -1)
    views = views_of(SimSiamConfig(**OFF | change), images)
    for changed in ((view - to_model(images)).abs().amax((1, 2, 3)) > 1e-5 for view in views):
        # 4.5 standard deviations of a share: exceeded once in 150,000 times
        deviation = (probability * (1 - probability) / n) ** 0.5
        assert changed.float().mean().item() == pytest.approx(probability, abs=4.5 * deviation)
    both = [(view - to_model(images)).abs().amax((1, 2, 3)) > 1e-5 for view in views]
    together = (both[0] & both[1]).float().mean().item()  # and the two views are independent
    assert together == pytest.approx(
        probability**2, abs=4.5 * (probability**2 * (1 - probability**2) / n) ** 0.5
    )


def test_orders_are_uniform() -> None:
    n = 4800
    order = choose_views(SimSiamConfig()).draws(n, generator(0, "views"))["order"].argsort(2)
    for view in order.unbind(1):
        places = (view * torch.tensor([64, 16, 4, 1])).sum(1)
        counts = torch.unique(places, return_counts=True)[1]
        assert len(counts) == math.factorial(4)
        squares = ((counts - n / 24).square() / (n / 24)).sum()
        assert squares < 23 + 4.5 * (2 * 23) ** 0.5  # chi-squared with 23 degrees of freedom


@pytest.mark.parametrize("config", [SimSiamConfig, DSSLConfig])
def test_digits_are_not_mirrored_unless_asked(config: type) -> None:
    images = photos(40, 8, 8)

    def mirrored(flip: str, classes: tuple[str, ...], data: str = "photos") -> bool:
        views = choose_views(config(**OFF | {"flip": flip, "data": data}), classes)
        view = views(images, views.draws(40, generator(0, "views")))[0]
        return bool((view - to_model(images).flip(3)).abs().amax((1, 2, 3)).min() < 1e-5)

    assert not mirrored("auto", DIGITS)
    assert mirrored("on", DIGITS)
    assert mirrored("auto", ("cat", "dog"))
    assert mirrored("auto", (*DIGITS, "ten"))
    assert mirrored("auto", ())
    assert not mirrored("off", ("cat", "dog"))
    assert not mirrored("auto", (), "svhn")
    assert mirrored("auto", (), "cifar10")


@pytest.mark.parametrize("kind", [SimSiamConfig, DSSLConfig])
def test_autocast_changes_nothing(kind: type) -> None:
    images, config = photos(6), kind(blur=0.5)
    expected = views_of(config, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alike(views_of(config, images), expected)


@pytest.mark.parametrize("kind", [SimSiamConfig, DSSLConfig])
def test_is_one_graph_that_reads_nothing_back(kind: type) -> None:
    views, images = choose_views(kind(blur=0.5)), photos(6)
    draws = views.draws(6, generator(0, "views"))
    compiled = torch.compile(views.__call__, fullgraph=True, backend="eager")
    alike(compiled(images, draws), views(images, draws), 1e-6)


def test_heavy_views_are_made_from_the_standard_ones() -> None:
    config = DSSLConfig(heavy_operations=1, heavy_magnitude=20)
    views, images = choose_views(config), photos(14)
    draws = views.draws(14, generator(0, "views"))
    assert draws["heavy"].shape == (14, 2, 1, 2)
    alike(views(images, draws)[:2], choose_views(SimSiamConfig())(images, draws))

    draws["heavy"][..., 0] = ((torch.arange(14) + 0.5) / 14)[:, None, None]
    draws["heavy"][..., 1] = torch.tensor([0.49, 0.5])[:, None]
    # Mirroring alone keeps bytes as they are
    found = choose_views(DSSLConfig(**OFF | {"flip": "on", "heavy_operations": 1, "heavy_magnitude": 20}))(
        images, draws
    )
    for standard, heavy, sign in zip(found[:2], found[2:], (-1.0, 1.0), strict=True):
        levels = to_bytes(standard).float().transpose(0, 1).contiguous()
        kinds, signs = torch.arange(14)[:, None], torch.full((14, 1), sign)
        expected = randaugment.randaugment(levels, kinds, signs, 20).transpose(0, 1)
        alike((heavy,), (to_model(expected),), 1e-6)


def test_plain_views_are_the_image() -> None:
    views, images = choose_views(VAEConfig()), photos(3)
    assert views.draws(3, None) == {}
    alike(views(images, {}), (to_model(images),))
    assert len(views.names) == 1


def test_unknown_views_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kaleidoscope", "standard", "directional"):
        monkeypatch.setattr(VAEConfig, "views", name)
        with pytest.raises(UserError, match=f"'{name}'"):
            choose_views(VAEConfig())
