"""What the self-supervised methods share: an encoder whose features are kept, a projector, a predictor."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from genssl import processes
from genssl.models.encoders import Encoder, mlp
from genssl.models.method import Method


class Siamese(Method):
    """An encoder and a projector, applied to each view on its own, so that a batch norm sees one view.

    Args:
        encoder: images (B, 3, H, W) -> features (B, encoder.dim).
        projector_sizes: widths of the projector's layers after the features.
        norm_last: whether the projector ends with a batch norm.
    """

    def __init__(self, encoder: Encoder, projector_sizes: Sequence[int], *, norm_last: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector: nn.Module = mlp([encoder.dim, *projector_sizes], norm_last=norm_last)
        self.projector_dim = projector_sizes[-1]

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the projector's output (B, projector_dim)."""
        output: Tensor = self.projector(self.encoder(images))
        return output

    def embed_all(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of two views for the images of all processes, (count B, projector_dim), with gradients.

        For losses whose statistics are over the global batch: those of a share are others.
        """
        z1, z2 = self.embed(x1), self.embed(x2)
        if not self.training:  # looked at by one process, between epochs
            return z1, z2
        return processes.gathered(z1), processes.gathered(z2)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, encoder.dim): the encoder's output; the projector is for training only."""
        found: Tensor = self.encoder(images)
        return found

    def outputs(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, projector_dim), what may collapse."""
        return self.embed(images)


class Predicting(Siamese):
    """A Siamese network with a predictor on one side: that of SimSiam, DSSL and BYOL.

    Args:
        encoder: as in Siamese.
        projector_sizes: as in Siamese.
        norm_last: as in Siamese.
        predictor: an MLP, nothing at all, or an MLP that keeps its initial weights.
        predictor_hidden: its hidden layer's width.
        constant_rate: keep the predictor out of the learning rate's schedule.
    """

    units = dict.fromkeys(("loss", "symmetric", "directional"), "negative cosine similarity")

    def __init__(
        self,
        encoder: Encoder,
        projector_sizes: Sequence[int],
        *,
        norm_last: bool,
        predictor: Literal["mlp", "identity", "fixed"] = "mlp",
        predictor_hidden: int = 512,
        constant_rate: bool = False,
    ) -> None:
        super().__init__(encoder, projector_sizes, norm_last=norm_last)
        dim = self.projector_dim
        self.predictor = nn.Identity() if predictor == "identity" else mlp([dim, predictor_hidden, dim])
        self.predictor.requires_grad_(predictor != "fixed")
        self.constant_rate = constant_rate

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that learns; the predictor in a group of its own where its rate stays constant."""
        groups = super().parameter_groups()
        own = [p for p in self.predictor.parameters() if p.requires_grad]
        if not self.constant_rate or not own:
            return groups
        known = {id(p) for p in own}
        rest = [p for p in groups[0]["params"] if id(p) not in known]
        return [{"params": rest}, {"params": own, "constant_rate": True}]
