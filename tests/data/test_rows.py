"""Cached images are compared with their checksums as they are read, and a file that is cut ends in a line."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from genssl.data import loader, rows
from genssl.data.cache import items, read_split, split_path, write_arrays, write_split
from genssl.data.loader import Loader, make_loader, place
from genssl.data.split import Split
from genssl.data.subset import select_rows, with_channels
from genssl.errors import UserError
from tests.conftest import call

CPU = torch.device("cpu")
N = 40
ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(1)).view(5, 8)


def cached(channels: int = 3) -> tuple[Split, Path]:
    """An entry of N images of noise, and the file of its images."""
    generator = np.random.default_rng(0)
    arrays = {
        "images": generator.integers(0, 256, (N, channels, 16, 16), np.uint8),
        "labels": np.arange(N) % 2,
    }
    path = split_path("path-rows", "train")
    write_arrays(path, arrays, ("a", "b"), "rows", "train")
    split = read_split(path)
    assert split is not None
    return split, path / "images.npy"


def zero(file: Path, row: int) -> None:
    """Write zeros over a row: what a disk may give back, at the same length."""
    array = np.load(file, mmap_mode="r+")
    array[row] = 0
    array.flush()


READERS: dict[str, Callable[[Split], object]] = {
    "streamed": lambda split: list(Loader(split, CPU, stream=True).batches(ORDER)),
    "resident on a CPU": lambda split: list(make_loader(split, CPU, 1e6).batches(ORDER)),
    "to a device": lambda split: split.to(CPU),
    "a choice": lambda split: split.take(N, 0),
    "several": lambda split: select_rows([split, split], ORDER.flatten(), digest="d", name="n", part="p"),
    "three channels": lambda split: list(Loader(with_channels(split, 3), CPU, True).batches(ORDER)),
}
# Some that read batches by themselves, and some that extract features
EVALUATIONS: dict[str, list[object]] = {
    "reconstruct": [],
    "latent-profile": [],
    "importance-ll": ["-k", 2],
    "knn-eval": [],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("cache")
def test_zeros_are_noticed_by_whatever_reads_them(reader: str, channels: int) -> None:
    split, file = cached(channels)
    READERS[reader](split)
    zero(file, 17)
    with pytest.raises(UserError, match="image 17 does not match") as raised:
        READERS[reader](split)
    assert str(file) in str(raised.value)
    assert f"remove {file.parent}" in str(raised.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("cache")
def test_a_file_that_is_cut_meanwhile_is_named(reader: str) -> None:
    split, file = cached()
    os.truncate(file, 4096 + 100)  # the map of what is missing would end this process
    with pytest.raises(UserError, match=re.escape(str(file)) + " was cut"):
        READERS[reader](split)


@pytest.mark.usefixtures("cache")
def test_a_map_is_not_read_where_the_file_is_shorter() -> None:
    split, file = cached()
    rows.require_whole(split.images)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match="was cut"):
        rows.require_whole(split.images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.usefixtures("cache")
def test_what_is_placed_for_an_evaluation_is_the_map(fits: bool, channels: int) -> None:
    split, file = cached(channels)
    expected = split.images.clone()
    seen = with_channels(split, 3)
    placed = place(seen, CPU, 1e6 if fits else 0)
    assert rows.is_mapped(placed.images) is not fits
    assert torch.equal(placed.images, expected.expand(-1, 3, -1, -1))
    os.truncate(file, 512)  # what is in memory does not need the file any more
    if fits:
        assert torch.equal(placed.images, expected.expand(-1, 3, -1, -1))
        assert rows.read_slice(placed.images, slice(3, 5)).shape == (2, 3, 16, 16)
    else:
        with pytest.raises(UserError, match="was cut"):
            rows.read_slice(placed.images, slice(3, 5))


@pytest.mark.usefixtures("cache")
def test_masks_are_read_from_their_file() -> None:
    images, masks = (torch.randint(0, 256, (N, *shape, 8, 8), dtype=torch.uint8) for shape in ((3,), ()))
    path = split_path("path-masks", "train")
    write_split(path, Split(images, None, (), "masks", "train", "digest", masks))
    split = read_split(path)
    assert split is not None
    index = torch.tensor([3, 0, N - 1])
    chosen, whole = split.select(index), split.to(CPU)
    os.truncate(path / "masks.npy", 128)
    assert chosen.masks is not None
    assert torch.equal(chosen.masks, masks[index])
    assert whole.masks is not None
    assert torch.equal(whole.masks, masks)
    with pytest.raises(UserError, match=r"masks\.npy was cut"):
        split.to(CPU)
    with pytest.raises(UserError, match=r"masks\.npy was cut"):
        split.select(index)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("command", EVALUATIONS)
def test_an_evaluation_whose_cache_is_cut_after_it_was_checked_ends_in_a_line_or_well(
    command: str, fits: bool, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where the map would end the process by SIGBUS: both times within this one."""
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    if not fits:
        monkeypatch.setattr(loader, "free_bytes", lambda device: 0)
    placing = loader.place
    cut: list[Path] = []

    def cut_after_it(split: Split, device: torch.device, limit: float | None = None) -> Split:
        placed = placing(split, device, limit)
        cut.extend((tmp_path / "cache").glob(f"*-{split.part}/images.npy"))
        for file in cut:
            os.truncate(file, 128)
        return placed

    monkeypatch.setattr(loader, "place", cut_after_it)
    result = call(command, vae_run, *EVALUATIONS[command], "--out", tmp_path / "x.png", "--device", "cpu")
    assert cut
    if fits:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 1
    assert "images.npy was cut while it was read; remove " in result.output.splitlines()[-1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("cache")
def test_rows_are_those_of_the_map(channels: int) -> None:
    split, _ = cached(channels)
    for images in (split.images, split.images[5:30], with_channels(split, 3).images[2:]):
        assert rows.is_mapped(images)
        index = torch.tensor([3, 0, 3, len(images) - 1])
        assert torch.equal(rows.read_rows(images, index), images[index])
        assert rows.read_rows(images, index).is_contiguous()
    # What is no run of whole images is not taken for one
    for images in (split.images[::2], split.images[:, :, 1:], split.images.flip(0), split.images.clone()):
        assert not rows.is_mapped(images)
    assert rows.read_rows(split.images, torch.arange(0)).shape == (0, channels, 16, 16)


@pytest.mark.usefixtures("cache")
def test_a_file_that_is_removed_stays_readable_as_the_map_does() -> None:
    split, file = cached()
    expected = split.images[ORDER].clone()
    shutil.rmtree(file.parent)
    assert torch.equal(torch.stack([*Loader(split, CPU, True).batches(ORDER)]), expected)


@pytest.mark.usefixtures("cache")
def test_a_file_is_closed_and_forgotten_with_its_map() -> None:
    before = dict(rows._FILES)
    split, _ = cached()
    (address,) = set(rows._FILES) - set(before)
    file = rows._FILES[address]
    assert split.images.data_ptr() == address
    del split
    assert address not in rows._FILES
    assert file._file.closed


@pytest.mark.usefixtures("cache")
def test_without_pread_rows_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    split, file = cached()
    monkeypatch.delattr(os, "pread")
    assert torch.equal(rows.read_rows(split.images, ORDER.flatten()), split.images[ORDER.flatten()])
    zero(file, 0)
    with pytest.raises(UserError, match="image 0 "):
        rows.read_rows(split.images, torch.tensor([0]))


@pytest.mark.usefixtures("cache")
def test_what_the_disk_refuses_is_said_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    split, file = cached()

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(UserError, match=re.escape(f"cannot read {file} (Input/output error)")):
        list(Loader(split, CPU, stream=True).batches(ORDER))


@pytest.mark.usefixtures("cache")
def test_an_entry_of_an_earlier_version_is_read_and_its_length_is_checked() -> None:
    split, file = cached()
    expected = split.images.clone()
    header = json.loads((file.parent / "split.json").read_text())
    del header["bytes"]["sums"], header["labels_crc32"]
    (file.parent / "split.json").write_text(json.dumps(header))
    (file.parent / "sums.npy").unlink()
    earlier = read_split(file.parent)
    assert earlier is not None
    assert torch.equal(earlier.take(None).to(CPU).images, expected)
    assert [item.kind for item in items()] == ["data"]
    os.truncate(file, 4096)
    with pytest.raises(UserError, match="was cut"):
        earlier.to(CPU)


@pytest.mark.usefixtures("cache")
def test_an_entry_with_other_labels_or_sums_than_were_written_is_none() -> None:
    changes: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
        ("labels", lambda a: a[::-1]),
        ("sums", lambda a: a[1:]),
        ("sums", lambda a: a * 1.0),
    ]
    for name, change in changes:
        _, file = cached()
        assert read_split(file.parent) is not None
        array = np.load(file.with_name(f"{name}.npy"))
        np.save(file.with_name(f"{name}.npy"), change(array))
        header = json.loads((file.parent / "split.json").read_text())
        header["bytes"][name] = file.with_name(f"{name}.npy").stat().st_size
        (file.parent / "split.json").write_text(json.dumps(header))
        assert read_split(file.parent) is None


@pytest.mark.parametrize("limit", [0, 1])
def test_a_run_whose_cache_is_cut_ends_in_a_line(
    limit: int, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    read = rows.read_rows
    batches = []

    def cut_after_two(images: Tensor, index: Tensor) -> Tensor:
        batches.append(index)
        if len(batches) == 3:
            (file,) = (tmp_path / "cache").glob("*-train/images.npy")
            os.truncate(file, 4096)
        return read(images, index)

    monkeypatch.setattr("genssl.data.loader.read_rows", cut_after_two)
    result = call(
        "train", "vae", "--data", digits, "--epochs", 1, "--batch-size", 16, "--resident-limit", limit,
        "--set", "width=8", "--set", "z_dim=6", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 1
    assert len(batches) == 3
    last = result.output.splitlines()[-1]
    assert last.startswith("genssl: ")
    assert "images.npy was cut while it was read; remove " in last


@pytest.mark.parametrize("header", [b"{'descr': '|u1', 'shape': (2,", b"{'descr': ]", b"\xff" * 8, b""])
def test_a_header_that_is_no_python_is_no_array(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "images.npy"
    np.save(file, np.zeros((2, 3), np.uint8))
    content = file.read_bytes()
    # The header ends where it did, so that its own parser is reached
    file.write_bytes(content[:10] + header.ljust(len(content) - 16, b" ") + content[-6:])
    with pytest.raises(ValueError, match=r"."):
        rows.load_array(file)
