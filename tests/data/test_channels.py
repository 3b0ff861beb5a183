"""Gray images have one channel, color has three: the conversion, when it is made, what it leaves alone."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genssl import config as configs
from genssl import figures
from genssl.data import cache as entries
from genssl.data import subset
from genssl.data.augment import randaugment
from genssl.data.augment.views import choose_views
from genssl.data.loader import make_loader
from genssl.data.loading import channels_of, load, load_for_run
from genssl.eval.feature_cache import encoder_of
from genssl.eval.linear_eval import cropped
from genssl.metrics.sharpness import sharpness
from genssl.models.build import build
from genssl.pixels import is_gray, to_bytes, to_channels, to_model
from genssl.runtime import generator

from ..narrow import given

Put = Callable[[Path, dict[str, bytes]], Path]


def noise(n: int, channels: int, side: int = 32) -> Tensor:
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=generator(0, "test"))


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def gray(tmp_path: Path, put: Put) -> Path:
    """Gray images of two classes, in mode L and as three equal channels."""
    planes = noise(12, 1)[:, 0].numpy()
    files = {
        f"{part}/{i % 2}/{i}.png": png(plane if i % 3 else np.stack([plane] * 3, 2))
        for i, plane in enumerate(planes)
        for part in ("train", "test")
    }
    return put(tmp_path / "gray", files)


def test_luma_is_that_of_pillow() -> None:
    levels = torch.tensor([0, 1, 2, 127, 128, 254, 255], dtype=torch.uint8)
    corners = torch.cartesian_prod(levels, levels, levels)[None].mT[..., None]  # (1, 3, 343, 1)
    for images in (noise(8, 3), corners):
        pillow = [np.asarray(figures.one(image).convert("L")) for image in images]
        assert np.array_equal(to_channels(images, 1)[:, 0].numpy(), np.stack(pillow))


def test_one_of_three_equal_channels_remains_and_one_is_seen_three_times() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    repeated = to_channels(images, 3)
    assert repeated.shape == (1, 3, 16, 16)
    assert torch.equal(to_channels(repeated, 1), images)
    assert to_channels(images, 1) is images
    assert to_channels(repeated, 3) is repeated


def test_one_pixel_of_one_image_is_a_color() -> None:
    images = to_channels(noise(4, 1), 3).clone()
    assert is_gray(images)
    assert is_gray(images[:, :1])
    images[3, 2, 31, 31] ^= 1
    assert not is_gray(images)


def test_gray_is_found_in_the_training_images(gray: Path, tmp_path: Path, put: Put) -> None:
    settings = configs.make("vae", {"data": str(gray)})
    assert settings.channels == 3
    assert channels_of(settings) == 1
    assert channels_of(settings.updated({"data": f"{gray}-remix"})) == 1
    assert channels_of(settings.updated({"data": "synthetic"})) == 3  # known: nothing is rendered
    assert not list(entries.cache_folder().glob("synthetic*"))
    put(gray, {"test/0/color.png": png(noise(1, 3)[0].permute(1, 2, 0).numpy())})
    assert channels_of(settings) == 1  # of test images it is not asked
    put(gray, {"train/0/color.png": png(noise(1, 3)[0].permute(1, 2, 0).numpy())})
    assert channels_of(settings) == 3


def test_what_was_cached_of_color_stays_as_it_is(gray: Path) -> None:
    stored = load(str(gray), "train")
    (entry,) = entries.cache_folder().glob("path-gray-*-train")
    written = (entry / "images.npy").stat()
    converted = load(str(gray), "train", channels=1)
    assert stored.images.shape == (12, 3, 32, 32)
    assert torch.equal(converted.images, stored.images[:, :1])
    assert torch.equal(given(converted.labels), given(stored.labels))
    assert converted.digest != stored.digest
    assert (entry / "images.npy").stat() == written
    assert load(str(gray), "train", channels=3).digest == stored.digest == load(str(gray), "train").digest


def test_large_splits_are_converted_to_the_cache_once(gray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(str(gray), "train", channels=1)
    monkeypatch.setattr(subset, "LARGE", 0)
    for _ in range(2):
        split = load(str(gray), "train", channels=1)
        (entry,) = entries.cache_folder().glob("rows-*-train")
        assert entries.describe(entry) == ((12, 1, 32, 32), "")
        assert split.digest == expected.digest
        assert torch.equal(split.images, expected.images)
        monkeypatch.setattr(entries, "store", None)  # the second time it is read
    streaming = make_loader(split, torch.device("cpu"), 0)
    assert streaming.stream
    rows = torch.randperm(12).view(3, 4)
    assert all(torch.equal(a, expected.images[b]) for a, b in zip(streaming.batches(rows), rows, strict=True))


def test_a_split_of_one_channel_is_repeated_without_memory(gray: Path) -> None:
    one = load(str(gray), "train", channels=1)
    three = subset.with_channels(one, 3)
    assert torch.equal(three.images, one.images.expand(-1, 3, -1, -1))
    assert three.images.data_ptr() == one.images.data_ptr()
    assert three.digest != one.digest
    for limit in (0.0, None):
        (batch,) = make_loader(three, torch.device("cpu"), limit).batches(torch.tensor([[2, 0]]))
        assert torch.equal(batch, three.images[[2, 0]])


def test_a_run_sees_its_channels_in_every_part(gray: Path) -> None:
    settings = configs.make("vae", {"data": str(gray), "channels": 1, "holdout": 0.3, "limit": 8})
    for part in ("train", "validation", "test"):
        assert load_for_run(settings, part).images.shape[1:] == (1, 32, 32)


@pytest.mark.parametrize("method", ["simsiam", "dssl"])
def test_views_of_gray_are_those_of_three_equal_channels(method: str) -> None:
    images = noise(16, 1)
    views = choose_views(configs.make(method, {"blur": 0.5, "flip": "on"}))
    draws = views.draws(len(images), generator(0, "views"))
    one, three = views(images, draws), views(to_channels(images, 3), draws)
    assert {view.shape for view in one} == {(16, 1, 32, 32)}
    # The heavy views are made of levels, of which a few round the other way: the next test compares those
    for a, b in zip(one[:2], three[:2], strict=True):
        torch.testing.assert_close(a.expand(-1, 3, -1, -1), b, rtol=0, atol=1e-5)


def test_saturation_hue_and_grayscale_do_nothing_to_gray() -> None:
    images = noise(8, 1)
    still = {"crop_scale": 1.0, "flip": "off", "jitter": 1.0, "brightness": 0.0, "contrast": 0.0}
    views = choose_views(configs.make("simsiam", {**still, "grayscale": 1.0}))
    view, _ = views(images, views.draws(8, generator(0, "views")))
    assert torch.equal(to_bytes(view), images)
    assert torch.allclose(view, to_model(images), atol=1e-6)


def test_randaugment_of_gray_is_that_of_three_equal_channels() -> None:
    planes = noise(randaugment.OPERATIONS, 1).float().transpose(0, 1)
    kinds = torch.arange(randaugment.OPERATIONS)[:, None]
    for sign in (-1.0, 1.0):
        signs = torch.full_like(kinds, sign, dtype=torch.float32)
        one = randaugment.randaugment(planes, kinds, signs, 9)
        three = randaugment.randaugment(planes.expand(3, -1, -1, -1), kinds, signs, 9)
        assert torch.equal(one.expand(3, -1, -1, -1), three)
    color = randaugment.randaugment(planes, torch.full_like(kinds, randaugment.COLOR), signs, 30)
    assert torch.equal(color, planes)


def test_pictures_and_metrics_of_gray_are_those_of_three_equal_channels() -> None:
    images = noise(6, 1)
    repeated = to_channels(images, 3)
    assert figures.grid(images).tobytes() == figures.grid(repeated).tobytes()
    assert figures.one(images[0]).mode == "L"
    assert figures.one(images[0]).convert("RGB").tobytes() == figures.one(repeated[0]).tobytes()
    torch.testing.assert_close(sharpness(images), sharpness(repeated))
    (gray,), (color,) = (cropped(part, True, 0, 0) for part in (images, repeated))
    assert torch.equal(gray, color[:, :1])


@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoder_sees_images_in_its_channels(channels: int) -> None:
    vae = build(configs.make("vae", {"width": 8, "channels": channels})).eval()
    encode = encoder_of(vae)
    with torch.no_grad():
        for images in (noise(4, 1), noise(4, 3)):
            expected = vae.features(to_model(to_channels(images, channels)))
            torch.testing.assert_close(encode(to_model(images)), expected)
