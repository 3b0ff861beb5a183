"""Accuracy by the share of labels: a linear classifier and nearest neighbors on frozen features."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import (
    Encoder,
    encoder_of,
    extract_features,
    pixels,
    require_labels,
    untrained_copy,
)
from genssl.eval.result import EvalResult, check_size, header_of
from genssl.metrics.knn import knn_predict
from genssl.metrics.linear_probe import ProbeSettings, linear_probe
from genssl.models.method import Method
from genssl.runtime import Tick, generator, measuring

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LabelFractions:
    """What is measured.

    Attributes:
        fractions: shares of the labels, in (0, 1].
        draws: of the labeled images; of all labels there is one.
        k: neighbors that vote; all labeled images where these are fewer.
        linear: of the linear classifier.
        seed: of the draws, and of the order in which the classifier sees features.
    """

    fractions: Sequence[float] = (0.01, 0.1, 1.0)
    draws: int = 5
    k: int = 20
    linear: ProbeSettings = field(default_factory=ProbeSettings)
    seed: int = 0


@measuring()
def probe(
    method: Method,
    train: Split,
    test: Split,
    settings: LabelFractions | None = None,
    *,
    beside: Mapping[str, Method] | None = None,
    baselines: bool = True,
    batch_size: int = 256,
    tick: Tick,
) -> EvalResult:
    """Classify the test images from the features of a share of the train images, and their labels.

    Of each class the same share is drawn, at least one image; the same images for all features.

    Args:
        method: in eval mode, on the device of the splits.
        train: where the labeled images are drawn from.
        test: classified.
        settings: the defaults when None.
        beside: other methods by name.
        baselines: also classify raw pixels and the features of an untrained encoder.
        batch_size: of the encoders, in images.
        tick: called with how many kinds of features are done, and of how many.

    Raises:
        UserError: no labels or one class, classes that differ, images of another size, a share out of range,
            features that are not finite.
    """
    settings = settings or LabelFractions()
    labels, test_labels = require_labels(method, train, test)
    _check(settings, beside or {}, train)
    encoders: dict[str, Encoder] = {method.config.method: encoder_of(method)}
    encoders |= {name: encoder_of(other) for name, other in (beside or {}).items()}
    if baselines:
        encoders[f"untrained {method.config.method}"] = untrained_copy(method, method.device).features
        encoders["raw pixels"] = pixels
    rows = []
    for i, (name, encoder) in enumerate(encoders.items()):
        bank, queries = (
            extract_features(encoder, split, batch_size, _silent, method.device) for split in (train, test)
        )
        # Raw pixels that do not fit on the device are classified on the host
        queries, labels, test_labels = (part.to(bank.device) for part in (queries, labels, test_labels))
        for fraction in settings.fractions:
            scores = _scores(bank, labels, queries, test_labels, fraction, len(train.classes), settings)
            rows.append({"what": name, "fraction": fraction, **scores, "dimensions": bank.shape[1]})
        tick(i + 1, len(encoders))
    return _result(method, train, test, rows, settings)


def _silent(done: int, total: int) -> None:
    """The progress of one kind of features, which nobody is shown."""


def _check(settings: LabelFractions, beside: Mapping[str, Method], train: Split) -> None:
    for fraction in settings.fractions:
        if not 0 < fraction <= 1:
            raise UserError(f"--label-fractions must be above 0 and at most 1, not {fraction:g}")
    for other in beside.values():
        check_size(other, train)


def labeled_rows(labels: Tensor, fraction: float, seed: int, draw: int) -> Tensor:
    """The rows of a share of each class, at least one of each: int64, in rising order.

    Of one draw, a larger share contains a smaller one.

    Args:
        labels: int64 (N,).
        fraction: in (0, 1].
        seed: of all draws.
        draw: which one.
    """
    chosen = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten().cpu()
        order = torch.randperm(len(rows), generator=generator(seed, "label fraction", draw, label))
        chosen.append(rows[order[: max(1, round(fraction * len(rows)))]])
    return torch.cat(chosen).sort().values


def _scores(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    test_labels: Tensor,
    fraction: float,
    classes: int,
    settings: LabelFractions,
) -> dict[str, Any]:
    """Accuracies, the mean and the deviation over draws."""
    linear, neighbors, count = list[float](), list[float](), 0
    for draw in range(settings.draws if fraction < 1 else 1):
        rows = labeled_rows(labels.cpu(), fraction, settings.seed, draw).to(bank.device)
        features, known, count = bank[rows], labels[rows], len(rows)
        fitted = linear_probe(
            features, known, queries, test_labels, classes, settings.linear, seed=settings.seed
        )
        linear.append(fitted.test_accuracy[-1])
        predicted = knn_predict(features, known, queries, classes, min(settings.k, count))
        neighbors.append(float((predicted == test_labels).float().mean()))
    return {
        "labeled": count,
        "linear_accuracy": statistics.fmean(linear),
        "linear_std": statistics.stdev(linear) if len(linear) > 1 else None,
        "knn_accuracy": statistics.fmean(neighbors),
        "knn_std": statistics.stdev(neighbors) if len(neighbors) > 1 else None,
    }


def _result(
    method: Method, train: Split, test: Split, rows: list[dict[str, Any]], settings: LabelFractions
) -> EvalResult:
    first = rows[0]
    values = {
        **{name: first[name] for name in ("fraction", "labeled", "linear_accuracy", "knn_accuracy")},
        "draws": settings.draws,
        "k": settings.k,
        "epochs": settings.linear.epochs,
        "learning_rate": settings.linear.learning_rate,
        "train_images": len(train),
        "test_images": len(test),
        "compared": rows,
    }
    smallest = min(row["labeled"] for row in rows)
    cut = f"k is {smallest} where there are only {smallest} labeled images; -k takes another number"
    notes = (
        "of each class the same share is labeled, at least one image",
        "std is the deviation over draws of the labeled images; of all labels there is one",
        *((cut,) if smallest < settings.k else ()),
    )
    title = header_of(method, f"{len(test)} {test.name} test images classified")
    return EvalResult(
        values, {"accuracy": draw_fractions(rows, title)}, notes, name="probe",
        title="Accuracy by the share of labels",
        headline=("fraction", "linear_accuracy", "knn_accuracy"),
    )  # fmt: skip


def draw_fractions(rows: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Accuracy over the share of labels: a color for each kind of features, linear solid, kNN dashed."""
    figure, (axis,) = figures.new_figure(1, 1, 6.4, 4.2)
    for i, name in enumerate(dict.fromkeys(row["what"] for row in rows)):
        points = sorted((row for row in rows if row["what"] == name), key=lambda row: row["fraction"])
        for kind, style in (("linear", "-"), ("knn", "--")):
            axis.errorbar(
                [100 * row["fraction"] for row in points],
                [100 * row[f"{kind}_accuracy"] for row in points],
                [100 * (row[f"{kind}_std"] or 0) for row in points],
                color=f"C{i}", linestyle=style, marker=".", capsize=2,
                label=f"{name}, {'linear' if kind == 'linear' else 'kNN'}",
            )  # fmt: skip
    axis.set_xscale("log")
    shares = sorted({100 * row["fraction"] for row in rows})
    axis.set_xticks(shares, [f"{share:g}" for share in shares])
    axis.minorticks_off()
    axis.set(xlabel="labeled train images (%)", ylabel="accuracy on test images (%)")
    axis.legend(frameon=False, fontsize="small")
    figure.suptitle(title, size="medium")
    return figure
