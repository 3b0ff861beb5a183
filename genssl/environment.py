"""The command line, processes and versions that a result depends on; what its file says of them. No torch."""

import hashlib
import json
import os
import platform
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "genssl", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "safetensors", "pydantic",
    "typer", "rich", "filelock", "psutil",
)  # fmt: skip
SOURCE = Path(__file__).parent
PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = 12  # bytes of the chunk IEND
CHUNK = b"tEXtgenssl\0"  # its type and keyword
COMMENT, COMMENT_END = b"<!-- genssl ", b" -->\n"
# What torchrun, or a batch queue in its place, tells each process
COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
_ARGUMENTS: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


@contextmanager
def record_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, `genssl` runs with these arguments; one command may run another."""
    token = _ARGUMENTS.set(tuple(arguments))
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def wrong_counts() -> list[str]:
    """The variables of COUNTS that are no whole numbers, as NAME=value."""
    given = {name: os.environ[name] for name in COUNTS if name in os.environ}
    return [f"{name}={value}" for name, value in given.items() if not _is_whole(value)]


def _is_whole(text: str) -> bool:
    # int() refuses thousands of digits
    return text.strip().isascii() and text.strip().isdigit() and len(text) < 20


def _count(name: str, default: int) -> int:
    """A variable of COUNTS; `default` where it is wrong, which the command line refuses at its start."""
    value = os.environ.get(name, "")
    return int(value) if _is_whole(value) else default


def launched_world_size() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return _count("WORLD_SIZE", 1)


def launched_rank() -> int:
    """Rank that torchrun gave this process; 0 where there is one process."""
    return _count("RANK", 0) if launched_world_size() > 1 else 0


def is_launched_by_torchrun() -> bool:
    """Whether this is one of the processes that torchrun, or a batch queue in its place, started."""
    return "TORCHELASTIC_RUN_ID" in os.environ or launched_world_size() > 1


def restart_count() -> int:
    """How often torchrun has started the processes again."""
    return _count("TORCHELASTIC_RESTART_COUNT", 0)


def arguments() -> tuple[str, ...]:
    """Arguments of the running command; those of the Python program outside of any."""
    recorded = _ARGUMENTS.get()
    return tuple(sys.argv[1:]) if recorded is None else recorded


def command_line() -> str:
    """The running command as typed; the Python program's line outside of any."""
    recorded = _ARGUMENTS.get()
    return shlex.join(sys.argv) if recorded is None else shlex.join(["genssl", *recorded])


def system() -> dict[str, Any]:
    """Versions of Python, the system and the packages, and the number of CPU cores."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_revision(source: Path = SOURCE) -> str | None:
    """Revision of the checkout that this package runs from, with + when it was changed.

    None where the package was installed or unpacked, be it within somebody's repository.
    """
    try:
        root = Path(_git(source, "rev-parse", "--show-toplevel"))
        if (root / "genssl").resolve() != source.resolve():
            return None
        # Fails for a file that git does not track
        _git(source, "ls-files", "--error-unmatch", "__init__.py")
        return _git(source, "describe", "--always", "--dirty=+", "--abbrev=12") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=5, check=True
    )
    return done.stdout.strip()


def mark_png(content: bytes, details: Mapping[str, str]) -> bytes:
    """The same PNG with `details` in a text chunk, "command" among it."""
    body = CHUNK + _text(content, details)
    checksum = struct.pack(">I", zlib.crc32(body))
    chunk = struct.pack(">I", len(body) - 4) + body + checksum  # the type does not count as data
    return content[:-PNG_END] + chunk + content[-PNG_END:]


def mark_page(content: bytes, details: Mapping[str, str]) -> bytes:
    """The same HTML with `details` in a comment at its end, "command" among it."""
    return content + COMMENT + _text(content, details) + COMMENT_END


def command_of(path: Path) -> str | None:
    """The command that a PNG, page, JSON or safetensors file says has made it; None where it does not say.

    Raises:
        OSError: it cannot be read.
    """
    try:
        match path.suffix.lower():
            case ".png" | ".html" | ".htm":
                details = _unchanged(path.read_bytes())
            case ".json":
                details = json.loads(path.read_bytes())
            case ".safetensors":
                details = _safetensors_metadata(path)
            case _:
                return None
        command = details["command"]
    except (ValueError, KeyError, TypeError, RecursionError, struct.error):
        return None
    return command if isinstance(command, str) else None


def made_by(path: Path, command: str) -> bool:
    """Whether this command made the file; --json and --quiet, which change no file, do not count.

    An ONNX file holds the command's SHA-256 (`digest`), a .jsonl belongs to the .json beside it; JPEG, WebP,
    PDF and SVG do not say who made them.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        path = path.with_suffix(".json")
        return path.exists() and made_by(path, command)
    if suffix == ".onnx":
        return digest(command).encode() in path.read_bytes()
    recorded = command_of(path)
    return recorded is not None and _without_display(recorded) == _without_display(command)


def digest(command: str) -> str:
    """SHA-256 of a command, for files that are searched for it."""
    return hashlib.sha256(shlex.join(_without_display(command)).encode()).hexdigest()


def _without_display(command: str) -> list[str]:
    return [word for word in shlex.split(command) if word not in {"--json", "--quiet"}]


def _text(content: bytes, details: Mapping[str, str]) -> bytes:
    """`details` and the content's SHA-256 as JSON in ASCII, without characters that end a comment."""
    text = json.dumps({**details, "sha256": hashlib.sha256(content).hexdigest()})
    return text.replace("<", "\\u003c").replace(">", "\\u003e").encode()


def _unchanged(content: bytes) -> dict[str, Any]:
    """What the mark in a PNG or a page says, while the rest is as it was.

    Raises:
        ValueError, struct.error: there is no mark, or the rest was changed.
    """
    start, end, text = _png_mark(content) if content.startswith(PNG) else _page_mark(content)
    details: dict[str, Any] = json.loads(text)
    if details["sha256"] != hashlib.sha256(content[:start] + content[end:]).hexdigest():
        raise ValueError("changed")
    return details


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
