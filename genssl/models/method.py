"""The seam between a method and everything else."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from genssl.runtime import Randomness
from genssl.settings import Config


class Method(nn.Module):
    """What the loop, the evaluators and the commands ask of a method.

    Images are float (B, 3, H, W) in the range of `genssl.pixels`, unless said otherwise.
    """

    config: Config  # set by `build`
    epoch: int | None = None  # that the weights are of; set by `checkpoint.load`
    units: Mapping[str, str] = {}  # of the terms of `loss`, by name, e.g. {"kl": "nats per image"}

    def remarks(self) -> tuple[str, ...]:
        """What a person should know before this method trains with these settings."""
        return ()

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """All the randomness of one training step on `n` images; each tensor's first axis is `n`."""
        return {}

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scalar to minimise as "loss", and named scalar terms to log.

        Pure: no random number is drawn and nothing is read to the host inside, so that it compiles
        into one graph.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups. A group may set `constant_rate`: True to stay out of the schedule."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of the run that is done; e.g. an EMA target."""

    def after_training(self, images: Tensor) -> None:
        """Fit what is fitted once, at the end. `images`: the train split, uint8 (N, 3, H, W), anywhere."""

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), for kNN, linear evaluation and distances."""
        raise NotImplementedError

    def outputs(self, images: Tensor) -> Tensor | None:
        """(B, 3, H, W) -> (B, D), what may collapse while training; None when nothing can."""
        return None

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        """Pictures to draw while training, each (M, 3, H, W), from fixed test images and fixed noise."""
        return {}
