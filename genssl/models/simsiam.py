"""SimSiam: a Siamese network that neither negative pairs nor a momentum encoder keep from collapsing."""

from torch import Tensor

from genssl.models.losses import simsiam_loss
from genssl.models.siamese import Predicting


class SimSiam(Predicting):
    """Exploring simple Siamese representation learning (Chen and He 2021).

    f is encoder and projector, h the predictor: z = f(x), p = h(z). Its ablations show what is left
    of the method without the stop-gradient or the predictor.

    Args: those of `Predicting`.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> x1, x2 = torch.randn(2, 4, 3, 16, 16)
        >>> z1, z2, p1, p2 = SimSiam(Encoder(4), (16, 8))(x1, x2)
        >>> p1.shape, p1.requires_grad, z1.requires_grad
        (torch.Size([4, 8]), True, False)
    """

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two views (B, C, H, W) -> z1, z2, p1, p2, each (B, projector_dim); z without gradient."""
        # Each view passes through the encoder on its own: a batch norm must not see both views at once
        z1, z2 = self.embed(x1), self.embed(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        # The stop-gradient makes each branch's z a constant target for the other branch's prediction.
        # Without it a constant output reaches the lowest loss, -1 (section 4.1)
        if self.stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        return z1, z2, p1, p2

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The symmetric loss of two views: "loss", in [-1, 1]."""
        z1, z2, p1, p2 = self(*views)
        return self.with_probe({"loss": simsiam_loss(p1=p1, p2=p2, z1=z1, z2=z2)}, draws)
