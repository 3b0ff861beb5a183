"""What is measured and drawn while a method trains, the same for every method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from genssl import distributed
from genssl.data.augment.views import Views
from genssl.data.split import Split
from genssl.features import FeatureFunction, extract
from genssl.metrics.collapse import output_scale, output_std, rankme
from genssl.metrics.knn import knn_predict
from genssl.metrics.sharpness import SHARPNESS, mean_sharpness
from genssl.models.build import build
from genssl.models.method import CanClassify, CanSample, HasProbe, Method
from genssl.pixels import to_model
from genssl.runtime import chunks, generator, generators, measuring
from genssl.settings import Config

LOSS_IMAGES = 1024  # held-out images that a loss is the mean of
PREVIEW_IMAGES = 32
SHARPNESS_IMAGES = 1024
# Neighbors, training images and held-out images of the kNN accuracy: few, since it is measured while training
KNN_K, KNN_BANK, KNN_QUERIES = 200, 10_000, 2_000
CHUNK = 256  # images at a time
# The output has collapsed where one of these holds
COLLAPSED_STD = 0.1  # output_std below: 1 is healthy, 0 is the same output for every image
COLLAPSED_RANK = 2.0  # rankme below: a batch norm at the end forbids a constant output, but not one direction
COLLAPSED_SCALE = 0.05  # output_scale below, where the loss asks for 1 (`Method.sees_scale`)
COLLAPSE_AFTER = 50  # steps; before, running statistics still hold their initial values


class Monitor:
    """Measures and draws a method between epochs, always with the same images and the same noise.

    "Held-out images" are those of the test split, or of the validation split of a run with a holdout, which
    never sees the test split.

    Args:
        views: the method's training views.
        train: what the method is trained on.
        held_out: the test or the validation split; None when there is none.
        config: the run's settings.
        device: where the method is; that of the train split when None.
    """

    def __init__(
        self,
        views: Views,
        train: Split,
        held_out: Split | None,
        config: Config,
        device: torch.device | None = None,
    ) -> None:
        self.views, self.config = views, config
        self.device = device or train.images.device
        self.loss_error: float | None = None  # standard error of the last held-out loss, over its batches
        self.images: Tensor | None = None
        self.labels: Tensor | None = None
        if held_out is not None:
            shown = held_out.take(LOSS_IMAGES, config.seed)
            self.images = shown.images.to(self.device)
            self.labels = None if shown.labels is None else shown.labels.to(self.device)
        self.train, self.held_out = train, held_out

    @property
    def validation_images(self) -> int:
        """Number of images in the validation split; 0 without a holdout."""
        return len(self.held_out) if self.held_out is not None and self.config.holdout > 0 else 0

    def pictures_due(self, epoch: int, *, last: bool) -> bool:
        """Whether pictures are drawn after one-based `epoch`: every `sample_every`, and the last."""
        return self._due(self.config.sample_every, epoch, last)

    def _due(self, every: int, epoch: int, last: bool) -> bool:
        return every > 0 and (epoch % every == 0 or epoch == self.config.epochs or last)

    def observe(self, method: Method, epoch: int, *, steps: int, last: bool) -> dict[str, Any]:
        """The measurements of one-based `epoch` for the history, each when it is due.

        All processes take part in the kNN accuracy; the first one alone measures the rest.

        Args:
            method: the one to measure.
            epoch: one-based.
            steps: number of steps that the run has taken.
            last: whether the run ends here, before its last epoch.
        """
        values: dict[str, Any] = {}
        if distributed.is_main_process():
            due = self._due(self.config.sample_every, epoch, last)
            values |= self.held_out_losses(method) if due else {}
            values |= self.collapse(method, steps)
            values |= self.classifier_accuracy(method) if due or last or epoch == self.config.epochs else {}
        if not self._due(self.config.knn_every, epoch, last):
            return values
        # A barrier on the host: where the first process has failed, no device is to wait for it
        distributed.all_reduce_max(0)
        return values | self.knn(method)

    @measuring()
    def held_out_losses(self, method: Method) -> dict[str, float]:
        """The losses on held-out images, as test_<name> or validation_<name>.

        Nothing where the method needs labels that they have not.
        """
        needs_labels = method.classes > 0 and not isinstance(method, HasProbe)
        if self.images is None or (needs_labels and self.labels is None):
            return {}
        method.eval()
        totals: dict[str, Tensor] = {}
        batch_losses: list[Tensor] = []
        size = min(self.config.batch_size, len(self.images))
        # Whole batches: some losses mean nothing for a few images
        whole = len(self.images) - len(self.images) % size
        for i, rows in enumerate(chunks(whole, size)):
            images = self.images[rows]
            labels = None if self.labels is None else self.labels[rows]
            losses = self._losses(method, images, labels, i)
            batch_losses.append(losses["loss"])
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value * len(images)
        if len(batch_losses) > 1:
            spread = float(torch.stack(batch_losses).float().std())
            self.loss_error = spread / math.sqrt(len(batch_losses))
        split = self.config.monitor_split
        return {f"{split}_{name}": float(total) / whole for name, total in totals.items()}

    @measuring()
    def classifier_accuracy(self, method: Method) -> dict[str, float]:
        """The share of all held-out images classified right, as test_ or validation_accuracy.

        Nothing for a method that classifies none.
        """
        if not isinstance(method, CanClassify) or not self._is_labeled():
            return {}
        return {f"{self.config.monitor_split}_accuracy": self._top1_accuracy(method.eval().classify)}

    def _top1_accuracy(self, logits_of: FeatureFunction, *, sharded: bool = False) -> float:
        """The share of all held-out images whose class has the largest logit; sharded: by all processes."""
        held_out = cast(Split, self.held_out)
        logits = extract(logits_of, held_out.images, CHUNK, sharded=sharded, device=self.device)
        right = logits.argmax(1) == cast(Tensor, held_out.labels).to(self.device)
        return float(right.float().mean())

    def overfitting(self, method: Method, history: Sequence[Mapping[str, Any]]) -> str | None:
        """A warning where a generative method's held-out loss has risen above its train loss; else None.

        A self-supervised loss has no such meaning: it is lower in evaluation mode, or where outputs collapse.
        """
        if self.images is None or self.loss_error is None or not isinstance(method, CanSample):
            return None
        # Of the difference of two means, as if both losses were of images of one distribution
        error = self.loss_error * math.sqrt(1 + len(self.images) / len(self.train))
        return overfitting_warning(history, error, method.units.get("loss", ""), self.config.monitor_split)

    def _losses(self, method: Method, images: Tensor, labels: Tensor | None, batch: int) -> dict[str, Tensor]:
        stream = generator(self.config.seed, "eval", batch, device=images.device)
        views = self.views(images, self.views.draws(len(images), stream))
        draws = method.draws(len(images), stream)
        if method.classes and labels is not None:
            draws["labels"] = labels
        return method.loss(views, draws)

    @measuring()
    def collapse(self, method: Method, steps: int) -> dict[str, Any]:
        """output_std, rankme and output_scale of outputs for held-out images, and whether they collapsed."""
        if self.images is None:
            return {}
        method.eval()
        if method.outputs(to_model(self.images[:1])) is None:
            return {}
        outputs = extract(cast(FeatureFunction, method.outputs), self.images, CHUNK)
        std, rank, scale = output_std(outputs), rankme(outputs), output_scale(outputs)
        collapsed = std < COLLAPSED_STD or rank < min(COLLAPSED_RANK, outputs.shape[1] / 4)
        collapsed |= method.sees_scale and scale < COLLAPSED_SCALE
        return {
            "output_std": std,
            "rankme": rank,
            "output_scale": scale,
            "collapsed": collapsed and steps >= COLLAPSE_AFTER,
        }

    @measuring()
    def knn(self, method: Method) -> dict[str, float]:
        """knn_accuracy of up to 2,000 held-out images among up to 10,000 training images, by features.

        With an online probe also its accuracy on all held-out images, test_ or validation_probe_accuracy.
        """
        if not self._is_labeled():
            return {}
        values = {"knn_accuracy": self._knn_accuracy(method.eval().features)}
        if isinstance(method, HasProbe) and method.probe is not None:
            name = f"{self.config.monitor_split}_probe_accuracy"
            values[name] = self._top1_accuracy(method.probe_logits, sharded=True)
        return values

    def data_statistics(self, method: Method) -> dict[str, float]:
        """train_sharpness of up to 1,024 training images, to compare with a method's samples."""
        if not isinstance(method, CanSample):
            return {}
        return {SHARPNESS: mean_sharpness(self.train.take(SHARPNESS_IMAGES, self.config.seed).images)}

    @measuring()
    def baselines(self, method: Method, known: float | None) -> dict[str, float]:
        """kNN accuracies to compare a trained method's with; none where `knn_every` is 0.

        All processes take part.

        Args:
            method: the trained one.
            known: kNN accuracy of these weights in the first process; measured when None.

        Returns:
            knn_accuracy, knn_accuracy_untrained (the same architecture with the initial weights of another
            seed) and knn_accuracy_pixels, on the same images; knn_images, the number of held-out images.
        """
        if self.config.knn_every == 0 or not self._is_labeled():
            return {}
        missing = distributed.all_reduce_max(int(distributed.is_main_process() and known is None))
        values = self.knn(method) if missing else {} if known is None else {"knn_accuracy": known}
        untrained = build(self.config.updated({"seed": self.config.seed + 1})).to(self.device).eval()
        values["knn_accuracy_untrained"] = self._knn_accuracy(untrained.features)
        # (2 u - 255) / 256 is exact in float16
        values["knn_accuracy_pixels"] = self._knn_accuracy(lambda images: images.flatten(1), torch.float16)
        return values | {"knn_images": min(KNN_QUERIES, len(cast(Split, self.held_out)))}

    def _is_labeled(self) -> bool:
        return self.held_out is not None and None not in (self.train.labels, self.held_out.labels)

    def _knn_accuracy(self, function: FeatureFunction, dtype: torch.dtype = torch.float32) -> float:
        """kNN accuracy of the features that `function` gives."""
        train = self.train.take(KNN_BANK, self.config.seed)
        held_out = cast(Split, self.held_out).take(KNN_QUERIES, self.config.seed)
        bank, queries = (
            extract(function, split.images, CHUNK, sharded=True, device=self.device, dtype=dtype)
            for split in (train, held_out)
        )
        bank_labels = cast(Tensor, train.labels).to(self.device)
        labels = cast(Tensor, held_out.labels).to(self.device)
        predicted = knn_predict(bank, bank_labels, queries, len(train.classes), min(KNN_K, len(bank)))
        return float((predicted == labels).float().mean())

    @torch.no_grad()
    def draw(self, method: Method) -> dict[str, Tensor]:
        """The method's previews, each (M, C, H, W) in the model's range."""
        if self.images is None:
            return {}
        method.eval()
        images = to_model(self.images[:PREVIEW_IMAGES])
        return method.previews(images, generators(self.config.seed, "sample", range(len(images))))


def overfitting_warning(
    history: Sequence[Mapping[str, Any]], error: float, unit: str = "", split: str = "test"
) -> str | None:
    """A warning where the test loss is above the train loss by more than chance, and has risen; else None.

    It has risen where it was lowest two measurements ago or earlier (as Prechelt 1998, Early stopping - but
    when?, counts strips in succession), so that one uneven step is no rise.

    Args:
        history: one record an epoch; those with a loss of the split count.
        error: standard error of the difference of the last two losses; twice that is chance.
        unit: of the loss.
        split: "test", or "validation" with a holdout.
    """
    key = f"{split}_loss"
    measured = [record for record in history if record.get(key) is not None]
    if len(measured) < 3 or measured[-1].get("loss") is None:
        return None
    last, lowest = measured[-1], min(measured, key=lambda record: record[key])
    gap, rise = last[key] - last["loss"], last[key] - lowest[key]
    if gap <= 2 * error or rise <= 0 or lowest["epoch"] >= measured[-2]["epoch"]:
        return None
    return (
        f"overfitting: the {split} loss, {last[key]:,.5g}, is {gap:,.3g} above the train loss "
        f"(by chance: {2 * error:,.2g}) and {rise:,.3g} above its lowest, that of epoch {lowest['epoch']:g}"
        f"{f' ({unit})' if unit else ''}; the weights are those of the last epoch, and --epochs takes fewer"
    )


def baseline_warning(accuracies: Mapping[str, float], split: str = "test") -> str | None:
    """A warning for features that are not better than raw pixels and an untrained encoder; else None.

    Better means by more than two standard errors of the difference, as if the accuracies were of different
    images.

    Args:
        accuracies: as from `Monitor.baselines`.
        split: of the images that they are of.
    """
    if not accuracies:
        return None
    trained, n = accuracies["knn_accuracy"], accuracies["knn_images"]
    others = {
        "an untrained encoder": accuracies["knn_accuracy_untrained"],
        "raw pixels": accuracies["knn_accuracy_pixels"],
    }
    better = {
        name: trained - other > 2 * math.sqrt((trained * (1 - trained) + other * (1 - other)) / n)
        for name, other in others.items()
    }
    if all(better.values()):
        return None
    worse = " or ".join(name for name, is_better in better.items() if not is_better)
    beside = ", ".join(f"{name} {other:.1%}" for name, other in others.items())
    return (
        f"the features are no better than {worse}: kNN accuracy {trained:.1%} on {n:,} {split} images "
        f"({beside}); train longer, or with other views"
    )
