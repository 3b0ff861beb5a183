"""VICReg: variance and covariance of the outputs keep them from collapsing, each branch on its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from genssl.config import VICRegConfig
from genssl.models.losses import vicreg_loss
from genssl.models.resnet import Backbone
from genssl.models.siamese import Siamese


class VICReg(Siamese):
    """Variance-invariance-covariance regularization (Bardes et al. 2022).

    Args:
        encoder: the backbone.
        projector_sizes: widths of the projector's layers.
        invariance: weight of the distance between two views' outputs.
        variance: weight of the hinge on each output's standard deviation.
        covariance: weight of the covariances between different outputs.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> x1, x2 = torch.randn(2, 4, 3, 16, 16)
        >>> sorted(VICReg(Encoder(4), (16, 8)).loss((x1, x2), {}))
        ['covariance', 'invariance', 'loss', 'variance']
    """

    sees_scale = True

    def __init__(
        self,
        encoder: Backbone,
        projector_sizes: Sequence[int] = (2048, 2048, 2048),
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__(encoder, projector_sizes)
        self.weights = (invariance, variance, covariance)

    @classmethod
    def settings_of(cls, config: VICRegConfig) -> dict[str, Any]:
        """The weights of the three terms."""
        weights = {"invariance": config.invariance, "variance": config.variance}
        return {**weights, "covariance": config.covariance}

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two views -> "loss" and its three terms before weighting."""
        # Variance and covariance are statistics of the global batch, not of a process's shard
        z1, z2 = self.embed_all(*views)
        return self.with_probe(vicreg_loss(z1, z2, *self.weights), draws)
