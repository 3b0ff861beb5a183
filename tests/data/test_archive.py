import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from genssl.data import archive as module
from genssl.data.archive import BadFile, clean, count, members
from genssl.errors import UserError

Put = Callable[[Path, dict[str, bytes]], Path]
KINDS = ["folder", "a.tar", "a.tar.gz", "a.tgz", "a.zip"]


def contents(path: Path) -> dict[str, bytes]:
    return {member.name: member.read() for member in members(path)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_visible_images(
    kind: str, tmp_path: Path, put: Put, tree: dict[str, bytes]
) -> None:
    path = put(tmp_path / kind, tree)
    assert contents(path) == {name: data for name, data in tree.items() if data != b"x"}
    assert count(path) == (8 if kind in {"folder", "a.zip"} else None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./a/b.png", "a/b.png"),
        ("/etc/b.PNG", "etc/b.PNG"),
        ("../../b.jpeg", "b.jpeg"),
        ("a//b.webp", "a/b.webp"),
        ("a/new\nline.png", "a/new\\x0aline.png"),
        ("a/\udcff.png", "a/\\xdcff.png"),
        ("a/.b.png", None),
        (".git/b.png", None),
        ("__MACOSX/b.png", None),
        ("a/b.txt", None),
        ("png", None),
        ("..", None),
    ],
)
def test_names_are_made_harmless(name: str, expected: str | None) -> None:
    assert clean(name) == expected


def test_a_zip_from_windows_has_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train\\cat\\1.png", b"1")
    assert contents(path) == {"train/cat/1.png": b"1"}


def test_the_kind_is_seen_from_the_content(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "a.tar.gz", {"1.png": b"1"}).rename(tmp_path / "b.tar")
    assert contents(tmp_path / "b.tar") == {"1.png": b"1"}


def test_links_of_a_folder_are_followed_without_end(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "set", {"cat/1.png": b"1"})
    (path / "cat" / "again").symlink_to(path)
    (path / "dog").symlink_to(path / "cat")
    assert contents(path) == {"cat/1.png": b"1", "dog/1.png": b"1"}


def test_what_cannot_be_opened_is_a_bad_file(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "set", {"1.png": b"1"})
    (path / "2.png").symlink_to(path / "nowhere")
    with pytest.raises(BadFile, match="No such file"):
        contents(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "set", {"1.png": b"1"})
    os.mkfifo(path / "2.png")
    assert contents(path) == {"1.png": b"1"}


def test_a_link_in_an_archive_is_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(BadFile, match="link"):
        contents(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_many_bytes_is_refused_unread(
    kind: str, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    path = put(tmp_path / kind, {"1.png": bytes(1001)})
    with pytest.raises(BadFile, match="too large"):
        contents(path)
    assert contents(put(tmp_path / f"2{kind}", {"1.png": bytes(1000)}))


def test_a_damaged_file_in_a_zip_is_a_bad_file(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "a.zip", {"1.png": b"hello"})
    path.write_bytes(path.read_bytes().replace(b"hello", b"jello"))
    with pytest.raises(BadFile, match="damaged"):
        contents(path)


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.zip"])
def test_an_archive_cut_anywhere_is_refused(kind: str, tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / kind, {f"{i}.png": os.urandom(700) for i in range(3)})
    whole = path.read_bytes()
    end = 3 * 3 * 512 if kind == "a.tar" else len(whole)  # zeros follow the end of a tar
    for size in range(0, end, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"damaged|\.zip"):
            contents(path)
    path.write_bytes(whole[: 3 * 3 * 512] if kind == "a.tar" else whole[:-1])
    with pytest.raises(UserError, match="damaged"):
        contents(path)


def test_a_broken_header_is_not_taken_for_the_end(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "a.tar", {"1.png": b"1", "2.png": b"2"})
    data = bytearray(path.read_bytes())
    data[1024:1030] = b"broken"
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        contents(path)


def test_the_checksum_of_gzip_is_looked_at(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "a.tar.gz", {"1.png": b"1"})
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        contents(path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"hello"))
    for path in (tmp_path / "a.txt", tmp_path / "a.gz", tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"\.zip"):
            contents(path)


def test_an_archive_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for i in range(300):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"1234"))
    found = members(path)
    for _ in range(300):
        next(found)
    frame = found.gi_yieldfrom.gi_frame  # type: ignore[attr-defined]
    assert len(frame.f_locals["archive"].members) <= 1
