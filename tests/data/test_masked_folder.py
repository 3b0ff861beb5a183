"""Images with masks: which belongs to which, numbers that stay numbers, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genssl.data.masked_folder import has_masks, read_masked
from genssl.errors import UserError
from genssl.pixels import IGNORE

from ..narrow import given


def write(folder: Path, name: str, mask: np.ndarray, palette: bool = False) -> None:
    """An image whose red is its mask's number times 20, and the mask."""
    for kind in ("images", "masks"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([20 * (mask % IGNORE), mask * 0, mask * 0], 2).astype(np.uint8)
    Image.fromarray(colors).save(folder / "images" / f"{name}.bmp")
    picture = Image.fromarray(mask.astype(np.uint8))
    if palette:
        picture = picture.convert("P")
        picture.putpalette([255 - i // 3 for i in range(768)])
        picture.putdata(mask.flatten().tolist())
    picture.save(folder / "masks" / f"{name}.png")


def masks(n: int, height: int = 8, width: int = 8) -> list[np.ndarray]:
    numbers = np.arange(height * width).reshape(height, width)
    return [(numbers + i) % 5 for i in range(n)]


@pytest.mark.parametrize("palette", [False, True])
def test_numbers_are_those_of_the_file(tmp_path: Path, palette: bool) -> None:
    expected = masks(12)
    for part, rows in (("train", expected[:8]), ("test", expected[8:])):
        for i, mask in enumerate(rows):
            write(tmp_path / part, f"deep/{i:02d}", mask, palette)
    assert has_masks(tmp_path)
    train, test = (read_masked(tmp_path, part, 8, 3) for part in ("train", "test"))
    assert train.classes == test.classes == ("1", "2", "3", "4")
    assert train.masks is not None
    assert test.masks is not None
    np.testing.assert_array_equal(train.masks, np.stack(expected[:8]))
    np.testing.assert_array_equal(test.masks, np.stack(expected[8:]))
    np.testing.assert_array_equal(train.images[:, 0], 20 * np.stack(expected[:8]))
    assert (train.part, train.labels, train.images.shape) == ("train", None, (8, 3, 8, 8))
    assert train.digest != test.digest
    assert read_masked(tmp_path, "train", 8, 1).images.shape == (8, 1, 8, 8)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_numbers_of_few_bits_are_those_of_the_file(tmp_path: Path, depth: int) -> None:
    import struct
    import zlib

    numbers = np.arange(64).reshape(8, 8) % 2**depth
    write(tmp_path, "0", numbers)
    write(tmp_path, "1", numbers)
    bits = ((numbers[..., None] >> np.arange(depth)[::-1]) & 1).reshape(8, -1).astype(np.uint8)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits)
    header = struct.pack(">IIBBBBB", 8, 8, depth, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for i in range(2):
        (tmp_path / "masks" / f"{i}.png").write_bytes(content)
    train = read_masked(tmp_path, "train", 8, 3)
    np.testing.assert_array_equal(given(train.masks)[0], numbers)


def test_a_tenth_is_for_testing_where_there_are_no_parts(tmp_path: Path) -> None:
    for i, mask in enumerate(masks(20)):
        write(tmp_path, f"{i:02d}", mask)
    train, test = (read_masked(tmp_path, part, 8, 3) for part in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)
    for split in (train, test):
        assert split.masks is not None
        # Images and masks stay together
        torch.testing.assert_close(split.images[:, 0], 20 * split.masks)
    assert read_masked(tmp_path, "test", 8, 3, seed=1).digest != test.digest


def test_masks_are_cut_as_their_images_and_have_no_numbers_between_classes(tmp_path: Path) -> None:
    wide = np.zeros((8, 16))
    wide[:, 4:12] = np.repeat(np.repeat([[1, 4], [4, 9]], 4, 0), 4, 1)
    write(tmp_path, "wide", wide)
    write(tmp_path, "other", wide)
    for size in (8, 5, 4):
        (mask,) = given(read_masked(tmp_path, "train", size, 3).masks)
        assert set(mask.unique().tolist()) == {1, 4, 9}
        assert mask[0, 0] == 1
        assert mask[-1, -1] == 9
    (padded,) = given(read_masked(tmp_path, "train", 16, 3, fit="pad").masks)
    assert bool((padded[:4] == IGNORE).all())
    np.testing.assert_array_equal(padded[4:12], wide)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "masks" / "1.png").unlink(), "1 images have no mask of the same name: images/1.bmp"),
        (lambda f: (f / "images" / "2.bmp").unlink(), "1 masks have no image of the same name: masks/2.png"),
        (lambda f: Image.new("L", (4, 4)).save(f / "masks" / "1.png"), "has 4x4 pixels, and its image 8x8"),
        (lambda f: Image.new("RGB", (8, 8)).save(f / "masks" / "1.png"), "has no numbers from 0 to 255"),
        (
            lambda f: Image.new("I;16", (8, 8), 300).save(f / "masks" / "1.png"),
            "has no numbers from 0 to 255",
        ),
        (
            lambda f: (f / "masks" / "1.png").write_bytes(b"nothing"),
            "cannot read the mask masks/1.png as a PNG",
        ),
        (lambda f: (f / "images" / "1.bmp").write_bytes(b"nothing"), "images/1.bmp cannot be used"),
        (lambda f: Image.new("L", (8, 8)).save(f / "images" / "1.png"), "two files for"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    for i, mask in enumerate(masks(4)):
        write(tmp_path, str(i), mask)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_masked(tmp_path, "train", 8, 3)
    assert "\n" not in str(caught.value)


def test_nothing_but_ground_no_part_and_no_masks(tmp_path: Path) -> None:
    write(tmp_path / "ground", "0", np.zeros((8, 8)))
    with pytest.raises(UserError, match="nothing but ground"):
        read_masked(tmp_path / "ground", "train", 8, 3)
    write(tmp_path / "half" / "train", "0", masks(1)[0])
    with pytest.raises(UserError, match="has no images for the test part"):
        read_masked(tmp_path / "half", "test", 8, 3)
    (tmp_path / "none").mkdir()
    assert not has_masks(tmp_path / "none")
    with pytest.raises(UserError, match="no images in"):
        read_masked(tmp_path / "none", "test", 8, 3)
