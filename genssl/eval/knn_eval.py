"""Nearest-neighbor classification of frozen features (Wu et al. 2018), beside what needs no training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genssl.data.rows import read_rows
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import Encoder, extract_features, pixels, require_labels, untrained_copy
from genssl.eval.result import EvalResult
from genssl.figures import draw_confusion, draw_neighbors, one_of_each
from genssl.metrics.knn import class_accuracy, confusion_matrix, knn_predict_each, standard_error
from genssl.models.method import Method
from genssl.runtime import Tick, chunks, measuring

NEIGHBORS = 200  # the default k (Wu et al. 2018)
QUERIES = 2048  # classified between two ticks
SHOWN = 10  # test images in the picture, of as many classes
NEAREST = 8  # neighbors of each
BANK = 8192  # rows compared at once for the picture


@dataclass(frozen=True)
class Prediction:
    """kNN predictions in one feature space.

    Attributes:
        predicted: int64 (M,), a class per test image, with the first k.
        accuracies: fraction of correct ones, by k.
        dimensions: of the space.
    """

    predicted: Tensor
    accuracies: dict[int, float]
    dimensions: int

    @property
    def accuracy(self) -> float:
        """That of the first k."""
        return next(iter(self.accuracies.values()))


@measuring()
def knn_eval(
    method: Method,
    train: Split,
    test: Split,
    *,
    k: int | Sequence[int] | None = None,
    temperature: float = 0.1,
    batch_size: int = 256,
    tick: Tick,
    baselines: bool = True,
) -> EvalResult:
    """Classify the test images by the `k` train images whose features are nearest by cosine.

    Features are those of the method, in float32 and eval mode, scaled to unit length; all of `train` is the
    bank.

    Args:
        method: in eval mode.
        train: the bank; on the method's device, or on the host where it is too large, as the next.
        test: the queries.
        k: number of neighbors, which vote with weight exp(cosine / temperature); None: 200, or the whole
            bank where that is smaller. Of several, the first one is for all but the table over k.
        temperature: of the votes.
        batch_size: of the encoder, in images.
        tick: called with (done, total).
        baselines: also classify raw pixels and the features of an untrained encoder.

    Raises:
        UserError: no labels or one class, classes that differ, k or the temperature out of range.
    """
    labels, test_labels = require_labels(method, train, test)
    is_cut = k is None and len(train) < NEIGHBORS
    k = min(NEIGHBORS, len(train)) if k is None else k
    ks = list(dict.fromkeys([k] if isinstance(k, int) else k))
    _check(ks, temperature, train)

    def classify(bank: Tensor, queries: Tensor) -> Prediction:
        predicted = []
        for rows in chunks(len(queries), QUERIES):
            predicted.append(
                knn_predict_each(
                    bank, labels, queries[rows].to(method.device), len(train.classes), ks, temperature
                )
            )
            tick(rows.stop, len(queries))
        classes = [torch.cat(parts) for parts in zip(*predicted, strict=True)]
        right = [float((guess == test_labels).cpu().double().mean()) for guess in classes]
        return Prediction(classes[0], dict(zip(ks, right, strict=True)), bank.shape[1])

    def encoded(encoder: Encoder) -> Iterator[Tensor]:
        return (extract_features(encoder, split, batch_size, tick, method.device) for split in (train, test))

    bank, queries = encoded(method.features)
    trained = classify(bank, queries)
    predictions = {f"features of this {method.config.method}": trained}
    picture = _neighbors(bank, queries, train, test)
    del bank, queries
    for name, encoder in _baselines(method).items() if baselines else ():
        predictions[name] = classify(*encoded(encoder))
    matrix = confusion_matrix(test_labels, trained.predicted, len(test.classes)).cpu()
    values = _values(predictions, trained, labels, test_labels, temperature)
    values["accuracy_by_class"] = dict(zip(test.classes, class_accuracy(matrix).tolist(), strict=True))
    result = f"{100 * trained.accuracy:.1f} % of {len(test)} test images"
    title = f"kNN, {method.config.method} features: {result}\n(cells: % of a true class)"
    confusion = draw_confusion(matrix, test.classes, title)
    return EvalResult(
        values, {"confusion matrix": confusion, "neighbors": picture}, _notes(train, is_cut), name="knn-eval",
        title="kNN accuracy", headline=("accuracy", "standard_error", "k"),
    )  # fmt: skip


def _check(ks: Sequence[int], temperature: float, train: Split) -> None:
    for k in ks:
        if not 1 <= k <= len(train):
            raise UserError(f"-k must be from 1 to the number of train images, {len(train)}, not {k}")
    if not temperature > 0:
        raise UserError(f"--temperature must be above 0, not {temperature:g}")


def _baselines(method: Method) -> dict[str, Encoder]:
    return {"raw pixels": pixels, "untrained encoder": untrained_copy(method, method.device).features}


def _values(
    predictions: dict[str, Prediction],
    trained: Prediction,
    labels: Tensor,
    test_labels: Tensor,
    temperature: float,
) -> dict[str, Any]:
    commonest = float((test_labels == labels.mode().values).cpu().double().mean())
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "dimensions": prediction.dimensions,
            "accuracy": round(prediction.accuracy, 6),
            "standard_error": round(standard_error(prediction.accuracy, len(test_labels)), 6),
        }
        for name, prediction in predictions.items()
    ]
    rows.append({"what": "always the commonest class", "dimensions": None, "accuracy": round(commonest, 6)})
    ks = list(trained.accuracies)
    by_k = [
        {"k": k, **{name: round(prediction.accuracies[k], 6) for name, prediction in predictions.items()}}
        for k in ks
    ]
    return {
        "accuracy": trained.accuracy,
        "standard_error": standard_error(trained.accuracy, len(test_labels)),
        "k": ks[0],
        "temperature": temperature,
        "train_images": len(labels),
        "test_images": len(test_labels),
        "dimensions": trained.dimensions,
        "compared": rows,
        **({"accuracy_by_k": by_k} if len(ks) > 1 else {}),
    }


def _notes(train: Split, is_cut: bool) -> tuple[str, ...]:
    cut = f"k is {len(train)}, since there are fewer than {NEIGHBORS} train images; -k takes another number"
    return (
        *((cut,) if is_cut else ()),
        f"the bank is {len(train)} train images; more of them give a higher accuracy",
        "the standard error is that of the test images drawn, not of training again",
    )


def _neighbors(bank: Tensor, queries: Tensor, train: Split, test: Split) -> Image.Image:
    """A test image of each class beside its nearest train images."""
    assert train.labels is not None
    assert test.labels is not None
    shown = one_of_each(test.labels, SHOWN)
    near = _nearest(bank, queries[shown.to(queries.device)], min(NEAREST, len(bank)))
    near = near.to(train.images.device)
    names = [[train.classes[label] for label in row] for row in train.labels[near].tolist()]
    query_names = [test.classes[label] for label in test.labels[shown].tolist()]
    images = read_rows(test.images, shown).cpu()
    near_images = read_rows(train.images, near.flatten()).unflatten(0, near.shape).cpu()
    return draw_neighbors(images, query_names, near_images, names, train.classes)


def _nearest(bank: Tensor, queries: Tensor, n: int) -> Tensor:
    """The rows of the bank (N, D) that are most like each query (Q, D) by cosine, nearest first: (Q, n)."""
    units = F.normalize(queries.float(), dim=1)
    cosines = [units @ F.normalize(part.float(), dim=1).T for part in bank.split(BANK)]
    return torch.cat(cosines, 1).topk(n).indices
