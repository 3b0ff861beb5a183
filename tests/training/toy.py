"""A method that needs everything the seam offers, to show that the loop needs to know none of it."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import Randomness, normal, uniform
from genssl.settings import Config


class ToyConfig(Config):
    """Settings of the toy."""

    method: Literal["toy"] = "toy"
    views: ClassVar[str] = "toy"
    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-2
    schedule: Literal["constant", "cosine"] = "cosine"
    momentum_of_target: float = 0.9


class ToyViews:
    """Two views, the second made from the first."""

    names = ("first", "second")

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        return {"gain": uniform((n, 1, 1, 1), generator), "shift": uniform((n, 1, 1, 1), generator)}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        first = to_model(images) * (0.5 + draws["gain"])
        return first, first + 0.1 * draws["shift"]


class Toy(Method):
    """Batch norm, dropout-like noise, an EMA target, and a head whose rate stays constant."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 6))
        self.head = nn.Linear(6, 6)
        self.target = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 6))
        self.target.load_state_dict(self.body.state_dict())
        self.target.requires_grad_(False)

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        return {"noise": normal((n, 6), generator)}

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        predicted = self.head(self.body(views[0]) + 0.01 * draws["noise"])
        distance = (predicted - self.target(views[1])).square().mean()
        return {"loss": distance, "distance": distance}

    def parameter_groups(self) -> list[dict[str, Any]]:
        body = {"params": list(self.body.parameters())}
        return [body, {"params": list(self.head.parameters()), "lr": 0.5, "fix_lr": True}]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        assert 0 < progress <= 1
        assert isinstance(self.config, ToyConfig)
        for target, source in zip(self.target.parameters(), self.body.parameters(), strict=True):
            target.lerp_(source, 1 - self.config.momentum_of_target)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        return {"inputs": images}


def build_toy(config: Config) -> Method:
    """What `models/build.py` would do with one more line."""
    torch.manual_seed(config.seed)
    toy = Toy()
    toy.config = config
    return toy
