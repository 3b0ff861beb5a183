"""What --data may be called: data sets that are known by a name, paths, and remixes of both. No torch."""

import difflib
import os
from pathlib import Path

from genssl.errors import UserError

SOURCES = {  # what each is, and how many images, train and test together
    "svhn": ("house numbers photographed from the street (SVHN, cropped digits)", 73_257 + 26_032),
    "svhn-extra": ("SVHN with its extra training digits, which are easier", 73_257 + 531_131 + 26_032),
    "cifar10": ("animals and vehicles in ten classes (CIFAR-10)", 60_000),
    "synthetic": ("rendered digits with exact masks; needs no network", 24_000),
}
REMIX_SUFFIX = "-remix"
EXTRA_FILE = "extra_32x32.mat"
OFFICIAL = {  # the names of the official files
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "cifar10": ("cifar-10-python.tar.gz",),
}
NATIVE_SIZE = 32
SYNTHETIC_VERSION = 1  # to be raised when the renderer draws other pixels


def key_of(name: str, image_size: int = NATIVE_SIZE) -> str:
    """The cache key of a known data set."""
    version = f"-v{SYNTHETIC_VERSION}" if name == "synthetic" else ""
    return f"{name}{version}-{image_size}"


def path_of(data: str) -> Path:
    """The folder or archive that `data` names.

    Raises:
        UserError: there is none.
    """
    if not data.strip():
        raise UserError(f"an empty name is no data set; {_choices()}")
    path = Path(data).expanduser()
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
    elif data not in SOURCES:
        path_of(data)


def _unknown(name: str, problem: str) -> str:
    close = difflib.get_close_matches(
        name.lower(), [*SOURCES, *(known + REMIX_SUFFIX for known in SOURCES)], n=1
    )
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name!r} {problem}; {hint}{_choices()}"


def _choices() -> str:
    return f"use {', '.join(SOURCES)}, or a path, each with or without {REMIX_SUFFIX}"


def is_remix(data: str) -> bool:
    """Whether this means the remix of something else, and not a path that happens to end so."""
    source = data.removesuffix(REMIX_SUFFIX)
    if source in {"", data}:
        return False
    return source in SOURCES or not Path(data).expanduser().exists()


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
    if os.path.isdir(path):
        return [
            name for name, files in OFFICIAL.items() if any(os.path.isfile(path / file) for file in files)
        ]
    if path.name == EXTRA_FILE:
        return ["svhn-extra"]
    return [name for name, files in OFFICIAL.items() if path.name in files]


def short_name(data: str) -> str:
    """What to call data in a run's name: of a path its last name without suffixes, with that of a remix.

    Official files are called after their data set.
    """
    source = base_name(data)
    if source in SOURCES:
        return data
    path = Path(os.path.expanduser(source))
    official = official_sources(path)
    name = official[0] if len(official) == 1 else path.name.split(".")[0] or path.resolve().name
    return name + REMIX_SUFFIX if source != data else name
