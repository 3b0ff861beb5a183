import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from genssl.data import cache as cache_module
from genssl.data import subset as module
from genssl.data.split import Split
from genssl.data.subset import limit_split, select_rows

RANDOM = torch.Generator().manual_seed(0)


def split(n: int, part: str = "train") -> Split:
    images = torch.randint(0, 256, (n, 3, 4, 4), generator=RANDOM).to(torch.uint8)
    masks = torch.randint(0, 11, (n, 4, 4), generator=RANDOM).to(torch.uint8)
    labels = torch.randint(0, 2, (n,), generator=RANDOM)
    return Split(images, labels, ("a", "b"), "some", part, f"digest of {n}", masks)


def same(a: Split, b: Split) -> bool:
    for kind in ("images", "labels", "masks"):
        one, other = getattr(a, kind), getattr(b, kind)
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            return False
    return (a.classes, a.name, a.part, a.digest) == (b.classes, b.name, b.part, b.digest)


def expected(sources: Sequence[Split], rows: Tensor) -> Split:
    def joined(kind: str) -> Tensor | None:
        tensors = [getattr(source, kind) for source in sources]
        return None if any(tensor is None for tensor in tensors) else torch.cat(tensors)[rows]

    images = joined("images")
    assert images is not None
    return Split(
        images, joined("labels"), sources[0].classes, "chosen", "p", "0123456789abcdef|", joined("masks")
    )


def select(sources: Sequence[Split], rows: Tensor) -> Split:
    return select_rows(sources, rows, digest="0123456789abcdef|", name="chosen", part="p")


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(module, "LARGE", 0)
        monkeypatch.setattr(cache_module, "PIECE", 100)  # two images
    return str(request.param)


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1, 10, 1]])
def test_rows_of_the_sources_laid_end_to_end(sizes: list[int], place: str, cache: Path) -> None:
    sources = [split(n) for n in sizes]
    rows = torch.tensor([11, 0, 5, 4, 4, 10, 1])
    assert same(select(sources, rows), expected(sources, rows))
    entries = [file.name for file in cache.glob("rows-*-p")]
    assert entries == (["rows-0123456789abcdef-p"] if place == "file" else [])


def test_how_the_sources_are_cut_is_of_no_matter(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, rows = split(9), torch.randperm(9, generator=RANDOM)
    pieces = [whole.select(torch.arange(*ends)) for ends in ((0, 2), (2, 7), (7, 9))]
    first = select([whole], rows)
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "another"))
    assert same(first, select(pieces, rows))


@pytest.mark.parametrize("lacking", [["labels"], ["masks"], ["labels", "masks"]])
def test_labels_and_masks_are_those_that_all_have(lacking: list[str], place: str) -> None:
    nothing: dict[str, Any] = dict.fromkeys(lacking)
    sources = [split(3), replace(split(4), **nothing)]
    rows = torch.tensor([6, 0, 2])
    assert same(select(sources, rows), expected(sources, rows))


@pytest.mark.parametrize("rows", [[-1], [12], [3, 50]])
def test_a_row_that_is_not_there(rows: list[int]) -> None:
    with pytest.raises(IndexError):
        select([split(5), split(7)], torch.tensor(rows))


def test_sources_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="same classes"):
        select([split(5), replace(split(5), classes=("b", "a"))], torch.tensor([0]))
    with pytest.raises(ValueError, match="same classes"):
        select([], torch.tensor([0]))


def test_a_large_result_is_written_once_and_memory_mapped(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 2 * 48)
    sources, rows = [split(3)], torch.tensor([2, 0, 1])
    select(sources, rows[:2])
    assert not cache.exists()  # just small enough
    select(sources, rows)

    def never(*_: object) -> NoReturn:
        raise AssertionError("written again")

    monkeypatch.setattr(cache_module, "write_arrays", never)
    found = select_rows(sources, rows, digest="0123456789abcdef|", name="another", part="p")
    assert same(replace(found, name="chosen"), expected(sources, rows))
    assert found.name == "another"
    if Path("/proc/self/maps").exists():
        assert "rows-0123456789abcdef-p/images.npy" in Path("/proc/self/maps").read_text()


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(cache_module, "PIECE", 2 * 48)
    told: list[tuple[str, int, int | None]] = []
    limit_split(split(5), 3, 0, lambda *what: told.append(what))
    assert told == [("writing some to the cache", 2, 3), ("writing some to the cache", 3, 3)]


def test_without_a_cache_the_result_is_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(module, "LARGE", 0)
    sources, rows = [split(3), split(4)], torch.tensor([6, 0, 2])
    with pytest.warns(UserWarning, match="set GENSSL_CACHE") as told:
        assert same(select(sources, rows), expected(sources, rows))
    assert len(told) == 1


def test_a_full_disk_is_told_of_and_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(cache_module, "_write_npy", full)
    monkeypatch.setattr(module, "LARGE", 0)
    sources, rows = [split(3), split(4)], torch.tensor([6, 0, 2])
    with pytest.warns(UserWarning, match="No space left"):
        assert same(select(sources, rows), expected(sources, rows))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("limit", [None, 1, 7, 12, 100])
def test_limited_is_take(limit: int | None, place: str) -> None:
    whole = split(12)
    assert same(limit_split(whole, limit, 3), whole.take(limit, 3))
