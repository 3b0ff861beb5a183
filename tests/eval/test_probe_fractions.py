"""Accuracy by the share of labels: which images are labeled, and that each accuracy is that of its fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier

from genssl.errors import UserError
from genssl.eval.probe import LabelFractions, labeled_rows, probe
from genssl.eval.result import EvalResult
from genssl.metrics.linear_probe import ProbeSettings, linear_probe

from ..narrow import given
from .blobs import Projection, as_pixels, reference, silent, split

TRAIN, TEST = split("train", 300), split("test", 120)
FAST = ProbeSettings(epochs=4)


def evaluate(**changes: Any) -> EvalResult:
    settings = LabelFractions(**{"fractions": (0.1, 1.0), "draws": 3, "k": 5, "linear": FAST, **changes})
    return probe(Projection(), TRAIN, TEST, settings, tick=silent)


def test_of_each_class_the_same_share_is_labeled() -> None:
    labels = torch.tensor([0] * 100 + [1] * 20 + [2])
    rows = labeled_rows(labels, 0.1, 0, 0)
    assert labels[rows].bincount().tolist() == [10, 2, 1]
    assert torch.equal(rows, rows.unique())
    assert torch.equal(labeled_rows(labels, 1, 0, 0), torch.arange(121))
    # A larger share of one draw contains a smaller one; draws and seeds differ
    assert set(rows.tolist()) < set(labeled_rows(labels, 0.3, 0, 0).tolist())
    assert not torch.equal(rows, labeled_rows(labels, 0.1, 0, 1))
    assert not torch.equal(rows, labeled_rows(labels, 0.1, 1, 0))
    # Every image of a class is as likely as any other: 400 draws, within five standard deviations
    counts = sum(labeled_rows(labels[:100], 0.1, 0, draw).bincount(minlength=100) for draw in range(400))
    assert float((torch.as_tensor(counts) - 40).abs().max()) < 5 * (400 * 0.1 * 0.9) ** 0.5


def test_accuracies_are_those_of_the_labeled_images() -> None:
    values = evaluate().values
    rows = values["compared"]
    assert [row["what"] for row in rows[::2]] == ["vae", "untrained vae", "raw pixels"]
    assert [row["linear_std"] is None for row in rows] == [False, True] * 3
    method = Projection()
    for name, bank, queries in (
        ("vae", reference(method, TRAIN), reference(method, TEST)),
        ("raw pixels", as_pixels(TRAIN), as_pixels(TEST)),
    ):
        few, whole = [row for row in rows if row["what"] == name]
        linear, near = [], []
        assert TRAIN.labels is not None
        assert TEST.labels is not None
        for draw in range(3):
            chosen = labeled_rows(TRAIN.labels, 0.1, 0, draw)
            known = TRAIN.labels[chosen]
            fitted = linear_probe(bank[chosen].float(), known, queries.float(), TEST.labels, 3, FAST)
            linear.append(fitted.test_accuracy[-1])
            peer = KNeighborsClassifier(
                5,
                metric="cosine",
                algorithm="brute",
                weights=lambda d: torch.exp(torch.tensor(1 - d) / 0.1).numpy(),
            ).fit(bank[chosen].numpy(), known.numpy())
            near.append(float(peer.score(queries.numpy(), TEST.labels.numpy())))
        assert few["labeled"] == len(chosen)
        assert few["linear_accuracy"] == pytest.approx(float(torch.tensor(linear).mean()), abs=0.01)
        assert few["linear_std"] == pytest.approx(float(torch.tensor(linear).std()), abs=0.01)
        assert few["knn_accuracy"] == pytest.approx(float(torch.tensor(near).mean()), abs=1e-6)
        assert few["knn_std"] == pytest.approx(float(torch.tensor(near).std()), abs=1e-6)
        assert whole["labeled"] == 300
        assert whole["knn_std"] is None
    assert values["linear_accuracy"] == rows[0]["linear_accuracy"]


def test_the_figure_has_a_line_of_each_kind_and_names_the_shares() -> None:
    (figure,) = evaluate(fractions=(1.0, 0.025)).figures.values()
    assert isinstance(figure, Figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2.5", "100"]
    assert [text.get_text() for text in given(axis.get_legend()).get_texts()] == [
        f"{name}, {kind}" for name in ("vae", "untrained vae", "raw pixels") for kind in ("linear", "kNN")
    ]


def test_fewer_labeled_images_than_neighbors() -> None:
    result = evaluate(fractions=(0.01,), k=20)
    assert result.values["labeled"] == 3
    assert any("k is 3" in note for note in result.notes)
    assert not any("k is" in note for note in evaluate().notes)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_shares_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match="must be above 0 and at most 1"):
        evaluate(fractions=(fraction,))


def test_another_method_takes_images_of_the_same_size() -> None:
    other = Projection()
    other.config = other.config.updated({"image_size": 32})
    with pytest.raises(UserError, match="trained on 32x32 images"):
        probe(Projection(), TRAIN, TEST, LabelFractions(), beside={"other": other}, tick=silent)
    with pytest.raises(UserError, match="has no labels"):
        probe(Projection(), replace(TRAIN, labels=None), TEST, LabelFractions(), tick=silent)
