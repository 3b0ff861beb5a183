"""What is measured and drawn while a method trains, the same for every method."""

from typing import Any, cast

import torch
from torch import Tensor

from genssl import processes
from genssl.data.augment import Views
from genssl.data.batches import chunks
from genssl.data.split import Split
from genssl.metrics.collapse import output_std, rankme
from genssl.metrics.features import Function, extract, extract_together
from genssl.metrics.knn import knn_predict
from genssl.metrics.sharpness import SHARPNESS, mean_sharpness
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import generator, generators, measuring
from genssl.settings import Config

TEST_IMAGES = 1024  # how many test images a test loss is the mean of
PICTURES = 32  # how many images a preview shows
NEIGHBOURS = 200  # of the nearest-neighbour accuracy, with these many images for a quick look
BANK = 10_000
SHARPNESS_IMAGES = 1024
QUERIES = 2_000
CHUNK = 256  # images at a time
# Collapsed: an output std below this (1 is healthy, 0 is the same output for every image), or an effective
# rank below this: a batch norm at the end forbids one and the same output, but not one direction
COLLAPSED = 0.1
COLLAPSED_RANK = 2.0
SETTLED = 50  # steps before which no verdict is given: running statistics still hold what they began with


class Watch:
    """Looks at a method between epochs, always with the same test images and the same noise.

    Args:
        views: the method's training views.
        train: the train split.
        test: the test split; None when there is none.
        config: the run's settings.
        device: where the method is; that of the train split when None.
    """

    def __init__(
        self,
        views: Views,
        train: Split,
        test: Split | None,
        config: Config,
        device: torch.device | None = None,
    ) -> None:
        self.views, self.config = views, config
        self.device = device or train.images.device
        self.test = None if test is None else test.take(TEST_IMAGES, config.seed).to(self.device)
        self.train, self.all_tests = train, test

    def pictures_due(self, epoch: int, *, last: bool) -> bool:
        """Whether pictures are drawn after one-based `epoch`: every `sample_every`, and the last."""
        return self._due(self.config.sample_every, epoch, last)

    def _due(self, every: int, epoch: int, last: bool) -> bool:
        return every > 0 and (epoch % every == 0 or epoch == self.config.epochs or last)

    def observe(self, method: Method, epoch: int, *, steps: int, last: bool) -> dict[str, Any]:
        """What the history keeps of one-based `epoch`: test losses, collapse, neighbours, each when due.

        Of several processes all take part in finding neighbours; the rest is found by the first alone.

        Args:
            method: the one to look at.
            epoch: one-based.
            steps: how many steps the run has taken.
            last: whether the run ends here, before its time.
        """
        found: dict[str, Any] = {}
        if processes.leads():
            found |= self.measure(method) if self._due(self.config.sample_every, epoch, last) else {}
            found |= self.collapse(method, steps)
        if not self._due(self.config.knn_every, epoch, last):
            return found
        processes.agree(0)  # on the host: where the first process has failed, no device is to wait for it
        return found | self.neighbours(method)

    @measuring()
    def measure(self, method: Method) -> dict[str, float]:
        """The losses on test images, as test_<name>."""
        if self.test is None:
            return {}
        method.eval()
        totals: dict[str, Tensor] = {}
        size = min(self.config.batch_size, len(self.test))
        whole = len(self.test) - len(self.test) % size  # some losses mean nothing for a few images
        for number, rows in enumerate(chunks(whole, size)):
            images = self.test.images[rows]
            for name, value in self._losses(method, images, number).items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value * len(images)
        return {f"test_{name}": float(total) / whole for name, total in totals.items()}

    def _losses(self, method: Method, images: Tensor, number: int) -> dict[str, Tensor]:
        stream = generator(self.config.seed, "eval", number, device=images.device)
        views = self.views(images, self.views.draws(len(images), stream))
        return method.loss(views, method.draws(len(images), stream))

    @measuring()
    def collapse(self, method: Method, steps: int) -> dict[str, Any]:
        """output_std and rankme of the outputs for test images, and whether they have collapsed."""
        if self.test is None:
            return {}
        method.eval()
        if method.outputs(to_model(self.test.images[:1])) is None:
            return {}
        found = extract(cast(Function, method.outputs), self.test.images, CHUNK)
        spread = output_std(found)
        rank = rankme(found)
        flat = spread < COLLAPSED or rank < min(COLLAPSED_RANK, found.shape[1] / 4)
        return {"output_std": spread, "rankme": rank, "collapsed": flat and steps >= SETTLED}

    @measuring()
    def neighbours(self, method: Method) -> dict[str, float]:
        """knn_accuracy: of the features of up to 2,000 test images against 10,000 training images."""
        if self.all_tests is None:
            return {}
        train, test = self.train.take(BANK, self.config.seed), self.all_tests.take(QUERIES, self.config.seed)
        if train.labels is None or test.labels is None:
            return {}
        method.eval()
        bank, queries = (self._features(method, split.images) for split in (train, test))
        bank_labels, labels = train.labels.to(self.device), test.labels.to(self.device)
        predicted = knn_predict(bank, bank_labels, queries, len(train.classes), min(NEIGHBOURS, len(bank)))
        return {"knn_accuracy": float((predicted == labels).float().mean())}

    def about_data(self, method: Method) -> dict[str, float]:
        """train_sharpness: of up to 1,024 training images, where the method draws images to compare."""
        if not hasattr(method, "sample"):
            return {}
        return {SHARPNESS: mean_sharpness(self.train.take(SHARPNESS_IMAGES, self.config.seed).images)}

    def _features(self, method: Method, images: Tensor) -> Tensor:
        return extract_together(method.features, images, CHUNK, device=self.device)

    @torch.no_grad()
    def draw(self, method: Method) -> dict[str, Tensor]:
        """The method's previews, each (M, 3, H, W) in the model's range."""
        if self.test is None:
            return {}
        method.eval()
        images = to_model(self.test.images[:PICTURES])
        return method.previews(images, generators(self.config.seed, "sample", range(len(images))))
