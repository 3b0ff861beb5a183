"""What the self-supervised methods share: an encoder whose features are kept, a projector, a predictor."""

from collections.abc import Sequence
from typing import Any, Literal, Self, cast

from torch import Tensor, nn

from genssl import distributed
from genssl.config import SelfSupervisedConfig
from genssl.models.losses import cross_entropy
from genssl.models.method import Method, chosen_blocks, pixel_features
from genssl.models.resnet import Backbone, build_encoder, mlp


class Siamese(Method):
    """An encoder and a projector, applied to each view on its own, so that a batch norm sees one view.

    Args:
        encoder: images (B, C, H, W) -> features (B, encoder.dim).
        projector_sizes: widths of the projector's layers after the features.
        norm_last: whether the projector ends with a batch norm.
    """

    def __init__(self, encoder: Backbone, projector_sizes: Sequence[int], *, norm_last: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector: nn.Module = mlp([encoder.dim, *projector_sizes], norm_last=norm_last)
        self.projector_dim = projector_sizes[-1]
        self.probe: nn.Linear | None = None
        self._features: Tensor | None = None  # of the last view embedded, for the probe

    @classmethod
    def from_config(cls, config: SelfSupervisedConfig) -> Self:
        """The method of a config: its encoder, its projector, and what `settings_of` gives."""
        hidden = [config.projector_hidden] * (config.projector_layers - 1)
        encoder = build_encoder(config.encoder, config.channels, config.image_size, config.view_size)
        method = cls(encoder, [*hidden, config.projector_dim], **cls.settings_of(config))
        if config.online_probe:
            method.add_probe(config.num_classes or 2)
        return method

    def add_probe(self, classes: int) -> None:
        """Train a linear classifier on the features along the way, which learns and changes nothing else.

        The online evaluation of lightly and solo-learn: how well a linear layer reads the classes from the
        features meanwhile, in training mode and of augmented views. It has the optimizer and the learning
        rate of the rest, but LARS does not adapt its rate, and no clipping counts its gradient.
        """
        self.classes = classes
        # From zero, not from random numbers: whatever is initialized afterwards stays the same
        self.probe = nn.utils.skip_init(nn.Linear, self.encoder.dim, classes)
        nn.init.zeros_(self.probe.weight)
        nn.init.zeros_(self.probe.bias)

    @classmethod
    def settings_of(cls, config: Any) -> dict[str, Any]:
        """The method's own keyword parameters, from a config of its class."""
        return {}

    def remarks(self) -> tuple[str, ...]:
        """Whether a short run is mostly warm-up, and whether views are far smaller than images, or larger."""
        config, remarks = cast(SelfSupervisedConfig, self.config), []
        if 2 * config.warmup_epochs > config.epochs:
            remarks.append(
                f"the learning rate rises during {min(config.warmup_epochs, config.epochs):g} of "
                f"{config.epochs} epochs; --set warmup_epochs=N shortens that"
            )
        size = config.view_size or config.image_size
        if not config.image_size / 2 <= size <= config.image_size:
            remarks.append(
                f"views have {size} pixels per side, and images, of which features are taken, "
                f"{config.image_size}; --set view_size=N brings them nearer to each other"
            )
        return tuple(remarks)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the projector's output (B, projector_dim)."""
        features = self.encoder(images)
        self._features = features.detach() if self.probe is not None and self.training else None
        output: Tensor = self.projector(features)
        return output

    def with_probe(self, losses: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses, and in training with a probe its cross-entropy and accuracy for the last view embedded.

        Args:
            losses: of the method.
            draws: "labels", (B,) int64, in training with a probe.
        """
        if self.probe is None or self._features is None:
            return losses
        # Features without gradient: the encoder learns nothing from the labels
        features, self._features = self._features, None
        logits, labels = self.probe(features), draws["labels"]
        error = cross_entropy(logits, labels).mean()
        # Plus zero: the gradient of the probe's loss, and the value of the method's own
        loss = losses["loss"] + (error - error.detach())
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {**losses, "loss": loss, "probe_loss": error.detach(), "probe_accuracy": accuracy}

    def probe_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the probe's logits (B, classes); for a method with a probe."""
        assert self.probe is not None
        logits: Tensor = self.probe(self.encoder(images))
        return logits

    def embed_all(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of two views for the images of all processes, (count B, projector_dim), with gradients.

        For losses whose statistics are over the global batch: those of a share are others.
        """
        z1, z2 = self.embed(x1), self.embed(x2)
        if not self.training:  # looked at by one process, between epochs
            return z1, z2
        return distributed.all_gather(z1), distributed.all_gather(z2)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, encoder.dim): the encoder's output; the projector is for training only."""
        features: Tensor = self.encoder(images)
        return features

    @property
    def spatial_blocks(self) -> int:
        """The encoder's stages."""
        return self.encoder.stages

    @property
    def spatial_times(self) -> tuple[float, ...]:
        """(): it looks at images without noise."""
        return ()

    def spatial_features(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        blocks: Sequence[int] | None = None,
        times: Sequence[float] | None = None,
    ) -> Tensor:
        """The maps of the encoder's stages for images (B, C, H, W): see `HasSpatialFeatures`.

        Raises:
            UserError: the encoder gives no maps.
        """
        # The projector sees no places: the mean over them comes before it
        maps = self.encoder.maps(images)
        chosen = chosen_blocks(blocks, self.spatial_blocks)
        return pixel_features([maps[block] for block in chosen], images.shape[2:])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that learns; a probe in a group of its own."""
        if self.probe is None:
            return super().parameter_groups()
        probe = list(self.probe.parameters())
        # By identity: == compares tensors entry by entry
        ids = {id(p) for p in probe}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in ids]
        return [{"params": rest}, {"params": probe, "is_probe": True}]

    def outputs(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, projector_dim), what may collapse."""
        return self.embed(images)


class Predicting(Siamese):
    """A Siamese network with a predictor on one side: the base of SimSiam, DSSL and BYOL.

    Args:
        encoder: as in Siamese.
        projector_sizes: as in Siamese.
        predictor: "mlp", "identity", or "fixed", an MLP that keeps its initial weights.
        predictor_hidden: width of its hidden layer.
        stop_gradient: treat the targets z as constants in the loss.
        output_norm: end the projector with a batch norm without scale and offset.
        fix_predictor_lr: keep the predictor's learning rate constant (Chen and He 2021, section 4.2).
    """

    units = dict.fromkeys(("loss", "symmetric", "directional"), "negative cosine similarity")

    def __init__(
        self,
        encoder: Backbone,
        projector_sizes: Sequence[int] = (2048, 2048),
        *,
        predictor: Literal["mlp", "identity", "fixed"] = "mlp",
        predictor_hidden: int = 512,
        stop_gradient: bool = True,
        output_norm: bool = True,
        fix_predictor_lr: bool = True,
    ) -> None:
        super().__init__(encoder, projector_sizes, norm_last=output_norm)
        dim = self.projector_dim
        # A bottleneck (2048-512-2048 in the paper): the prediction cannot be the identity
        self.predictor = nn.Identity() if predictor == "identity" else mlp([dim, predictor_hidden, dim])
        self.predictor.requires_grad_(predictor != "fixed")
        self.stop_gradient, self.fix_predictor_lr = stop_gradient, fix_predictor_lr

    @classmethod
    def settings_of(cls, config: Any) -> dict[str, Any]:
        """The choices of the ablations, from a SimSiam or DSSL config."""
        return {
            "predictor": config.predictor,
            "predictor_hidden": config.predictor_hidden,
            "stop_gradient": config.stop_gradient,
            "output_norm": config.output_norm,
            "fix_predictor_lr": config.fix_predictor_lr,
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that learns; the predictor in a group of its own where its rate stays constant."""
        groups = super().parameter_groups()
        predictor = [p for p in self.predictor.parameters() if p.requires_grad]
        if not self.fix_predictor_lr or not predictor:
            return groups
        ids = {id(p) for p in predictor}
        rest = [p for p in groups[0]["params"] if id(p) not in ids]
        return [{"params": rest}, {"params": predictor, "fix_lr": True}, *groups[1:]]
