"""Images from .npz and .npy files, against the arrays themselves and the same images as files."""

import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genssl.data.decode import decode
from genssl.data.loading import load, read_unlabeled
from genssl.data.registry import PARTS
from genssl.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3 * 5  # 0, 5, 10


def save(path: Path, *arrays: Any, **named: Any) -> str:
    np.savez(path, *arrays, **named)
    return str(path)


def both(data: str, size: int = 8) -> dict[bytes, int | None]:
    """The label of every image of both parts, by its bytes (H, W, 3)."""
    parts = [load(data, "train", image_size=size), load(data, "test", image_size=size)]
    return {
        image.permute(1, 2, 0).numpy().tobytes(): None if part.labels is None else int(part.classes[label])
        for part in parts
        for image, label in zip(
            part.images, [0] * len(part) if part.labels is None else part.labels, strict=True
        )
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_the_layout_of_guided_diffusion(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "samples.npz"
    (np.savez_compressed if compressed else np.savez)(path, IMAGES, LABELS)
    expected = {image.tobytes(): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}
    assert both(str(path)) == expected
    part = load(str(path), "train", image_size=8)
    assert (part.classes, part.name, part.images.dtype) == (("0", "5", "10"), "samples", torch.uint8)


@pytest.mark.parametrize(
    "names", [{"arr_0": "labels"}, {"images": "y"}, {"x": "y"}, {"data": "label"}, {"Images": "Labels"}]
)
def test_usual_names(tmp_path: Path, names: dict[str, str]) -> None:
    ((images, labels),) = names.items()
    data = save(tmp_path / "x.npz", **{images: IMAGES, labels: LABELS[:, None], "note": np.array("hello")})
    assert set(both(data).values()) == {0, 5, 10}


def test_parts_by_name(tmp_path: Path) -> None:
    data = save(
        tmp_path / "mnist.npz", x_train=IMAGES[:8], y_train=LABELS[:8], x_test=IMAGES[8:], y_test=LABELS[8:]
    )
    train, test = load(data, "train", image_size=8), load(data, "test", image_size=8)
    assert np.array_equal(train.images.numpy(), IMAGES[:8].transpose(0, 3, 1, 2))
    assert np.array_equal(test.images.numpy(), IMAGES[8:].transpose(0, 3, 1, 2))
    assert test.labels is not None
    assert [test.classes[label] for label in test.labels] == [str(label) for label in LABELS[8:]]
    medical = {
        f"{part}_{kind}": array for part in ("train", "val", "test") for kind, array in
        (("images", IMAGES[..., 0]), ("labels", LABELS[:, None]))
    }  # fmt: skip
    data = save(tmp_path / "medical.npz", **medical)
    left_out = "val_images .* is left out: train and test are used"
    with pytest.warns(UserWarning, match=left_out):
        assert len(load(data, "test", image_size=8)) == 12
    # Also where the data come from the cache, silently
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (note,) = load(data, "test", image_size=8).notes
    assert re.match(left_out, note)


def test_notes_say_what_cropping_left_out(tmp_path: Path) -> None:
    wide = np.zeros((10, 8, 20, 3), np.uint8)
    data = save(tmp_path / "wide.npz", x_train=wide, x_test=wide[:4])
    with pytest.warns(UserWarning, match="more than a third of 14 of 14 images"):
        load(data, "train", image_size=8)
    (train,), (test,) = (load(data, part, image_size=8).notes for part in PARTS)
    assert "more than a third of 10 of 10 images" in train
    assert "more than a third of 4 of 4 images" in test


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (IMAGES.transpose(0, 3, 1, 2), IMAGES),
        (np.asfortranarray(IMAGES), IMAGES),
        (IMAGES[..., 0], IMAGES[..., :1]),
        (IMAGES[..., :1], IMAGES[..., :1]),
        (IMAGES[..., :1].transpose(0, 3, 1, 2), IMAGES[..., :1]),
        (IMAGES.astype(np.int64), IMAGES),
        (IMAGES.astype(">f4"), IMAGES),
        (IMAGES / np.float32(255), IMAGES),
        (IMAGES > 99, 255 * (IMAGES > 99)),
        (np.concatenate([IMAGES, np.full_like(IMAGES[..., :1], 255)], -1), IMAGES),
        (np.concatenate([IMAGES, np.zeros_like(IMAGES[..., :1])], -1), np.full_like(IMAGES, 255)),
    ],
    ids=[
        "NCHW",
        "fortran",
        "NHW",
        "gray",
        "gray first",
        "int64",
        "big-endian",
        "unit",
        "bool",
        "opaque",
        "clear",
    ],
)
def test_shapes_and_types(tmp_path: Path, array: Any, expected: Any) -> None:
    np.save(tmp_path / "x.npy", array)
    split = read_unlabeled(tmp_path / "x.npy", 8)
    assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), np.broadcast_to(expected, IMAGES.shape))
    assert split.labels is None


def test_images_are_those_of_files_with_the_same_pixels(tmp_path: Path) -> None:
    from PIL import Image

    wide = RANDOM.integers(0, 256, (3, 20, 50, 3), np.uint8)
    np.save(tmp_path / "x.npy", wide)
    for fit in ("crop", "pad", "stretch"):
        split = load(str(tmp_path / "x.npy"), "train", image_size=16, fit=fit)
        from genssl.data.fit import Fit

        content = []
        for image in wide:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            content.append(decode(buffer.getvalue(), Fit(16, fit)).tobytes())
        assert {image.permute(1, 2, 0).numpy().tobytes() for image in split.images} <= set(content)


def test_names_as_labels_and_a_changed_file(tmp_path: Path) -> None:
    data = save(tmp_path / "x.npz", images=IMAGES, labels=np.array(["cat", "dog", "ant"] * 4))
    split = load(data, "train", image_size=8)
    assert split.classes == ("ant", "cat", "dog")
    save(tmp_path / "x.npz", images=IMAGES[:5])
    assert len(load(data, "train", image_size=8)) + len(load(data, "test", image_size=8)) == 5


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("unpickled", "w")


FLOATS = RANDOM.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "object": ({"arr_0": np.array([Trap()], object)}, "holds Python objects"),
    "minus one to one": ({"x": FLOATS}, r"goes from -0\.99\d* to 0\.99\d*.*\(x \+ 1\) \* 127\.5"),
    "standardized": ({"x": 3 * FLOATS}, "may be any scale"),
    "dark": ({"x": np.abs(FLOATS) / 4}, "may be any scale"),
    "0 and 1": ({"x": (IMAGES > 9).astype(np.int32)}, "goes from 0 to 1"),
    "not finite": ({"x": np.full((2, 8, 8), np.nan)}, "not finite"),
    "complex": ({"x": np.zeros((2, 8, 8), complex)}, "not of numbers"),
    "flat": ({"x": np.zeros((2, 3072), np.uint8)}, r"\(2, 3072\) of uint8 .* not the shape of images"),
    "one image": ({"x": np.zeros((8, 8, 3), np.uint8)}, "not the shape of images"),
    "empty": ({"x": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no images"),
    "statistics": ({"mu": np.zeros(4), "sigma": np.zeros((4, 4))}, r"holds mu \(4,\) of float64, sigma"),
    "two": ({"x": IMAGES, "images": IMAGES}, "several arrays that may be the images"),
    "labels": ({"x": IMAGES, "y": LABELS[:9]}, "not one label for each of 12 images"),
    "negative": ({"x": IMAGES, "y": LABELS - 1}, "no list of labels"),
    "fractions": ({"x": IMAGES, "y": LABELS / 7}, "no list of labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_in_one_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        load(save(tmp_path / "x.npz", **arrays), "train", image_size=8)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


def test_damaged_files(tmp_path: Path) -> None:
    good = tmp_path / "x.npy"
    np.save(good, IMAGES)
    content = good.read_bytes()
    for name, damaged in {
        "cut.npy": content[:-9], "empty.npy": b"", "text.npy": b"hello", "text.npz": b"hello",
        "cut.npz": zipped(IMAGES)[:200], "flipped.npz": flipped(zipped(IMAGES)),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged, or no file of NumPy"):
            load(str(tmp_path / name), "train", image_size=8)
    (tmp_path / "lfs.npz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(UserError, match="a pointer of Git LFS"):
        load(str(tmp_path / "lfs.npz"), "train")
    assert not [entry for entry in (tmp_path / "the-cache").iterdir() if entry.suffix != ".lock"]


def zipped(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_rows_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(tmp_path / "x.npz", np.broadcast_to(np.uint8(7), (40, 64, 64, 3)))
    most, read = 0, zipfile.ZipExtFile.read

    def counting(self: Any, n: int = -1) -> bytes:
        nonlocal most
        content = read(self, n)
        most = max(most, len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(data, "train", image_size=8)) == 36
    assert most == 64 * 64 * 3


@pytest.mark.parametrize("header", [b"{'descr': (", b"{'descr': 'u1L', 'shape': (", b"\xff" * 9, b"[" * 400])
def test_a_header_that_is_no_python_is_damage(header: bytes, tmp_path: Path) -> None:
    # Version 1.0, so that numpy reads it once more with Python's tokenizer, whose errors are of its own kind
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match="is damaged, or no file of NumPy"):
        load(str(path), "train", image_size=8)
