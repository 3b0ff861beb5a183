"""DSSL: heavy augmentations, each compared only with the standard view that it was made of."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from genssl.models.encoders import Encoder
from genssl.models.losses import directional_loss, simsiam_loss
from genssl.models.siamese import Predicting


class DSSL(Predicting):
    """Directional self-supervised learning (Bai et al. 2021) on top of SimSiam.

    Args:
        encoder: the backbone.
        projector_sizes: widths of the projector's layers.
        beta: how much standard views follow heavy ones.
        naive: SimSiam's loss on the two heavy views alone, the baseline that DSSL is compared with.
        predictor: as in SimSiam, like everything that follows.
        predictor_hidden: width of its hidden layer.
        stop_gradient: treat z as a constant in the loss.
        output_norm: end the projector with a batch norm without scale and offset.
        constant_rate: keep the predictor's learning rate constant.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector_sizes: Sequence[int] = (2048, 2048),
        *,
        beta: float = 0.1,
        naive: bool = False,
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
        self.beta, self.naive, self.stop_gradient = beta, naive, stop_gradient

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """A view (B, 3, H, W) -> z and p, each (B, projector_dim); z without gradient."""
        z = self.embed(view)
        p = self.predictor(z)
        return (z.detach() if self.stop_gradient else z), p

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two standard views and the heavy views made of them -> "loss" and its two parts."""
        x1, x2, heavy_1, heavy_2 = views
        heavy_z1, heavy_p1 = self(heavy_1)
        heavy_z2, heavy_p2 = self(heavy_2)
        if self.naive:
            return {"loss": simsiam_loss(p1=heavy_p1, p2=heavy_p2, z1=heavy_z1, z2=heavy_z2)}
        z1, p1 = self(x1)
        z2, p2 = self(x2)
        standard = {"p1": p1, "p2": p2, "z1": z1, "z2": z2}
        heavy = {"heavy_p1": heavy_p1, "heavy_p2": heavy_p2, "heavy_z1": heavy_z1, "heavy_z2": heavy_z2}
        return directional_loss(**standard, **heavy, beta=self.beta)
