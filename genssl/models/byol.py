"""BYOL: the online network predicts what a slowly moving average of itself says of the other view."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from genssl.config import BYOLConfig
from genssl.models.losses import simsiam_loss
from genssl.models.resnet import Backbone
from genssl.models.siamese import Predicting


class BYOL(Predicting):
    """Bootstrap your own latent (Grill et al. 2020).

    The loss is the paper's up to scale and offset: 4 + 4 L, see `simsiam_loss`.

    Args:
        encoder: the backbone of the online network.
        projector_sizes: widths of the projector's layers.
        predictor: an MLP, or identity.
        predictor_hidden: width of its hidden layer.
        tau: share of the target network that a step keeps.
        tau_schedule: constant, or a cosine that takes tau to 1 at the end of the run.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> x1, x2 = torch.randn(2, 4, 3, 16, 16)
        >>> byol = BYOL(Encoder(4), (16, 8), predictor_hidden=16)
        >>> byol.loss((x1, x2), {})["loss"].shape, byol.features(x1).shape
        (torch.Size([]), torch.Size([4, 32]))
    """

    def __init__(
        self,
        encoder: Backbone,
        projector_sizes: Sequence[int] = (1024, 256),
        *,
        predictor: Literal["mlp", "identity"] = "mlp",
        predictor_hidden: int = 1024,
        tau: float = 0.99,
        tau_schedule: Literal["constant", "cosine"] = "cosine",
    ) -> None:
        head: dict[str, Any] = {"predictor": predictor, "predictor_hidden": predictor_hidden}
        super().__init__(encoder, projector_sizes, output_norm=False, fix_predictor_lr=False, **head)
        self.tau, self.tau_schedule = tau, tau_schedule
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @classmethod
    def settings_of(cls, config: BYOLConfig) -> dict[str, Any]:
        """The predictor and the target's schedule."""
        return {
            "predictor": config.predictor,
            "predictor_hidden": config.predictor_hidden,
            "tau": config.tau,
            "tau_schedule": config.tau_schedule,
        }

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the target network's output (B, projector_dim), without gradient."""
        output: Tensor = self.target_projector(self.target_encoder(images))
        return output

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two views -> "loss", in [-1, 1]."""
        x1, x2 = views
        p1, p2 = self.predictor(self.embed(x1)), self.predictor(self.embed(x2))
        loss = simsiam_loss(p1=p1, p2=p2, z1=self.target(x1), z2=self.target(x2))
        return self.with_probe({"loss": loss}, draws)

    def tau_at(self, progress: float) -> float:
        """tau when the share `progress` of the run is done: 1 - (1 - tau) (cos(pi progress) + 1) / 2."""
        if self.tau_schedule == "constant":
            return self.tau
        return 1 - (1 - self.tau) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target's weights towards the online ones; its batch norms keep their own statistics."""
        # target <- tau target + (1 - tau) online, in one fused call instead of one per parameter
        targets: list[Tensor] = [*self.target_encoder.parameters(), *self.target_projector.parameters()]
        online: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(targets, online, 1 - self.tau_at(progress))
