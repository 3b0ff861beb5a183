"""A streamed split gives the batches of a resident one, and its thread ends with it."""

import threading
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def batches(placed: loader.Loader, rows: Tensor = ROWS) -> list[Tensor]:
    return [batch.clone() for batch in placed.batches(rows)]


@pytest.mark.parametrize("stream", [False, True])
def test_batches_are_the_rows_in_their_order(stream: bool) -> None:
    found = batches(loader.Loader(SPLIT, CPU, stream))
    assert len(found) == 6
    assert all(torch.equal(batch, IMAGES[rows]) for batch, rows in zip(found, ROWS, strict=True))


def test_a_share_of_each_batch(cache: object) -> None:
    write_split(split_path("feed", "train"), SPLIT)
    kept = read_split(split_path("feed", "train"))
    assert kept is not None
    found = batches(loader.Loader(kept, CPU, stream=True), ROWS[2:, 3:5])
    assert torch.equal(torch.stack(found), IMAGES[ROWS[2:, 3:5]])


def test_no_batches() -> None:
    assert batches(loader.Loader(SPLIT, CPU, stream=True), ROWS[:0]) == []


def test_a_batch_stays_until_the_next_one_is_asked_for() -> None:
    for batch, rows in zip(loader.streamed(IMAGES, ROWS, CPU), ROWS, strict=True):
        for _ in range(200):  # time for the thread to do wrong
            assert torch.equal(batch, IMAGES[rows])


def test_two_buffers_are_all_there_are() -> None:
    places = [batch.data_ptr() for batch in loader.streamed(IMAGES, ROWS, CPU)]
    assert places == [places[0], places[1]] * 3
    assert places[0] != places[1]


def test_stopping_early_ends_the_thread() -> None:
    stream = loader.streamed(IMAGES, ROWS, CPU)
    next(stream)
    stream.close()
    assert next(loader.streamed(IMAGES, ROWS, CPU)).shape == (8, 3, 4, 4)


def test_what_reading_raises_is_raised_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(loader.np, "take", fail)
    with pytest.raises(OSError, match="Input/output"):
        batches(loader.Loader(SPLIT, CPU, stream=True))


@pytest.mark.parametrize(("limit", "streams"), [(0.0, True), (50 * 48 / 2**30, False), (2399 / 2**30, True)])
def test_the_limit_decides(limit: float, streams: bool) -> None:
    placed = loader.make_loader(SPLIT, CPU, limit)
    assert placed.stream == streams
    assert placed.split.images is SPLIT.images


def test_half_of_what_is_free_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_bytes", lambda device: 2 * 2400)
    assert not loader.make_loader(SPLIT, CPU).stream
    monkeypatch.setattr(loader, "free_bytes", lambda device: 2 * 2400 - 2)
    assert loader.make_loader(SPLIT, CPU).stream


def test_free_memory_is_that_of_this_computer() -> None:
    assert 2**20 < loader.free_bytes(CPU) <= psutil.virtual_memory().total
