"""What is measured and drawn while a method trains, the same for every method."""

import torch
from torch import Tensor

from genssl.data.augment import Views
from genssl.data.batches import chunks
from genssl.data.split import Split
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import generator, generators, measuring
from genssl.settings import Config

TEST_IMAGES = 1024  # how many test images a test loss is the mean of
PICTURES = 32  # how many images a preview shows


class Watch:
    """Looks at a method between epochs, always with the same test images and the same noise.

    Args:
        views: the method's training views.
        test: the test split, on the device; None when there is none.
        config: the run's settings.
    """

    def __init__(self, views: Views, test: Split | None, config: Config) -> None:
        self.views, self.config = views, config
        self.test = None if test is None else test.take(TEST_IMAGES, config.seed)

    def due(self, epoch: int) -> bool:
        """Whether pictures are drawn after one-based `epoch`: every `sample_every`, and the last."""
        every = self.config.sample_every
        return every > 0 and (epoch % every == 0 or epoch == self.config.epochs)

    @measuring()
    def measure(self, method: Method) -> dict[str, float]:
        """The losses on test images, as test_<name>."""
        if self.test is None:
            return {}
        method.eval()
        totals: dict[str, Tensor] = {}
        for number, rows in enumerate(chunks(len(self.test), self.config.batch_size)):
            images = self.test.images[rows]
            for name, value in self._losses(method, images, number).items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value * len(images)
        return {f"test_{name}": float(total) / len(self.test) for name, total in totals.items()}

    def _losses(self, method: Method, images: Tensor, number: int) -> dict[str, Tensor]:
        stream = generator(self.config.seed, "eval", number, device=images.device)
        views = self.views(images, self.views.draws(len(images), stream))
        return method.loss(views, method.draws(len(images), stream))

    @torch.no_grad()
    def draw(self, method: Method) -> dict[str, Tensor]:
        """The method's previews, each (M, 3, H, W) in the model's range."""
        if self.test is None:
            return {}
        method.eval()
        images = to_model(self.test.images[:PICTURES])
        return method.previews(images, generators(self.config.seed, "sample", range(len(images))))
