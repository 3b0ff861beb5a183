"""A split that is too large for the device stays on the disk, and every number is the same to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genssl.data import loader
from genssl.data.cache import read_split, split_path, write_split
from genssl.data.loader import place
from genssl.data.split import Split
from genssl.eval import linear_eval
from genssl.eval.result import EvalResult
from genssl.metrics import sharpness
from tests.evaluations import BATCH, EVALUATIONS, built, images

CPU = torch.device("cpu")
WHOLE_SPLITS = (
    "features", "reconstruct", "latent profile", "importance", "knn", "linear", "linear, augmented",
    "likelihood of the flow", "noise levels in pixels", "fidelity", "fidelity in pixels",
)  # fmt: skip


def on_the_disk(split: Split, cache_key: str) -> Split:
    write_split(split_path(cache_key, split.part), split)
    kept = read_split(split_path(cache_key, split.part))
    assert kept is not None
    return kept


def numbers(outcome: Any) -> tuple[dict[str, Any], list[bytes]]:
    """The values but for the time, and the pictures."""
    result: EvalResult = outcome[0] if isinstance(outcome, tuple) else outcome
    values = {name: value for name, value in result.values.items() if name != "seconds"}
    return values, [image.tobytes() for image in result.figures.values() if hasattr(image, "tobytes")]


@pytest.mark.parametrize("evaluation", WHOLE_SPLITS)
def test_numbers_are_those_of_a_resident_split(
    evaluation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, changes, evaluate = EVALUATIONS[evaluation]
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path))
    torch.manual_seed(0)
    method = built(name, CPU, **changes).eval().requires_grad_(False)
    for module, size in ((linear_eval, "CROPPED"), (sharpness, "ROWS")):
        monkeypatch.setattr(module, size, BATCH)
    splits = [images(17), images(18, "test")]
    resident = numbers(evaluate(method, *splits))
    # A limit of a byte
    monkeypatch.setattr(loader, "free_bytes", lambda _: 2)
    kept = [place(on_the_disk(replace(split, digest=f"kept {split.part}"), "kept"), CPU) for split in splits]
    assert [split.images.data_ptr() for split in kept] != [split.images.data_ptr() for split in splits]
    assert numbers(evaluate(method, *kept)) == resident


def test_the_limit_is_that_of_training() -> None:
    split, meta = images(8), torch.device("meta")
    size = split.images.numel() / 2**30
    assert place(split, meta, size).images.device == meta
    assert place(split, meta, 0.9 * size).images is split.images
