"""Two views of each image on one core: lightly's SimSiamTransform, image by image, against genssl's batches.

Crop, flip, color jitter (.4, .4, .4, .1) and grayscale, without blur, on both sides. lightly's starts from
PIL images that stand ready; what both leave behind is two float batches.
"""

import time
from collections.abc import Callable

import torch
from lightly.transforms import SimSiamTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.table import print_head, print_rates, versions
from benchmarks.timing import in_turn
from genssl.config import SimSiamConfig
from genssl.data.augment.views import choose_views
from genssl.data.synthetic import render
from genssl.runtime import cpu_name, generator

IMAGES = 2560  # in one measurement
BATCHES = (32, 128)
ROUNDS = 9


def their_transform() -> SimSiamTransform:
    """lightly's views as SimSiam's paper has them on CIFAR-10: no blur."""
    jitter = {"cj_strength": 1.0, "cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.4, "cj_hue": 0.1}
    return SimSiamTransform(input_size=32, gaussian_blur=0.0, **jitter)


def pictures(images: Tensor) -> list[Image.Image]:
    """uint8 (N, 3, H, W) -> PIL images."""
    return [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).contiguous().numpy()]


def their_side(images: Tensor, batch: int) -> Callable[[], float]:
    """Images a second through lightly's transform, each time it is called."""
    transform, ready = their_transform(), pictures(images)

    def measure() -> float:
        start = time.perf_counter()
        for first in range(0, len(ready), batch):
            one, two = default_collate([transform(image) for image in ready[first : first + batch]])
        elapsed = time.perf_counter() - start
        assert one.shape == two.shape == (batch, 3, 32, 32)
        return len(ready) / elapsed

    return measure


def our_side(images: Tensor, batch: int) -> Callable[[], float]:
    """Images a second through genssl's views, random numbers included, each time it is called."""
    views = choose_views(SimSiamConfig(flip="on"))

    def measure() -> float:
        start = time.perf_counter()
        for number, part in enumerate(images.split(batch)):
            one, two = views(part, views.draws(len(part), generator(0, "views", number)))
        elapsed = time.perf_counter() - start
        assert one.shape == two.shape == (batch, 3, 32, 32)
        return len(images) / elapsed

    return measure


def main() -> None:
    images = render.make("train", count=IMAGES).images
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        print(f"{cpu_name()}, 1 thread; {versions('torch', 'torchvision', 'lightly', 'pillow')}")
        print(f"{IMAGES} images a measurement, {ROUNDS} rounds in turn; images/s, two views each")
        print_head("two views", "lightly")
        for batch in BATCHES:
            pair = in_turn(their_side(images, batch), our_side(images, batch), ROUNDS)
            print_rates(f"batch {batch}", pair)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
