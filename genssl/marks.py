"""What a file says of the command that made it, so that the same command may replace it. No torch.

A PNG and a page hold a SHA-256 of the rest of their bytes, too: once changed by somebody, they are not the
command's any more.
"""

import hashlib
import json
import shlex
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = 12  # bytes of the chunk IEND
CHUNK = b"tEXtgenssl\0"  # its type and keyword
COMMENT, COMMENT_END = b"<!-- genssl ", b" -->\n"


def mark_png(content: bytes, about: Mapping[str, str]) -> bytes:
    """The same PNG with `about` in a text chunk, "command" among it."""
    body = CHUNK + _text(content, about)
    checksum = struct.pack(">I", zlib.crc32(body))
    chunk = struct.pack(">I", len(body) - 4) + body + checksum  # the type does not count as data
    return content[:-PNG_END] + chunk + content[-PNG_END:]


def mark_page(content: bytes, about: Mapping[str, str]) -> bytes:
    """The same HTML with `about` in a comment at its end, "command" among it."""
    return content + COMMENT + _text(content, about) + COMMENT_END


def command_of(path: Path) -> str | None:
    """The command that a PNG, page, JSON or safetensors file says has made it; None where it does not say.

    Raises:
        OSError: it cannot be read.
    """
    try:
        match path.suffix.lower():
            case ".png" | ".html" | ".htm":
                about = _unchanged(path.read_bytes())
            case ".json":
                about = json.loads(path.read_bytes())
            case ".safetensors":
                about = _safetensors_metadata(path)
            case _:
                return None
        command = about["command"]
    except (ValueError, KeyError, TypeError, struct.error):
        return None
    return command if isinstance(command, str) else None


def made_by(path: Path, command: str) -> bool:
    """Whether this command made the file; --json, which changes no file, does not count.

    An ONNX file holds the command's SHA-256 (`digest`), a .jsonl belongs to the .json beside it; JPEG, WebP,
    PDF and SVG do not say who made them.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        path = path.with_suffix(".json")
        return path.exists() and made_by(path, command)
    if suffix == ".onnx":
        return digest(command).encode() in path.read_bytes()
    said = command_of(path)
    return said is not None and _without_json(said) == _without_json(command)


def digest(command: str) -> str:
    """SHA-256 of a command, for files that are searched for it."""
    return hashlib.sha256(shlex.join(_without_json(command)).encode()).hexdigest()


def _without_json(command: str) -> list[str]:
    return [word for word in shlex.split(command) if word != "--json"]


def _text(content: bytes, about: Mapping[str, str]) -> bytes:
    """`about` and the content's SHA-256 as JSON in ASCII, without characters that end a comment."""
    text = json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()})
    return text.replace("<", "\\u003c").replace(">", "\\u003e").encode()


def _unchanged(content: bytes) -> dict[str, Any]:
    """What the mark in a PNG or a page says, while the rest is as it was.

    Raises:
        ValueError, struct.error: there is no mark, or the rest was changed.
    """
    start, end, text = _png_mark(content) if content.startswith(PNG) else _page_mark(content)
    about: dict[str, Any] = json.loads(text)
    if about["sha256"] != hashlib.sha256(content[:start] + content[end:]).hexdigest():
        raise ValueError("changed")
    return about


def _png_mark(content: bytes) -> tuple[int, int, bytes]:
    """Where the chunk begins and ends, and its text."""
    start = len(PNG)
    while start < len(content):
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 12 + length  # length, type, data, checksum
        if content[start + 4 :].startswith(CHUNK):
            return start, end, content[start + 4 + len(CHUNK) : end - 4]
        start = end
    raise ValueError("no mark")


def _page_mark(content: bytes) -> tuple[int, int, bytes]:
    """Where the comment begins and ends, and its text."""
    start = content.rindex(COMMENT)
    end = content.index(COMMENT_END, start)
    return start, end + len(COMMENT_END), content[start + len(COMMENT) : end]


def _safetensors_metadata(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(min(length, 100_000_000)))  # the format's own limit
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata
