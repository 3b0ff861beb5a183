"""SimCLR: an output finds the other view of its image among the outputs of the whole batch."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from genssl.config import SimCLRConfig
from genssl.models.losses import nt_xent_loss
from genssl.models.resnet import Backbone
from genssl.models.siamese import Siamese


class SimCLR(Siamese):
    """A simple framework for contrastive learning of visual representations (Chen et al. 2020).

    Args:
        encoder: the backbone.
        projector_sizes: widths of the projector's layers.
        temperature: of the softmax over the batch.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> x1, x2 = torch.randn(2, 4, 3, 16, 16)
        >>> simclr = SimCLR(Encoder(4), (16, 8))
        >>> simclr.loss((x1, x2), {})["loss"].shape, simclr.features(x1).shape
        (torch.Size([]), torch.Size([4, 32]))
    """

    units = dict.fromkeys(("loss",), "nats per output")

    def __init__(
        self, encoder: Backbone, projector_sizes: Sequence[int] = (2048, 128), *, temperature: float = 0.5
    ) -> None:
        super().__init__(encoder, projector_sizes)
        self.temperature = temperature

    @classmethod
    def settings_of(cls, config: SimCLRConfig) -> dict[str, Any]:
        """The temperature."""
        return {"temperature": config.temperature}

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two views -> "loss"."""
        # The negatives are the outputs of the global batch: those of a process's shard would be fewer
        z1, z2 = self.embed_all(*views)
        return self.with_probe({"loss": nt_xent_loss(z1, z2, self.temperature)}, draws)
