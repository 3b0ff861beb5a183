import os
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image

from genssl import files
from genssl.errors import UserError

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


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(UserError, match="svg"):  # found out after the temporary file was made
        files.write_picture(tmp_path / "x.svg", Image.new("RGB", (2, 2)))
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
