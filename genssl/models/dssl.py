"""DSSL: heavy augmentations, each compared only with the standard view that it was made of."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from genssl.config import DSSLConfig
from genssl.models.losses import directional_loss, simsiam_loss
from genssl.models.resnet import Backbone
from genssl.models.siamese import Predicting


class DSSL(Predicting):
    """Directional self-supervised learning (Bai et al. 2021) on top of SimSiam.

    Args:
        encoder: the backbone.
        projector_sizes: widths of the projector's layers.
        beta: how much standard views follow heavy ones.
        naive: SimSiam's loss on the two heavy views alone, the baseline that DSSL is compared with.
        simsiam: the other keyword parameters of `Predicting`.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> views = tuple(torch.randn(4, 4, 3, 16, 16))  # two standard views, and a heavy one of each
        >>> sorted(DSSL(Encoder(4), (16, 8)).loss(views, {}))
        ['directional', 'loss', 'symmetric']
    """

    def __init__(
        self,
        encoder: Backbone,
        projector_sizes: Sequence[int] = (2048, 2048),
        *,
        beta: float = 0.1,
        naive: bool = False,
        **simsiam: Any,
    ) -> None:
        super().__init__(encoder, projector_sizes, **simsiam)
        self.beta, self.naive = beta, naive

    @classmethod
    def settings_of(cls, config: DSSLConfig) -> dict[str, Any]:
        """DSSL's own settings, and SimSiam's."""
        return {**super().settings_of(config), "beta": config.beta, "naive": config.naive}

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """A view (B, C, H, W) -> z and p, each (B, projector_dim); z without gradient."""
        z = self.embed(view)
        p = self.predictor(z)
        return (z.detach() if self.stop_gradient else z), p

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two standard views and the heavy views made of them -> "loss" and its two parts."""
        x1, x2, heavy_1, heavy_2 = views
        heavy_z1, heavy_p1 = self(heavy_1)
        heavy_z2, heavy_p2 = self(heavy_2)
        # The baseline that the paper improves on: heavy views as if they were standard ones
        if self.naive:
            loss = simsiam_loss(p1=heavy_p1, p2=heavy_p2, z1=heavy_z1, z2=heavy_z2)
            return self.with_probe({"loss": loss}, draws)
        # Four separate forwards: heavy and standard views have different statistics, and a batch norm that
        # saw both would tell them apart
        z1, p1 = self(x1)
        z2, p2 = self(x2)
        standard = {"p1": p1, "p2": p2, "z1": z1, "z2": z2}
        heavy = {"heavy_p1": heavy_p1, "heavy_p2": heavy_p2, "heavy_z1": heavy_z1, "heavy_z2": heavy_z2}
        return self.with_probe(directional_loss(**standard, **heavy, beta=self.beta), draws)
