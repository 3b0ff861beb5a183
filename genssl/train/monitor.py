"""What is measured and drawn while a method trains, the same for every method."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from genssl import distributed
from genssl.config import Config
from genssl.data.augment.views import Views
from genssl.data.split import Split
from genssl.features import FeatureFunction, extract, extract_sharded
from genssl.metrics.collapse import output_std, rankme
from genssl.metrics.knn import knn_predict
from genssl.metrics.sharpness import SHARPNESS, mean_sharpness
from genssl.models.build import build
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import chunks, generator, generators, measuring

TEST_IMAGES = 1024  # how many test images a test loss is the mean of
PICTURES = 32  # how many images a preview shows
KNN_K = 200  # of the nearest-neighbour accuracy, with these many images for a quick look
KNN_BANK = 10_000
SHARPNESS_IMAGES = 1024
KNN_QUERIES = 2_000
CHUNK = 256  # images at a time
# Collapsed: an output std below this (1 is healthy, 0 is the same output for every image), or an effective
# rank below this: a batch norm at the end forbids one and the same output, but not one direction
COLLAPSED_STD = 0.1
COLLAPSED_RANK = 2.0
SETTLED = 50  # steps before which no verdict is given: running statistics still hold what they began with


class Monitor:
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
        if distributed.is_main_process():
            found |= self.measure(method) if self._due(self.config.sample_every, epoch, last) else {}
            found |= self.collapse(method, steps)
        if not self._due(self.config.knn_every, epoch, last):
            return found
        distributed.all_reduce_max(
            0
        )  # on the host: where the first process has failed, no device is to wait for it
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
        found = extract(cast(FeatureFunction, method.outputs), self.test.images, CHUNK)
        spread = output_std(found)
        rank = rankme(found)
        flat = spread < COLLAPSED_STD or rank < min(COLLAPSED_RANK, found.shape[1] / 4)
        return {"output_std": spread, "rankme": rank, "collapsed": flat and steps >= SETTLED}

    @measuring()
    def neighbours(self, method: Method) -> dict[str, float]:
        """knn_accuracy: of the features of up to 2,000 test images against 10,000 training images."""
        if not self._is_labelled():
            return {}
        return {"knn_accuracy": self._accuracy(method.eval().features)}

    def about_data(self, method: Method) -> dict[str, float]:
        """train_sharpness: of up to 1,024 training images, where the method draws images to compare."""
        if not hasattr(method, "sample"):
            return {}
        return {SHARPNESS: mean_sharpness(self.train.take(SHARPNESS_IMAGES, self.config.seed).images)}

    @measuring()
    def references(self, method: Method, known: float | None) -> dict[str, float]:
        """What a run that watches its neighbours is to be judged by at its end; nothing of another run.

        Of several processes all take part.

        Args:
            method: the trained one.
            known: the first process's accuracy of these weights; None: it is measured.

        Returns:
            knn_accuracy, knn_accuracy_untrained (the same architecture with the initial weights of another
            seed) and knn_accuracy_pixels, on the same images; knn_images, how many were classified.
        """
        if self.config.knn_every == 0 or not self._is_labelled():
            return {}
        missing = distributed.all_reduce_max(int(distributed.is_main_process() and known is None))
        found = self.neighbours(method) if missing else {} if known is None else {"knn_accuracy": known}
        untrained = build(self.config.updated({"seed": self.config.seed + 1})).to(self.device).eval()
        found["knn_accuracy_untrained"] = self._accuracy(untrained.features)
        # (2 u - 255) / 256 is exact in float16
        found["knn_accuracy_pixels"] = self._accuracy(lambda images: images.flatten(1), torch.float16)
        return found | {"knn_images": min(KNN_QUERIES, len(cast(Split, self.all_tests)))}

    def _is_labelled(self) -> bool:
        return self.all_tests is not None and None not in (self.train.labels, self.all_tests.labels)

    def _accuracy(self, function: FeatureFunction, dtype: torch.dtype = torch.float32) -> float:
        """Of nearest neighbours in what `function` makes of the watched images, with labels."""
        train = self.train.take(KNN_BANK, self.config.seed)
        test = cast(Split, self.all_tests).take(KNN_QUERIES, self.config.seed)
        bank, queries = (
            extract_sharded(function, split.images, CHUNK, device=self.device, dtype=dtype)
            for split in (train, test)
        )
        bank_labels = cast(Tensor, train.labels).to(self.device)
        labels = cast(Tensor, test.labels).to(self.device)
        predicted = knn_predict(bank, bank_labels, queries, len(train.classes), min(KNN_K, len(bank)))
        return float((predicted == labels).float().mean())

    @torch.no_grad()
    def draw(self, method: Method) -> dict[str, Tensor]:
        """The method's previews, each (M, 3, H, W) in the model's range."""
        if self.test is None:
            return {}
        method.eval()
        images = to_model(self.test.images[:PICTURES])
        return method.previews(images, generators(self.config.seed, "sample", range(len(images))))


def judged(accuracies: Mapping[str, float]) -> str | None:
    """What to say of features that are no better than what needs no training; None of better ones.

    Better means by more than two standard errors of the difference, as if the accuracies were of different
    images.

    Args:
        accuracies: as from `Watch.references`.
    """
    if not accuracies:
        return None
    own, n = accuracies["knn_accuracy"], accuracies["knn_images"]
    others = {
        "an untrained encoder": accuracies["knn_accuracy_untrained"],
        "raw pixels": accuracies["knn_accuracy_pixels"],
    }
    better = {
        name: own - other > 2 * math.sqrt((own * (1 - own) + other * (1 - other)) / n)
        for name, other in others.items()
    }
    if all(better.values()):
        return None
    worse = " or ".join(name for name, is_better in better.items() if not is_better)
    beside = ", ".join(f"{name} {other:.1%}" for name, other in others.items())
    return (
        f"the features are no better than {worse}: kNN accuracy {own:.1%} on {n:,} test images ({beside}); "
        "train longer, or with other views"
    )
