"""Seeded mutations of files, and bounds on the time and the memory of what reads them."""

import io
import json
import os
import random
import resource
import signal
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from PIL import Image

SEED = 21
# Inputs of each kind, by hand; a small number of them where it is not set
FUZZ = int(os.environ.get("GENSSL_FUZZ", "0"))
SECONDS = 10  # that no input may take
SOME = 400 * 2**20  # bytes by which the memory may grow, with what libraries keep
VALUES: list[object] = [
    None, True, -1, 0, 3, 10**30, 10**299, 0.5, -1e308, 1e-320, "", "x", "\x1b[2J", "\ud800", "9" * 5000, [],
    {}, [[]], [{}], [1], ["x"], [None], {"x": 1}, {"x": []}, {"": ""}, [{"x": 1}, []],
    [{"x": {"x": [1, {"x": 2}]}}],
]  # fmt: skip
WORDS = [
    b"\0",
    b"\xff",
    b"[" * 2000,
    b'{"a":' * 500,
    b"9" * 5000,
    b"NaN",
    b"1e999",
    b"null",
    b"-",
    b"\n",
    b'"',
    b"\x1b",
]


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The content with bytes changed, cut out, repeated or put in."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        i = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0 if i < len(changed):
                changed[i] ^= 1 << chance.randrange(8)
            case 1:
                changed[i:] = changed[i + chance.randrange(1, 40) :]
            case 2:
                changed[i:i] = chance.choice(WORDS)
            case 3:
                changed[i : i + 8] = chance.randbytes(8)
            case _:
                del changed[i : i + chance.randrange(1, 20)]
    return bytes(changed)


def altered(value: object, chance: random.Random) -> object:
    """The JSON value with one of the values in it, or itself, replaced, removed or doubled."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy = value.copy()
    match chance.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[chance.choice(("x", "title", "headline", "notes", "rows", "units", "step"))] = chance.choice(
                VALUES
            )
        case _:
            copy[key] = altered(value[key], chance)
    return copy


def altered_text(content: bytes, chance: random.Random) -> bytes:
    """A file of JSON or of lines of JSON, with a value altered; or flipped."""
    if chance.random() < 0.3:
        return flipped(content, chance)
    is_lines = content.count(b"}\n{") > 0
    values = [json.loads(line) for line in (content.splitlines() if is_lines else [content])]
    i = chance.randrange(len(values))
    values[i] = altered(values[i], chance)
    return "\n".join(json.dumps(value) for value in values).encode()


def rounds(usual: int) -> int:
    """GENSSL_FUZZ, else a number that a test has time for."""
    return FUZZ or usual


class TooLong(BaseException):
    """An input took more than SECONDS; no reader catches it."""


@contextmanager
def in_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory() -> int:
    """The largest that this process has been, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def images() -> dict[str, bytes]:
    images = {}
    for i, kind in enumerate(("png", "jpeg", "bmp", "gif")):
        content = io.BytesIO()
        Image.linear_gradient("L").resize((8 + i, 8)).save(content, kind)
        images[f"set/{'ab'[i % 2]}/{i}.{kind}"] = content.getvalue()
    return images


def archive_of(kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in images().items():
                archive.writestr(name, data)
        return content.getvalue()
    formats = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
    mode = f"w:{kind}" if kind in {"gz", "bz2", "xz"} else "w"
    opened: Any = tarfile.open  # its stubs list the modes one by one
    with opened(fileobj=content, mode=mode, format=formats.get(kind, tarfile.GNU_FORMAT)) as tar:
        for name, data in images().items():
            info = tarfile.TarInfo(f"{'long' * 40}/{name}")
            info.size = len(data)
            info.pax_headers = {"GNU.sparse.major": "1", "mtime": "1.5"} if name.endswith("gif") else {}
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("set/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
    return content.getvalue()


def resigned(content: bytes, chance: random.Random) -> bytes:
    """A .tar of which a field of a header is changed, and its checksum with it."""
    changed = bytearray(content)
    starts = [i for i in range(0, len(changed), 512) if changed[i + 257 : i + 262] == b"ustar"]
    start = chance.choice(starts)
    field = chance.choice([(124, 12), (156, 1), (157, 100), (345, 155), (0, 100), (386, 97), (482, 30)])
    digits = [
        b"77777777777\0",
        b"\x80" + b"\x40" + bytes(10),
        b"0000000000\0",
        b"\xff" * 12,
        chance.randbytes(12),
    ]
    value = (
        chance.choice(digits)
        if field[1] > 1
        else chance.choice([b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5"])
    )
    changed[start + field[0] : start + field[0] + len(value[: field[1]])] = value[: field[1]]
    changed[start + 148 : start + 156] = b" " * 8
    changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)
