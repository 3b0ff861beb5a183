"""A generative method that the package has never seen is served by every command, by one registry line."""

import json
from pathlib import Path
from typing import Any, Literal, Self

import pytest
import torch
from torch import Tensor, nn

from genssl.models import build
from genssl.models.method import Method
from genssl.runtime import Randomness, normal
from genssl.settings import Config

from .conftest import call

Z_DIM = 4


class LinearConfig(Config):
    """A linear autoencoder."""

    method: Literal["linear_autoencoder"] = "linear_autoencoder"
    z_dim: int = Z_DIM


class LinearAutoencoder(Method):
    """x -> z -> x, both linear; it draws z from N(0, I)."""

    def __init__(self, image_size: int, z_dim: int) -> None:
        super().__init__()
        self.shape, self.z_dim = (3, image_size, image_size), z_dim
        self.encoder = nn.Linear(3 * image_size**2, z_dim)
        self.decoder = nn.Linear(z_dim, 3 * image_size**2)

    @classmethod
    def from_config(cls, config: LinearConfig) -> Self:
        return cls(config.image_size, config.z_dim)

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        (x,) = views
        return {"loss": (self.reconstruct(x) - x).square().mean()}

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images.flatten(1))
        return features

    def decode(self, z: Tensor) -> Tensor:
        images: Tensor = self.decoder(z).view(-1, *self.shape)
        return images

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.features(images))

    def sample_prior(self, n: int, generator: Randomness = None) -> Tensor:
        return normal((n, self.z_dim), generator)

    def sample(self, n: int, generator: Randomness = None) -> Tensor:
        return self.decode(self.sample_prior(n, generator))

    def interpolate(self, z_1: Tensor, z_2: Tensor, n: int) -> Tensor:
        share = torch.linspace(0, 1, n).view(n, 1, 1)
        return self.decode_path(z_1 + share * (z_2 - z_1))

    def decode_path(self, z: Tensor) -> Tensor:
        return torch.stack([self.decode(row) for row in z])

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        return {"samples": self.sample(len(images), generator)}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"linear_autoencoder": (LinearConfig, LinearAutoencoder)}
    monkeypatch.setattr(build, "METHODS", build.METHODS | line)


@pytest.fixture
def run(digits: Path, workplace: Path) -> Path:
    """Trained for an epoch, once per test: the registry line is there for as long as a test."""
    folder = workplace / "checkpoints" / "linear"
    if not folder.exists():
        settings = ["--data", digits, "--epochs", 1, "--batch-size", 40, "--out", folder]
        result = call("train", "linear-autoencoder", *settings)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["sample", "RUN", "-n", 8], "images"),
        (["reconstruct", "RUN", "-n", 4], "mse"),
        (["interpolate", "RUN", "--rows", 2, "--steps", 3], "mean_step_rmse"),
        (["interpolate", "RUN", "--rows", 2, "--steps", 3, "--between", "test"], "mean_step_rmse"),
        (["knn-eval", "RUN", "-k", 5], "accuracy"),
        (["fidelity", "RUN", "-n", 16, "-k", 3, "--features", "pixels", "--resamples", 2], "measures"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_command_serves_it(run: Path, command: list[object], key: str) -> None:
    arguments = [run if word == "RUN" else word for word in command]
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    assert key in values
    assert values["method"] == "linear_autoencoder"


def test_what_it_cannot_do_is_one_line(run: Path) -> None:
    for command, message in (
        (["importance-ll", run], "importance-ll needs a vae, and this is a linear_autoencoder"),
        (["bits-per-dim", run], "bits-per-dim needs a ddpm or a flow, and this is a linear_autoencoder"),
        (["reconstruct", run, "--t-prime", 5], "are for a diffusion model"),
    ):
        result = call(*command)
        assert result.exit_code == 2
        assert message in result.stderr


def test_the_report_shows_it(run: Path, tmp_path: Path) -> None:
    assert call("sample", run, "-n", 8).exit_code == 0
    result = call("report", run, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "linear_autoencoder" in page.replace("<wbr>", "")
    assert "Samples (n8)" in page
