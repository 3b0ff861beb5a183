"""SimSiam: a Siamese network that neither negative pairs nor a momentum encoder keep from collapsing."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from genssl.models.encoders import Encoder
from genssl.models.losses import simsiam_loss
from genssl.models.siamese import Predicting


class SimSiam(Predicting):
    """Exploring simple Siamese representation learning (Chen and He 2021).

    f is encoder and projector, h the predictor: z = f(x), p = h(z). What is left of the method when the
    stop-gradient or the predictor is taken away is what its ablations show.

    Args:
        encoder: the backbone.
        projector_sizes: widths of the projector's layers.
        predictor: mlp, identity or fixed (an MLP with its initial weights).
        predictor_hidden: width of its hidden layer.
        stop_gradient: treat z as a constant in the loss.
        output_norm: end the projector with a batch norm without scale and offset.
        constant_rate: keep the predictor's learning rate constant (section 4.2 of the paper).
    """

    def __init__(
        self,
        encoder: Encoder,
        projector_sizes: Sequence[int] = (2048, 2048),
        *,
        predictor: Literal["mlp", "identity", "fixed"] = "mlp",
        predictor_hidden: int = 512,
        stop_gradient: bool = True,
        output_norm: bool = True,
        constant_rate: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            projector_sizes,
            norm_last=output_norm,
            predictor=predictor,
            predictor_hidden=predictor_hidden,
            constant_rate=constant_rate,
        )
        self.stop_gradient = stop_gradient

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two views (B, 3, H, W) -> z1, z2, p1, p2, each (B, projector_dim); z without gradient."""
        z1, z2 = self.embed(x1), self.embed(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        if self.stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        return z1, z2, p1, p2

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The symmetric loss of two views: "loss", in [-1, 1]."""
        z1, z2, p1, p2 = self(*views)
        return {"loss": simsiam_loss(p1=p1, p2=p2, z1=z1, z2=z2)}
