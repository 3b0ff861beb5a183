"""Small networks shared by the methods."""

from itertools import pairwise

from torch import Tensor, nn


class ConvolutionalEncoder(nn.Sequential):
    """(B, C, H, W) -> (B, 8 width (H/16)(W/16)): four times [conv k4 s2 p1, LeakyReLU 0.2, BatchNorm]."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for source, target in pairwise([channels, width, 2 * width, 4 * width, 8 * width]):
            layers += [nn.Conv2d(source, target, 4, 2, 1), nn.LeakyReLU(0.2), nn.BatchNorm2d(target)]
        super().__init__(*layers, nn.Flatten())


class ConvolutionalDecoder(nn.Module):
    """(B, z_dim) -> (B, C, H, W): linear, ReLU, then four times [nearest x2, conv 3x3]."""

    def __init__(self, channels: int, width: int, z_dim: int, image_size: int) -> None:
        super().__init__()
        self.start = (8 * width, image_size // 16, image_size // 16)
        self.project = nn.Linear(z_dim, self.start[0] * self.start[1] * self.start[2])
        layers: list[nn.Module] = []
        for source, target in pairwise([8 * width, 4 * width, 2 * width, width, channels]):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(source, target, 3, 1, 1), nn.LeakyReLU(0.2)]
        self.upsample = nn.Sequential(*layers[:-1])  # the output is linear

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z`, (B, z_dim)."""
        x = self.project(z).relu().view(-1, *self.start)  # (B, 8 width, H/16, W/16)
        image: Tensor = self.upsample(x)
        return image
