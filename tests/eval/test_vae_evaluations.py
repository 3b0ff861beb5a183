"""Numbers of a VAE's evaluations, worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genssl.config import VAEConfig
from genssl.data.split import Split
from genssl.eval.importance_ll import importance_ll
from genssl.eval.reconstruct import reconstruct
from genssl.models.vae import VAE
from genssl.pixels import to_model
from genssl.runtime import Randomness, generator

SIDE = 16


def split(n: int) -> Split:
    shape = (n, 3, SIDE, SIDE)
    images = torch.randint(0, 256, shape, generator=generator(0, "test"), dtype=torch.uint8)
    return Split(images, None, (), "noise", "test", "0")


class UniformVAE(VAE):
    """Its density is that of images that are uniform over the whole range, (1/2)^D; it keeps what it sees."""

    def __init__(self) -> None:
        super().__init__(image_size=SIDE, width=1, z_dim=2)
        self.config = VAEConfig(image_size=SIDE, width=1, z_dim=2, decoder_variance="learned")
        self.seen: list[Tensor] = []

    def log_weights(self, x: Tensor, k: int, generator: Randomness = None) -> Tensor:
        self.seen.append(x)
        inside = ((x >= -1) & (x < 1)).flatten(1).all(1)
        return torch.where(inside, -x[0].numel() * math.log(2), -torch.inf).expand(k, -1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Too bright, by more in every further image."""
        return x + 0.01 * (1 + torch.arange(len(x))).view(-1, 1, 1, 1)


def test_the_likelihood_is_of_dequantized_bytes() -> None:
    method, data = UniformVAE(), split(16)
    values = importance_ll(method, data, 3, seed=0, tick=lambda *_: None).values
    # Bytes that are all alike likely take 8 bits each
    assert values["bits_per_dim"] == pytest.approx(8, abs=1e-5)
    # A byte stands for an interval of 1/128, in which each place is as likely: mean 1/2, variance 1/12
    places = (torch.cat(method.seen) + 1) * 128 - data.images[: sum(map(len, method.seen))]
    assert places.min() >= -1e-3
    assert places.max() <= 1 + 1e-3
    count = places.numel()
    assert abs(float(places.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / count)
    # The variance of (u - 1/2)^2 is 1/80 - 1/144
    assert abs(float(places.var()) - 1 / 12) < 4 * math.sqrt((1 / 80 - 1 / 144) / count)


def test_a_reconstructions_error_is_that_of_its_own_image() -> None:
    method, data = UniformVAE(), split(6)
    options: dict[str, Any] = {"seed": 0, "batch_size": 6, "tick": lambda *_: None}
    values = reconstruct(method, data, 2, **options).values
    errors = [(0.01 * i) ** 2 for i in range(1, 7)]
    assert values["mse"] == pytest.approx(sum(errors) / 6, rel=1e-4)
    assert values["rmse"] == pytest.approx(math.sqrt(sum(errors) / 6), rel=1e-4)
    # The mean of the ratios, and not the ratio of the mean
    assert values["psnr_db"] == pytest.approx(sum(10 * math.log10(4 / error) for error in errors) / 6)
    assert to_model(data.images).abs().max() <= 1
