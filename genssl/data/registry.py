"""What --data may be called: known data sources, paths, and remixes of both; and what is cached. No torch."""

import difflib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genssl.data import cache
from genssl.data.cache import Progress
from genssl.errors import UserError
from genssl.files import expand_home

if TYPE_CHECKING:
    from genssl.data.cache import Arrays

Part = Literal["train", "test"]
Shape = Literal["crop", "pad", "stretch"]  # how images that are not square become so
PARTS: tuple[Part, ...] = ("train", "test")
Read = Callable[[Part, int, Path | None, Progress | None], "tuple[Arrays, tuple[str, ...]]"]

REMIX_SUFFIX = "-remix"
HUB = "hf:"  # before the name of a data set of the Hugging Face hub
NATIVE_SIZE = 32
SYNTHETIC_VERSION = 1  # to be raised when the renderer draws other pixels


@dataclass(frozen=True)
class DataSource:
    """A data set that is known by a name.

    Attributes:
        name: what --data takes.
        read: called with a part, an image size, a user's folder of official files (None: they are downloaded)
            and a progress callback; returns images, labels and masks if any, and the class names. It imports
            what it needs when it is called.
        native_size: pixels per side that `read` gives, and others are made from; None: `read` gives any.
        flips: whether a mirrored image keeps its class.
        about: one line on it.
        images: how many, train and test together.
        files: names of the official files by which a user's copy is recognized.
        version: part of the cache key.
        channels: of the images that `read` gives; 1 where all of them are gray.
    """

    name: str
    read: Read
    native_size: int | None
    flips: bool
    about: str
    images: int
    files: tuple[str, ...] = ()
    version: str = ""
    channels: int = 3


def _read_official(
    name: str, part: Part, image_size: int, folder: Path | None, progress: Progress | None
) -> "tuple[Arrays, tuple[str, ...]]":
    from genssl.data import torchvision_sets

    downloads = cache.cache_folder() / "downloads"
    return torchvision_sets.read_official(name, part, folder or downloads, progress, download=folder is None)


def _render(
    part: Part, image_size: int, folder: Path | None, progress: Progress | None
) -> "tuple[Arrays, tuple[str, ...]]":
    from genssl.data.synthetic import render

    report = None if progress is None else partial(progress, "rendering digits")
    # One data set for everybody, whatever the seed of a run
    split = render.make(part, 0, image_size, progress=report)
    assert split.labels is not None
    assert split.masks is not None
    arrays = {"images": split.images.numpy(), "labels": split.labels.numpy(), "masks": split.masks.numpy()}
    return arrays, split.classes


SOURCES = {
    source.name: source
    for source in (
        DataSource(
            "svhn", partial(_read_official, "svhn"), NATIVE_SIZE, flips=False, images=73_257 + 26_032,
            about="house numbers photographed from the street (SVHN, cropped digits)",
            files=("train_32x32.mat", "test_32x32.mat"),
        ),
        DataSource(
            "svhn-extra", partial(_read_official, "svhn-extra"), NATIVE_SIZE, flips=False,
            about="SVHN with its extra training digits, which are easier",
            images=73_257 + 531_131 + 26_032, files=("extra_32x32.mat",),
        ),
        DataSource(
            "cifar10", partial(_read_official, "cifar10"), NATIVE_SIZE, flips=True, images=60_000,
            about="animals and vehicles in ten classes (CIFAR-10)", files=("cifar-10-python.tar.gz",),
        ),
        DataSource(
            "synthetic", _render, None, flips=False, images=24_000,
            about="rendered digits with exact masks; needs no network", version=f"-v{SYNTHETIC_VERSION}",
        ),
    )
}  # fmt: skip


def key_of(name: str, image_size: int = NATIVE_SIZE) -> str:
    """The cache key of a known data set."""
    return f"{name}{SOURCES[name].version}-{image_size}"


def allows_flips(data: str, classes: tuple[str, ...]) -> bool:
    """Whether mirrored images keep their class: as the source says, else unless they are digits or letters.

    Classes are digits or letters where all of their names are numbers or single letters.
    """
    if source := SOURCES.get(base_name(data)):
        return source.flips
    return not classes or not all(name.isdigit() or len(name) == 1 for name in classes)


def describe_flips(data: str, classes: tuple[str, ...], setting: str) -> str:
    """A line on whether images are mirrored, and why; "" where a known data set decides that."""
    if setting != "auto":
        return f"flips are {setting}, as set"
    if base_name(data) in SOURCES:
        return ""
    if not allows_flips(data, classes):
        return (
            "flips are off, since the classes are named as digits or letters, which mirrored are others; "
            "--set flip=on turns them on"
        )
    why = "the classes are not named as digits or letters" if classes else "there are no classes to judge by"
    return f"flips are on, since {why}; --set flip=off turns them off, as for images of text"


def is_hub(data: str) -> bool:
    """Whether this names a data set of the Hugging Face hub."""
    return data.startswith(HUB)


def hub_name(data: str) -> tuple[str, str | None]:
    """`hf:OWNER/NAME[/CONFIG]` -> ("OWNER/NAME", CONFIG or None).

    Raises:
        UserError: it is not written so.
    """
    match = re.fullmatch(HUB + r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?", data)
    if match is None:
        raise UserError(f"cannot read {data!r}; write {HUB}OWNER/NAME, or {HUB}OWNER/NAME/CONFIG")
    return match[1], match[2]


def hub_key(data: str, *options: object) -> str:
    """The cache key of a data set of the hub.

    Examples:
        >>> hub_key("hf:owner/cifar-100", 32) == hub_key("hf:owner/cifar/100", 32)
        False
    """
    hub_name(data)
    # OWNER, NAME and CONFIG may have dashes of their own
    exact = hashlib.sha256(data.encode()).hexdigest()[:8]
    return "-".join(["hf", *data.removeprefix(HUB).split("/"), exact, *map(str, options)])


def path_of(data: str) -> Path:
    """The folder or file that `data` names.

    Raises:
        UserError: there is none.
    """
    if not data.strip():
        raise UserError(f"an empty name is no data set; {_choices()}")
    path = expand_home(data)
    if path.exists():
        return path
    if os.sep in data or path.suffix:
        raise UserError(f"no such file or folder: {data}; {_choices()}")
    raise UserError(_unknown(data, "is no known data set and no path"))


def require(data: str) -> None:
    """Refuse data that are neither known nor there; their content is not looked at.

    Raises:
        UserError: no data set and no path has this name.
    """
    if is_remix(data):
        require(base_name(data))
    elif is_hub(data):
        hub_name(data)
    elif data not in SOURCES:
        path_of(data)


def absolute(data: str) -> str | None:
    """Data that are named by a relative path, by their absolute one; None for all others."""
    base = base_name(data)
    path = expand_home(base)
    if base in SOURCES or is_hub(base) or path.is_absolute():
        return None
    return str(path.absolute()) + data[len(base) :]


def locate(data: str, recorded: str | None) -> str:
    """Where to find the data of a run: `data`, or what `absolute` gave for them when it was trained.

    The recorded path goes before a relative one that means something else in the current folder.
    """
    if recorded is None or absolute(data) == recorded or not Path(base_name(recorded)).exists():
        return data
    return recorded


def _unknown(name: str, problem: str) -> str:
    close = difflib.get_close_matches(
        name.lower(), [*SOURCES, *(known + REMIX_SUFFIX for known in SOURCES)], n=1
    )
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name!r} {problem}; {hint}{_choices()}"


def _choices() -> str:
    return f"use {', '.join(SOURCES)}, a path, or {HUB}OWNER/NAME, each with or without {REMIX_SUFFIX}"


def is_remix(data: str) -> bool:
    """Whether this means the remix of something else, and not a path that happens to end so."""
    source = data.removesuffix(REMIX_SUFFIX)
    if source in {"", data}:
        return False
    return source in SOURCES or not os.path.exists(os.path.expanduser(data))


def remix_name(data: str) -> str:
    """What --data takes for the remix of `data`; a remix stays what it is."""
    return data if is_remix(data) else (data.rstrip("/") or data) + REMIX_SUFFIX


def base_name(data: str) -> str:
    """What a remix is the remix of; anything else is itself."""
    return data.removesuffix(REMIX_SUFFIX) if is_remix(data) else data


def official_sources(path: Path) -> list[str]:
    """The data sets whose official files are at `path`: a file, or a folder that contains such files.

    The extra digits of SVHN are used only where their file itself is named.
    """
    # os.path, since pathlib raises where a folder may not be looked into
    if not os.path.isdir(path):
        return [name for name, source in SOURCES.items() if path.name in source.files]
    present = [
        name for name, source in SOURCES.items() if any(os.path.isfile(path / file) for file in source.files)
    ]
    return [name for name in present if name != "svhn-extra"]


def short_name(data: str) -> str:
    """What to call data in a run's name: of a path its last name without suffixes, with that of a remix.

    Official files are called after their data set.
    """
    source = base_name(data)
    if source in SOURCES:
        return data
    if is_hub(source):
        return data.partition("/")[2].replace("/", "-")
    path = Path(os.path.expanduser(source))
    official = official_sources(path)
    name = official[0] if len(official) == 1 else path.name.split(".")[0] or path.resolve().name
    return name + REMIX_SUFFIX if source != data else name


@dataclass(frozen=True)
class Entry:
    """A data set in the list of those that are known or cached.

    Attributes:
        name: what --data takes, or the path that was read.
        what: one line on it.
        cached: whether all of it is in the cache.
        images: how many, train and test together.
        size: bytes in the cache.
    """

    name: str
    what: str
    cached: bool
    images: int
    size: int


def catalog() -> list[Entry]:
    """Every known data set, then every path in the cache; read from the headers of the entries."""
    return [_known_entry(source) for source in SOURCES.values()] + _path_entries()


def _known_entry(source: DataSource) -> Entry:
    folders = [cache.split_path(key_of(source.name), part) for part in PARTS]
    headers = [header for folder in folders if (header := cache.describe(folder))]
    cached = len(headers) == len(PARTS)
    images = sum(shape[0] for shape, _ in headers) if cached else source.images
    return Entry(source.name, source.about, cached, images, sum(map(cache.entry_bytes, folders)))


def _path_entries() -> list[Entry]:
    entries: dict[str, Entry] = {}
    for folder in sorted(chain(*(cache.cache_folder().glob(kind) for kind in ("path-*", "hf-*")))):
        header = cache.describe(folder)
        if header is None:
            continue
        (n, _, _, width), source = header
        key = folder.name.rpartition("-")[0]
        what = f"images of {width} x {width} pixels from {'the hub' if is_hub(source) else 'a path'}"
        entry = entries.get(key, Entry(source, what, True, 0, 0))
        size = entry.size + cache.entry_bytes(folder)
        entries[key] = replace(entry, images=entry.images + n, size=size)
    return list(entries.values())


ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name, or a .zip or .tar by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(512)
    return path.name.lower().endswith(ARCHIVES) or head[:4] == b"PK\3\4" or head[257:262] == b"ustar"
