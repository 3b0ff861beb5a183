"""What a user waits for before anything happens: `genssl --help`, and a full-size split from the cache."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROUNDS = 7
SVHN_TRAIN = 73_257


def help_seconds() -> list[float]:
    """Wall time of the whole process."""
    command = [str(Path(sys.executable).with_name("genssl")), "--help"]
    subprocess.run(command, check=True, capture_output=True)
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return found


CHILD = """
import time, torch
from genssl.data.loading import load
from genssl.runtime import order
from genssl.pixels import to_model
start = time.perf_counter()
split = load("svhn", "train")
batch = to_model(split.images[order(0, 0, len(split))[:64]])
print(time.perf_counter() - start, len(split))
"""


def cached_split_seconds() -> list[float]:
    """From the call of `load` to the first shuffled batch, in a new process with a cache of SVHN's size."""
    from genssl.data.cache import split_path, write_split
    from genssl.data.registry import key_of
    from genssl.data.split import Split

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENSSL_CACHE"] = folder
        images = torch.randint(0, 256, (SVHN_TRAIN, 3, 32, 32), dtype=torch.uint8)
        labels = torch.randint(0, 10, (SVHN_TRAIN,))
        split = Split(images, labels, tuple("0123456789"), "svhn", "train", "of the benchmark")
        write_split(split_path(key_of("svhn"), "train"), split)
        found = []
        for _ in range(ROUNDS):
            out = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True)
            seconds, count = out.stdout.split()
            assert int(count) == SVHN_TRAIN
            found.append(float(seconds))
        return found


def main() -> None:
    for what, found in (
        ("genssl --help", help_seconds()),
        (
            f"cached split of {SVHN_TRAIN:,} images to the first batch, imports left out",
            cached_split_seconds(),
        ),
    ):
        print(f"{what}: median {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f})")


if __name__ == "__main__":
    main()
