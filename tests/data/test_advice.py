"""Advice changes nothing but the time that reading takes."""

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genssl.data import loader
from genssl.data.cache import read_split, split_path, write_split
from genssl.data.split import Split

CPU = torch.device("cpu")
ROWS = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:288].view(9, 32)


@pytest.fixture
def images(cache: Path) -> Tensor:
    """Memory-mapped."""
    pixels = torch.randint(
        0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    write_split(split_path("advice", "train"), Split(pixels, None, (), "noise", "train", "digest"))
    kept = read_split(split_path("advice", "train"))
    assert kept is not None
    return kept.images


def test_the_content_stays(images: Tensor) -> None:
    before = images.clone()
    loader.expect_single_rows(images)
    loader.expect(images, [0, 7, 299])
    loader.expect(images, [])
    assert torch.equal(images, before)
    loader.expect(before, [1])  # of no file


@pytest.mark.skipif(not loader.KNOWN, reason="the kernel takes no advice")
def test_it_covers_the_rows_in_whole_pages(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int, int]] = []

    def remember(start: loader.ctypes.c_void_p, length: loader.ctypes.c_size_t, kind: object) -> int:
        given.append((start.value or 0, length.value, kind.value))  # type: ignore[attr-defined]
        return 0

    monkeypatch.setattr(loader, "_madvise", lambda: remember)
    loader.expect(images, [3, 250])
    loader.expect_single_rows(images)
    for (start, length, kind), (first, size) in zip(given, [(3, 1), (250, 1), (0, 300)], strict=True):
        address = images.data_ptr() + first * 3072
        assert start % mmap.PAGESIZE == 0
        assert address - mmap.PAGESIZE < start <= address
        assert start + length == address + size * 3072
        assert kind == (mmap.MADV_WILLNEED if size == 1 else mmap.MADV_RANDOM)


def test_the_kernel_takes_it(images: Tensor) -> None:
    if not loader.KNOWN:
        pytest.skip("the kernel takes no advice")
    start = images.data_ptr() - images.data_ptr() % mmap.PAGESIZE
    length = loader.ctypes.c_size_t(images.nbytes)
    assert loader._madvise()(loader.ctypes.c_void_p(start), length, mmap.MADV_RANDOM) == 0


@pytest.mark.parametrize(("limit", "advised"), [(0.0, 9), (1e9, 1)])
def test_rows_are_announced_while_they_come_from_the_disk(
    limit: float, advised: int, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[list[int]] = []
    monkeypatch.setattr(loader, "FROM_MEMORY", limit)  # seconds a row, as fast as which no disk is
    monkeypatch.setattr(loader, "expect", lambda _, rows: announced.append(list(rows)))
    found = [batch.clone() for batch in loader.streamed(images, ROWS, CPU)]
    assert torch.equal(torch.stack(found), images[ROWS])
    assert announced == ROWS.tolist()[:advised]
