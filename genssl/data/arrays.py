"""Splits from .npz and .npy files: images in one array, labels in another; read row by row."""

import contextlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from genssl.data import cache
from genssl.data.cache import Arrays, LazyArray, Progress
from genssl.data.decode import Bytes, from_pixels
from genssl.data.fit import Fit
from genssl.data.image_folder import DataWarning, data_name
from genssl.data.layout import PARTS, natural
from genssl.data.registry import Shape, short_name
from genssl.data.split import Split
from genssl.errors import UserError

SUFFIXES = {".npz", ".npy"}
IMAGES = {"arr_0", "images", "image", "img", "x", "data", "samples"}
LABELS = {"arr_1", "labels", "label", "y", "targets", "target"}
CHANNELS = {1, 3, 4}
LFS = b"version https://git-lfs"  # the beginning of a file that Git LFS has not fetched


def is_array_file(path: Path) -> bool:
    """Whether this is a file that NumPy writes, by its name."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which the header alone has been read.

    Attributes:
        path: the file.
        name: of the array in a .npz; empty for a .npy.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def __str__(self) -> str:
        return f"{self.name or self.path.name} {self.shape} of {self.dtype}"

    def rows(self) -> Iterator[npt.NDArray[Any]]:
        """The entries along the first axis, with one of them in memory at a time."""
        with _damage(self.path), _opened(self.path, self.name) as file:
            _read_header(file)
            if self.fortran:
                whole = np.frombuffer(file.read(), self.dtype).reshape(self.shape, order="F")
                yield from whole
                return
            size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
            for _ in range(self.shape[0]):
                content = file.read(size)
                if len(content) < size:
                    raise EOFError("it ends too early")
                yield np.frombuffer(content, self.dtype).reshape(self.shape[1:])


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        if not name:
            yield stack.enter_context(path.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield stack.enter_context(archive.open(f"{name}.npy"))


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    # Of a header that is no Python, by numpy and its tokenizer, and of every kind of compression
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        text = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged, or no file of NumPy ({text}); restore it") from error


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in the place of a file.

    Raises:
        UserError: it is such a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path} is a pointer of Git LFS and not the file; run `git lfs pull` beside it")


def _stored(path: Path) -> list[Stored]:
    """The arrays of a file.

    Raises:
        UserError: the file is damaged, or one of them holds Python objects, which are pickled.
    """
    refuse_pointer(path)
    with _damage(path):
        names = [""]
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
        arrays = []
        for name in names:
            with _opened(path, name) as file:
                shape, fortran, dtype = _read_header(file)
            arrays.append(Stored(path, name, shape, dtype, fortran))
    for array in arrays:
        if array.dtype.hasobject:
            raise UserError(
                f"{array.name or 'the array'} in {path} holds Python objects, whose pickle could run code; "
                "save numbers, such as np.stack(images).astype('uint8')"
            )
    return arrays


def _by_part(path: Path, arrays: Sequence[Stored]) -> dict[str, dict[str, Stored]]:
    """Images and labels ("images", "labels") by part: of arr_0 and arr_1 "all", of x_train "train".

    Raises:
        UserError: no array can be the images, or several.
    """
    listed = ", ".join(map(str, arrays[:6])) or "nothing"
    parts: dict[str, dict[str, Stored]] = {}
    for array in arrays:
        words = array.name.lower().split("_")
        part = next((PARTS[word] for word in words if word in PARTS), "all")
        rest = "_".join(word for word in words if word not in PARTS)
        named = rest in IMAGES or (not rest and part != "all")
        kind = "images" if named else "labels" if rest in LABELS else ""
        if len(arrays) == 1:
            kind, part = "images", "all"
        if kind and kind in parts.setdefault(part, {}):
            raise UserError(
                f"{path} has several arrays that may be the {kind} ({listed}); save them as arr_0 and arr_1"
            )
        if kind:
            parts[part][kind] = array
    parts = {part: pair for part, pair in parts.items() if "images" in pair}
    if not parts:
        raise UserError(
            f"{path} holds {listed}, and none is called {', '.join(sorted(IMAGES))}, alone or with train and "
            "test; save images as arr_0 and their labels as arr_1: np.savez(path, images, labels)"
        )
    return parts


def _choose_parts(
    path: Path, parts: dict[str, dict[str, Stored]]
) -> tuple[dict[str, dict[str, Stored]], list[str]]:
    """Train and test, the validation part where there is no test; else a single part, which is all.

    Behind them notes on what is left out.
    """
    held_out = "test" if "test" in parts else "validation"
    if len(parts) == 1:
        return {"all": next(iter(parts.values()))}, []
    if not {"train", held_out} <= set(parts):
        raise UserError(
            f"{path} has images for {' and '.join(sorted(parts))}; give train and test, or one part"
        )
    unused = [str(pair["images"]) for part, pair in parts.items() if part not in {"train", held_out}]
    notes = [f"{', '.join(unused)} is left out: train and {held_out} are used"] if unused else []
    return {"train": parts["train"], "test": parts[held_out]}, notes


def _pixels(array: Stored) -> Callable[[npt.NDArray[Any]], Bytes]:
    """A function that turns a row of the images into uint8 (H, W) or (H, W, C).

    Channels may come first or last; where both could be meant they are last, unless only the last two axes
    are equal.

    Raises:
        UserError: the shape is that of no images, or the values have no certain scale.
    """
    shape, path = array.shape, array.path
    is_gray = len(shape) == 3 and shape[-1] not in {3, 4}
    if not is_gray and (len(shape) != 4 or not {shape[1], shape[3]} & CHANNELS):
        raise UserError(
            f"{array} in {path} has not the shape of images; give (N, H, W, C) or (N, C, H, W) with 1, 3 or "
            "4 channels, or (N, H, W)"
        )
    if 0 in shape:
        raise UserError(f"{array} in {path} holds no images; name another file")
    scale = _scale(array)
    first = not is_gray and shape[1] in CHANNELS
    if first and shape[3] in CHANNELS:
        first = shape[1] != shape[2] and shape[2] == shape[3]
    return lambda row: scale(row.transpose(1, 2, 0) if first else row)


def _scale(array: Stored) -> Callable[[npt.NDArray[Any]], Bytes]:
    """From the values of an array to bytes, where that is certain: whole numbers up to 255, or 0 to 1."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray
    if array.dtype == np.bool_:
        return lambda row: row.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise UserError(f"{array} in {array.path} is not of numbers; save images as uint8")
    low, high, whole = np.inf, -np.inf, True
    for row in array.rows():
        if not np.isfinite(row).all():
            raise UserError(
                f"{array} in {array.path} holds values that are not finite; save bytes from 0 to 255"
            )
        low, high = min(low, float(row.min())), max(high, float(row.max()))
        whole = whole and bool((row == np.rint(row)).all())
    if low >= 0 and high <= 255 and whole and (high > 1 or array.dtype.kind == "f"):
        return lambda row: (row if high > 1 else row * 255).astype(np.uint8)
    if low >= 0 and 0.5 < high <= 1 and array.dtype.kind == "f":
        return lambda row: np.rint(row * 255).astype(np.uint8)
    hint = "(x + 1) * 127.5" if -1 <= low < 0 and high <= 1 else "x"
    raise UserError(
        f"{array} in {array.path} goes from {low:g} to {high:g}, which may be any scale; save bytes from 0 "
        f"to 255, such as np.rint({hint}).clip(0, 255).astype('uint8')"
    )


def _label_values(array: Stored, n: int) -> npt.NDArray[Any]:
    """The labels (N,), whole numbers or text.

    Raises:
        UserError: there are fewer or more than images, or they are no labels.
    """
    labels = np.stack([*array.rows()]) if 0 not in array.shape else np.zeros(array.shape)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise UserError(f"{array} in {array.path} is not one label for each of {n:,} images; give ({n},)")
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "uiUSb" or (labels.dtype.kind == "i" and labels.min() < 0):
        raise UserError(f"{array} in {array.path} is no list of labels; give whole numbers from 0, or names")
    return labels


def number_labels(
    labels: Mapping[str, npt.NDArray[Any]],
) -> tuple[dict[str, npt.NDArray[np.int64]], tuple[str, ...]]:
    """Labels of any kind by part -> int64 (N,) by part, and the name of each class."""
    texts = {
        part: np.array(
            [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist()]
        )
        for part, values in labels.items()
    }
    classes = natural({name for values in texts.values() for name in values.tolist()})
    rank = {name: i for i, name in enumerate(classes)}
    return {
        part: np.array([rank[name] for name in values.tolist()], np.int64) for part, values in texts.items()
    }, classes


def read(
    path: Path,
    image_size: int,
    skip_bad: bool,
    progress: Progress | None = None,
    key: str = "",
    fit: Shape = "crop",
) -> dict[str, Split]:
    """Read a .npz or .npy file: "train" and "test", or "all"; arguments as those of `image_folder.read`.

    Raises:
        UserError: the file is damaged or holds no images, the values have no certain scale, labels and images
            do not fit each other, or there are Python objects.
    """
    squares = Fit(image_size, fit)
    parts, notes = _choose_parts(path, _by_part(path, _stored(path)))
    labels = {
        part: _label_values(pair["labels"], pair["images"].shape[0])
        for part, pair in parts.items()
        if "labels" in pair
    }
    numbers, classes = number_labels(labels)
    images = {
        part: _squares(pair["images"], squares, f"reading {path.name}", progress)
        for part, pair in parts.items()
    }
    return store(key, path, images, numbers, classes, squares, notes)


def _squares(array: Stored, fit: Fit, what: str, progress: Progress | None) -> LazyArray:
    pixels = _pixels(array)
    return in_turn(
        lambda: (from_pixels(pixels(row), fit) for row in array.rows()), array.shape[0], fit, what, progress
    )


def in_turn(
    rows: Callable[[], Iterator[Bytes]], n: int, fit: Fit, what: str, progress: Progress | None
) -> LazyArray:
    """Images (N, 3, H, W) that `rows` gives one by one, (H, W, 3); each pass starts with the first."""
    present: Iterator[Bytes] = iter(())

    def read(piece: slice) -> npt.NDArray[np.uint8]:
        nonlocal present
        if piece.start == 0:
            present = rows()
            fit.images = fit.cropped = 0
        if progress:
            progress(what, piece.stop, n)
        squares = np.stack([next(present).transpose(2, 0, 1) for _ in range(piece.start, piece.stop)])
        if piece.stop == n:
            next(present, None)  # closes the file
        return squares

    return LazyArray((n, 3, fit.size, fit.size), "uint8", read)


def store(
    key: str,
    path: Path | str,
    images: Mapping[str, LazyArray],
    labels: Mapping[str, npt.NDArray[np.int64]],
    classes: tuple[str, ...],
    fit: Fit,
    notes: Sequence[str],
) -> dict[str, Split]:
    """Write each part to the cache, or to memory without a key, with notes on what is left out.

    They are warnings, too, with another where cropping leaves much out.
    """
    name = data_name(path) if isinstance(path, Path) else short_name(path)
    source = str(path.resolve()) if isinstance(path, Path) else path
    splits, total, cropped = {}, 0, 0
    for part, rows in images.items():
        arrays: Arrays = {"images": rows} | ({"labels": labels[part]} if part in labels else {})
        splits[part] = cache.store(
            key, part, arrays, classes, name, source=source, notes=lambda: [*_cropped(fit), *notes]
        )
        total, cropped = total + fit.images, cropped + fit.cropped
    fit.images, fit.cropped = total, cropped
    for note in [*_cropped(fit), *notes]:
        warnings.warn(f"{source}: {note}", DataWarning, stacklevel=3)
    return splits


def _cropped(fit: Fit) -> list[str]:
    """The note on what cropping has left out, if it is much."""
    notice = fit.notice()
    return [] if notice is None else [notice]
