"""A linear classifier on frozen features: how far the classes are apart along straight lines."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genssl import figures
from genssl.config import EncoderConfig
from genssl.data.augment import geometry
from genssl.data.registry import allows_flips
from genssl.data.rows import read_slice
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import extract_features, require_labels
from genssl.eval.result import EvalResult
from genssl.features import extract
from genssl.figures import draw_confusion
from genssl.metrics.knn import class_accuracy, confusion_matrix, standard_error
from genssl.metrics.linear_probe import ProbeFeatures, ProbeResult, ProbeSettings, linear_probe
from genssl.models.method import Method
from genssl.runtime import Tick, chunks, generator, measuring, uniform

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SMALLEST = 0.08  # share of an image's area that a crop shows at least, as for supervised training
CROPPED = 4096  # images cropped at once
SHOWN = 10  # epochs in the table


@measuring()
def linear_eval(
    method: Method,
    train: Split,
    test: Split,
    settings: ProbeSettings,
    *,
    augment: bool = False,
    data: str | None = None,
    seed: int = 0,
    batch_size: int = 256,
    tick: Tick,
) -> tuple[EvalResult, ProbeResult]:
    """Train a linear classifier on the features of `train`, in float32 and eval mode, and test it.

    Args:
        method: in eval mode.
        train: what the classifier learns from; on the method's device, or on the host where it is too large,
            as the next.
        test: what it is tested on after each epoch; the last epoch is the result.
        settings: of its optimizer.
        augment: crop and mirror the train images anew in each epoch, and take features of that; else
            features are taken once.
        data: what `--data` calls the images, by which they are mirrored or not; default: the run's.
        seed: of the order, and of the crops.
        batch_size: images encoded at a time.
        tick: called with the number of epochs done, and of all epochs.

    Returns:
        The result, and the probe with what it reached after each epoch.

    Raises:
        UserError: no labels or one class, classes that differ, features that are not finite.
    """
    labels, test_labels = require_labels(method, train, test)
    device = method.device
    queries = extract_features(method.features, test, batch_size, tick, device)

    def cropped_features(epoch: int) -> Tensor:
        encoded: list[Tensor] = []

        def so_far(done: int, _: int) -> None:
            before = epoch * len(train) + sum(map(len, encoded))
            tick(before + done, settings.epochs * len(train))

        mirror = may_mirror(method, data or method.config.data, train.classes)
        for part in cropped(train.images, mirror, seed, epoch, device):
            encoded.append(extract(method.features, part, batch_size, so_far))
        return torch.cat(encoded)

    source: ProbeFeatures = cropped_features
    if not augment:
        source = extract_features(method.features, train, batch_size, tick, device)
    probe = linear_probe(
        source, labels, queries, test_labels, len(train.classes), settings, seed=seed,
        tick=None if augment else tick,
    )  # fmt: skip
    if not all(map(torch.isfinite, torch.tensor([probe.train_loss[-1], probe.test_loss[-1]]))):
        raise UserError("the linear classifier diverged; choose a lower --lr")
    matrix = confusion_matrix(test_labels, probe.predicted, len(test.classes)).cpu()
    return _result(method, train, test, settings, augment, probe, matrix, queries.shape[1]), probe


def may_mirror(method: Method, data: str, classes: tuple[str, ...]) -> bool:
    """Whether images are mirrored: as the method's own views have it, else where that keeps their class."""
    config = method.config
    flip = config.flip if isinstance(config, EncoderConfig) else "auto"
    return flip == "on" or (flip == "auto" and allows_flips(data, classes))


def cropped(
    images: Tensor, mirror: bool, seed: int, epoch: int, device: torch.device | None = None
) -> Iterator[Tensor]:
    """A random crop of each image, resized to its size, and half of them mirrored where `mirror` is set.

    Some thousand images at a time, so that no more of them are on the device.

    Args:
        images: uint8 (N, C, H, W).
        mirror: whether any are mirrored.
        seed: of the crops.
        epoch: zero-based; each has its own.
        device: where to crop; where the images are when None.

    Yields:
        uint8 (n, C, H, W) on the device.
    """
    device = device or images.device
    chances = uniform((len(images), geometry.CROP_CHANCES + 1), generator(seed, "views", epoch), device)
    height, width = images.shape[2:]
    boxes = geometry.crop_boxes(chances[:, 1:], height, width, SMALLEST)
    flips = chances[:, 0] < 0.5
    for rows in chunks(len(images), CROPPED):
        part = read_slice(images, rows).to(device)
        planes = geometry.resized_crop(part, boxes[rows], flips[rows] if mirror else None)
        yield planes.transpose(0, 1).round_().clamp_(0, 255).to(torch.uint8)


def _result(
    method: Method,
    train: Split,
    test: Split,
    settings: ProbeSettings,
    augment: bool,
    probe: ProbeResult,
    matrix: Tensor,
    dimensions: int,
) -> EvalResult:
    accuracy = probe.test_accuracy[-1]
    values: dict[str, Any] = {
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, len(test)),
        "train_accuracy": probe.train_accuracy[-1],
        "loss_nats": probe.test_loss[-1],
        "train_loss_nats": probe.train_loss[-1],
        "train_images": len(train),
        "test_images": len(test),
        "dimensions": dimensions,
        "augmented": augment,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
        "feature_scale": probe.scale,
        "accuracy_by_class": dict(zip(test.classes, class_accuracy(matrix).tolist(), strict=True)),
        "curves": [records(probe)[i] for i in _shown_epochs(settings.epochs)],
    }
    title = f"linear classifier: {100 * accuracy:.1f} % of {len(test)} test images"
    drawn: dict[str, Figure | Image] = {
        "curves": draw_curves(probe, f"{title}\n{method.config.method}, features frozen"),
        "confusion matrix": draw_confusion(matrix, test.classes, f"{title}\n(cells: % of a true class)"),
    }
    return EvalResult(
        values, drawn, _notes(augment), name="linear-eval", title="Linear evaluation",
        headline=("accuracy", "standard_error", "train_accuracy"),
        units={"loss_nats": "nats per image", "train_loss_nats": "nats per image"},
    )  # fmt: skip


def _notes(augment: bool) -> tuple[str, ...]:
    trained = "on that epoch's crops" if augment else "on all train images"
    return (
        "the result is that of the last epoch, not of the best one on the test images",
        f"train accuracy and loss are measured after each epoch {trained}",
        "features are centered and divided by feature_scale, at which a learning rate of 30 is just stable",
    )


def _shown_epochs(epochs: int) -> list[int]:
    """Up to SHOWN of the zero-based epochs, evenly, the last one among them."""
    return sorted({round((i + 1) * epochs / SHOWN) - 1 for i in range(SHOWN)} - {-1})


def records(probe: ProbeResult) -> list[dict[str, float]]:
    """A record an epoch, one-based."""
    names = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
    columns = zip(*(getattr(probe, name) for name in names), strict=True)
    return [{"epoch": epoch, **dict(zip(names, row, strict=True))} for epoch, row in enumerate(columns, 1)]


def draw_curves(probe: ProbeResult, title: str) -> "Figure":
    """Accuracy and loss over epochs, train and test (lower panels of figures 11 to 13 of the assignment)."""
    figure, (left, right) = figures.new_figure(1, 2, 4.6, 3.4)
    epochs = range(1, len(probe.test_accuracy) + 1)
    for name, accuracy, loss in (
        ("train", probe.train_accuracy, probe.train_loss),
        ("test", probe.test_accuracy, probe.test_loss),
    ):
        left.plot(
            epochs, [100 * value for value in accuracy], label=f"{name}, {100 * accuracy[-1]:.1f} at last"
        )
        right.plot(epochs, loss, label=f"{name}, {loss[-1]:.3g} at last")
    left.set(xlabel="epoch", ylabel="accuracy (%)")
    right.set(xlabel="epoch", ylabel="cross-entropy (nats)")
    for axis in (left, right):
        axis.legend(frameon=False)
    figure.suptitle(title)
    return figure
