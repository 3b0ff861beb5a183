import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from PIL import Image

from genssl import files
from genssl.errors import UserError
from genssl.figures import new_figure

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


def test_round_trip_and_mode_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_tensors(tmp_path / "x.safetensors", TENSORS, {"k": "v"})
    finally:
        os.umask(before)
    tensors, metadata = files.read_tensors(tmp_path / "x.safetensors")
    assert metadata["k"] == "v"
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "empty", "text"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, TENSORS, {})
    content = path.read_bytes()
    path.write_bytes(
        {
            "flip": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
            "truncate": content[:-5],
            "extend": content + b"0",
            "empty": b"",
            "text": b"not tensors at all",
        }[damage]
    )
    with pytest.raises(UserError, match="damaged"):
        files.read_tensors(path)
    if damage != "flip":
        with pytest.raises(UserError, match="damaged"):
            files.read_header(path)


def test_a_header_is_read_without_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = files.write_tensors(path, TENSORS, {"k": "v"})
    entries, metadata = files.read_header(path)
    assert metadata.items() >= {"k": "v", files.TENSORS: digest}.items()
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()} == {
        "a": ("F32", [2, 3]),
        "b": ("I64", []),
    }


def test_digest_sees_name_shape_type_and_value() -> None:
    base = files.tensor_digest(TENSORS)
    others = [
        {"c": TENSORS["a"], "b": TENSORS["b"]},
        {"a": TENSORS["a"].view(3, 2), "b": TENSORS["b"]},
        {"a": TENSORS["a"].view(torch.int32), "b": TENSORS["b"]},
        {"a": TENSORS["a"] + 1, "b": TENSORS["b"]},
    ]
    assert len({base, *map(files.tensor_digest, others)}) == 5
    assert base == files.tensor_digest(dict(reversed(TENSORS.items())))


class Unwritable:
    """A figure that cannot be saved."""

    def get_size_inches(self) -> tuple[float, float]:
        return 1.0, 1.0

    def get_dpi(self) -> float:
        return 100.0

    def savefig(self, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("bmp")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    picture: Any = Unwritable()
    with pytest.raises(OSError, match="bmp"):  # found out after the temporary file was made
        files.write_picture(tmp_path / "x.png", picture)
    assert files.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_keeps_pointing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target.txt")
    files.write_text(tmp_path / "link", "hello")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "hello"


def test_a_full_disk_is_told_apart_from_damage() -> None:
    inner = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    found = files._as_os_error(inner, Path("/some/file"))
    assert isinstance(found, OSError)
    assert (found.errno, found.filename) == (28, "/some/file")
    assert files._as_os_error(Exception("else"), Path("x")).args == ("else",)


def test_odd_picture_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write a picture as \.txt"):
        files.write_picture(tmp_path / "x.txt", Image.new("RGB", (2, 2)))


def test_a_file_system_without_modes_and_folders_that_cannot_be_opened_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_open = os.open

    def open_file(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system_open(path, flags, *args, **options)

    def chmod(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(Path, "chmod", chmod)
    files.write_text(tmp_path / "x.txt", "hello")
    assert (tmp_path / "x.txt").read_text() == "hello"


@pytest.mark.parametrize(
    ("number", "harmless"), [(errno.EINVAL, True), (errno.ENOSYS, True), (errno.EIO, False)]
)
def test_a_file_system_that_cannot_flush_will_do_and_a_broken_disk_will_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, harmless: bool
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if harmless:
        files.write_text(tmp_path / "x.txt", "hello")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            files.write_text(tmp_path / "x.txt", "hello")
    assert (tmp_path / "x.txt").exists() is harmless


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    files.FolderLock(tmp_path, "taken").release()


def test_a_grid_as_svg_and_pictures_of_a_limited_size(tmp_path: Path) -> None:
    files.write_picture(tmp_path / "x.svg", Image.new("RGB", (20, 10), "red"))
    assert 'width="20" height="10" href="data:image/png;base64,' in (tmp_path / "x.svg").read_text()
    for name in ("x.png", "x.webp", "x.jpg"):
        files.write_picture(tmp_path / name, Image.new("RGB", (40_000, 20)))
        assert Image.open(tmp_path / name).size == (16_000, 8)
    figure, _ = new_figure(1, 1, 500.0, 1.0)  # inches
    files.write_picture(tmp_path / "figure.png", figure)
    assert Image.open(tmp_path / "figure.png").width == 16_000


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expand_home("~/x") == tmp_path / "x"
    assert files.expand_home("a/~b") == Path("a/~b")
    with pytest.raises(UserError, match="~no-such-user has no home folder"):
        files.expand_home("~no-such-user/x")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    assert files.require_writable(tmp_path / "new" / "x.png") == tmp_path / "new" / "x.png"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="is no folder"):
        files.require_writable(tmp_path / "file" / "x.png")
    with pytest.raises(UserError, match=r"cannot write /proc/x\.png"):
        files.require_writable(Path("/proc/x.png"))


def test_contents_are_flushed_through_a_handle_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(os, "fsync", lambda handle: written.append(os.write(handle, b"")))
    files.write_text(tmp_path / "x.txt", "hello")  # the folder's handle cannot be written to
    assert written == [0]


HOLD = """
import sys
from pathlib import Path
from genssl.files import FolderLock
lock = FolderLock(Path(sys.argv[1]), "taken")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_folder_is_locked_by_one_process_until_its_end(tmp_path: Path, killed: bool) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="taken"):
            files.FolderLock(tmp_path, "taken")
        if killed:
            process.kill()
        process.communicate()
    files.FolderLock(tmp_path, "taken").release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_can_be_had_again_and_leaves_no_file(tmp_path: Path) -> None:
    for _ in range(2):
        lock = files.FolderLock(tmp_path, "taken")
        with pytest.raises(UserError, match="taken"):
            files.FolderLock(tmp_path, "taken")
        lock.release()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    files.FolderLock(tmp_path, "taken").release()
