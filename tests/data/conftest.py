"""Small images, trees and archives, and a cache that is empty at the start of every test."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "the-cache"
    monkeypatch.setenv("GENSSL_CACHE", str(folder))
    return folder


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """The content of an image file of noise: picture(seed, size=(32, 32), kind="PNG")."""

    def make(seed: int = 0, size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture
def tree(picture: Callable[..., bytes]) -> dict[str, bytes]:
    """Names and contents of svhn/{train,test}/{2,10}/*.png, with files that are none of it."""
    names = [
        f"svhn/{part}/{digit}/{i}.png" for part in ("train", "test") for digit in (10, 2) for i in (0, 1)
    ]
    images = {name: picture(seed) for seed, name in enumerate(names)}
    noise = {
        "svhn/train/2/.hidden.png": b"x",
        "__MACOSX/svhn/train/2/._0.png": b"x",
        "svhn/README.md": b"x",
        "svhn/train/.thumbs/0.png": b"x",
    }
    return images | noise


@pytest.fixture
def put() -> Callable[[Path, dict[str, bytes]], Path]:
    """Write names and contents as what the suffix says: a folder, .tar, .tar.gz, .tgz or .zip."""

    def write(path: Path, files: dict[str, bytes]) -> Path:
        if path.name.endswith((".tar", ".tar.gz", ".tgz")):
            _write_tar(path, files)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            for name, content in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
        return path

    return write


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
