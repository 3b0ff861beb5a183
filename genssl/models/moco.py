"""MoCo v2: a query finds its key among the keys of earlier batches, made by a slowly moving network."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from genssl import distributed
from genssl.config import MoCoConfig
from genssl.models.losses import info_nce_loss, unit
from genssl.models.resnet import Backbone
from genssl.models.siamese import Siamese


class MoCo(Siamese):
    """Momentum contrast (He et al. 2020) with the head of its second version (Chen, Fan et al. 2020).

    The negatives are all of earlier batches, so that a batch norm which saw the batch of the keys would mark
    the one key of this batch (section 3.3: the network "cheats"). The paper shuffles the images over GPUs,
    which changes nothing where statistics are over the global batch. Here the key network uses a moving
    average of the query network's statistics, as its weights are one (EMAN, Cai et al. 2021).

    Args:
        encoder: the backbone of the query network.
        projector_sizes: widths of the projector's layers.
        queue_size: number of keys of earlier batches.
        momentum: share of the key network that a step keeps.
        temperature: of the softmax over the keys.

    Examples:
        >>> from genssl.models.resnet import Encoder
        >>> x1, x2 = torch.randn(2, 4, 3, 16, 16)
        >>> moco = MoCo(Encoder(4), (16, 8), queue_size=32)
        >>> moco.loss((x1, x2), {})["loss"].shape, moco.queue.shape
        (torch.Size([]), torch.Size([32, 8]))
    """

    units = dict.fromkeys(("loss",), "nats per query")
    queue: Tensor  # (queue_size, projector_dim), rows of length 1, the newest last

    def __init__(
        self,
        encoder: Backbone,
        projector_sizes: Sequence[int] = (2048, 128),
        *,
        queue_size: int = 4096,
        momentum: float = 0.99,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(encoder, projector_sizes)
        self.momentum, self.temperature = momentum, temperature
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", unit(torch.randn(queue_size, self.projector_dim)))
        self.train()

    @classmethod
    def settings_of(cls, config: MoCoConfig) -> dict[str, Any]:
        """The queue, the key network's momentum and the temperature."""
        return {
            "queue_size": config.queue_size,
            "momentum": config.key_momentum,
            "temperature": config.temperature,
        }

    def train(self, mode: bool = True) -> Self:
        """As any module, but the key network always uses its averaged statistics."""
        super().train(mode)
        self.key_encoder.eval(), self.key_projector.eval()
        return self

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the key network's output (B, projector_dim), rows of length 1, without gradient."""
        return unit(self.key_projector(self.key_encoder(images)))

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two views -> "loss": queries of the first, keys of the second."""
        x1, x2 = views
        keys = self.keys(x2)
        # A copy: the backward pass needs the negatives as they were
        loss = info_nce_loss(self.embed(x1), keys, self.queue.clone(), self.temperature)
        if self.training:
            self._enqueue(keys)
        return self.with_probe({"loss": loss}, draws)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Put the keys of all processes at the end, and drop as many of the oldest."""
        newest = distributed.all_gather(keys).to(self.queue.dtype)
        self.queue.copy_(torch.cat([self.queue, newest])[-len(self.queue) :])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the key network's weights and statistics towards the query network's."""
        pairs = ((self.key_encoder, self.encoder), (self.key_projector, self.projector))
        averages = [t for key, _ in pairs for t in key.state_dict().values() if t.is_floating_point()]
        current = [t for _, query in pairs for t in query.state_dict().values() if t.is_floating_point()]
        # key <- momentum key + (1 - momentum) query
        torch._foreach_lerp_(averages, current, 1 - self.momentum)
