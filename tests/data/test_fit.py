"""How images that are not square become so."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genssl.data.fit import Fit
from genssl.data.loading import load
from genssl.data.registry import Shape
from genssl.errors import UserError

Put = Callable[[Path, dict[str, bytes]], Path]
Picture = Callable[..., bytes]


def halves(width: int, height: int) -> Image.Image:
    """Red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize(
    ("shape", "corner", "center_row"),
    [("crop", (255, 0, 0), 16), ("stretch", (255, 0, 0), 16), ("pad", (255, 255, 255), 16)],
)
def test_squares(shape: Shape, corner: tuple[int, ...], center_row: int) -> None:
    image = Fit(16, shape)(halves(64, 16))
    assert image.size == (16, 16)
    assert image.getpixel((0, 0)) == corner
    row = np.asarray(image)[8]
    assert row.shape == (center_row, 3)
    assert tuple(row[0]) == (255, 0, 0)
    assert tuple(row[-1]) == (0, 0, 255)


def test_pad_keeps_the_shape() -> None:
    pixels = np.asarray(Fit(16, "pad")(Image.new("RGB", (64, 16))))
    assert (pixels == 255).all(-1).sum() == 16 * 12  # white above and below a quarter of the height
    assert (pixels[6:10] == 0).all()


@pytest.mark.parametrize("shape", ["crop", "pad", "stretch"])
def test_a_square_of_the_right_size_is_as_it_was(shape: Shape) -> None:
    image = halves(16, 16)
    assert Fit(16, shape)(image) is image


@pytest.mark.parametrize(("size", "noted"), [((30, 20), False), ((31, 20), True), ((20, 60), True)])
def test_the_crop_says_when_it_cuts_off_more_than_a_third(size: tuple[int, int], noted: bool) -> None:
    fit = Fit(8)
    fit(halves(*size))
    fit(halves(8, 8))
    assert (fit.notice() is not None) is noted
    assert not noted or "more than a third of 1 of 2 images" in str(fit.notice())
    for shape in ("pad", "stretch"):
        other = Fit(8, shape)
        other(halves(*size))
        assert other.notice() is None


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UserError, match="use crop, pad or stretch"):
        Fit(8, "squeeze")  # type: ignore[arg-type]  # no such way


def test_a_folder_is_converted_for_each_way(tmp_path: Path, put: Put, picture: Picture) -> None:
    path = str(put(tmp_path / "wide", {f"{i}.png": picture(i, (32, 16)) for i in range(4)}))
    with pytest.warns(UserWarning, match="more than a third of 4 of 4 images"):
        crop = load(path, "train", image_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = [load(path, "train", image_size=16, fit=fit) for fit in ("pad", "stretch")]
        assert load(path, "train", image_size=16).digest == crop.digest
    assert len({crop.digest, *(other.digest for other in others)}) == 3
