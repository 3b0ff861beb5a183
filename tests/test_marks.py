"""Files that say which command made them, and stop saying so when they are changed."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from genssl import environment, files

COMMAND = 'genssl sample vae --out "a > b" --data ä'


def png(color: str = "teal") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (5, 4), color).save(content, "png")
    return content.getvalue()


def made(folder: Path, name: str, command: str = COMMAND) -> Path:
    """A file of each kind that this command made."""
    file = folder / name
    match file.suffix:
        case ".png":
            file.write_bytes(environment.mark_png(png(), {"command": command}))
        case ".html":
            file.write_bytes(environment.mark_page(b"<html></html>\n", {"command": command}))
        case ".json":
            file.write_text(json.dumps({"command": command}))
        case ".safetensors":
            files.write_tensors(file, {"x": torch.zeros(2)}, {"command": command})
        case ".onnx":
            file.write_bytes(b"\x08\x07" + environment.digest(command).encode() + b"\x12")
        case ".jsonl":
            file.write_text("{}\n")
            made(folder, f"{file.stem}.json", command)
    return file


NAMES = ["a.png", "a.html", "a.json", "a.safetensors", "a.onnx", "a.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_its_commands_and_no_others(tmp_path: Path, name: str) -> None:
    file = made(tmp_path, name)
    assert environment.made_by(file, COMMAND)
    assert environment.made_by(file, f"{COMMAND} --json")
    assert not environment.made_by(file, f"{COMMAND} --seed 1")
    assert not environment.made_by(file, "genssl")


def test_a_marked_picture_is_the_same_picture(tmp_path: Path) -> None:
    file = made(tmp_path, "a.png")
    with Image.open(file) as picture, Image.open(io.BytesIO(png())) as plain:
        assert picture.tobytes() == plain.tobytes()
        assert isinstance(picture, PngImageFile)
        assert json.loads(picture.text["genssl"])["command"] == COMMAND


@pytest.mark.parametrize("name", ["a.png", "a.html"])
def test_what_was_changed_since_is_nobodys(tmp_path: Path, name: str) -> None:
    file = made(tmp_path, name)
    content = file.read_bytes()
    place = 40 if name == "a.png" else 7
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert environment.command_of(file) is None
    file.write_bytes(content)
    assert environment.command_of(file) == COMMAND


@pytest.mark.parametrize("name", [*NAMES, "a.jpg", "a.pdf", "a.svg"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", png(), png()[:20], b"\x89PNG\r\n\x1a\n", b"\0" * 99])
def test_other_files_are_nobodys(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert not environment.made_by(tmp_path / name, COMMAND)


def test_a_figure_is_marked_too(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    files.write_picture(tmp_path / "f.png", Figure(figsize=(1, 1)), {"command": COMMAND})
    files.write_picture(tmp_path / "f.pdf", Figure(figsize=(1, 1)), {"command": COMMAND})
    assert environment.made_by(tmp_path / "f.png", COMMAND)
    assert not environment.made_by(tmp_path / "f.pdf", COMMAND)
