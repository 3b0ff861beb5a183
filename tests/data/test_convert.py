import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import pytest
import torch

from genssl.data import cache as cache_module
from genssl.data import image_folder as module
from genssl.data.cache import Progress, load_or_build, write_split
from genssl.data.decode import Bytes, decode
from genssl.data.fit import Fit
from genssl.data.image_folder import Conversion, convert
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.files import tensor_digest

Put = Callable[[Path, dict[str, bytes]], Path]
Picture = Callable[..., bytes]
Calls = list[tuple[str, int, int | None]]

KINDS = ["set", "set.tar", "set.tar.gz", "set.zip"]
CLASSES = ("cat", "dog")


@pytest.fixture
def pictures(picture: Picture) -> dict[str, bytes]:
    """Twelve images of two parts and two classes, in an order that is not theirs."""
    names = [f"set/{part}/{name}/{i}.png" for part in ("train", "test") for name in CLASSES for i in range(3)]
    order = np.random.default_rng(0).permutation(len(names))
    return {names[i]: picture(int(i), (8, 8)) for i in order}


def run(path: Path, folder: Path, calls: Calls | None = None, *, skip_bad: bool = False) -> dict[str, Split]:
    progress = None if calls is None else lambda *what: calls.append(what)
    return convert(Conversion(path, "some", "key", Fit(8), skip_bad, progress), folder)


def reference(files: dict[str, bytes], path: Path, notes: tuple[str, ...] = ()) -> dict[str, Split]:
    """What a conversion is to give, all in memory."""
    splits = {}
    for part in ("train", "test"):
        names = sorted(name for name in files if f"/{part}/" in name)
        images = np.stack([decode(files[name], 8).transpose(2, 0, 1) for name in names])
        labels = [CLASSES.index(name.split("/")[2]) for name in names]
        tensors = {"images": torch.from_numpy(images), "labels": torch.tensor(labels)}
        splits[part] = Split(
            tensors["images"], tensors["labels"], CLASSES, "some", part, tensor_digest(tensors), notes=notes
        )
    return splits


def is_right(folder: Path, files: dict[str, bytes], path: Path, *notes: str) -> bool:
    """Whether the folder has the entries that `write_split` makes of the reference, and nothing else."""
    for part, split in reference(files, path, notes).items():
        expected = folder.parent / "reference"
        write_split(expected, split, str(path))
        entry = folder / f"key-{part}"
        if left(entry) != left(expected):
            return False
        if any((entry / name).read_bytes() != (expected / name).read_bytes() for name in left(expected)):
            return False
    return left(folder) == ["key-test", "key-train"]


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def stop_at(k: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], object]) -> None:
    """Let the k-th call to decode, from 0 on, do something first."""
    calls = iter(range(1000))

    def stopping(content: bytes, image_size: int, *_: object) -> Bytes:
        if next(calls) == k:
            how()
        return decode(content, image_size)

    monkeypatch.setattr(module, "decode", stopping)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_gives_what_a_written_split_is(
    kind: str, tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "PIECE", 500)  # two images
    path = put(tmp_path / kind, pictures)
    found = run(path, tmp_path / "to")
    assert is_right(tmp_path / "to", pictures, path)
    for part, split in reference(pictures, path).items():
        assert torch.equal(found[part].images, split.images)
        assert found[part].digest == split.digest


@pytest.mark.parametrize("kind", ["set", "set.tar"])
@pytest.mark.parametrize("k", [0, 5, 11])
def test_an_interrupted_conversion_leaves_nothing(
    kind: str, k: int, tmp_path: Path, put: Put, pictures: dict[str, bytes]
) -> None:
    path, folder = put(tmp_path / kind, pictures), tmp_path / "to"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(k, patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(path, folder)
    assert left(folder) == []
    run(path, folder)
    assert is_right(folder, pictures, path)


def built(path: Path, part: str = "train", progress: Progress | None = None) -> Split | None:
    """What `load` does with a path."""
    prefix, key = module.cache_keys(path, 8, False)
    return load_or_build(
        key, [part], lambda: module.read(path, 8, False, None, key), prefix=prefix, progress=progress
    )


def kill_at(path: Path, owner: object, name: str, k: int) -> None:
    """Convert in another process, which is killed at the k-th call of a function, from 0 on."""
    original, calls = getattr(owner, name), iter(range(1000))

    def last(*arguments: object) -> object:
        if next(calls) == k:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    def work() -> None:
        setattr(owner, name, last)
        built(path)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("owner", "name", "k"),
    [(module, "decode", 7), (cache_module, "_write_npy", 0), (cache_module, "_write_npy", 3)],
)
@pytest.mark.parametrize("changes", [False, True])
def test_the_next_conversion_cleans_up_after_a_killed_one(
    owner: object,
    name: str,
    k: int,
    changes: bool,
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    cache: Path,
) -> None:
    path = put(tmp_path / "set.tar", pictures)
    kill_at(path, owner, name, k)
    assert any(name.endswith(".tmp") for name in left(cache))
    if changes:  # then the key is another one, of the same source
        put(path, pictures | {"set/train/cat/3.png": pictures["set/train/cat/0.png"]})
    for part, expected in reference(pictures, path).items():
        split = built(path, part)
        assert split is not None
        assert torch.equal(split.images[:3], expected.images[:3])
        assert len(split) == 6 + (changes and part == "train")
    key = module.cache_keys(path, 8, False)[1]
    assert [name for name in left(cache) if not name.endswith(".lock")] == [f"{key}-test", f"{key}-train"]


def build_in_turn(path: Path, results: "multiprocessing.SimpleQueue[list[object]]") -> None:
    waiting: list[str] = []
    split = built(path, progress=lambda text, *_: waiting.append(text))
    results.put([len(waiting), split is not None and split.digest])


def test_of_two_processes_that_convert_at_once_one_waits(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "set.tar", pictures)
    log = tmp_path / "log"

    def slow(content: bytes, image_size: int, *_: object) -> Bytes:
        with log.open("a") as file:
            file.write("decoded\n")
        time.sleep(0.1)
        return decode(content, image_size)

    monkeypatch.setattr(module, "decode", slow)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=build_in_turn, args=(path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found = sorted(results.get() for _ in workers)
    digest = reference(pictures, path)["train"].digest
    assert found == [[0, digest], [1, digest]]
    assert log.read_text().count("decoded") == len(pictures)


def test_the_last_of_two_files_of_one_name_counts(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], picture: Picture
) -> None:
    good, spoilt, mended = list(pictures)[:3]
    first = {f"./{good}": picture(98), f"./{mended}": b"bad", f"./{spoilt}": picture(99)}
    path, folder = put(tmp_path / "set.tar", first | pictures | {f"//{spoilt}": b"bad"}), tmp_path / "to"
    with pytest.warns(UserWarning, match="1 of 12 images"):
        run(path, folder, skip_bad=True)
    note = f"1 of 12 images are left out: {spoilt} (not an image)"
    assert is_right(folder, {name: data for name, data in pictures.items() if name != spoilt}, path, note)


@pytest.mark.parametrize("kind", ["set", "set.tar"])
def test_nothing_is_left_of_what_is_refused(
    kind: str, tmp_path: Path, put: Put, pictures: dict[str, bytes]
) -> None:
    path, folder = put(tmp_path / kind, {"set/train/cat/bad.png": b"hello"} | pictures), tmp_path / "to"
    with pytest.raises(UserError, match="1 of 13 images"):
        run(path, folder)
    assert left(folder) == []


def test_nothing_is_left_of_a_damaged_archive(tmp_path: Path, put: Put, pictures: dict[str, bytes]) -> None:
    path, folder = put(tmp_path / "set.tar.gz", pictures), tmp_path / "to"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        run(path, folder)
    assert left(folder) == []


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files that has to be empty in the end."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def matches(found: dict[str, Split], files: dict[str, bytes], path: Path) -> bool:
    expected = reference(files, path)
    return all(torch.equal(found[part].images, expected[part].images) for part in ("train", "test"))


def test_without_a_folder_a_temporary_place_will_do(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], temporary: Path, cache: Path
) -> None:
    path = put(tmp_path / "set.zip", pictures)
    found = convert(Conversion(path, "some", "all", Fit(8), False, None), None)
    assert matches(found, pictures, path)
    assert not list(temporary.iterdir())
    assert not cache.exists()


def test_where_the_folder_cannot_be_made_a_temporary_place_will_do(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], temporary: Path
) -> None:
    path = put(tmp_path / "set.zip", pictures)
    (tmp_path / "file").write_text("")
    assert matches(run(path, tmp_path / "file" / "to"), pictures, path)
    assert not list(temporary.iterdir())


class FullDisk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def fill_the_disk(where: Path, name: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of this name below `where` take no more than `room` bytes."""
    opened = Path.open

    def open_(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = opened(self, mode, *rest, **named)
        full = mode == "wb" and self.name == name and self.is_relative_to(where)
        return FullDisk(file, room) if full else file

    monkeypatch.setattr(Path, "open", open_)


@pytest.mark.parametrize(("name", "room"), [("pixels", 900), ("images.npy", 900), ("labels.npy", 0)])
def test_where_the_disk_is_full_a_temporary_place_will_do(
    name: str,
    room: int,
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, folder = put(tmp_path / "set.zip", pictures), tmp_path / "to"
    fill_the_disk(folder, name, room, monkeypatch)
    assert matches(run(path, folder), pictures, path)
    assert not list(temporary.iterdir())
    assert left(folder) == []


def test_where_there_is_no_room_at_all_the_user_is_told(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(tmp_path, "pixels", 900, monkeypatch)
    with pytest.raises(UserError, match=r"no room .*No space left.*; set GENSSL_CACHE"):
        run(put(tmp_path / "set.zip", pictures), tmp_path / "to")
    assert not list(temporary.iterdir())
    assert left(tmp_path / "to") == []


def test_an_error_of_reading_is_none_of_writing(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[NoReturn]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "members", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run(put(tmp_path / "set.zip", pictures), tmp_path / "to")


@pytest.mark.parametrize("k", [0, 7])
def test_another_process_without_locks_does_no_harm(
    k: int, tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = put(tmp_path / "set.tar", pictures), tmp_path / "to"

    def the_other() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "decode", decode)
            run(path, folder)

    stop_at(k, monkeypatch, the_other)
    run(path, folder)
    assert is_right(folder, pictures, path)


def test_progress_of_both_passes(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD", 4)
    monkeypatch.setattr(cache_module, "PIECE", 4 * 192)
    calls: Calls = []
    run(put(tmp_path / "set.zip", pictures), tmp_path / "to", calls)
    assert calls[:4] == [("reading set.zip", done, 12) for done in (0, 4, 8, 12)]
    assert calls[4:] == [("writing set.zip to the cache", done, 12) for done in (4, 6, 10, 12)]


MEMORY = """
import sys, threading, time
from pathlib import Path

def anonymous():  # kB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)

import torch
from genssl.data.fit import Fit
from genssl.data.image_folder import Conversion, convert
torch.set_num_threads(1)
peak = start = anonymous()
threading.Thread(target=watch, daemon=True).start()
found = convert(Conversion(Path(sys.argv[1]), "n", "k", Fit(96), False, None), Path(sys.argv[2]))
print(sum(map(len, found.values())), peak - start)
"""


def peak(count: int, tmp_path: Path, content: bytes) -> int:
    """Bytes of anonymous memory that a conversion of so many images takes at most."""
    path = tmp_path / f"{count}.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            info = tarfile.TarInfo(f"{i % 10}/{i}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"to-{count}")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    images, grown = map(int, result.stdout.split())
    assert images == count
    return grown * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the accounts of Linux")
def test_memory_does_not_grow_with_the_pixels(tmp_path: Path, picture: Picture) -> None:
    content = picture(0, (1, 1))
    few, many = peak(1_000, tmp_path, content), peak(4_000, tmp_path, content)
    pixels = 3_000 * 3 * 96 * 96  # 79 MiB more; what is held of an image may take a tenth of it
    assert many - few < pixels / 10
