"""The sweep over guidance, with a generator whose samples are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace
from genssl.eval.fidelity import FidelitySettings
from genssl.eval.guidance import guidance_sweep
from genssl.metrics.fidelity import frechet_distance, prdc
from genssl.pixels import to_model
from genssl.runtime import Randomness, generator

from .blobs import CLASSES, Projection, silent, split

SETTINGS = FidelitySettings(neighbors=3, resamples=5)


class Copies(Projection):
    """Samples are images of a split: of the class that is asked for, or w classes further."""

    guidance = 0.0
    classes = len(CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.source = split("test", 120)
        self.class_names = CLASSES

    def sample(
        self, n: int, generator: Randomness = None, *, labels: Tensor | None = None, guidance: float = 0.0
    ) -> Tensor:
        assert labels is not None
        assert self.source.labels is not None
        wanted = (labels + int(guidance)) % self.classes
        rows = [int((self.source.labels == label).nonzero()[i % 20]) for i, label in enumerate(wanted)]
        return to_model(self.source.images[rows])


def coarse(images: Tensor) -> Tensor:
    """The mean colors of 4 x 4 patches, (B, 48)."""
    return F.avg_pool2d(images, 4).flatten(1)


def sweep(values: list[float], method: Any = None, n: int = 30, **changes: Any) -> Any:
    method = method or Copies()
    space = FeatureSpace("coarse", coarse)
    real, train = split("test", 120), split("train", 200)
    arguments = {"real": real, "train": train} | changes
    return guidance_sweep(method, values, n, space=space, settings=SETTINGS, tick=silent, **arguments)


def test_the_class_is_the_one_that_was_asked_for_or_not() -> None:
    values = sweep([0, 1, 3]).values
    assert [row["w"] for row in values["guidance"]] == [0, 1, 3]
    accuracies = [row["class_accuracy"] for row in values["guidance"]]
    assert accuracies[0] > 0.9  # near the real images' own, from which these are taken
    assert accuracies[1] < 0.1
    assert accuracies[2] == accuracies[0]  # three classes further is the same class
    assert values["class_accuracy_of_real_images"] > 0.9
    assert values["best"]["class_accuracy"] == 0


def test_the_numbers_are_those_of_the_metrics() -> None:
    method = Copies()
    row = sweep([1], method).values["guidance"][0]
    labels = torch.arange(30) % 3
    real, generated = (
        coarse(images)
        for images in (to_model(split("test", 120).images[:30]), method.sample(30, labels=labels, guidance=1))
    )
    assert row["frechet_distance"] == pytest.approx(frechet_distance(real, generated), rel=1e-4)
    expected = prdc(real, generated, 3)
    assert (row["precision"], row["recall"]) == (expected.precision, expected.recall)
    assert row["recall_low"] <= row["recall"] <= row["recall_high"]


def test_the_pictures_have_a_row_per_value() -> None:
    result = sweep([0, 2])
    plot, grid = result.figures.values()
    assert [axis.get_title() for axis in plot.axes] == [
        "frechet distance", "precision, recall", "class accuracy",
    ]  # fmt: skip
    assert "rows: w = 0, 2" in grid.info["Description"]


def test_what_cannot_be_swept_is_refused() -> None:
    train = split("train", 200)
    unlabeled = type(train)(train.images, None, (), "noise", "train", "")
    with pytest.raises(UserError, match=r"noise, .* has no labels to read classes by"):
        sweep([0], train=unlabeled)
    for real in (split("test", 120, ("cat", "dog", "emu")), replace(split("test", 120), labels=None)):
        with pytest.raises(UserError, match="has no labels, or other classes than the run"):
            sweep([0], real=real)
    with pytest.raises(UserError, match="2 classes, the run 3"):
        sweep([0], train=split("train", 200, CLASSES[:2]))
    renamed = Copies()
    renamed.class_names = ("0", "1", "2")
    with pytest.raises(UserError, match="have other names now than when the run was trained"):
        sweep([0], renamed)
    plain = Copies()
    plain.classes = 0
    with pytest.raises(UserError, match="trained without classes"):
        sweep([0], plain)


def test_every_value_starts_from_the_same_noise() -> None:
    seen: list[float] = []

    class Noise(Copies):
        def sample(self, n: int, generator: Any = None, *, labels: Any = None, guidance: float = 0) -> Tensor:
            noise = torch.stack([torch.rand(3, 16, 16, generator=source) for source in generator])
            seen.append(float(noise.sum()))
            return noise * 2 - 1

    sweep([0, 1], Noise())
    assert seen[0] == seen[1] != float(torch.rand(1, generator=generator(0, "test")))
