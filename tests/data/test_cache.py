import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from genssl.data import cache as module
from genssl.data.cache import (
    LazyArray,
    cache_folder,
    load_or_build,
    read_split,
    split_path,
    write_arrays,
    write_split,
)
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.files import tensor_digest
from tests.conftest import call


def split(part: str = "train", n: int = 5) -> Split:
    images = torch.arange(n * 3 * 16).remainder(251).to(torch.uint8).view(n, 3, 4, 4)
    masks = torch.ones(n, 4, 4, dtype=torch.uint8)
    return Split(images, torch.arange(n) % 2, ("ä", "b"), "some", part, "the digest", masks)


def same(a: Split | None, b: Split) -> bool:
    assert a is not None
    tensors = all(
        torch.equal(getattr(a, name), getattr(b, name))
        if getattr(b, name) is not None
        else getattr(a, name) is None
        for name in ("images", "labels", "masks")
    )
    return tensors and (a.classes, a.name, a.part, a.digest) == (b.classes, b.name, b.part, b.digest)


def never() -> NoReturn:
    raise AssertionError("built, although it was kept")


def building(*parts: str) -> Callable[[], dict[str, Split]]:
    return lambda: {part: split(part) for part in parts}


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("GENSSL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "genssl"


@pytest.mark.parametrize("changes", [{}, {"masks": None}, {"labels": None, "masks": None}])
def test_what_is_written_is_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    written = replace(split(), **changes)
    write_split(tmp_path / "a", written)
    assert same(read_split(tmp_path / "a"), written)


def test_what_is_kept_is_not_built(cache: Path) -> None:
    assert same(load_or_build("k", ["train"], building("train", "test")), split())
    assert same(load_or_build("k", ["test"], never), split("test"))
    assert same(load_or_build("k", ["other", "test"], never), split("test"))


def test_a_build_without_the_part_gives_nothing() -> None:
    assert load_or_build("k", ["test"], building("train")) is None


def test_a_hit_writes_nothing_and_takes_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_build("k", ["train"], building("train"))
    monkeypatch.setattr(module, "_lock", never)
    assert load_or_build("k", ["train"], never)


def test_a_hit_is_memory_mapped_and_private() -> None:
    load_or_build("k", ["train"], building("train"))
    found = load_or_build("k", ["train"], never)
    assert found is not None
    if Path("/proc/self/maps").exists():
        assert "k-train/images.npy" in Path("/proc/self/maps").read_text()
    found.images.zero_()
    assert same(load_or_build("k", ["train"], never), split())


def damage(path: Path, how: str) -> None:
    images = path / "images.npy"
    if how == "cut":
        images.write_bytes(images.read_bytes()[:-1])
    elif how == "longer":
        images.write_bytes(images.read_bytes() + b"1")
    elif how == "text":
        images.write_bytes(b"x" * images.stat().st_size)
    elif how == "without images":
        images.unlink()
    elif how == "without masks":
        (path / "masks.npy").unlink()
    elif how == "empty header":
        (path / "split.json").write_bytes(b"")
    elif how == "without header":
        (path / "split.json").unlink()
    elif how == "a file":
        shutil.rmtree(path)
        path.write_text("hello")


@pytest.mark.parametrize(
    "how",
    ["cut", "longer", "text", "without images", "without masks", "empty header", "without header", "a file"],
)
def test_a_damaged_entry_is_built_again(how: str) -> None:
    load_or_build("k", ["train"], building("train"))
    damage(split_path("k", "train"), how)
    assert read_split(split_path("k", "train")) is None
    assert same(load_or_build("k", ["train"], building("train")), split())
    assert same(load_or_build("k", ["train"], never), split())


GOOD = {"images": np.zeros((2, 3, 4, 4), np.uint8), "labels": np.array([0, 1])}


def write(path: Path, arrays: module.Arrays) -> None:
    write_arrays(path, arrays, ("a", "b"), "n", "train", "d")


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 3, 4, 4), np.float32)},
        {"images": np.zeros((2, 4, 4, 3), np.uint8)},
        {"images": np.zeros((2, 3), np.uint8)},
        {"images": np.zeros((0, 3, 4, 4), np.uint8), "labels": np.zeros(0, np.int64)},
        {"labels": np.array([0, 1, 1])},
        {"labels": np.array([0, 2])},
        {"labels": np.array([0, -1])},
        {"labels": np.array([0.0, 1.0])},
        {"masks": np.zeros((2, 4, 5), np.uint8)},
        {"masks": np.zeros((2, 4, 4), np.float32)},
    ],
)
def test_inconsistent_arrays_are_not_a_split(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write(tmp_path / "a", GOOD)
    assert read_split(tmp_path / "a") is not None
    write(tmp_path / "a", GOOD | arrays)
    assert read_split(tmp_path / "a") is None


@pytest.mark.parametrize(
    "changes", [{"format": "0"}, {"classes": 5}, {"classes": None}, {"bytes": {}}, {"bytes": 3}]
)
def test_an_inconsistent_header_is_not_a_split(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path / "a", GOOD)
    header = json.loads((tmp_path / "a/split.json").read_text())
    (tmp_path / "a/split.json").write_text(json.dumps(header | changes))
    assert read_split(tmp_path / "a") is None
    (tmp_path / "a/split.json").write_text("[]")
    assert read_split(tmp_path / "a") is None


def test_other_versions_of_a_source_are_removed(cache: Path) -> None:
    load_or_build("a-1", ["train"], building("train", "test"), prefix="a")
    load_or_build("ab-1", ["train"], building("train"), prefix="ab")
    (cache / "a-0-train.safetensors").write_text("of the first edition")
    load_or_build("a-2", ["train"], building("train", "test"), prefix="a")
    assert entries(cache) == ["a-2-test", "a-2-train", "ab-1-train"]


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_what_a_killed_process_left_is_removed_before_the_building(cache: Path) -> None:
    for name in (".a-1-x.tmp", ".a-2-x.tmp", ".a-2-train-x.tmp", ".ab-1-x.tmp", "a-1-train"):
        (cache / name).mkdir(parents=True)
        (cache / name / "pixels").write_text("half")
    left: list[str] = []

    def build() -> dict[str, Split]:
        left.extend(entries(cache))
        return {"train": split()}

    load_or_build("a-2", ["train"], build, prefix="a")
    # The whole entry of another version goes only when there is something new
    assert left == [".ab-1-x.tmp", "a-1-train"]
    assert entries(cache) == [".ab-1-x.tmp", "a-2-train"]


def test_without_a_lock_nothing_of_another_process_is_removed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / ".k-train-x.tmp").mkdir(parents=True)
    monkeypatch.setattr(module, "_lock", without_lock)
    load_or_build("k", ["train"], building("train"))
    assert entries(cache) == [".k-train-x.tmp", "k-train"]


@contextlib.contextmanager
def without_lock(*_: object) -> Iterator[bool]:
    yield False


def test_what_the_build_has_written_itself_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> dict[str, Split]:
        write_split(split_path("k", "train"), split())
        monkeypatch.setattr(module, "write_split", never)
        return {"train": split()}

    assert same(load_or_build("k", ["train"], build), split())


@pytest.mark.parametrize("piece", [1, 100, 2**24])
@pytest.mark.parametrize("names", [["images"], ["images", "labels"], ["images", "labels", "masks"]])
def test_an_entry_is_written_in_pieces(
    names: list[str], piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    tensors = {name: getattr(split(n=7), name) for name in reversed(names)}  # in no order
    asked: list[slice] = []

    def read(rows: slice) -> np.ndarray:
        asked.append(rows)
        pixels: np.ndarray = tensors["images"][rows].numpy()
        return pixels

    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays["images"] = LazyArray((7, 3, 4, 4), "uint8", read)
    write_arrays(tmp_path / "a", arrays, ("ä", "b"), "n", "p")
    found = read_split(tmp_path / "a")
    assert found is not None
    assert all(torch.equal(getattr(found, name), tensor) for name, tensor in tensors.items())
    assert found.digest == tensor_digest(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(np.load(tmp_path / "a" / f"{name}.npy"), tensor.numpy())
    rows = min(7, max(1, piece // 48))
    assert asked == [slice(i, min(i + rows, 7)) for i in range(0, 7, rows)]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_strides_do_not_matter(tmp_path: Path) -> None:
    turned = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3).transpose(0, 3, 1, 2)
    write(tmp_path / "a", GOOD | {"images": turned})
    found = read_split(tmp_path / "a")
    assert found is not None
    assert np.array_equal(found.images.numpy(), turned)
    assert found.images.is_contiguous()


@pytest.mark.parametrize(
    "change", [lambda rows: rows[1:], lambda rows: rows.astype(int), lambda rows: rows[..., 1:]]
)
def test_other_rows_than_announced_are_refused(
    change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    lazy = LazyArray((2, 3, 4, 4), "uint8", lambda rows: change(GOOD["images"][rows]))
    with pytest.raises(ValueError, match="do not fit"):
        write(tmp_path / "a", {"images": lazy})
    assert not list(tmp_path.iterdir())


def test_an_entry_may_be_shared_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write(tmp_path / "a", GOOD)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/images.npy").stat().st_mode & 0o777 == 0o644


def slow_build(log: Path) -> dict[str, Split]:
    with log.open("a") as file:
        file.write("built\n")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # until the other process waits, or builds too
        if log.with_name("waiting").exists() or log.read_text() == "built\nbuilt\n":
            break
        time.sleep(0.01)
    return {"train": split()}


def work(log: Path, told: "multiprocessing.SimpleQueue[str]") -> None:
    texts: list[str] = []

    def wait(text: str, *_: object) -> None:
        texts.append(text)
        log.with_name("waiting").touch()

    found = load_or_build("k", ["train"], lambda: slow_build(log), progress=wait)
    told.put(json.dumps([same(found, split()), texts]))


def both(log: Path) -> list[tuple[bool, list[str]]]:
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    workers = [context.Process(target=work, args=(log, told)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [tuple(json.loads(told.get())) for _ in workers]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    results = both(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "built\n"
    assert [right for right, _ in results] == [True, True]
    assert sorted(len(texts) for _, texts in results) == [0, 1]


def test_two_processes_without_locks_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_lock", without_lock)
    results = both(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "built\nbuilt\n"
    assert [right for right, _ in results] == [True, True]


def test_a_failed_build_releases_the_lock() -> None:
    def fail() -> NoReturn:
        raise UserError("no")

    with pytest.raises(UserError):
        load_or_build("k", ["train"], fail)
    assert load_or_build("k", ["train"], building("train"))


def test_a_cache_that_cannot_be_made_is_told_of_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="set GENSSL_CACHE") as told:
        assert same(load_or_build("k", ["train"], building("train", "test")), split())
    assert len(told) == 1


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_told_of_and_done_without(cache: Path) -> None:
    cache.mkdir(mode=0o500)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert same(load_or_build("k", ["train"], building("train")), split())


def test_a_full_disk_is_told_of_and_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_npy", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert same(load_or_build("k", ["train"], building("train")), split())


def test_a_kept_split_is_read_from_a_read_only_cache(cache: Path) -> None:
    load_or_build("k", ["train"], building("train"))
    cache.chmod(0o500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_or_build("k", ["train"], never)
    cache.chmod(0o700)


def test_a_hit_imports_neither_torchvision_nor_scipy(cache: Path) -> None:
    for part in ("train", "test"):
        write_split(split_path("svhn-32", part), split(part))
    code = (
        "import sys, time; from genssl.data.loading import load\n"
        "assert len(load('svhn', 'train')) == len(load('svhn', 'test')) == 5\n"
        "print([name for name in ('torchvision', 'scipy', 'PIL', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_split_of_the_size_of_svhn_is_ready_within_a_second() -> None:
    images = torch.zeros(73_257, 3, 32, 32, dtype=torch.uint8)
    labels = torch.zeros(73_257, dtype=torch.int64)
    write_split(split_path("svhn-32", "train"), Split(images, labels, ("0",), "svhn", "train", "d"))
    start = time.perf_counter()
    assert len(load_or_build("svhn-32", ["train"], never) or ()) == 73_257
    assert time.perf_counter() - start < 0.5


def test_the_cache_is_cleared_of_what_this_program_wrote_and_of_nothing_else(cache: Path) -> None:
    from genssl.data.cache import clear, items, temporary_folder

    write_arrays(split_path("path-a-1", "train"), GOOD, ("a", "b"), "a", "train", source="/a")
    (cache / "downloads").mkdir()
    (cache / "downloads" / "big.mat").write_bytes(b"12")
    (cache / f"features-{'0' * 32}.safetensors").write_bytes(b"123")
    left = [cache / "path-b-1.lock", cache / "rows-12.journal", cache / f"features-{'1' * 32}.safetensors"]
    for file in (*left, cache / "notes.txt", cache / "path-c.txt"):
        file.write_bytes(b"" if file in left else b"mine")
    left.append(temporary_folder(split_path("path-b-1", "train")))
    theirs = cache / "path-photos"
    theirs.mkdir()
    (theirs / "me.png").write_bytes(b"mine")
    assert {item.path for item in items() if item.kind == "leftover"} == set(left)
    assert {item.path for item in clear({"leftover"})} == set(left)
    assert {item.kind for item in clear({"data", "features", "leftover"})} == {"data", "features"}
    assert {item.kind for item in items()} == {"download"}
    assert {file.name for file in cache.iterdir()} == {"downloads", "notes.txt", "path-c.txt", "path-photos"}


def test_the_commands_list_and_clear_it(cache: Path) -> None:
    write_arrays(split_path("path-a-1", "train"), GOOD, ("a", "b"), "a", "train", source="/a")
    (cache / "path-b-1.lock").write_bytes(b"")
    kinds = [item["kind"] for item in json.loads(call("data", "cache", "list", "--json").stdout)]
    assert sorted(kinds) == ["data", "leftover"]
    assert call("data", "cache", "clear", "--leftovers").output.startswith("removed 1 entries (")
    assert read_split(split_path("path-a-1", "train")) is not None
    assert call("data", "cache", "clear").output.startswith("removed 1 entries (")
    assert list(cache.iterdir()) == []
    assert "nothing in the cache" in call("data", "cache", "list").output


def test_what_another_process_is_writing_is_not_cleared(cache: Path) -> None:
    from filelock import FileLock

    from genssl.data.cache import clear, temporary_folder

    temporary = temporary_folder(split_path("path-b-1", "train"))
    with FileLock(cache / "path-b-1.lock"):
        assert clear({"leftover"}) == []
        assert temporary.exists()
    assert clear({"leftover"})
    assert not temporary.exists()


def test_a_build_leaves_no_lock(cache: Path) -> None:
    load_or_build("key", ["train"], lambda: {})
    assert not list(cache.glob("*.lock"))
