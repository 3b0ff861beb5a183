"""Samples that are far sharper or softer than what was learnt from are said to be."""

import pytest
import torch
from torch import Tensor

from genssl.data.synthetic import render
from genssl.eval.result import EvalResult
from genssl.eval.sample import with_sharpness
from genssl.metrics.sharpness import mean_sharpness
from genssl.runtime import generator

IMAGES = render.make("train", count=64).images
REFERENCE = mean_sharpness(IMAGES)


def speckled(images: Tensor) -> Tensor:
    noise = 60 * torch.randn(images.shape, generator=generator(0, "sample"))
    return (images + noise).clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)


def notes(images: Tensor, reference: float | None = REFERENCE, sampler: str = "dpm++") -> tuple[str, ...]:
    return with_sharpness(EvalResult({"sampler": sampler}, notes=("first",)), images, reference).notes


def test_speckle_and_blur_are_said_with_both_numbers() -> None:
    first, note = notes(speckled(IMAGES))
    assert first == "first"
    assert f"that of the training images {REFERENCE:,.0f}: noise is left" in note
    assert f"is {mean_sharpness(speckled(IMAGES)):,.0f}," in note
    assert "--sampler ancestral" in note
    assert "--sampler" not in notes(speckled(IMAGES), sampler="ancestral")[1]
    assert "blurred" in notes(blurred(IMAGES))[1]


def test_images_like_those_learnt_from_need_no_word() -> None:
    assert notes(IMAGES) == ("first",)
    for factor in (0.51, 1.96):
        assert notes(IMAGES, REFERENCE * factor) == ("first",)
    for factor in (0.49, 2.04):
        assert len(notes(IMAGES, REFERENCE * factor)) == 2


def test_few_images_and_unknown_training_images_are_not_judged() -> None:
    assert notes(speckled(IMAGES)[:15]) == ("first",)
    assert len(notes(speckled(IMAGES)[:16])) == 2
    outcome = with_sharpness(EvalResult({}), speckled(IMAGES), None)
    assert (outcome.notes, set(outcome.values)) == ((), {"sharpness"})
    compared = with_sharpness(EvalResult({}), IMAGES, REFERENCE)
    assert compared.values == {"sharpness": pytest.approx(REFERENCE), "train_sharpness": REFERENCE}
