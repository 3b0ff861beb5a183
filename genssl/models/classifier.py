"""A supervised classifier: the encoder of the self-supervised methods, trained on labels."""

from typing import Self

from torch import Tensor, nn

from genssl.config import ClassifierConfig
from genssl.models.losses import cross_entropy
from genssl.models.method import Method
from genssl.models.resnet import Backbone, build_encoder


class Classifier(Method):
    """A residual network (He et al. 2016) and a linear layer, trained on labels by cross-entropy.

    Its features are an upper bound for those of the same encoder that was trained without labels.

    Args:
        encoder: images (B, C, H, W) -> features (B, encoder.dim).
        classes: their number.
        label_smoothing: see `genssl.models.losses.cross_entropy`.

    Examples:
        >>> import torch
        >>> from genssl.models.resnet import Encoder
        >>> classifier = Classifier(Encoder(4), classes=10)
        >>> classifier.features(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 32])
    """

    def __init__(self, encoder: Backbone, classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)
        self.classes, self.label_smoothing = classes, label_smoothing
        self.units = {"loss": "cross-entropy (nats per image)"}

    @classmethod
    def from_config(cls, config: ClassifierConfig) -> Self:
        """The classifier of a config; of two classes where it names no number."""
        encoder = build_encoder(config.encoder, config.channels, config.image_size)
        return cls(encoder, config.num_classes or 2, config.label_smoothing)

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cross-entropy, and the share of the images that are classified right.

        Args:
            views: one view of the images.
            draws: "labels", (B,) int64.
        """
        (x,) = views
        logits, labels = self.classify(x), draws["labels"]
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": cross_entropy(logits, labels, self.label_smoothing).mean(), "accuracy": accuracy}

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, encoder.dim): the encoder's output, before the last layer."""
        features: Tensor = self.encoder(images)
        return features
