"""The readers of generated digits: their intervals, their shifts, and what both of them agree on."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import readable
from genssl.data.synthetic import render
from genssl.pixels import to_model
from genssl.runtime import generator


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (3, 7), (50, 100), (511, 512), (4000, 4000)])
def test_an_interval_ends_where_the_share_is_1_96_standard_deviations_away(successes: int, n: int) -> None:
    measured = readable.interval(torch.arange(n) < successes)
    share = successes / n
    assert measured["share"] == pytest.approx(share)
    for end in (measured["low"], measured["high"]):
        assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), abs=1e-9)
    assert measured["low"] <= share <= measured["high"]


def test_shifts_are_whole_pixels_in_all_directions() -> None:
    images = torch.rand(400, 3, 9, 7, generator=generator(0, "test"))
    shifted = readable.shifted(images, 2, generator(0, "test", 1))
    offsets = set()
    for image, result in zip(images, shifted, strict=True):
        (offset,) = [
            (down, across)
            for down in range(-2, 3)
            for across in range(-2, 3)
            if torch.equal(result[:, 2:-2, 2:-2], image.roll((down, across), (1, 2))[:, 2:-2, 2:-2])
        ]
        offsets.add(offset)
    assert len(offsets) == 25
    assert readable.shifted(images, 0, generator(0, "test")) is images


class Fixed(nn.Module):
    """Answers an image by the class in its first pixel, always as certain."""

    def __init__(self, certainty: float) -> None:
        super().__init__()
        self.certainty = certainty

    def forward(self, x: Tensor) -> Tensor:
        digit = ((x[:, 0, 0, 0] + 1) * 128).floor().long() % 10
        rest = math.log((1 - self.certainty) / 9)
        return torch.full((len(x), 10), rest).scatter_(1, digit[:, None], math.log(self.certainty))


def test_both_read_an_image_where_they_are_sure_of_the_same_digit() -> None:
    images = torch.randint(10, (40, 3, 4, 4), dtype=torch.uint8, generator=generator(0, "test"))
    shares = readable.shares({"one": Fixed(0.95), "other": Fixed(0.85)}, images)
    assert [shares[name]["0.8"]["share"] for name in ("one", "other", "both")] == [1, 1, 1]
    assert [shares[name]["0.9"]["share"] for name in ("one", "other", "both")] == [1, 0, 0]

    class Next(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(1, 1)

    assert readable.shares({"one": Fixed(0.95), "other": Next(0.95)}, images)["both"]["0.8"]["share"] == 0


def test_the_readers_are_of_two_architectures_and_their_numbers_are_written(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (reader.build(10) for reader in readable.READERS)
    assert {type(m).__name__ for m in first.modules()} ^ {type(m).__name__ for m in second.modules()}
    assert [(reader.smoothing, reader.shift) for reader in readable.READERS] == [(0.0, 0), (0.1, 2)]
    splits = {"train": render.make("train", count=128), "test": render.make("test", count=64)}
    monkeypatch.setattr(readable, "load", lambda name, part: splits[part])
    out = tmp_path / "readable.json"
    arguments = ["vae", "-n", "8", "--epochs", "1", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["readable", *arguments])
    readable.main()
    result = json.loads(out.read_text())
    assert list(result["readers"]) == ["residual", "plain"]
    for reader in result["readers"].values():
        accuracy = reader["test_accuracy"]
        assert 64 * accuracy["share"] == round(64 * accuracy["share"])
        assert accuracy["low"] <= accuracy["share"] <= accuracy["high"]
    assert [row["n"] for row in result["rows"]] == [64, 64, 8]
    assert result["rows"][2]["how"] == "prior normal"
    assert all({"residual", "plain", "both"} <= set(row) for row in result["rows"])


def test_a_readers_training_lowers_its_loss() -> None:
    split = render.make("train", count=192)
    assert split.labels is not None
    for reader in readable.READERS:
        with torch.random.fork_rng():
            torch.manual_seed(reader.seed)
            before = reader.build(10).eval()
        after = readable.trained(reader, split, 6)
        with torch.no_grad():
            losses = [
                float(nn.functional.cross_entropy(network(to_model(split.images)), split.labels))
                for network in (before, after)
            ]
        assert losses[1] < losses[0]
