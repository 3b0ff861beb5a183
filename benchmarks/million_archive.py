"""An archive of a million rendered digits: `python -m benchmarks.million_archive PATH [COUNT]`.

Each block of images has a seed of its own, so that the memory of one block is all that this takes.
"""

import io
import sys
import tarfile
from pathlib import Path

import torch
from PIL import Image

from genssl.data.synthetic import render

BLOCK = 10_000
TRAIN = 1_000_000
TEST = 10_000


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def add_block(archive: tarfile.TarFile, part: str, block: int, count: int) -> None:
    """Render `count` images and append them as <part>/<digit>/<number>.png."""
    split = render.make("train" if part == "train" else "test", seed=1 + block, count=count)
    pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    assert split.labels is not None
    for row, (image, label) in enumerate(zip(pixels, split.labels.tolist(), strict=True)):
        picture = io.BytesIO()
        Image.fromarray(image).save(picture, "png", compress_level=1)
        add(archive, f"digits/{part}/{label}/{block * BLOCK + row:07d}.png", picture.getvalue())


def main() -> None:
    path, train = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else TRAIN
    torch.set_num_threads(1)
    with tarfile.open(path.with_suffix(".part"), "w") as archive:
        for part, total in (("test", min(TEST, train)), ("train", train)):
            for block in range(-(-total // BLOCK)):
                add_block(archive, part, block, min(BLOCK, total - block * BLOCK))
                print(f"{part}: {min((block + 1) * BLOCK, total):,} of {total:,}", flush=True)
    path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    main()
