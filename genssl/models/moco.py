"""MoCo v2: a query finds its key among the keys of earlier batches, made by a slowly moving network."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genssl import distributed
from genssl.config import MoCoConfig
from genssl.errors import UserError
from genssl.models.losses import info_nce_loss, unit
from genssl.models.resnet import Backbone
from genssl.models.siamese import Siamese


class MoCo(Siamese):
    """Momentum contrast (He et al. 2020) with two layers in its head (MoCo v2: Chen, Fan et al. 2020).

    The authors' head has no batch norm before its ReLU; this one has, as the other methods' heads here.

    The negatives are all of earlier batches, so that a query and its key, normalized by statistics of the
    same images, could be matched by these (section 3.3: the network "cheats"). The paper normalizes keys on
    each GPU by the images there, after a shuffle. Here the key network normalizes groups of the batch one
    after the other, and a query sees the whole batch. Batches are shuffled already.

    Args:
        encoder: the backbone of the query network.
        projector_sizes: widths of the projector's layers.
        queue_size: number of keys of earlier batches.
        momentum: share of the key network that a step keeps.
        temperature: of the softmax over the keys.
        key_groups: groups of a batch, for the key network's batch norms; fewer where they would be of less
            than two images.

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
        key_groups: int = 8,
    ) -> None:
        super().__init__(encoder, projector_sizes)
        self.momentum, self.temperature, self.key_groups = momentum, temperature, key_groups
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", unit(torch.randn(queue_size, self.projector_dim)))

    @classmethod
    def settings_of(cls, config: MoCoConfig) -> dict[str, Any]:
        """The queue, the key network's momentum and groups, and the temperature."""
        return {
            "queue_size": config.queue_size,
            "momentum": config.key_momentum,
            "temperature": config.temperature,
            "key_groups": config.key_groups,
        }

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the key network's output (B, projector_dim), rows of length 1, without gradient.

        Raises:
            UserError: the images of a process are no multiple of the groups.
        """
        groups = self._groups(len(images)) if self.training else 1
        # Image i is in group i mod groups: of several processes, each has the same share of a group
        parts = [self.key_projector(self.key_encoder(images[i::groups])) for i in range(groups)]
        outputs = parts[0].new_empty(len(images), self.projector_dim)
        for i, part in enumerate(parts):
            outputs[i::groups] = part
        return unit(outputs)

    def _groups(self, images: int) -> int:
        """Groups of a batch of which this process has so many images: at least two images in each."""
        processes = distributed.world_size()
        groups = max(1, min(self.key_groups, images * processes // 2))
        if processes > 1 and images % groups:
            raise UserError(
                f"{images} images of each process make no {groups} equal groups of keys; use a batch that "
                f"{groups * processes} divides, or --set key_groups=1"
            )
        return groups

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
        """Move the key network's weights towards the query network's; its statistics are its own."""
        averages: list[Tensor] = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        current: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        # key <- momentum key + (1 - momentum) query
        torch._foreach_lerp_(averages, current, 1 - self.momentum)
