"""Files that are whole or absent, and what a file says of the command that made it. No torch."""

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shlex
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from genssl.errors import FAILED_RUN, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = 12  # bytes of the chunk IEND
CHUNK = b"tEXtgenssl\0"  # its type and keyword
COMMENT, COMMENT_END = b"<!-- genssl ", b" -->\n"
LARGEST = 16_000  # pixels of a picture's side: WebP ends at 16,383, and larger ones are hardly shown
LOCK = ".lock"  # in a folder that a process has locked
TEMPORARY = re.compile(
    r"\..+\.[a-z0-9_]{8}\.tmp|\.tmp[A-Za-z0-9]{6}"
)  # names of `atomic`, and of safetensors


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
    recorded = command_of(path)
    return recorded is not None and _without_json(recorded) == _without_json(command)


def digest(command: str) -> str:
    """SHA-256 of a command, for files that are searched for it."""
    return hashlib.sha256(shlex.join(_without_json(command)).encode()).hexdigest()


def _without_json(command: str) -> list[str]:
    return [word for word in shlex.split(command) if word != "--json"]


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


def expand_home(path: str | Path) -> Path:
    """A path with the home folder in the place of ~ or ~user.

    Raises:
        UserError: there is no such user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{Path(path).parts[0]} has no home folder; write the whole path, or ./{path}")
    return Path(expanded)


def require_writable(path: Path) -> Path:
    """Check that a file or folder could be made at a path, before the work; returns the path.

    Raises:
        UserError: what is to contain it is a file, or nothing may be written there.
    """
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except NotADirectoryError:
        raise UserError(f"cannot write {path}: {folder} is no folder; choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot write {path} ({folder}: {error.strerror}); choose another --out") from error
    return path


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; on success it replaces `path`.

    The rename is what makes the change: a reader, or a process killed at any moment, sees the old file
    or the new one. The data reach the disk before the name does, and the mode follows the umask.
    """
    path = Path(os.path.realpath(path))  # a symbolic link keeps pointing where it points
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        with contextlib.suppress(OSError):  # a file system without modes
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        with contextlib.suppress(OSError):  # a system on which folders cannot be opened
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, older: float = 0.0) -> None:
    """Remove temporary files of `atomic`, and of safetensors, that killed processes have left in a folder.

    Args:
        folder: that no other process writes to, such as one that is locked.
        older: than so many seconds, where others may.
    """
    for file in folder.iterdir():
        if TEMPORARY.fullmatch(file.name):
            with contextlib.suppress(OSError):
                if file.lstat().st_mtime <= time.time() - older:
                    file.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; not-a-number is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def picture_format(path: Path) -> str:
    """The format of a picture by its path's suffix, in lower case; PNG if there is none.

    Raises:
        UserError: pictures are not written in this format.
    """
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in {"png", "jpg", "jpeg", "webp", "pdf", "svg"}:
        raise UserError(f"cannot write a picture as .{kind}; use .png, .jpg, .webp, .pdf or .svg")
    return kind


def write_picture(path: Path, picture: "Figure | Image", details: Mapping[str, str] | None = None) -> None:
    """Write a PIL image or a figure atomically, in the format of the path's suffix (PNG if none).

    Args:
        path: the file.
        picture: the image or figure.
        details: texts for a PNG to hold; with "command" the same command may replace the file.
    """
    kind = picture_format(path)
    if not hasattr(picture, "savefig") and max(picture.size) > LARGEST:
        picture = _shrunk(picture)
    with atomic(path) as temporary:
        if hasattr(picture, "savefig"):
            # A figure that grows with the number of classes
            figure = cast("Figure", picture)
            most = LARGEST / max(figure.get_size_inches())
            figure.savefig(temporary, format=kind, dpi=min(figure.get_dpi(), most))
        elif kind == "svg":
            temporary.write_text(_svg(picture))
        else:
            picture.save(temporary, format="jpeg" if kind == "jpg" else kind, pnginfo=_texts(picture))
        if details is not None and kind == "png":
            temporary.write_bytes(mark_png(temporary.read_bytes(), details))


def _shrunk(picture: "Image") -> "Image":
    """A picture of at most LARGEST pixels a side, in the same proportions."""
    smaller = picture.copy()
    smaller.thumbnail((LARGEST, LARGEST))
    smaller.info = picture.info
    return smaller


def _svg(picture: "Image") -> str:
    """A picture in an SVG page of its size."""
    content = io.BytesIO()
    picture.save(content, "png")
    data = base64.b64encode(content.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n'
        f'<image {size} href="data:image/png;base64,{data}"/>\n</svg>\n'
    )


def _texts(picture: "Image") -> "PngInfo":
    """What a picture says of itself, which PIL does not write unless asked; ignored by formats but PNG."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for name, value in picture.info.items():
        if isinstance(name, str) and isinstance(value, str):
            texts.add_text(name, value)
    return texts


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> str:
    """Write a safetensors file atomically with the SHA-256 of its tensors in the metadata; returns it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = tensor_digest(contiguous)
    with atomic(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={**metadata, "sha256": digest})
        except SafetensorError as error:
            raise _as_os_error(error, path) from error
    return digest


def _as_os_error(error: Exception, path: Path) -> Exception:
    """The disk's error in safetensors' own, which hides its number in its text."""
    match = re.search(r"os error (\d+)", str(error))
    if match is None:
        return error
    number = int(match.group(1))
    return OSError(number, os.strerror(number), str(path))


def read_tensors(path: Path, *, verify: bool = True) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read a safetensors file: (tensors, metadata). The tensors are memory-mapped.

    Raises:
        UserError: the file is missing, is no safetensors file, or its tensors differ from their digest.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}); restore it", FAILED_RUN
        ) from error
    if verify and tensor_digest(tensors) != metadata.get("sha256"):
        raise UserError(f"{path} is damaged: its tensors do not match their SHA-256; restore it", FAILED_RUN)
    return tensors, metadata


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The header of a safetensors file without its tensors, and without torch.

    Returns:
        The tensors' entries ("dtype", "shape", "data_offsets") by name, and the metadata.

    Raises:
        UserError: the file is missing, is no safetensors file, or is not as long as its header says.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if length > size:
                raise ValueError(f"a header of {length} bytes")
            entries = dict(json.loads(file.read(length)))
        metadata = dict(entries.pop("__metadata__", {}))
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes instead of {8 + length + end}")
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}); restore it", FAILED_RUN
        ) from error
    return entries, metadata


def tensor_digest(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        UserError: the file is missing or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is no text ({error}); restore or remove it") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    return _parsed(read_text(path), path)


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of one JSON value per line.

    Raises:
        UserError: the file is missing, or a line is no JSON.
    """
    return [_parsed(line, path) for line in read_text(path).splitlines()]


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no valid JSON ({error}); restore or remove it") from error


NO_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}  # of file systems that know no such thing


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        flush(file.fileno())


def flush(handle: int) -> None:
    """Flush an open file to the disk, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_empty(folder: Path) -> bool:
    """Whether a folder is empty but for a lock, and what a killed process has left half-written."""
    return all(file.name == LOCK or TEMPORARY.fullmatch(file.name) for file in folder.iterdir())


class FolderLock:
    """A lock on a folder against other processes; the system releases it when this process ends in any way.

    The lock is on a hidden file in the folder, which `release` removes. Where no such file can be written or
    locked, there is no lock.

    Args:
        folder: exists.
        message: of the error.

    Raises:
        UserError: another process holds the lock.
    """

    def __init__(self, folder: Path, message: str) -> None:
        from filelock import FileLock, Timeout

        # A lock of its thread alone could not be released by another one
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(message) from None
        # A folder that cannot be written, or a file system without locks
        except (OSError, NotImplementedError):
            pass

    def release(self) -> None:
        """Let other processes lock the folder."""
        if not self._lock.is_locked:
            return
        # Before the lock is released: filelock does not lock a removed file. On Windows it removes it itself
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()
