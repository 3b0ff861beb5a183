"""Segmentation: that it finds what features show, that all are measured alike, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genssl.config import VAEConfig
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval import segment as module
from genssl.eval.result import EvalResult
from genssl.eval.segment import SegmentSettings, colored, ground_or_not, neighborhoods, segment
from genssl.metrics.segmentation import ClassifierSettings
from genssl.models.build import build
from genssl.models.method import Method
from genssl.pixels import IGNORE
from genssl.runtime import generator

from .blobs import Projection, silent

CPU = torch.device("cpu")

SIDE = 16
FAST = ClassifierSettings(members=3, steps=40, batch_size=64, learning_rate=1e-2)


class Seeing(Method):
    """Its features are the brightness of each pixel, and noise that says nothing."""

    spatial_blocks, spatial_times = 2, ()

    def __init__(self) -> None:
        super().__init__()
        self.config = VAEConfig(image_size=SIDE, width=4, z_dim=5)

    def spatial_features(
        self, images: Tensor, noise: Tensor | None = None, *, blocks: Any = None, times: Any = None
    ) -> Tensor:
        still = torch.zeros_like(images[:, :2])
        maps = [still, images.mean(1, keepdim=True)]
        return torch.cat([maps[block] for block in (blocks or [0, 1])], 1)


def split(part: str, n: int) -> Split:
    """Images in which class 0, 1, 2 is dark, middling, bright, with colors that cancel in the mean."""
    draw = generator(0, "test", len(part))
    masks = torch.randint(3, (n, SIDE, SIDE), generator=draw)
    tint = torch.randint(-40, 41, (n, 1, SIDE, SIDE), generator=draw)
    images = 50 + 75 * masks[:, None] + torch.cat([tint, -tint, 0 * tint], 1)
    return Split(images.to(torch.uint8), None, ("a", "b"), "levels", part, "d", masks.to(torch.uint8))


TRAIN, TEST = split("train", 10), split("test", 5)


def evaluate(
    method: Method | None = None, train: Split = TRAIN, test: Split = TEST, **changes: Any
) -> EvalResult:
    settings = {"labeled": (3,), "repeats": 2, "classes": "all", "classifiers": FAST, **changes}
    return segment(method or Seeing(), train, test, SegmentSettings(**settings), tick=silent)


def test_features_that_show_the_classes_find_them() -> None:
    values = evaluate().values
    rows = {row["what"]: row for row in values["compared"]}
    assert rows["vae"]["mean_iou"] > 0.99
    cells = {cell["block"]: cell["mean_iou"] for cell in values["iou_by_block_and_time"]}
    # A constant map leaves one class, whose IoU is its share of a third, and nothing of the others
    assert cells[1] < 0.15
    assert cells[2] > 0.99
    assert values["iou_by_class"][0]["class"] == "ground"
    by_class = [row["vae"] for row in values["iou_by_class"]]
    assert values["mean_iou"] == pytest.approx(np.mean(by_class), abs=1e-6)
    assert values["mean_iou"] == rows["vae"]["mean_iou"]


def test_all_features_are_measured_on_the_same_draws_in_the_same_way() -> None:
    class Pixels(Seeing):
        def spatial_features(self, images: Tensor, noise: Tensor | None = None, **_: Any) -> Tensor:
            return images

    rows = {row["what"]: row for row in evaluate(Pixels(), heat_map=False).values["compared"]}
    for row in rows.values():
        row.pop("what")
    assert rows["vae"] == rows["raw pixels"]
    assert rows["vae"] != rows["raw pixels, 3x3"]


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate().values["compared"]
    monkeypatch.setattr(module, "NUMBERS", 2 * SIDE**2)
    monkeypatch.setattr(module, "SHOWN", 2)
    assert evaluate().values["compared"] == expected


def test_pixels_are_drawn_where_all_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3 * 27 * 60)
    problem = module._problem(TRAIN, TEST, SegmentSettings(labeled=(3,), classes="all"), CPU)
    rows = problem.draws[0]
    pixels, labels = module._labeled_pixels(neighborhoods, problem, rows, 0)
    assert pixels.shape == (3, 60, 27)
    # Each pixel with its own class: the middle of the neighborhood tells it
    levels = pixels.view(3, 60, 3, 9)[..., 4].mean(2)
    assert torch.equal(labels, ((levels + 1) * 128 - 50.5).div(75).round().long())
    assert evaluate().values["mean_iou"] > 0.95


def test_neighborhoods_are_those_of_each_pixel() -> None:
    images = torch.rand(2, 3, 5, 6)
    found = neighborhoods(images).view(2, 3, 3, 3, 5, 6)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(found[:, :, i, j], padded[:, :, i : i + 5, j : j + 6])


def test_ground_or_not_joins_the_other_classes() -> None:
    matrix = torch.tensor([[5, 1, 2], [3, 7, 4], [6, 8, 9]])
    assert ground_or_not(matrix).tolist() == [[5, 3], [9, 28]]
    result = evaluate(classes="ground")
    two = result.values
    assert (two["classes"], [row["class"] for row in two["iou_by_class"]]) == (2, ["ground", "not ground"])
    assert "ground_or_not_iou" not in two["compared"][0]
    assert two["mean_iou"] > 0.99
    assert "of the 3 classes of the masks, all but ground are one" in result.notes[0]
    assert evaluate().values["compared"][0]["ground_or_not_iou"] > 0.99
    assert "over 2 draws" in result.notes[1]
    assert len(result.notes) == 2


def test_ignored_pixels_are_neither_learned_nor_counted() -> None:
    def half_wrong(data: Split) -> Split:
        assert data.masks is not None
        images = data.images.clone()
        images[:, :, :8] = 255 - images[:, :, :8]
        masks = data.masks.clone()
        masks[:, :8] = IGNORE
        return replace(data, images=images, masks=masks)

    assert evaluate(train=half_wrong(TRAIN), test=half_wrong(TEST)).values["mean_iou"] > 0.99


def test_pixels_are_drawn_among_those_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.full_like(TRAIN.images[:, 0], IGNORE)
    masks[:, 3, ::2] = 1
    masks[:, 4, ::2] = 2
    train = replace(TRAIN, masks=masks)
    monkeypatch.setattr(module, "KEPT", 3 * 27 * 16)
    problem = module._problem(train, TEST, SegmentSettings(labeled=(3,), classes="all"), CPU)
    _, labels = module._labeled_pixels(neighborhoods, problem, problem.draws[0], 0)
    assert labels.shape == (3, 16)
    assert not (labels == IGNORE).any()


def test_test_images_of_which_nothing_counts_are_refused() -> None:
    nothing = replace(TEST, masks=torch.full_like(TEST.images[:, 0], IGNORE))
    with pytest.raises(UserError, match="no pixel of 5 test images counts"):
        evaluate(test=nothing)


def test_colors_are_of_classes() -> None:
    masks = torch.tensor([[[0, 1, 11, IGNORE]]])
    found = colored(masks)[0, :, 0].T.tolist()
    assert found[0] == [0, 0, 0]
    assert found[1] == found[2] != found[0]
    assert found[3] == [127, 127, 127]


def test_gray_images_and_other_methods_side_by_side() -> None:
    gray = build(VAEConfig(image_size=SIDE, width=4, z_dim=5, channels=1)).eval()
    settings = SegmentSettings(labeled=(2, 3), repeats=1, classifiers=FAST)
    values = segment(Seeing(), TRAIN, TEST, settings, beside={"gray": gray}, tick=silent).values
    assert [row["labeled"] for row in values["compared"] if row["what"] == "gray"] == [2, 3]
    assert values["std"] is None


@pytest.mark.parametrize(
    ("method", "train", "changes", "message"),
    [
        (Projection(), TRAIN, {}, "segment needs a vae"),
        (None, replace(TRAIN, masks=None), {}, "the train images of levels have no masks"),
        (
            None,
            TRAIN,
            {"labeled": (3, 11)},
            "--labeled must be at most the number of train images, 10, not 11",
        ),
        (
            None,
            replace(TRAIN, masks=torch.full_like(TRAIN.images[:, 0], IGNORE)),
            {},
            "no pixel of 3 labeled",
        ),
        (None, replace(TRAIN, images=TRAIN.images[:, :, :8, :8]), {}, "trained on 16x16 images"),
    ],
)
def test_what_cannot_be_segmented(
    method: Method | None, train: Split, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(method, train, **changes)
