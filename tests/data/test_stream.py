import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genssl.data import cache as module
from genssl.data.writer import LazyTensor, as_lazy, with_progress, write_lazy
from genssl.files import read_tensors, tensor_digest

RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (11, 3, 4, 5), generator=RANDOM).to(torch.uint8)
TENSORS = {"images": IMAGES, "labels": torch.arange(11) - 5, "masks": IMAGES[:, 0].contiguous()}


def words(digest: str) -> dict[str, str]:
    return {"name": 'ä "b"\n', "sha256": digest}


def header(path: Path) -> tuple[dict[str, object], int]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), length


@pytest.mark.parametrize("piece", [1, 61, 130, 2**24])
@pytest.mark.parametrize("names", [["images"], ["images", "labels"], ["images", "labels", "masks"]])
def test_a_file_is_what_safetensors_writes(
    names: list[str], piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    tensors = {name: TENSORS[name] for name in names}
    lazies = {name: as_lazy(tensor) for name, tensor in reversed(tensors.items())}  # in no order
    digest = write_lazy(tmp_path / "a", lazies, words)
    assert digest == tensor_digest(tensors)
    save_file(tensors, tmp_path / "b", words(digest))
    assert header(tmp_path / "a") == header(tmp_path / "b")
    assert list(header(tmp_path / "a")[0]) == list(header(tmp_path / "b")[0])  # the order of the tensors
    start = 8 + header(tmp_path / "b")[1]
    assert (tmp_path / "a").read_bytes()[start:] == (tmp_path / "b").read_bytes()[start:]
    found, metadata = read_tensors(tmp_path / "a")  # which compares the digest, too
    assert metadata == words(digest)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_header_is_aligned(tmp_path: Path) -> None:
    for length in range(9):
        write_lazy(tmp_path / "a", {"images": as_lazy(IMAGES)}, lambda _, n=length: {"name": "x" * n})
        assert header(tmp_path / "a")[1] % 8 == 0


def test_strides_are_of_no_matter(tmp_path: Path) -> None:
    turned = IMAGES.permute(0, 1, 3, 2)
    write_lazy(tmp_path / "a", {"images": as_lazy(turned)}, words)
    assert torch.equal(load_file(tmp_path / "a")["images"], turned)


def test_no_more_than_a_piece_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 3 * 60)
    asked = []
    tensor = LazyTensor((11, 3, 4, 5), torch.uint8, lambda rows: asked.append(rows) or IMAGES[rows])
    write_lazy(tmp_path / "a", {"images": tensor}, words)
    assert asked == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 11)]


def test_it_is_told_how_many_rows_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 4 * 60)
    told: list[int] = []
    write_lazy(tmp_path / "a", {"images": with_progress(as_lazy(IMAGES), told.append)}, words)
    assert told == [4, 8, 11]
    assert torch.equal(load_file(tmp_path / "a")["images"], IMAGES)


@pytest.mark.parametrize(
    "change", [lambda rows: rows[1:], lambda rows: rows.long(), lambda rows: rows[:, :, :, 1:]]
)
def test_other_rows_than_announced_are_refused(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    whole = as_lazy(IMAGES)
    with pytest.raises(ValueError, match="do not fit"):
        write_lazy(tmp_path / "a", {"images": replace(whole, rows=lambda r: change(IMAGES[r]))}, words)
    assert not list(tmp_path.iterdir())
