"""Barlow Twins: the two views' outputs shall be correlated, different outputs shall not."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from genssl.config import BarlowTwinsConfig
from genssl.models.losses import barlow_twins_loss
from genssl.models.resnet import Backbone
from genssl.models.siamese import Siamese


class BarlowTwins(Siamese):
    """Self-supervised learning via redundancy reduction (Zbontar et al. 2021).

    Args:
        encoder: the backbone.
        projector_sizes: widths of the projector's layers.
        lambd: weight of the correlations between different outputs.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> x1, x2 = torch.randn(2, 4, 3, 16, 16)
        >>> twins = BarlowTwins(Encoder(4), (16, 8))
        >>> twins.loss((x1, x2), {})["loss"].shape, twins.features(x1).shape
        (torch.Size([]), torch.Size([4, 32]))
    """

    def __init__(
        self, encoder: Backbone, projector_sizes: Sequence[int] = (2048, 2048), *, lambd: float = 5e-3
    ) -> None:
        super().__init__(encoder, projector_sizes)
        self.lambd = lambd

    @classmethod
    def settings_of(cls, config: BarlowTwinsConfig) -> dict[str, Any]:
        """The weight of the redundancy term."""
        return {"lambd": config.lambd}

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two views -> "loss"."""
        # The correlations are over the global batch: those of a process's shard would be noisier
        z1, z2 = self.embed_all(*views)
        return self.with_probe({"loss": barlow_twins_loss(z1, z2, self.lambd)}, draws)
