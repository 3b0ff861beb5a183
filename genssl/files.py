"""Files: written so that they are whole or absent, read within bounds. No torch."""

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from genssl.environment import mark_png
from genssl.errors import FAILED_RUN, UserError, parse_json
from genssl.paths import target_outside

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

LARGEST = 16_000  # pixels of a picture's side: WebP ends at 16,383, and larger ones are hardly shown
LARGEST_TEXT = 32 * 2**20  # bytes of a file that is parsed
LARGEST_PICTURE = 256 * 2**20  # bytes
SHA256, TENSORS = "sha256", "tensors_sha256"  # in the metadata of a safetensors file
# Of the digests, raised when they change: an older version then does not call the file damaged
LAYOUT, NEWEST_LAYOUT = "file_layout", "1"
LOCK = ".lock"  # in a folder that a process has locked
# Names of `atomic`, and of safetensors
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|\.tmp[A-Za-z0-9]{6}")


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


def refuse_outside(path: Path) -> None:
    """Refuse to read or to write a file of a run where a symbolic link leads out of the run's folder.

    Raises:
        UserError: one does.
    """
    if (target := target_outside(path)) is not None:
        raise UserError(
            f"{path} is a link out of its folder, to {target}; put the file itself in its place", FAILED_RUN
        )


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; on success it replaces `path`.

    The rename is what makes the change: a reader, or a process killed at any moment, sees the old file
    or the new one. The data reach the disk before the name does, and the mode follows the umask.
    """
    refuse_outside(path)
    path = Path(os.path.realpath(path))  # a symbolic link keeps pointing where it points
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only what is open for writing
            flush(file.fileno())
        with contextlib.suppress(OSError):  # a file system without modes
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        with contextlib.suppress(OSError):  # a system on which folders cannot be opened
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, older: float = 0.0, stem: str = "") -> None:
    """Remove temporary files of `atomic`, and of safetensors, that killed processes have left in a folder.

    Args:
        folder: that no other process writes to, such as one that is locked.
        older: than so many seconds, where others may.
        stem: with which the names of the files begin that they would have become.
    """
    for file in folder.glob(f".{stem}*"):
        with contextlib.suppress(OSError):
            if TEMPORARY.fullmatch(file.name) and file.lstat().st_mtime <= time.time() - older:
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
    """A picture of at most LARGEST pixels per side, in the same proportions."""
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
    """Write a safetensors file atomically; returns the SHA-256 of its tensors.

    That is in the metadata, under TENSORS, and the SHA-256 of all the metadata is, too. Earlier versions
    wrote the digest of the tensors under SHA256, and none of the metadata.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = tensor_digest(contiguous)
    texts = {**metadata, LAYOUT: NEWEST_LAYOUT, TENSORS: digest}
    with atomic(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={**texts, SHA256: _metadata_digest(texts)})
        except SafetensorError as error:
            raise _as_os_error(error, path) from error
    return digest


def _metadata_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256 over all metadata but itself."""
    texts = {name: text for name, text in metadata.items() if name != SHA256}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def recorded_digest(metadata: Mapping[str, str]) -> str | None:
    """The SHA-256 of the tensors by a file's metadata; None where it has none."""
    return metadata.get(TENSORS, metadata.get(SHA256))


def _as_os_error(error: Exception, path: Path) -> Exception:
    """The disk's error in safetensors' own, which hides its number in its text."""
    if (match := re.search(r"os error (\d+)", str(error))) is None:
        return error
    number = int(match.group(1))
    return OSError(number, os.strerror(number), str(path))


def read_tensors(
    path: Path, *, verify: bool = True, outside: bool = False
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read a safetensors file: (tensors, metadata). The tensors are memory-mapped; `outside` as in `opened`.

    Raises:
        UserError: the file is missing or cannot be read, is no safetensors file, or its tensors or metadata
            differ from their digest.
    """
    from safetensors import SafetensorError, safe_open

    _, metadata = read_header(path, outside=outside)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # safetensors' own errors, those for a type that this torch lacks, and those of reading the disk
    except (SafetensorError, ValueError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise _damaged(path, error) from error
    if verify and tensor_digest(tensors) != recorded_digest(metadata):
        raise UserError(f"{path} is damaged: its tensors do not match their SHA-256; restore it", FAILED_RUN)
    return tensors, metadata


def read_header(path: Path, *, outside: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """The header of a safetensors file without its tensors, and without torch; `outside` as in `opened`.

    Returns:
        The tensors' entries ("dtype", "shape", "data_offsets") by name, and the metadata.

    Raises:
        UserError: the file is missing or cannot be read, is no safetensors file, is not as long as its header
            says, or its metadata differ from their digest.
    """
    with opened(path, outside=outside) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(size, LARGEST_TEXT) else b""
    try:
        if len(text) != length:
            raise ValueError(f"a header of {length} bytes")
        entries = dict(parse_json(text))
        metadata = dict(entries.pop("__metadata__", {}))
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are no texts")
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes instead of {8 + length + end}")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _damaged(path, error) from error
    layout = metadata.get(LAYOUT, NEWEST_LAYOUT)
    if layout.isdecimal() and len(layout) < 10 and int(layout) > int(NEWEST_LAYOUT):
        raise UserError(f"{path}: a newer version wrote it, or it is damaged; update genssl", FAILED_RUN)
    if TENSORS in metadata and metadata.get(SHA256) != _metadata_digest(metadata):
        raise UserError(f"{path} is damaged: its metadata do not match their SHA-256; restore it", FAILED_RUN)
    return entries, metadata


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or no safetensors file ({error!s:.200}); restore it", FAILED_RUN)


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


@contextlib.contextmanager
def opened(path: Path, *, outside: bool = False) -> Iterator[BinaryIO]:
    """A file opened for reading, if it is one: a pipe or a device would be read for ever.

    Args:
        path: of the file.
        outside: follow a link that leads out of a run's folder, within `run_info.discreet`.

    Raises:
        UserError: it is missing, cannot be read, is no regular file, or a link that leads out of its folder.
    """
    if not outside:
        refuse_outside(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file; remove it", FAILED_RUN)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); check it", FAILED_RUN) from error


def read_bytes(path: Path, most: int = LARGEST_PICTURE, *, outside: bool = False) -> bytes:
    """Read a file of at most so many bytes; `outside` as in `opened`.

    Raises:
        UserError: it is larger, or as in `opened`.
    """
    with opened(path, outside=outside) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} is larger than {most / 2**20:,.0f} MiB; remove it", FAILED_RUN)
    return content


def read_picture(path: Path) -> "Image":
    """Read a PNG picture, in colors.

    Raises:
        UserError: it is none, it is too large, or as in `opened`.
    """
    from PIL import Image

    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except Exception as error:  # Pillow raises nearly every type there is
        raise UserError(f"{path} is no picture that can be read; remove it", FAILED_RUN) from error


def read_text(path: Path, *, outside: bool = False) -> str:
    """Read a UTF-8 text file; `outside` as in `opened`.

    Raises:
        UserError: the file is missing or cannot be read, or is no text.
    """
    try:
        return read_bytes(path, LARGEST_TEXT, outside=outside).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is no text ({error}); restore or remove it") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); restore or remove it") from error


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: it does not, or as in `read_json`.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore or remove it")
    return value


def read_records(path: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line.

    Args:
        path: of the file.
        problems: with these, lines that hold none are left out, and named here.

    Raises:
        UserError: the file is missing or cannot be read, or a line holds no object.
    """
    records = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif problems is None:
            raise UserError(f"{path}, line {number}, is no record; restore it, or remove the line")
        elif line.strip():
            problems.append(f"{path}, line {number}, is no record")
    return records


NO_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}  # of file systems that know no such thing


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

    @property
    def is_held(self) -> bool:
        """Whether this is the folder's lock, and no file system without locks."""
        return self._lock.is_locked

    def release(self) -> None:
        """Let other processes lock the folder."""
        if not self.is_held:
            return
        # Before the lock is released: filelock does not lock a removed file. On Windows it removes it itself
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()
