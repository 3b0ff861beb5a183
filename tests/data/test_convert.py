import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from genssl.data import cache as keeping
from genssl.data import image_folder as module
from genssl.data import writer
from genssl.data.cache import write_split
from genssl.data.decode import Bytes, decode
from genssl.data.image_folder import Conversion, convert
from genssl.data.split import Split
from genssl.data.writer import Journal
from genssl.errors import UserError
from genssl.files import read_tensors, tensor_digest

Put = Callable[[Path, dict[str, bytes]], Path]
Picture = Callable[..., bytes]
Told = list[tuple[str, int, int | None]]

KINDS = ["set", "set.tar", "set.tar.gz", "set.zip"]
CLASSES = ("cat", "dog")


@pytest.fixture
def pictures(picture: Picture) -> dict[str, bytes]:
    """Twelve images of two parts and two classes, in an order that is not theirs."""
    names = [f"set/{part}/{name}/{i}.png" for part in ("train", "test") for name in CLASSES for i in range(3)]
    order = np.random.default_rng(0).permutation(len(names))
    return {names[i]: picture(int(i), (8, 8)) for i in order}


@pytest.fixture(autouse=True)
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH", 2)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was decoded, one after the other."""
    contents: list[bytes] = []

    def counted(content: bytes, image_size: int) -> Bytes:
        contents.append(content)
        return decode(content, image_size)

    monkeypatch.setattr(module, "decode", counted)
    return contents


def run(path: Path, folder: Path, told: Told | None = None, *, skip_bad: bool = False) -> dict[str, Split]:
    progress = None if told is None else lambda *what: told.append(what)
    return convert(Conversion(path, "some", "key", 8, skip_bad, progress), folder)


def reference(files: dict[str, bytes], path: Path) -> dict[str, Split]:
    """What a conversion is to give, all in memory."""
    splits = {}
    for part in ("train", "test"):
        names = sorted(name for name in files if f"/{part}/" in name)
        images = np.stack([decode(files[name], 8).transpose(2, 0, 1) for name in names])
        labels = [CLASSES.index(name.split("/")[2]) for name in names]
        tensors = {"images": torch.from_numpy(images), "labels": torch.tensor(labels)}
        splits[part] = Split(
            tensors["images"], tensors["labels"], CLASSES, "some", part, tensor_digest(tensors)
        )
    return splits


def is_right(folder: Path, files: dict[str, bytes], path: Path) -> bool:
    """Whether the folder has the files that `write_split` makes of the reference, and no others."""
    for part, split in reference(files, path).items():
        write_split(folder.parent / "reference", split, str(path))
        found, metadata = read_tensors(folder / f"key-{part}.safetensors")
        expected, expected_metadata = read_tensors(folder.parent / "reference")
        if metadata != expected_metadata or found.keys() != expected.keys():
            return False
        if not all(torch.equal(tensor, expected[name]) for name, tensor in found.items()):
            return False
    return left(folder) == ["key-test.safetensors", "key-train.safetensors"]


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def stop_at(k: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], object]) -> None:
    """Let the k-th call to decode, from 0 on, do something first."""
    calls = iter(range(1000))

    def stopping(content: bytes, image_size: int) -> Bytes:
        if next(calls) == k:
            how()
        return decode(content, image_size)

    monkeypatch.setattr(module, "decode", stopping)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def interrupted(path: Path, folder: Path, k: int, *, skip_bad: bool = False) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(k, patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(path, folder, skip_bad=skip_bad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_gives_what_a_written_split_is(
    kind: str, tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PIECE", 500)  # two images
    path = put(tmp_path / kind, pictures)
    found = run(path, tmp_path / "to")
    assert is_right(tmp_path / "to", pictures, path)
    for part, split in reference(pictures, path).items():
        assert torch.equal(found[part].images, split.images)
        assert found[part].digest == split.digest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 5, 11])
def test_an_interrupted_conversion_goes_on(
    kind: str, k: int, tmp_path: Path, put: Put, pictures: dict[str, bytes], decoded: list[bytes]
) -> None:
    path, folder = put(tmp_path / kind, pictures), tmp_path / "to"
    interrupted(path, folder, k)
    assert left(folder) == ["key.names", "key.pixels"]
    run(path, folder)
    assert is_right(folder, pictures, path)
    order = list(pictures) if path.is_file() else sorted(pictures)
    assert decoded == [pictures[name] for name in order[k:]]


def test_it_may_be_interrupted_again_and_again(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], decoded: list[bytes]
) -> None:
    path, folder = put(tmp_path / "set.tar", pictures), tmp_path / "to"
    for _ in range(5):
        interrupted(path, folder, 2)
    run(path, folder)
    assert is_right(folder, pictures, path)
    assert len(decoded) == 2


def killed(path: Path, folder: Path, k: int) -> None:
    def convert_and_die() -> None:
        stop_at(k, pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(path, folder)

    child = multiprocessing.get_context("fork").Process(target=convert_and_die)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("k", [0, 1, 2, 7])
def test_a_killed_conversion_loses_no_more_than_a_batch(
    k: int, tmp_path: Path, put: Put, pictures: dict[str, bytes], decoded: list[bytes]
) -> None:
    path, folder = put(tmp_path / "set.tar.gz", pictures), tmp_path / "to"
    killed(path, folder, k)
    run(path, folder)
    assert is_right(folder, pictures, path)
    assert len(decoded) == 12 - k // 2 * 2


def test_pixels_are_on_disk_before_their_names(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def watching(handle: int) -> None:
        sizes = [(tmp_path / f"to/key{suffix}").stat().st_size for suffix in (".pixels", ".names")]
        synced.append((sizes[0] // 192, sizes[1]))
        fsync(handle)

    with Journal(tmp_path / "to", "key", 8) as written:
        monkeypatch.setattr(os, "fsync", watching)
        for i in range(4):
            written.append(f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    lines = [size for _, size in synced]
    assert [rows for rows, _ in synced] == [2, 2, 4, 4]
    assert lines[0] < lines[1] == lines[2] < lines[3]


def test_a_batch_is_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH", 4096)
    monkeypatch.setattr(writer, "BATCH_BYTES", 3 * 192)
    with Journal(tmp_path, "key", 8) as written:
        for i in range(4):
            written.append(f"{i}.png", np.zeros((8, 8, 3), np.uint8))
            assert (tmp_path / "key.pixels").stat().st_size == (0 if i < 2 else 3 * 192)


def test_what_does_not_agree_is_cut_off(tmp_path: Path) -> None:
    with Journal(tmp_path, "key", 8) as written:
        for i in range(4):
            written.append(f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    pixels, names = tmp_path / "key.pixels", tmp_path / "key.names"
    whole = names.read_bytes()
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with Journal(tmp_path, "key", 8) as found:
        assert found.names == ["0.png", "1.png", "2.png"]
        assert pixels.stat().st_size == 3 * 192
        assert names.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])  # and a header


def cut_a_line(pixels: Path, names: Path) -> None:
    names.write_bytes(names.read_bytes()[:-3])


def cut_the_end_of_a_line(pixels: Path, names: Path) -> None:
    names.write_bytes(names.read_bytes()[:-1])


def add_pixels(pixels: Path, names: Path) -> None:
    with pixels.open("ab") as file:
        file.write(bytes(192 * 2 + 50))


def cut_pixels(pixels: Path, names: Path) -> None:
    pixels.write_bytes(pixels.read_bytes()[:-1])


def flip_a_bit(pixels: Path, names: Path) -> None:
    data = bytearray(pixels.read_bytes())
    data[3 * 192 + 7] ^= 1
    pixels.write_bytes(data)


def zeros_for_lines(pixels: Path, names: Path) -> None:
    lines = names.read_bytes().splitlines(keepends=True)
    names.write_bytes(b"".join(lines[:-2]) + bytes(100))


def no_names(pixels: Path, names: Path) -> None:
    names.write_bytes(b"")


def no_pixels(pixels: Path, names: Path) -> None:
    pixels.unlink()


def another_header(pixels: Path, names: Path) -> None:
    names.write_bytes(b'["another format"]\n' + names.read_bytes().split(b"\n", 1)[1])


def another_value(pixels: Path, names: Path) -> None:
    lines = names.read_bytes().splitlines(keepends=True)
    names.write_bytes(b"".join(lines[:-1]) + json.dumps(["name", None]).encode() + b"\n")


@pytest.mark.parametrize(
    ("damage", "left_to_decode"),
    [
        (cut_a_line, 6),
        (cut_the_end_of_a_line, 6),
        (add_pixels, 5),
        (cut_pixels, 6),
        (flip_a_bit, 5 + 12),  # which is seen at the end
        (zeros_for_lines, 7),
        (no_names, 12),
        (no_pixels, 12),
        (another_header, 12),
        (another_value, 6),
    ],
)
def test_of_a_damaged_journal_no_more_than_what_is_right_is_used(
    damage: Callable[[Path, Path], None],
    left_to_decode: int,
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    decoded: list[bytes],
) -> None:
    path, folder = put(tmp_path / "set.tar", pictures), tmp_path / "to"
    interrupted(path, folder, 7)
    damage(folder / "key.pixels", folder / "key.names")
    run(path, folder)
    assert is_right(folder, pictures, path)
    assert len(decoded) == left_to_decode


def other_names(files: dict[str, bytes]) -> dict[str, bytes]:
    return dict(reversed(files.items()))


def fewer(files: dict[str, bytes]) -> dict[str, bytes]:
    return dict(list(files.items())[:6]) | {"notes.txt": b""}


@pytest.mark.parametrize("change", [other_names, fewer])
def test_an_archive_of_other_names_is_read_from_the_start(
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    decoded: list[bytes],
) -> None:
    files = {name: pictures[name] for name in sorted(pictures)}  # test first, then train
    path, folder = put(tmp_path / "set.tar", files), tmp_path / "to"
    interrupted(path, folder, 7)
    changed = change(files)
    put(path, changed)
    found = run(path, folder)
    assert sum(map(len, found.values())) == len(decoded) == len(changed) - ("notes.txt" in changed)
    assert not list(folder.glob("key.*"))
    if "notes.txt" not in changed:
        assert is_right(folder, changed, path)


def test_an_interruption_while_the_parts_are_written(
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    decoded: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, folder = put(tmp_path / "set.tar", pictures), tmp_path / "to"
    parts, write = iter(["train"]), keeping.write_rows
    with monkeypatch.context() as patch:
        patch.setattr(
            keeping, "write_rows", lambda *a, **k: (next(parts, "") or interrupt()) and write(*a, **k)
        )
        with pytest.raises(KeyboardInterrupt):
            run(path, folder)
    assert left(folder) == ["key-train.safetensors", "key.names", "key.pixels"]
    before = (folder / "key-train.safetensors").stat().st_ino
    decoded.clear()
    run(path, folder)
    assert is_right(folder, pictures, path)
    assert not decoded
    assert (folder / "key-train.safetensors").stat().st_ino == before


def test_what_was_bad_is_remembered(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], decoded: list[bytes]
) -> None:
    files = {"set/train/cat/bad.png": b"hello"} | pictures
    path, folder = put(tmp_path / "set.tar", files), tmp_path / "to"
    interrupted(path, folder, 7, skip_bad=True)
    with pytest.warns(UserWarning, match=r"1 of 13 images .* set/train/cat/bad.png \(not an image\)"):
        run(path, folder, skip_bad=True)
    assert is_right(folder, pictures, path)
    assert len(decoded) == 6


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_last_of_two_files_of_one_name_counts(
    k: int, tmp_path: Path, put: Put, pictures: dict[str, bytes], picture: Picture
) -> None:
    good, spoilt, mended = list(pictures)[:3]
    first = {f"./{good}": picture(98), f"./{mended}": b"bad", f"./{spoilt}": picture(99)}
    path, folder = put(tmp_path / "set.tar", first | pictures | {f"//{spoilt}": b"bad"}), tmp_path / "to"
    interrupted(path, folder, k, skip_bad=True)
    with pytest.warns(UserWarning, match="1 of 12 images"):
        run(path, folder, skip_bad=True)
    assert is_right(folder, {name: data for name, data in pictures.items() if name != spoilt}, path)


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
    found = convert(Conversion(path, "some", "all", 8, False, None), None)
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


@pytest.mark.parametrize("where", ["the journal", "the parts"])
def test_where_the_disk_is_full_a_temporary_place_will_do(
    where: str,
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, folder = put(tmp_path / "set.zip", pictures), tmp_path / "to"
    owner, name = (os, "write") if where == "the journal" else (keeping, "write_rows")
    calls, original = iter(range(1000)), getattr(owner, name)

    def full(*given: object, **named: object) -> object:
        if next(calls) == 5 or (where == "the parts" and not list(temporary.iterdir())):
            raise OSError(28, "No space left on device")
        return original(*given, **named)

    monkeypatch.setattr(owner, name, full)
    assert matches(run(path, folder), pictures, path)
    assert not list(temporary.iterdir())
    assert left(folder) == []


def test_where_there_is_no_room_at_all_the_user_is_told(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"no room .*No space left.*; set GENSSL_CACHE"):
        run(put(tmp_path / "set.zip", pictures), tmp_path / "to")
    assert not list(temporary.iterdir())
    assert not list((tmp_path / "to").glob("*.safetensors"))


def test_an_error_of_reading_is_none_of_writing(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> Iterator[NoReturn]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "members", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run(put(tmp_path / "set.zip", pictures), tmp_path / "to")


def test_a_small_write_of_the_system_is_gone_on_with(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:100]))
    path, folder = put(tmp_path / "set.zip", pictures), tmp_path / "to"
    interrupted(path, folder, 5)
    run(path, folder)
    assert is_right(folder, pictures, path)


@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("other_ends", [True, False])
def test_another_process_without_locks_does_no_harm(
    k: int,
    other_ends: bool,
    tmp_path: Path,
    put: Put,
    pictures: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, folder = put(tmp_path / "set.tar", pictures), tmp_path / "to"

    def the_other() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "decode", decode)
            if other_ends:
                run(path, folder)
                return
            with Journal(folder, "key", 8) as begun:  # cuts off what is being written
                os.ftruncate(begun._handles[0], 0)

    stop_at(k, monkeypatch, the_other)
    run(path, folder)
    assert is_right(folder, pictures, path)


def test_progress_goes_on_where_it_stood(
    tmp_path: Path, put: Put, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = put(tmp_path / "set.zip", pictures), tmp_path / "to"
    monkeypatch.setattr(module, "PERIOD", 4)
    monkeypatch.setattr(module, "PIECE", 0)
    monkeypatch.setattr(writer, "PIECE", 4 * 192)
    interrupted(path, folder, 6)
    told: Told = []
    run(path, folder, told)
    assert told[:3] == [("reading set.zip", done, 12) for done in (6, 8, 12)]
    assert told[3:] == [("writing set.zip to the cache", done, 12) for done in (4, 6, 10, 12)]


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
from genssl.data.image_folder import Conversion, convert
torch.set_num_threads(1)
peak = start = anonymous()
threading.Thread(target=watch, daemon=True).start()
found = convert(Conversion(Path(sys.argv[1]), "n", "k", 96, False, None), Path(sys.argv[2]))
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
