import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genssl.data import decode as module
from genssl.data.decode import BadImage, Observed, decode, describe, identify
from genssl.errors import UserError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (32, 32, 3), np.uint8)
GRAY = RGB[..., 0]


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tripled(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_an_image_of_the_right_size_keeps_every_bit(kind: str) -> None:
    assert np.array_equal(decode(content(Image.fromarray(RGB), kind), 32), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_give_what_pillow_decodes(kind: str) -> None:
    data = content(Image.fromarray(RGB), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data, 32), expected)


def test_gray_becomes_three_equal_channels() -> None:
    assert np.array_equal(decode(content(Image.fromarray(GRAY)), 32), tripled(GRAY))


def test_black_and_white_becomes_0_and_255() -> None:
    ones = GRAY > 127
    assert np.array_equal(decode(content(Image.fromarray(ones)), 32), tripled(ones * np.uint8(255)))


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode(content(image), 32), np.asarray(image.convert("RGB")))


def test_cmyk_is_converted() -> None:
    data = content(Image.fromarray(RGB).convert("CMYK"), "TIFF")
    assert np.abs(decode(data, 32).astype(int) - RGB).max() <= 1


def test_alpha_is_laid_over_white() -> None:
    alpha = RANDOM.integers(0, 256, (32, 32, 1), np.uint8)
    blended = (RGB * (alpha / 255.0) + 255 - alpha).round()
    data = content(Image.fromarray(np.concatenate([RGB, alpha], 2)))
    assert np.abs(decode(data, 32) - blended).max() <= 1


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    assert np.array_equal(decode(content(Image.fromarray(RGB).convert("RGBA")), 32), RGB)


def test_gray_with_alpha_is_laid_over_white() -> None:
    alpha = np.where(GRAY > 99, 255, 0).astype(np.uint8)
    data = content(Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)]))
    assert np.array_equal(decode(data, 32), tripled(np.where(alpha == 255, GRAY, 255)))


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0])])
def test_a_transparent_palette_entry_is_white(transparency: int | bytes) -> None:
    image = Image.fromarray(RGB).quantize(16)
    found = decode(content(image, transparency=transparency), 32)
    hole = np.asarray(image) == 3
    assert (found[hole] == 255).all()
    assert np.array_equal(found[~hole], np.asarray(image.convert("RGB"))[~hole])


def test_a_transparent_gif_is_white_where_it_is_transparent() -> None:
    image = Image.fromarray(RGB).quantize(16)
    found = decode(content(image, "GIF", transparency=3), 32)
    assert (found[np.asarray(image) == 3] == 255).all()


def test_a_transparent_color_without_alpha_is_white() -> None:
    found = decode(content(Image.fromarray(GRAY), transparency=int(GRAY[0, 0])), 32)
    assert (found[GRAY[0, 0] == GRAY] == 255).all()
    assert np.array_equal(found[GRAY[0, 0] != GRAY], tripled(GRAY)[GRAY[0, 0] != GRAY])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(kind: str) -> None:
    wide = RANDOM.integers(0, 65536, (32, 32), np.uint16)
    wide[0, :2] = 0, 65535
    assert np.array_equal(
        decode(content(Image.fromarray(wide), kind), 32), tripled((wide >> 8).astype(np.uint8))
    )


def png(header: bytes, pixels: bytes, transparent: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    hole = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IHDR", header) + hole + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bits_a_color_are_scaled() -> None:
    wide = RANDOM.integers(0, 65536, (32, 32, 3)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in wide)
    data = png(struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0), lines)
    assert np.array_equal(decode(data, 32), (wide >> 8).astype(np.uint8))


def test_a_transparent_value_of_16_bits_is_white() -> None:
    wide = np.arange(1024).reshape(32, 32).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in wide)
    found = decode(png(struct.pack(">IIBBBBB", 32, 32, 16, 0, 0, 0, 0), lines, struct.pack(">H", 5)), 32)
    assert (found[0, 5] == 255).all()
    assert found[0, 4, 0] == found[0, 6, 0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_pixels_are_refused(dtype: type) -> None:
    with pytest.raises(BadImage, match="32-bit"):
        decode(content(Image.fromarray(GRAY.astype(dtype)), "TIFF"), 32)


@pytest.mark.parametrize("size", [(40, 32), (41, 32), (32, 57)])
def test_the_center_square_is_cut_out(size: tuple[int, int]) -> None:
    pixels = RANDOM.integers(0, 256, (size[1], size[0], 3), np.uint8)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    expected = pixels[top : top + 32, left : left + 32]
    assert np.array_equal(decode(content(Image.fromarray(pixels)), 32), expected)


def test_making_smaller_is_antialiased() -> None:
    board = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)
    found = decode(content(Image.fromarray(board.astype(np.uint8))), 32)
    assert np.abs(found.astype(int) - 127.5).max() < 4


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (100, 30), (33, 32)])
def test_every_size_becomes_the_size_asked_for(width: int, height: int) -> None:
    found = decode(content(Image.new("RGB", (width, height), (9, 99, 200))), 32)
    assert found.shape == (32, 32, 3)
    assert (found == (9, 99, 200)).all()


def test_the_orientation_of_a_camera_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = decode(content(Image.fromarray(RGB), exif=exif), 32)
    assert np.array_equal(found, np.rot90(RGB, -1))


@pytest.mark.parametrize("rest", [b"MM\0*\0\0", b"MM\0\2\0\0\0\10\0\2"])
def test_broken_exif_does_not_lose_the_image(rest: bytes) -> None:
    data = content(Image.fromarray(RGB), exif=b"Exif\0\0" + rest)
    assert np.array_equal(decode(data, 32), RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_bad(kind: str, share: float) -> None:
    data = content(Image.fromarray(RGB), kind)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)], 32)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_bad(data: bytes) -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode(data, 32)


def test_what_is_a_program_is_bad() -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode(content(Image.fromarray(RGB), "EPS"), 32)


def test_damage_in_the_middle_is_bad() -> None:
    data = bytearray(content(Image.fromarray(RGB)))
    data[len(data) // 2] ^= 255
    with pytest.raises(BadImage):
        decode(bytes(data), 32)


@pytest.mark.parametrize("side", [8_001, 10_000, 50_000, 2_000_000])
def test_a_huge_image_is_refused_by_its_header(side: int) -> None:
    data = png(struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match=rf"too large, .*GENSSL_MAX_PIXELS={side * side} reads it"):
            decode(data, 32)


def test_the_limit_counts_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 32 * 32)
    decode(content(Image.fromarray(RGB)), 32)
    with pytest.raises(BadImage, match="33 x 32"):
        decode(content(Image.new("RGB", (33, 32))), 32)


def test_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 32 * 32)
    data = content(Image.fromarray(RGB).resize((40, 40)))
    monkeypatch.setenv("GENSSL_MAX_PIXELS", "1600")
    expected = decode(data, 32)
    monkeypatch.setenv("GENSSL_MAX_PIXELS", "1.6e3")
    assert np.array_equal(decode(data, 32), expected)
    monkeypatch.setenv("GENSSL_MAX_PIXELS", "1599")
    with pytest.raises(BadImage, match="GENSSL_MAX_PIXELS=1600"):
        decode(data, 32)
    monkeypatch.setenv("GENSSL_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="'many'"):
        decode(data, 32)


def test_a_huge_jpeg_is_made_smaller_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.tile(np.linspace(0, 255, 1024).astype(np.uint8), (1024, 1))
    data = content(Image.fromarray(ramp), "JPEG", quality=95)
    expected = decode(data, 16)
    monkeypatch.setattr(module, "MAX_PIXELS", 512 * 512)
    assert np.abs(decode(data, 16).astype(int) - expected).max() <= 3
    monkeypatch.setattr(module, "MAX_PIXELS", 100 * 100)
    with pytest.raises(BadImage, match="too large, 1024 x 1024"):
        decode(data, 16)


@pytest.mark.parametrize(("bits", "largest"), [(8, 200), (10, 1023), (12, 4095), (12, 3000), (14, 9000)])
def test_fewer_bits_in_16_are_scaled_by_what_was_seen(bits: int, largest: int) -> None:
    wide = np.linspace(0, largest, 1024).reshape(32, 32).astype(np.uint16)
    data, observed = content(Image.fromarray(wide), "TIFF"), Observed()
    assert decode(data, 32, observed).max() == largest >> 8
    assert (observed.needed_bits(), observed.largest, observed.wide) == (bits, largest, 1)
    expected = tripled((wide >> (bits - 8)).astype(np.uint8))
    assert np.array_equal(decode(data, 32, Observed(bits)), expected)
    assert Observed().needed_bits() == 16


def test_a_png_with_much_text_is_read() -> None:
    info = PngInfo()
    info.add_text("a", "x" * 3_000_000, zip=True)
    assert np.array_equal(decode(content(Image.fromarray(RGB), pnginfo=info), 32), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"optimize": True}])
def test_a_jpeg_without_its_last_two_bytes_is_read(options: dict[str, Any]) -> None:
    data = content(Image.fromarray(RGB), "JPEG", **options)
    for missing in (1, 2):
        assert np.array_equal(decode(data[:-missing], 32), decode(data, 32))
    for missing in (20, 50, 100):
        with pytest.raises(BadImage, match="truncated"):
            decode(data[:-missing], 32)


def test_frames_are_counted() -> None:
    observed = Observed()
    frames = [Image.fromarray(np.roll(RGB, i)) for i in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = content(frames[0], kind, save_all=True, append_images=frames[1:])
        first = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode(data, 32, observed), first)
    decode(content(frames[0], "GIF"), 32, observed)
    assert observed.animated == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_an_image_is_known_by_its_first_bytes(kind: str) -> None:
    data = content(Image.fromarray(RGB), kind)
    expected = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")
    assert identify(data) == expected
    assert identify(data[:64]) == expected
    assert np.abs(decode(data, 32).astype(int) - RGB).mean() < 60


@pytest.mark.parametrize("data", [b"", b"hello", b"BM is short", b"P2P", b"RIFF....WAVE"])
def test_other_files_are_not_known_as_images(data: bytes) -> None:
    assert identify(data) == describe(data) == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer.*git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", r"a HEIC image; pip install 'genssl\[heif\]'"),
        (b"\xff\x0a" + bytes(40), "a JXL image; convert it"),
        (b"<svg xmlns=''>", "an SVG, not pixels"),
        (b"<html>", "a web page"),
    ],
)
def test_the_reason_says_what_a_file_is(data: bytes, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        decode(data, 32)
