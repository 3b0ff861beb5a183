"""The official files of SVHN and CIFAR-10: names, URLs and checksums, and copies that a user has of them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from genssl.data.cache import Progress
from genssl.errors import UserError

EXTRA = "svhn-extra"
ALTERNATIVES = "--data synthetic, or --data ARCHIVE with images of your own"


@dataclass(frozen=True)
class OfficialFile:
    """A file as torchvision fetches and checks it."""

    name: str
    url: str
    md5: str


def official_files(source: str) -> tuple[OfficialFile, ...]:
    """The files of both parts of "svhn", "svhn-extra" or "cifar10"."""
    from torchvision.datasets import CIFAR10, SVHN

    if source == "cifar10":
        return (OfficialFile(CIFAR10.filename, CIFAR10.url, CIFAR10.tgz_md5),)
    pieces = ("train", "extra", "test") if source == EXTRA else ("train", "test")
    return tuple(OfficialFile(name, url, md5) for url, name, md5 in map(SVHN.split_list.__getitem__, pieces))


def listing(source: str, folder: Path, damaged: str = "") -> str:
    """One line per official file: its URL, its MD5, and whether `folder` has it, apart from a damaged one."""
    lines = []
    for file in official_files(source):
        there = file.name != damaged and (folder / file.name).exists()
        lines.append(f"\n  {file.url}  MD5 {file.md5}" + ("  (already there)" if there else ""))
    return "".join(lines)


def check_copies(source: str, path: Path, progress: Progress | None = None) -> Path:
    """Compare the official files that a user has with their checksums; returns their folder.

    Args:
        source: as for `official_files`.
        path: one of the files, the others beside it, or the folder that contains them.
        progress: told which file is checked.

    Raises:
        UserError: a file is missing, or its MD5 is not the official one.
    """
    folder = path if path.is_dir() else path.parent
    files = official_files(source)
    missing = [file.name for file in files if not (folder / file.name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}; put all files of {source} in one folder, or use "
            f"{ALTERNATIVES}:{listing(source, folder)}"
        )
    for file in files:
        copy = folder / file.name
        if progress:
            progress(f"checking {file.name}", 0, None)
        status = copy.stat()
        md5 = _md5(copy.resolve(), status.st_size, status.st_mtime_ns)
        if md5 != file.md5:
            raise wrong_checksum(copy, md5, file)
    return folder


def wrong_checksum(copy: Path, md5: str, file: OfficialFile) -> UserError:
    """What to say of a copy whose MD5 is another one."""
    return UserError(
        f"{copy} is not the official file, or it is damaged: its MD5 is {md5} instead of {file.md5}; "
        f"download it again from {file.url}"
    )


@lru_cache(maxsize=16)
def _md5(path: Path, size: int, modified: int) -> str:
    """The MD5 of a file, computed once per process for a size and a time of change (ns)."""
    from torchvision.datasets.utils import calculate_md5

    return str(calculate_md5(path))
