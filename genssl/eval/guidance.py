"""`ablate METHOD --guidance`: what classifier-free guidance gives and takes, without training again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace, cached_features
from genssl.eval.fidelity import Estimate, FidelitySettings, SampleSet, measure, sample_set
from genssl.eval.result import EvalResult, header_of
from genssl.eval.sample import ALL, class_names, draw_samples, labels_of, sampling_settings
from genssl.metrics.knn import knn_predict, standard_error
from genssl.metrics.sharpness import sharpness
from genssl.models.method import Method
from genssl.runtime import Tick, measuring

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBORS = 200  # training images that vote for a class, as in kNN evaluation
BANK = 5000  # training images that they are taken from, at most
SHOWN = 10  # images per value of w in the picture
SHARES = ("precision", "recall", "class_accuracy")
UNITS = {"frechet_distance": "squared feature units"}


@measuring()
def guidance_sweep(
    method: Method,
    values: Sequence[float],
    n: int,
    real: Split,
    train: Split,
    space: FeatureSpace,
    settings: FidelitySettings,
    tick: Tick,
) -> EvalResult:
    """Sample with each w from the same noise and classes, and measure quality, variety and class.

    Fidelity and variety are traded by w (Ho & Salimans 2022, figure 1): precision rises while recall falls.
    The class of a sample is read by kNN among training images in the feature space; how often that is right
    for real images stands beside it.

    Args:
        method: class-conditional, on its device.
        values: of w.
        n: samples per value; image i is of class i modulo the number of classes.
        real: the reference, n images or more, labeled and shuffled.
        train: labeled training images, the neighbors that vote.
        space: the feature extractor.
        settings: of the measurement.
        tick: called with (done, total).

    Raises:
        UserError: the method has no classes, or the images have no labels or others than it was trained on.
    """
    labels = labels_of(method, ALL, range(n))
    if train.labels is None:
        raise UserError(f"{train.name}, on which the run was trained, has no labels to read classes by")
    if len(train.classes) != method.classes:
        raise UserError(f"{train.name} has {len(train.classes)} classes, the run {method.classes}")
    if method.class_names and method.class_names != train.classes:
        raise UserError(f"the classes of {train.name} have other names now than when the run was trained")
    if real.labels is None or real.classes != train.classes:
        raise UserError(f"{real.name} has no labels, or other classes than the run; choose another --data")
    settings = replace(settings, device=method.device)
    bank, real_features = (
        cached_features(space, split, settings.batch_size, tick, method.device) for split in (train, real)
    )
    reference = SampleSet(real_features[:n].to(method.device), sharpness(real.images[:n], method.device))

    bank_labels = train.labels.to(method.device)

    def accuracy(features: Tensor, labels: Tensor) -> Estimate:
        queries, k = features.to(method.device), min(NEIGHBORS, len(bank))
        predicted = knn_predict(bank, bank_labels, queries, method.classes, k)
        share = float((predicted.cpu() == labels.cpu()).float().mean())
        spread = 1.96 * standard_error(share, len(labels))
        return Estimate(share, max(0.0, share - spread), min(1.0, share + spread))

    rows, pictures = [], []
    for i, w in enumerate(values):
        options_of_w = {"class_label": ALL, "guidance": w}
        images = draw_samples(method, n, settings.seed, settings.batch_size, lambda *_: None, options_of_w)
        pictures.append(images[:SHOWN])
        generated = sample_set(images, space, settings, lambda *_: None)
        estimates, _ = measure(reference, generated, settings, lambda *_: None)
        rows.append(_row(w, {**estimates, "class_accuracy": accuracy(generated.features, labels)}))
        tick(i + 1, len(values))
    of_real = accuracy(real_features, real.labels)
    way = sampling_settings(method, {"class_label": ALL})
    del way["guidance"]
    result = {
        "samples": n, "sampling": way, "real_images": len(reference), "features": space.name,
        "features_digest": space.digest or None, "guidance": rows,
        "class_accuracy_of_real_images": of_real.value, "best": _best(rows),
    }  # fmt: skip
    title = header_of(method, f"guidance, {n} samples per w")
    drawn: dict[str, Figure | Image.Image] = {
        "guidance": draw_guidance(rows, of_real.value, title),
        "samples by guidance": draw_by_guidance(pictures, values, class_names(method), title),
    }
    return EvalResult(
        result, drawn, _notes(result), name="guidance", title="Guidance", headline=("guidance",), units=UNITS
    )


def _row(w: float, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    row: dict[str, Any] = {"w": w}
    for name in ("frechet_distance", *SHARES):
        row |= {name: estimates[name].value, f"{name}_low": estimates[name].low}
        row |= {f"{name}_high": estimates[name].high}
    return row


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The w of the least Frechet distance, and of the highest class accuracy."""
    least = min(rows, key=lambda row: row["frechet_distance"])
    surest = max(rows, key=lambda row: row["class_accuracy"])
    return {"frechet_distance": least["w"], "class_accuracy": surest["w"]}


def _notes(values: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "w: (1 + w) times the conditional prediction less w times the unconditional one; 0 is no guidance",
        "the noise and the class of each image are the same for every w",
        "class_accuracy: the share of samples that kNN in these features takes for the class that was asked "
        f"for; of real images it takes {values['class_accuracy_of_real_images']:.1%} for theirs",
        "low and high: 95 %; of the distance, precision and recall over random halves",
    )


def draw_guidance(rows: Sequence[Mapping[str, Any]], real: float, title: str) -> "Figure":
    """The Frechet distance, precision with recall, and class accuracy over w.

    Args:
        rows: of `guidance_sweep`.
        real: the class accuracy of real images.
        title: of the figure.
    """
    figure, axes = figures.new_figure(1, 3, 4.2, 3.4)
    panels = (("frechet_distance",), ("precision", "recall"), ("class_accuracy",))
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            _draw_line(axis, sorted(rows, key=lambda row: row["w"]), name)
        axis.set(
            xlabel="guidance w", ylabel=UNITS.get(names[0], "share"), title=", ".join(names).replace("_", " ")
        )
    axes[1].legend()
    axes[2].axhline(real, color="0.4", linestyle="--", label="real images")
    axes[2].legend()
    figure.suptitle(title)
    return figure


def _draw_line(axis: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    w, values = [row["w"] for row in rows], [row[name] for row in rows]
    axis.plot(w, values, marker="o", label=name)
    if rows[0][f"{name}_low"] is not None:
        axis.fill_between(
            w, [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows], alpha=0.2
        )


def draw_by_guidance(
    pictures: Sequence[Tensor], values: Sequence[float], names: Sequence[str], title: str
) -> Image.Image:
    """A row per w: the first images of each, from the same noise, a column per class.

    Args:
        pictures: uint8 (SHOWN, C, H, W) per w.
        values: of w.
        names: of the classes.
        title: above the rows.
    """
    columns = len(pictures[0])
    titles = [names[i % len(names)] for i in range(columns)]
    header = f"{title}; rows: w = {', '.join(f'{w:g}' for w in values)}"
    return figures.titled_grid(torch.cat(list(pictures)), header, columns, titles)
