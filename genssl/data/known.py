"""What --data may be called: data sets that are known by a name, paths, and remixes of both."""

from pathlib import Path

KNOWN = {  # what each is, and how many images, train and test together
    "svhn": ("house numbers photographed from the street (SVHN, cropped digits)", 73_257 + 26_032),
    "svhn-extra": ("SVHN with its extra training digits, which are easier", 73_257 + 531_131 + 26_032),
    "cifar10": ("animals and vehicles in ten classes (CIFAR-10)", 60_000),
    "synthetic": ("rendered digits with exact masks; needs no network", 24_000),
}
SUFFIX = "-remix"
EXTRA_FILE = "extra_32x32.mat"
OFFICIAL = {  # the names of the official files
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "cifar10": ("cifar-10-python.tar.gz",),
}


def is_remix(data: str) -> bool:
    """Whether this means the remix of something else, and not a path that happens to end so."""
    source = data.removesuffix(SUFFIX)
    if source in {"", data}:
        return False
    return source in KNOWN or not Path(data).expanduser().exists()


def remixed_name(data: str) -> str:
    """What --data takes for the remix of `data`; a remix stays what it is."""
    return data if is_remix(data) else (data.rstrip("/") or data) + SUFFIX


def source_of(data: str) -> str:
    """What a remix is the remix of; anything else is itself."""
    return data.removesuffix(SUFFIX) if is_remix(data) else data


def official_sources(path: Path) -> list[str]:
    """The data sets whose official files are at `path`: a file, or a folder that contains such files.

    The extra digits of SVHN are used only where their file itself is named.
    """
    if path.is_dir():
        return [name for name, files in OFFICIAL.items() if any((path / file).is_file() for file in files)]
    if path.name == EXTRA_FILE:
        return ["svhn-extra"]
    return [name for name, files in OFFICIAL.items() if path.name in files]


def short_name(data: str) -> str:
    """What to call data in a run's name: of a path its last name without suffixes, with that of a remix.

    Official files are called after their data set.
    """
    source = source_of(data)
    if source in KNOWN:
        return data
    path = Path(source).expanduser()
    official = official_sources(path)
    name = official[0] if len(official) == 1 else path.name.split(".")[0] or path.resolve().name
    return name + SUFFIX if source != data else name
