"""Encoders and heads of the self-supervised methods."""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = {"resnet18": 64, "small": 16}  # channels of the first stage
STAGES = 4  # each one doubles the channels


class Encoder(nn.Module):
    """ResNet-18 (He et al. 2016) with a stem for small images: a 3x3 convolution and no pooling.

    The blocks and the names are torchvision's, so that the weights of width 64 load there. The last norm of
    each block starts at zero (Goyal et al. 2017), so that a block starts as the identity.

    Args:
        width: channels of the first stage.
        channels: of the images.
    """

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock  # here: torchvision takes seconds to import

        self.dim = width * 2 ** (STAGES - 1)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(BasicBlock, width, width, stride=1)
        self.layer2 = _stage(BasicBlock, width, 2 * width, stride=2)
        self.layer3 = _stage(BasicBlock, 2 * width, 4 * width, stride=2)
        self.layer4 = _stage(BasicBlock, 4 * width, 8 * width, stride=2)
        # Fan-out He initialization (He et al. 2015), and the residual branch of each block zero at the start
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 8 width), the mean over places of the last stage."""
        # No max pooling after the stem: 32x32 images would be 8x8 before the first stage
        x = F.relu(self.bn1(self.conv1(images)))  # (B, width, H, W)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))  # (B, 8 width, H/8, W/8) -> (B, 8 width)


def _stage(block: type[nn.Module], channels: int, out: int, stride: int) -> nn.Sequential:
    """Two blocks; the first one changes the size, and its shortcut with it."""
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return nn.Sequential(block(channels, out, stride, shortcut), block(out, out))


def mlp(sizes: Sequence[int], *, norm_last: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them: the projectors and predictors of the papers.

    Args:
        sizes: widths, input and output included.
        norm_last: a batch norm without scale and offset after the last layer, as in SimSiam's projector.
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=not norm_last))
    if norm_last:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)
