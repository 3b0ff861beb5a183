"""A streamed split gives the batches of a resident one."""

from collections.abc import Generator

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from genssl.data import loader
from genssl.data.cache import read_split, split_path, write_split
from genssl.data.split import Split

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:48].view(6, 8)
SPLIT = Split(IMAGES, None, (), "noise", "train", "digest")


def batches(data: loader.Loader, rows: Tensor = ROWS) -> list[Tensor]:
    return list(data.batches(rows))


@pytest.mark.parametrize("stream", [False, True])
def test_batches_are_the_rows_in_their_order(stream: bool) -> None:
    found = batches(loader.Loader(SPLIT, CPU, stream))
    assert len(found) == 6
    assert all(torch.equal(batch, IMAGES[rows]) for batch, rows in zip(found, ROWS, strict=True))


def test_a_shard_of_each_batch(cache: object) -> None:
    write_split(split_path("feed", "train"), SPLIT)
    kept = read_split(split_path("feed", "train"))
    assert kept is not None
    found = batches(loader.Loader(kept, CPU, stream=True), ROWS[2:, 3:5])
    assert torch.equal(torch.stack(found), IMAGES[ROWS[2:, 3:5]])


def test_no_batches() -> None:
    assert batches(loader.Loader(SPLIT, CPU, stream=True), ROWS[:0]) == []


def test_it_may_be_stopped_early() -> None:
    stream = loader.streamed(IMAGES, ROWS, CPU)
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert next(loader.streamed(IMAGES, ROWS, CPU)).shape == (8, 3, 4, 4)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    batches(loader.Loader(SPLIT, CPU, stream=True))
    assert torch.equal(before, torch.get_rng_state())


def test_the_split_stays_on_the_disk(cache: object) -> None:
    """A batch is a copy, and what is streamed is the memory-mapped file itself."""
    write_split(split_path("feed", "train"), SPLIT)
    split = read_split(split_path("feed", "train"))
    assert split is not None
    streaming = loader.make_loader(split, CPU, 0)
    assert streaming.split.images.data_ptr() == split.images.data_ptr()
    next(streaming.batches(ROWS)).zero_()
    assert torch.equal(split.images, IMAGES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_workers_give_a_gpu_the_same_batches_in_the_same_order() -> None:
    found = batches(loader.Loader(SPLIT, torch.device("cuda"), stream=True))
    assert torch.equal(torch.stack(found).cpu(), IMAGES[ROWS])


def test_what_reading_raises_is_raised_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np, "take", fail)
    with pytest.raises(OSError, match="Input/output"):
        batches(loader.Loader(SPLIT, CPU, stream=True))


@pytest.mark.parametrize(("limit", "streams"), [(0.0, True), (50 * 48 / 2**30, False), (2399 / 2**30, True)])
def test_the_limit_decides(limit: float, streams: bool) -> None:
    data = loader.make_loader(SPLIT, CPU, limit)
    assert data.stream == streams
    assert data.split.images is SPLIT.images


def test_half_of_what_is_free_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_bytes", lambda device: 2 * 2400)
    assert not loader.make_loader(SPLIT, CPU).stream
    monkeypatch.setattr(loader, "free_bytes", lambda device: 2 * 2400 - 2)
    assert loader.make_loader(SPLIT, CPU).stream


def test_free_memory_is_that_of_this_computer() -> None:
    assert 2**20 < loader.free_bytes(CPU) <= psutil.virtual_memory().total
