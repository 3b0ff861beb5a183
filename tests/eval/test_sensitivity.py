import pytest
import torch
from torch import Tensor

from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace
from genssl.eval.sensitivity import DISTURBANCES, brighten, not_rising, sensitivity
from genssl.metrics.fidelity import frechet_distance, squared_mmd
from genssl.pixels import to_model
from genssl.runtime import generator

from .blobs import silent


def color_blind(images: Tensor) -> Tensor:
    """The mean gray level of 16 x 16 quarters, (B, 4)."""
    return images.mean(1).unfold(1, 16, 16).unfold(2, 16, 16).mean((3, 4)).flatten(1)


def mean_colors(images: Tensor) -> Tensor:
    return images.mean((2, 3))


@pytest.fixture
def real() -> Split:
    """Images of one random color each, redder than blue, uint8 (120, 3, 32, 32)."""
    colors = torch.rand(120, 3, 1, 1, generator=generator(0, "test")) * torch.tensor([180, 120, 60]).view(
        3, 1, 1
    )
    return Split(
        (colors + 40).to(torch.uint8).expand(-1, -1, 32, 32).contiguous(), None, (), "colors", "test", ""
    )


def test_the_distances_are_those_of_the_metrics(real: Split) -> None:
    result = sensitivity(real, FeatureSpace("colors", mean_colors), 32, silent)
    reference, other = (mean_colors(to_model(images)) for images in real.images.split(60))
    assert result.values["frechet_distance_undisturbed"] == pytest.approx(frechet_distance(reference, other))
    rows = [row for row in result.values["disturbances"] if row["disturbance"] == "brightness"]
    changed = mean_colors(to_model(brighten(real.images[60:], 50)))
    assert rows[1]["frechet_distance"] == pytest.approx(frechet_distance(reference, changed))
    assert rows[1]["kernel_distance"] == pytest.approx(squared_mmd(reference, changed))
    assert len(result.values["disturbances"]) == 3 * len(DISTURBANCES)


def test_blind_features_are_found_out(real: Split) -> None:
    seeing = sensitivity(real, FeatureSpace("colors", mean_colors), 32, silent)
    blind = sensitivity(
        real, FeatureSpace("gray", lambda x: color_blind(x) * 0 + mean_gray(x), ""), 32, silent
    )
    swapped = {
        name: [
            row["over_undisturbed"]
            for row in result.values["disturbances"]
            if "channels" in row["disturbance"]
        ]
        for name, result in (("seeing", seeing), ("blind", blind))
    }
    assert swapped["seeing"][2] > 5
    assert swapped["blind"][:3] == pytest.approx([1, 1, 1], abs=0.01)
    (note,) = [note for note in blind.notes if "less than doubles" in note]
    assert "channels permuted" in note


def mean_gray(images: Tensor) -> Tensor:
    """Red and blue count alike, (B, 1)."""
    return images.mean((1, 2, 3))[:, None]


def test_a_distance_that_falls_is_named() -> None:
    rows = [
        {"disturbance": name, "frechet_distance": frechet, "kernel_distance": kernel}
        for name, distances in {
            "rising": ((1, 0), (2, 1), (3, 2)),
            "falling": ((1, 0), (3, 1), (2, 2)),
            "kernel": ((1, 0), (2, -1), (3, 2)),
        }.items()
        for frechet, kernel in distances
    ]  # fmt: skip
    assert not_rising(rows) == ["falling", "kernel"]


def test_too_few_images(real: Split) -> None:
    with pytest.raises(UserError, match="60 images are too few for two halves; take 64 or more"):
        sensitivity(real.take(60), FeatureSpace("colors", mean_colors), 32, silent)
