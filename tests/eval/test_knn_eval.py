from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval import knn_eval
from genssl.eval.result import EvalResult
from genssl.models.build import build
from genssl.pixels import to_model
from genssl.runtime import generator

from ..narrow import given
from .blobs import CLASSES, SIZE, Projection, as_pixels, reference, silent, split, unlabeled

TRAIN, TEST = split("train", 300), split("test", 120)
TRAIN_LABELS, TEST_LABELS = given(TRAIN.labels), given(TEST.labels)


def evaluate(
    method: Projection | None = None, train: Split = TRAIN, test: Split = TEST, **changes: Any
) -> EvalResult:
    options = {"k": 20, "batch_size": 64, "tick": silent, **changes}
    return knn_eval.knn_eval(method or Projection(), train, test, **options)


def peer(bank: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.1) -> np.ndarray:
    """Scikit-learn's neighbors with the weights of the protocol."""
    weights = lambda distance: np.exp((1 - distance) / temperature)  # noqa: E731
    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    found: np.ndarray = classifier.fit(bank.numpy(), TRAIN_LABELS.numpy()).predict(queries.numpy())
    return found


def right(predicted: np.ndarray) -> float:
    return float((predicted == TEST_LABELS.numpy()).mean())


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.1), (1, 0.1), (300, 0.02)])
def test_the_protocol_agrees_with_scikit_learn(k: int, temperature: float) -> None:
    method = Projection()
    values = evaluate(method, k=k, temperature=temperature).values
    expected = right(peer(reference(method, TRAIN), reference(method, TEST), k, temperature))
    assert values["accuracy"] == expected
    assert 1 / 3 < expected < 1
    assert values["standard_error"] == pytest.approx((expected * (1 - expected) / 120) ** 0.5)
    assert (values["k"], values["temperature"]) == (k, temperature)
    assert (values["train_images"], values["test_images"], values["dimensions"]) == (300, 120, 8)


def test_several_k_are_a_table_of_what_each_gives_alone() -> None:
    ks = (20, 1, 300, 5, 20)
    values = evaluate(k=ks).values
    alone = {k: evaluate(k=k).values for k in ks}
    # An untrained encoder gives some images the same features, and any of them is nearest
    shared = {"k", *(row["what"] for row in alone[20]["compared"][:2])}
    expected = [
        {"k": k, **{row["what"]: row["accuracy"] for row in alone[k]["compared"][:2]}}
        for k in (20, 1, 300, 5)
    ]
    table = values.pop("accuracy_by_k")
    assert [{name: row[name] for name in row if name in shared} for row in table] == expected
    assert len({row["features of this vae"] for row in table}) > 1
    assert all(len(row) == 4 for row in table)
    alone[20]["compared"][2] = values["compared"][2]
    assert values == alone[20]
    with pytest.raises(UserError, match="-k must be from 1 to the number of train images, 300, not 301"):
        evaluate(k=[5, 301])


def test_floors_agree_with_scikit_learn() -> None:
    method = Projection()
    fresh = build(method.config.updated({"seed": 1})).eval()
    rows = evaluate(method).values["compared"]
    assert rows[0]["accuracy"] == pytest.approx(
        right(peer(reference(method, TRAIN), reference(method, TEST))), abs=1e-6
    )
    assert rows[1]["accuracy"] == pytest.approx(right(peer(as_pixels(TRAIN), as_pixels(TEST))), abs=1e-6)
    with torch.no_grad():
        bank, queries = (fresh.features(to_model(part.images)).double() for part in (TRAIN, TEST))
    assert rows[2]["accuracy"] == pytest.approx(right(peer(bank, queries)), abs=1e-6)
    assert rows[0]["standard_error"] == pytest.approx(evaluate(method).values["standard_error"], abs=1e-6)
    assert [row["dimensions"] for row in rows] == [8, 3 * SIZE**2, 5, None]
    counts = torch.bincount(TRAIN_LABELS, minlength=3)
    share = (counts.argmax() == TEST_LABELS).double().mean()
    assert rows[3]["accuracy"] == pytest.approx(float(share), abs=1e-6)
    assert len(evaluate(method, baselines=False).values["compared"]) == 2


def test_accuracy_by_class_and_confusion() -> None:
    method = Projection()
    predicted = peer(reference(method, TRAIN), reference(method, TEST))
    assert TEST.labels is not None
    labels = TEST_LABELS.numpy()
    found = evaluate(method)
    for place, name in enumerate(CLASSES):
        expected = (predicted[labels == place] == place).mean()
        assert found.values["accuracy_by_class"][name] == pytest.approx(expected)
    assert list(found.figures) == ["confusion matrix", "neighbors"]


def test_scale_of_features_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate().values["accuracy"]
    assert evaluate(Projection(factor=1e4)).values["accuracy"] == expected
    monkeypatch.setattr(knn_eval, "QUERIES", 7)
    method = Projection()
    assert evaluate(method, batch_size=13).values["accuracy"] == expected
    assert max(method.batches) == 13


def test_nearest_are_the_nearest_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_eval, "BANK", 30)
    bank = torch.randn(100, 4, generator=generator(0, "test"))
    near = knn_eval._nearest(bank * torch.linspace(0.1, 9, 100)[:, None], bank[:5], 8)
    units = bank / bank.norm(dim=1, keepdim=True)
    expected = (units[:5] @ units.T).sort(1, descending=True).indices[:, :8]
    assert torch.equal(near, expected)
    assert near[:, 0].tolist() == list(range(5))


def test_neighbors_are_framed_by_class() -> None:
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    near = images[:, None].expand(2, 3, 3, 8, 8)
    sheet = figures.draw_neighbors(images, ["a", "b"], near, [["a", "b", "a"], ["a", "a", "b"]])
    colors = torch.from_numpy(np.array(sheet))
    side = figures.SIDE + 2 * figures.BORDER
    frame = side**2 - figures.SIDE**2
    red, green = (
        int((colors == torch.tensor(color)).all(2).sum())
        for color in ((0xC8, 0x10, 0x2E), (0x3A, 0x7D, 0x44))
    )
    assert 3 * frame <= red < 3 * frame + 300  # and the captions
    assert 3 * frame <= green < 3 * frame + 300


def test_the_first_image_of_each_class_is_shown() -> None:
    labels = torch.tensor([2, 2, 0, 5, 0, 5])
    assert figures.one_of_each(labels, 10).tolist() == [2, 0, 3]
    assert figures.one_of_each(labels, 2).tolist() == [2, 0]


def test_a_long_name_is_cut_and_many_classes_bear_no_numbers() -> None:
    names = [f"a name of many letters {place}" for place in range(25)]
    figure = figures.draw_confusion(torch.eye(25).long(), names, "")
    assert not figure.axes[0].texts
    assert len(figures.draw_confusion(torch.eye(3).long(), names[:3], "").axes[0].texts) == 9
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    figures.draw_neighbors(image, names[:1], image[None], [names[:1]])


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (unlabeled(TRAIN), TEST, {}, "the train part of blobs has no labels"),
        (TRAIN, replace(TEST, labels=None), {}, "the test part of blobs has no labels"),
        (TRAIN, TEST, {"k": 301}, "-k must be from 1 to the number of train images, 300, not 301"),
        (TRAIN, TEST, {"k": 0}, "-k must be from 1"),
        (TRAIN, TEST, {"temperature": 0.0}, "--temperature must be above 0"),
        (TRAIN, TEST, {"temperature": float("nan")}, "--temperature must be above 0"),
        (TRAIN, split("test", 20, ("cat", "dog", "car")), {}, "have different classes"),
        (TRAIN.select(torch.where(TRAIN_LABELS == 1)[0]), TEST, {}, "are of one class"),
        (TRAIN.select(torch.where(TRAIN_LABELS > 0)[0]), TEST, {}, "shows cat, and test images do"),
        (replace(TRAIN, images=TRAIN.images[:, :, :8, :8]), TEST, {}, "trained on 16x16 images"),
    ],
)
def test_what_cannot_be_evaluated(train: Split, test: Split, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(None, train, test, **options)


def test_features_that_are_not_finite_are_no_features() -> None:
    with pytest.raises(UserError, match="features of train images are not finite") as caught:
        evaluate(Projection(factor=float("nan")))
    assert caught.value.code == 1
