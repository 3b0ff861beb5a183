import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genssl.data import archive as module
from genssl.data.archive import BadFile, Skipped, clean, members, names
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
    listed = names(path)  # of a tar, only reading the whole of it would tell
    assert (None if listed is None else len(listed)) == (8 if kind in {"folder", "a.zip"} else None)


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
        ("png", "png"),
        ("a/scan.001", "a/scan.001"),
        ("@eaDir/b.png", None),
        ("a/#recycle/b.png", None),
        ("$RECYCLE.BIN/b.png", None),
        (".thumbnails/b.png", None),
        ("System Volume Information/b.png", None),
        ("lost+found/b.png", None),
        ("Thumbs.db", None),
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
    found: Any = members(path)
    for _ in range(300):
        next(found)
    frame = found.gi_yieldfrom.gi_frame
    assert len(frame.f_locals["archive"].members) <= 1


def test_a_name_of_two_bytes_with_a_backslash_is_no_folder(tmp_path: Path) -> None:
    """The second byte of some Japanese letters is that of a backslash."""
    names = ["\u8868/1.png", "\u8868/2.png", "\u30bd/1.png", "\u4e88/1.png", "a/1.png"]
    path = japanese(tmp_path / "a.zip", names)
    skipped = Skipped()
    found = [member.name for member in members(path, None, skipped)]
    assert len(set(found)) == 5
    assert len({name.split("/")[0] for name in found}) == 4
    assert "4 names are not UTF-8" in skipped.notes[0]
    assert "--zip-encoding cp932" in skipped.notes[0]
    assert [member.name for member in members(path, "cp932")] == names
    assert all(member.read() == b"1" for member in members(path, "cp932"))
    for encoding in ("utf-8", "nonsense"):
        with pytest.raises(UserError, match="--zip-encoding"):
            list(members(path, encoding))


def japanese(path: Path, names: list[str], encoding: str = "cp932") -> Path:
    """A .zip whose names are in an encoding that it does not name."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, _ in enumerate(names):
            archive.writestr(zipfile.ZipInfo(f"{i:04}" + "x" * (len(names[i].encode(encoding)) - 4)), b"1")
    data = path.read_bytes()
    for i, name in enumerate(names):
        raw = name.encode(encoding)
        data = data.replace(f"{i:04}".encode() + b"x" * (len(raw) - 4), raw)
    path.write_bytes(data)
    return path


def test_unmarked_names_that_are_utf_8_are_read(tmp_path: Path) -> None:
    names = ["caf\xe9/1.png", "\u732b/1.png"]
    path = japanese(tmp_path / "a.zip", names, "utf-8")
    assert [member.name for member in members(path)] == names


def test_backslashes_of_unknown_letters_are_asked_about(tmp_path: Path) -> None:
    path = japanese(tmp_path / "a.zip", ["\u8868\\1.png", "\u30bd\\1.png"])
    with pytest.raises(UserError, match="--zip-encoding"):
        list(members(path))
    assert [member.name for member in members(path, "cp932")] == ["\u8868/1.png", "\u30bd/1.png"]


def test_a_backslash_beside_a_slash_is_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b\\1.png", b"1")
    assert contents(path) == {"a/b\\1.png": b"1"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_passed_over_is_counted_by_kind(kind: str, tmp_path: Path, put: Put) -> None:
    names = ["1.png", "2.heic", "3.HEIC", "4.jxl", "5.svg", "6.mp4", "7.CR2", "notes.txt", "@eaDir/8.png"]
    path, skipped = put(tmp_path / kind, dict.fromkeys(names, b"1")), Skipped()
    assert [member.name for member in members(path, None, skipped)] == ["1.png"]
    (loud,), (quiet,) = skipped.loud(), skipped.quiet()
    assert "1 .cr2, 2 .heic, 1 .jxl, 1 .mp4, 1 .svg; convert it to PNG or JPEG" in loud
    assert "pip install 'genssl[heif]'" in loud
    assert quiet == "not images: 1 .txt, 1 hidden or of the system"


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_a_tar_may_be_compressed_in_other_ways(
    compress: Callable[[bytes], bytes], tmp_path: Path, put: Put
) -> None:
    whole = compress(put(tmp_path / "a.tar", {"a/1.png": os.urandom(9000)}).read_bytes())
    (tmp_path / "b").write_bytes(whole)
    assert contents(tmp_path / "b") == contents(tmp_path / "a.tar")
    for size in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "b").write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            contents(tmp_path / "b")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_any_compression_is_a_bad_file(method: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("1.png", bytes(range(256)) * 40)
    whole, bad = path.read_bytes(), 0
    for i in range(40, 120, 4):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :])
        try:
            found = contents(path)
        except BadFile:
            bad += 1
        else:  # a byte that says how much memory to take changes nothing
            assert found == {"1.png": bytes(range(256)) * 40}
    assert bad >= 16


def test_a_folder_that_cannot_be_read_is_a_bad_file(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "set", {"a/1.png": b"1", "b/1.png": b"2", "lost+found/1.png": b"3"})
    scan = os.scandir

    def refusing(folder: str) -> object:
        if str(folder).endswith(("/b", "lost+found")):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(members(path))
    assert [member.name for member in found] == ["a/1.png", "b"]
    with pytest.raises(BadFile, match="a folder that cannot be read: Permission denied"):
        found[1].read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page; download"),
        (b"\x80\x02}q\x00.", "pickle, which is never loaded"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file"),
        (b"Rar!\x1a\x07\x01\x00", "RAR archive; unpack"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "single image; give the folder"),
    ],
)
def test_what_is_plainly_something_else_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        contents(tmp_path / "a.tar")


def test_a_file_of_pytorch_is_named(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "a.zip", {"a/data.pkl": b"1", "a/data/0": b"2", "a/version": b"3"})
    with pytest.raises(UserError, match=r"file of PyTorch \(\.pt\)"):
        contents(path)
    assert contents(put(tmp_path / "b.zip", {"a/data.pkl": b"1", "a/1.png": b"2"})) == {"a/1.png": b"2"}


def _tar(*headers: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Headers and what follows them, whatever their sizes say, and the end of an archive."""
    blocks = [info.tobuf(tarfile.GNU_FORMAT) + body for info, body in headers]
    return b"".join(blocks) + bytes(1024)


def _info(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_size_beyond_all_disks_is_not_read_to(
    kind: bytes, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(compress(_tar((_info("a.png", 2**62, kind), b""), (_info("b.png", 0), b""))))
    with pytest.raises(UserError, match="damaged"):
        list(members(path))


def test_a_long_header_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    size = 2 * module.MAX_HEADER_BYTES
    path.write_bytes(gzip.compress(_tar((_info("x", size, tarfile.XHDTYPE), bytes(size)))))
    with pytest.raises(UserError, match="a header of"):
        list(members(path))


def test_a_broken_sparse_header_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = _info("a.png", 512)
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}
        archive.addfile(info, io.BytesIO(b"no numbers here\n" * 32))
    with pytest.raises(UserError, match="damaged"):
        list(members(path))


def test_folders_that_link_twice_to_the_next_are_refused(tmp_path: Path, put: Put) -> None:
    for i in range(28):
        (tmp_path / f"{i}").mkdir()
    for i in range(27):
        for name in "ab":
            (tmp_path / f"{i}" / name).symlink_to(tmp_path / f"{i + 1}")
    put(tmp_path / "27", {"x.png": b"x"})
    with pytest.raises(UserError, match="in more than 100 ways"):
        list(members(tmp_path / "0"))


def test_a_folder_may_be_linked_to_from_several_parts(tmp_path: Path, put: Put) -> None:
    put(tmp_path, {"set/train/a/x.png": b"x"})
    (tmp_path / "set" / "test").symlink_to(tmp_path / "set" / "train")
    assert set(contents(tmp_path / "set")) == {"train/a/x.png", "test/a/x.png"}


def test_a_link_to_itself_is_a_bad_file(tmp_path: Path, put: Put) -> None:
    put(tmp_path, {"x.png": b"x"})
    (tmp_path / "y.png").symlink_to(tmp_path / "y.png")
    bad = [member for member in members(tmp_path) if member.name == "y.png"]
    with pytest.raises(BadFile, match="symbolic links"):
        bad[0].read()
