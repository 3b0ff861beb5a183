import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from genssl.data import cache as module
from genssl.data import writer
from genssl.data.cache import cache_folder, load_or_build, read_split, split_path, write_split
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.files import read_tensors


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
def test_what_is_written_is_read(tmp_path: Path, changes: dict[str, None]) -> None:
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
        assert "k-train.safetensors" in Path("/proc/self/maps").read_text()
    found.images.zero_()
    assert same(load_or_build("k", ["train"], never), split())


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello")
    elif how == "longer":
        path.write_bytes(data + b"1")


@pytest.mark.parametrize("how", ["cut", "empty", "text", "longer"])
def test_a_damaged_file_is_built_again(how: str) -> None:
    load_or_build("k", ["train"], building("train"))
    damage(split_path("k", "train"), how)
    assert read_split(split_path("k", "train")) is None
    assert same(load_or_build("k", ["train"], building("train")), split())
    assert same(load_or_build("k", ["train"], never), split())


GOOD = {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
METADATA = {"format": module.FORMAT, "name": "n", "part": "train", "classes": '["a", "b"]', "digest": "d"}


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": torch.zeros(2, 3, 4, 4)},
        {"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8)},
        {"images": torch.zeros(2, 3, dtype=torch.uint8)},
        {"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
        {"labels": torch.tensor([0, 1, 1])},
        {"labels": torch.tensor([0, 2])},
        {"labels": torch.tensor([0, -1])},
        {"labels": torch.tensor([0.0, 1.0])},
        {"masks": torch.zeros(2, 4, 5, dtype=torch.uint8)},
        {"masks": torch.zeros(2, 4, 4)},
    ],
)
def test_inconsistent_tensors_are_not_a_split(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(GOOD, tmp_path / "a", METADATA)
    assert read_split(tmp_path / "a") is not None
    save_file(GOOD | tensors, tmp_path / "a", METADATA)
    assert read_split(tmp_path / "a") is None


@pytest.mark.parametrize("changes", [{"format": "0"}, {"classes": "["}, {"classes": "5"}])
def test_inconsistent_metadata_are_not_a_split(tmp_path: Path, changes: dict[str, str]) -> None:
    save_file(GOOD, tmp_path / "a", METADATA | changes)
    assert read_split(tmp_path / "a") is None
    save_file(GOOD, tmp_path / "a")
    assert read_split(tmp_path / "a") is None


def test_other_versions_of_a_source_are_removed(cache: Path) -> None:
    load_or_build("a-1", ["train"], building("train", "test"), place="a")
    load_or_build("ab-1", ["train"], building("train"), place="ab")
    load_or_build("a-2", ["train"], building("train", "test"), place="a")
    assert sorted(path.name for path in cache.glob("*.safetensors")) == [
        "a-2-test.safetensors",
        "a-2-train.safetensors",
        "ab-1-train.safetensors",
    ]


def test_journals_of_other_versions_are_removed_before_the_building(cache: Path) -> None:
    cache.mkdir()
    names = [f"{key}{suffix}" for key in ("a-1", "a-2", "ab-1") for suffix in (".names", ".pixels")]
    for name in [*names, "a-1-train.safetensors"]:
        (cache / name).write_text("half")
    left: list[str] = []

    def build() -> dict[str, Split]:
        left.extend(sorted(path.name for path in cache.iterdir() if path.suffix != ".lock"))
        return {"train": split()}

    load_or_build("a-2", ["train"], build, place="a")
    assert left.pop(0) == "a-1-train.safetensors"  # what was whole goes when there is something new
    assert left == ["a-2.names", "a-2.pixels", "ab-1.names", "ab-1.pixels"]


def test_what_the_build_has_written_itself_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> dict[str, Split]:
        write_split(split_path("k", "train"), split())
        monkeypatch.setattr(module, "write_split", never)
        return {"train": split()}

    assert same(load_or_build("k", ["train"], build), split())


def test_a_split_is_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PIECE", 100)
    write_split(tmp_path / "a", split(n=7))
    assert same(read_split(tmp_path / "a"), split(n=7))
    _, metadata = read_tensors(tmp_path / "a")  # which compares the SHA-256
    assert metadata["digest"] == "the digest"


def test_what_a_killed_writer_left_is_removed(cache: Path) -> None:
    cache.mkdir()
    (cache / ".k-train.safetensors.abc.tmp").write_text("half")
    (cache / ".l-train.safetensors.abc.tmp").write_text("of somebody at work")
    load_or_build("k", ["train"], building("train"))
    assert [path.name for path in cache.glob(".*.tmp")] == [".l-train.safetensors.abc.tmp"]


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
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [tuple(json.loads(told.get())) for _ in workers]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    results = both(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "built\n"
    assert [right for right, _ in results] == [True, True]
    assert sorted(len(texts) for _, texts in results) == [0, 1]


def test_two_processes_without_locks_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_acquire", lambda *_: None)
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

    monkeypatch.setattr(writer, "write_lazy", full)
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
        "import sys, time; from genssl.data.load import load\n"
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
