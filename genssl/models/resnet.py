"""Encoders and heads of the self-supervised methods."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl.config import TIMM
from genssl.errors import UserError, hint

# Channels of the first stage, blocks in each stage, and the stride of the stem
WIDTHS = {"resnet18": 64, "resnet34": 64, "resnet50": 64, "small": 16, "compact": 32}
BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "small": (2, 2, 2, 2),
    # What learns most on a CPU in the same time (docs/simsiam.md)
    "compact": (1, 1, 1),
}
STEM_STRIDES = {"compact": 2}


class Backbone(nn.Module):
    """Images (B, C, H, W) -> features (B, dim)."""

    dim: int
    stages = 0  # that `maps` gives the maps of

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of each stage, from fine to coarse: (B, channels, h, w).

        Raises:
            UserError: it has no such stages.
        """
        raise UserError("networks of timm give no maps of their stages; choose a run with another encoder")


class Encoder(Backbone):
    """A ResNet (He et al. 2016) with a stem for small images: a 3x3 convolution and no pooling.

    The blocks and the names are torchvision's, so that the weights of width 64 load there. The last norm of
    each block starts at zero (Goyal et al. 2017), so that a block starts as the identity.

    Args:
        width: channels of the first stage; each further stage doubles them.
        channels: of the images.
        blocks: number of blocks in each stage: (2, 2, 2, 2) is ResNet-18.
        bottleneck: blocks of three convolutions with four times the channels at their ends, as in ResNet-50.
        stem_stride: 2 halves height and width in the first convolution, for a quarter of the work.

    Examples:
        >>> encoder = Encoder(width=4)
        >>> encoder.dim, encoder(torch.zeros(2, 3, 32, 32)).shape
        (32, torch.Size([2, 32]))
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential  # as many of them as there are stages

    def __init__(
        self,
        width: int = 64,
        channels: int = 3,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        *,
        bottleneck: bool = False,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        # Here: torchvision takes seconds to import
        from torchvision.models.resnet import BasicBlock, Bottleneck

        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = nn.Conv2d(channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages, self.dim = len(blocks), width
        for i, count in enumerate(blocks):
            planes, stride = width * 2**i, 1 if i == 0 else 2
            self.add_module(f"layer{i + 1}", _stage(block, self.dim, planes, stride, count))
            self.dim = planes * block.expansion
        # Fan-out He initialization (He et al. 2015), and the residual branch of each block zero at the start
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, block):
                nn.init.zeros_((module.bn3 if bottleneck else module.bn2).weight)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim), the mean over places of the last stage."""
        return self.maps(images)[-1].mean((2, 3))  # (B, dim, h, w) -> (B, dim)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of each stage, from fine to coarse, each half as high and wide as the one before.

        The first has the size of the images divided by `stem_stride`.
        """
        # No max pooling after the stem: 32x32 images would be 8x8 before the first stage
        x = F.relu(self.bn1(self.conv1(images)))  # (B, width, h, w)
        maps = []
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
            maps.append(x)
        return maps


def _stage(block: Any, channels: int, planes: int, stride: int, count: int) -> nn.Sequential:
    """`count` blocks; the first one changes the size, and its shortcut with it."""
    shortcut, out = None, planes * block.expansion
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out, planes) for _ in range(count - 1)))


class TimmEncoder(Backbone):
    """A network of timm without its classifier, weights initialized at random; the names are timm's.

    Args:
        name: as in `timm.list_models()`.
        channels: of the images.
        image_size: pixels per side.
        view_size: pixels per side of the views that it is trained on; those of the images when None.

    Raises:
        UserError: timm is not installed, has no such network, or the network takes no images of this size.
    """

    def __init__(self, name: str, channels: int, image_size: int, view_size: int | None = None) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UserError(f"encoder=timm:{name} needs timm; pip install 'genssl[features]'") from error
        if not timm.is_model(name):
            known = dict.fromkeys(timm.list_models())
            raise UserError(
                f"timm has no network {name!r}{hint(name, known)}; timm.list_models() gives its names"
            )
        # Transformers have as many position embeddings as patches
        fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
        size: dict[str, Any] = {"img_size": image_size} if fixed else {}
        try:
            self.network = timm.create_model(name, num_classes=0, in_chans=channels, **size).eval()
            for side in (view_size or image_size, image_size):
                with torch.no_grad():
                    self.dim = self.network(torch.zeros(1, channels, side, side)).flatten(1).shape[1]
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            sides = f"{image_size}x{image_size} pixels"
            sides += f" and views of {view_size}x{view_size}" if view_size not in {None, image_size} else ""
            raise UserError(
                f"timm's {name} takes no images of {sides} ({reason}); choose another network"
            ) from error
        self._make_deterministic()
        self.network.train()

    def _make_deterministic(self) -> None:
        """Switch dropout and stochastic depth off: they draw from the global generator."""
        for module in self.network.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            for name in {"drop_prob", "drop_rate"} & vars(module).keys():
                setattr(module, name, 0.0)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim), pooled as timm does."""
        features: Tensor = self.network(images)
        return features.flatten(1)


def build_encoder(name: str, channels: int, image_size: int, view_size: int | None = None) -> Backbone:
    """The encoder of a config: one of this module's ResNets, or "timm:NAME".

    Raises:
        UserError: timm is not installed, has no such network, or the network takes no images of this size.

    Examples:
        >>> build_encoder("small", channels=1, image_size=16)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 128])
    """
    if name.startswith(TIMM):
        return TimmEncoder(name.removeprefix(TIMM), channels, image_size, view_size)
    shape: dict[str, Any] = {"bottleneck": name == "resnet50", "stem_stride": STEM_STRIDES.get(name, 1)}
    return Encoder(WIDTHS[name], channels, BLOCKS[name], **shape)


def mlp(sizes: Sequence[int], *, norm_last: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them: the projectors and predictors of the papers.

    Args:
        sizes: widths, input and output included.
        norm_last: a batch norm without scale and offset after the last layer, as in SimSiam's projector.

    Examples:
        >>> [type(layer).__name__ for layer in mlp([512, 128, 64])]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=not norm_last))
    if norm_last:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)
