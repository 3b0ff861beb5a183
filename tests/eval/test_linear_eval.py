import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from genssl.config import SimSiamConfig
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.linear_eval import cropped, linear_eval, may_mirror, records
from genssl.eval.result import EvalResult
from genssl.metrics.linear_probe import ProbeResult, ProbeSettings, linear_probe
from genssl.pixels import to_model

from ..narrow import given
from .blobs import CLASSES, SIZE, Projection, reference, silent, split, unlabeled

TRAIN, TEST = split("train", 300), split("test", 120)
TRAIN_LABELS, TEST_LABELS = given(TRAIN.labels), given(TEST.labels)
SETTINGS = ProbeSettings(epochs=12, batch_size=64)


def evaluate(
    method: Projection | None = None, train: Split = TRAIN, test: Split = TEST, **changes: Any
) -> tuple[EvalResult, ProbeResult]:
    options = {"batch_size": 64, "tick": silent, **changes}
    return linear_eval(method or Projection(), train, test, SETTINGS, **options)


def test_is_the_probe_on_the_features() -> None:
    method = Projection()
    outcome, probe = evaluate(method)
    bank, queries = reference(method, TRAIN), reference(method, TEST)
    expected = linear_probe(bank, TRAIN_LABELS, queries, TEST_LABELS, 3, SETTINGS)
    assert probe.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
    assert probe.test_accuracy == pytest.approx(expected.test_accuracy, abs=0.01)
    values = outcome.values
    assert (values["train_images"], values["test_images"], values["dimensions"]) == (300, 120, 8)
    assert method.batches == [64, 56, 64, 64, 64, 64, 44]  # each image once


def test_the_last_epoch_is_reported() -> None:
    outcome, probe = evaluate()
    values = outcome.values
    assert max(probe.test_accuracy) > probe.test_accuracy[-1]  # else this would show nothing
    assert values["accuracy"] == probe.test_accuracy[-1]
    assert values["train_accuracy"] == probe.train_accuracy[-1]
    assert (values["loss_nats"], values["train_loss_nats"]) == (probe.test_loss[-1], probe.train_loss[-1])
    right = probe.predicted == TEST_LABELS
    for place, name in enumerate(CLASSES):
        own = place == TEST_LABELS
        assert values["accuracy_by_class"][name] == pytest.approx(float(right[own].double().mean()))


def test_records_and_the_epochs_in_the_table() -> None:
    outcome, probe = evaluate()
    rows = records(probe)
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[3]["test_loss"] == probe.test_loss[3]
    assert [row["epoch"] for row in outcome.values["curves"]] == [1, 2, 4, 5, 6, 7, 8, 10, 11, 12]
    assert outcome.values["curves"][-1] == rows[-1]
    figure = outcome.figures["curves"]
    assert isinstance(figure, Figure)
    lines = figure.axes[0].lines
    assert [np.asarray(line.get_ydata())[-1] for line in lines] == pytest.approx(
        [100 * probe.train_accuracy[-1], 100 * probe.test_accuracy[-1]]
    )


def test_augmented_features_are_made_anew_in_each_epoch() -> None:
    method, ticks = Projection(), []
    outcome, probe = evaluate(method, augment=True, tick=lambda done, total: ticks.append((done, total)))
    assert len(method.batches) == 2 + 12 * 5
    assert ticks[-1] == (12 * 300, 12 * 300)
    assert outcome.values["augmented"] is True
    assert probe.train_loss != evaluate()[1].train_loss
    assert probe.train_loss == evaluate(augment=True)[1].train_loss

    def anew(epoch: int) -> Tensor:
        parts = cropped(TRAIN.images, may_mirror(method, "synthetic", TRAIN.classes), 0, epoch)
        return torch.cat([method.features(to_model(part)) for part in parts])

    features = method.features(to_model(TEST.images))
    expected = linear_probe(anew, TRAIN_LABELS, features, TEST_LABELS, len(TRAIN.classes), SETTINGS)
    assert probe.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
    assert probe.train_loss != evaluate(augment=True, seed=1)[1].train_loss


def ramps(n: int = 400) -> torch.Tensor:
    """Images that grow brighter to the right, and downwards."""
    x = torch.arange(SIZE, dtype=torch.uint8) * 8
    return (x + x[:, None] // 2).expand(n, 3, SIZE, SIZE)


def crops(images: Tensor, mirror: bool, seed: int, epoch: int) -> Tensor:
    return torch.cat(list(cropped(images, mirror, seed, epoch)))


def test_crops_are_parts_of_the_image_and_half_of_them_mirrored() -> None:
    images = ramps()
    plain, mirrored = crops(images, False, 0, 0).int(), crops(images, True, 0, 0).int()
    assert (plain.diff(dim=3) >= 0).all()
    assert (plain.diff(dim=2) >= 0).all()
    assert plain.max() <= images.max()
    turned = (mirrored != plain).flatten(1).any(1)
    assert torch.equal(mirrored[turned], plain[turned].flip(3))
    assert abs(int(turned.sum()) - 200) < 4 * math.sqrt(400 / 4)  # four deviations of a fair coin
    # the share of the range that a crop spans grows with its area; the smallest has 0.08 of it
    widths = (plain[:, 0, 0, -1] - plain[:, 0, 0, 0]) / (8 * (SIZE - 1))
    assert 0.1 < widths.min() < 0.35
    assert widths.max() > 0.9


def test_crops_depend_on_seed_and_epoch_alone() -> None:
    images = ramps(50)
    assert torch.equal(crops(images, True, 3, 2), crops(images, True, 3, 2))
    for seed, epoch in ((3, 1), (2, 2)):
        assert not torch.equal(crops(images, True, 3, 2), crops(images, True, seed, epoch))
    flat = torch.full((50, 3, SIZE, SIZE), 77, dtype=torch.uint8)
    assert torch.equal(crops(flat, True, 0, 0), flat)


def test_digits_are_not_mirrored() -> None:
    method = Projection()
    assert may_mirror(method, "photos", ("cat", "7"))
    assert not may_mirror(method, "photos", ("3", "7"))
    method.config = SimSiamConfig(flip="on")
    assert may_mirror(method, "photos", ("3", "7"))
    method.config = SimSiamConfig(flip="off")
    assert not may_mirror(method, "photos", ("cat", "dog"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (unlabeled(TRAIN), TEST, "has no labels"),
        (TRAIN, replace(TEST, classes=("a", "b", "c")), "have different classes"),
        (TRAIN.select(torch.where(TRAIN_LABELS == 1)[0]), TEST, "are of one class"),
    ],
)
def test_what_cannot_be_evaluated(train: Split, test: Split, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(None, train, test)


def test_a_rate_that_diverges_is_named() -> None:
    with pytest.raises(UserError, match="choose a lower --lr"):
        linear_eval(
            Projection(), TRAIN, TEST, ProbeSettings(epochs=2, learning_rate=1e38), batch_size=64, tick=silent
        )
