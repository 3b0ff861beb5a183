import inspect
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from genssl.data import cache as cache_module
from genssl.data.cache import split_path, write_split
from genssl.data.loading import load
from genssl.data.registry import SOURCES, DataSource, allows_flips, catalog
from genssl.data.split import Split
from genssl.data.synthetic import render
from genssl.errors import UserError

RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (6, 3, 32, 32), generator=RANDOM).to(torch.uint8)


def no_space(*_: object) -> NoReturn:
    raise OSError(28, "No space left on device")


@pytest.fixture
def svhn(cache: Path) -> Split:
    """What the cache holds of SVHN, as if it were all."""
    for part in ("train", "test"):
        split = Split(IMAGES, torch.arange(6), tuple("0123456789"), "svhn", part, f"digest of {part}")
        write_split(split_path("svhn-32", part), split)
    return split


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """A renderer of nearly nothing, and the list of its calls."""
    calls = []

    def make(part: str, seed: int, image_size: int, progress: Callable[[int, int], None] | None) -> Split:
        calls.append((part, seed, image_size))
        if progress:
            progress(2, 2)
        images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
        masks = torch.ones(2, image_size, image_size, dtype=torch.uint8)
        return Split(images, torch.tensor([3, 4]), tuple("0123456789"), "synthetic", part, "d", masks)

    monkeypatch.setattr(render, "make", make)
    return calls


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("svnh", "did you mean svhn?"),
        ("svhn-exta", "did you mean svhn-extra?"),
        ("CIFAR-10", "did you mean cifar10?"),
        ("svhnremix", "did you mean svhn-remix?"),
        ("mnist", "path; use svhn"),
    ],
)
def test_an_unknown_name_is_told_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UserError) as told:
        load(name, "train")
    assert hint in str(told.value)
    assert str(told.value).endswith(
        "use svhn, svhn-extra, cifar10, synthetic, a path, or hf:OWNER/NAME, each with or without -remix"
    )
    assert told.value.code == 2


@pytest.mark.parametrize("name", ["./svhn", "nowhere/images", "images.tar.gz"])
def test_a_path_that_is_not_there_is_told_as_one(name: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load(name, "train")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name: str) -> None:
    with pytest.raises(UserError, match="an empty name is no data set; use svhn"):
        load(name, "train")


def test_a_size_must_be_positive() -> None:
    with pytest.raises(UserError, match="size must be positive"):
        load("svhn", "train", image_size=0)


def test_a_name_goes_before_a_folder_and_a_path_reaches_it(
    svhn: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable[..., bytes]
) -> None:
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "1.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    assert len(load("svhn", "train")) == 6
    assert len(load("./svhn", "train")) == 1


def test_the_home_folder_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable[..., bytes]
) -> None:
    (tmp_path / "1.png").write_bytes(picture())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / ".cache"))
    assert load("~", "train").name == tmp_path.name


@pytest.mark.parametrize("size", [16, 28, 64])
def test_another_size_is_resized_like_an_image_file(svhn: Split, size: int) -> None:
    found = load("svhn", "train", image_size=size)
    assert found.images.dtype == torch.uint8
    for image, source in zip(found.images, IMAGES, strict=True):
        expected = Image.fromarray(source.permute(1, 2, 0).numpy()).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        difference = np.asarray(expected, int).transpose(2, 0, 1) - image.numpy()
        assert np.abs(difference).max() <= 1
    assert found.labels is not None
    assert found.labels.tolist() == list(range(6))
    assert found.digest != load("svhn", "train").digest
    assert torch.equal(load("svhn", "train", image_size=size).images, found.images)


def test_many_images_are_resized_piece_by_piece(
    cache: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """However long the pieces, and also where nothing can be kept, the images are the same."""
    images = torch.randint(0, 256, (25, 3, 32, 32), generator=RANDOM).to(torch.uint8)
    source = Split(images, torch.arange(25) % 10, tuple("0123456789"), "svhn", "train", "d")
    write_split(split_path("svhn-32", "train"), source)
    expected = torch.nn.functional.interpolate(images, (20, 20), mode="bicubic", antialias=True)
    monkeypatch.setattr(cache_module, "PIECE", 7 * 3 * 20 * 20)
    kept = load("svhn", "train", image_size=20)
    shutil.rmtree(split_path("svhn-20", "train"))
    monkeypatch.setattr(cache_module, "_write_npy", no_space)
    unkept = load("svhn", "train", image_size=20)
    assert len(recwarn) == 1
    for found in (kept, unkept):
        assert torch.equal(found.images, expected)
        assert found.labels is not None
        assert torch.equal(found.labels, torch.arange(25) % 10)
        assert (found.name, found.part, found.digest) == ("svhn", "train", kept.digest)


def test_rendered_digits_are_kept_with_their_masks(renderings: list[tuple[str, int, int]]) -> None:
    told: list[tuple[str, int, int | None]] = []
    first = load("synthetic", "train", seed=7, progress=lambda *what: told.append(what))
    assert told == [("rendering digits", 2, 2)]
    second = load("synthetic", "train", seed=8)
    assert renderings == [("train", 0, 32)]  # the seed of a run is not the seed of the data
    assert first.masks is not None
    assert second.masks is not None
    assert torch.equal(first.masks, second.masks)
    load("synthetic", "train", image_size=16)
    assert renderings[-1] == ("train", 0, 16)  # rendered, not resized


def test_the_renderer_takes_what_it_is_given() -> None:
    given = inspect.signature(render.make).bind("test", 0, 16, progress=None)
    assert given.arguments == {"part": "test", "seed": 0, "image_size": 16, "progress": None}


def test_the_catalog_of_an_empty_cache() -> None:
    entries = catalog()
    assert [(entry.name, entry.cached, entry.images, entry.size) for entry in entries] == [
        ("svhn", False, 99_289, 0),
        ("svhn-extra", False, 630_420, 0),
        ("cifar10", False, 60_000, 0),
        ("synthetic", False, 24_000, 0),
    ]
    assert all(entry.what for entry in entries)
    assert entries[3].images == render.TRAIN_IMAGES + render.TEST_IMAGES


def test_the_catalog_says_what_is_prepared(
    svhn: Split, tmp_path: Path, cache: Path, put: Callable[..., Path], tree: dict[str, bytes]
) -> None:
    load(str(put(tmp_path / "set.zip", tree)), "train")
    known, *_, path = catalog()
    assert (known.name, known.cached, known.images) == ("svhn", True, 12)
    assert known.size == sum(file.stat().st_size for file in cache.glob("svhn-32-*/*"))
    assert (path.name, path.cached, path.images) == (str(tmp_path / "set.zip"), True, 8)
    assert "32 x 32" in path.what


def test_the_catalog_passes_over_what_is_damaged(svhn: Split, cache: Path) -> None:
    (cache / "path-some-1-2-train.safetensors").write_text("of the first edition")
    (cache / "path-some-1-2-train").mkdir()
    (cache / "path-some-1-2-test").mkdir()
    (cache / "path-some-1-2-test/split.json").write_text("hello")
    (cache / "svhn-32-test/images.npy").write_text("hello")
    assert [(entry.name, entry.cached) for entry in catalog()] == [
        ("svhn", False),
        ("svhn-extra", False),
        ("cifar10", False),
        ("synthetic", False),
    ]


def test_half_of_a_data_set_is_not_prepared(svhn: Split) -> None:
    shutil.rmtree(split_path("svhn-32", "test"))
    assert not catalog()[0].cached


def test_a_new_source_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(part: str, size: int, *_: object) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        images = np.full((4, 3, size, size), 7 if part == "train" else 9, np.uint8)
        return {"images": images, "labels": np.array([0, 1, 1, 0])}, ("1", "2")

    source = DataSource("toys", read, native_size=16, flips=True, about="toys", images=8)
    monkeypatch.setitem(SOURCES, "toys", source)
    assert load("toys", "train", image_size=16).images.eq(7).all()
    assert load("toys", "test", image_size=24).images.shape == (4, 3, 24, 24)  # resized
    assert load("toys-remix", "test", image_size=16).name == "toys-remix"
    assert allows_flips("toys-remix", ("1", "2"))
    assert catalog()[4].name == "toys"


@pytest.mark.parametrize(
    ("data", "classes", "flips"),
    [
        ("svhn", (), False),
        ("synthetic-remix", (), False),
        ("cifar10", ("1", "2"), True),
        ("photos", ("1", "2"), False),
        ("photos", ("1", "two"), True),
        ("photos", (), True),
    ],
)
def test_digits_are_not_mirrored(data: str, classes: tuple[str, ...], flips: bool) -> None:
    assert allows_flips(data, classes) == flips


def test_a_jpeg_folder_is_what_pillow_reads(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.JPG").write_bytes(buffer.getvalue())
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(load(str(tmp_path / "set"), "train").images[0].permute(1, 2, 0), expected)
