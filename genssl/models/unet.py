"""The U-Net that finds the noise in an image (Ho et al. 2020, appendix B, with scale-shift time embedding)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 16


@dataclass(frozen=True)
class Layout:
    """The shape of a U-Net: one entry a level, from the finest to the coarsest; each halves the side.

    Attributes:
        widths: channels, multiples of 32.
        blocks: residual blocks on the way down, and again on the way up.
        attention: whether self-attention follows each of them.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]

    @property
    def factor(self) -> int:
        """What the image's side must be a multiple of."""
        return 2 ** (len(self.widths) - 1)


LAYOUTS = {
    "tiny": Layout((32, 64, 96), (1, 1, 1), (False, False, False)),
    "small": Layout((64, 128, 256), (2, 2, 2), (False, False, True)),
    "base": Layout((128, 256, 256, 256), (3, 3, 3, 3), (False, True, False, False)),
}


class UNet(nn.Module):
    """epsilon(x_t, t): residual blocks down to the coarsest level and up again, with a skip a level.

    Args:
        layout: its shape.
        channels: of the images.
    """

    def __init__(self, layout: Layout, channels: int = 3) -> None:
        super().__init__()
        self.layout = layout
        widths, time_width = layout.widths, 4 * layout.widths[0]
        plan = list(zip(widths, layout.blocks, layout.attention, strict=True))
        self.time = TimeEmbedding(widths[0], time_width)
        self.start = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_stages = nn.ModuleList(Stage(*level, time_width) for level in plan)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.middle_stage = nn.ModuleList(
            [
                ResidualBlock(widths[-1], time_width),
                Attention(widths[-1]),
                ResidualBlock(widths[-1], time_width),
            ]
        )
        self.merges = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths)
        self.up_stages = nn.ModuleList(Stage(*level, time_width) for level in plan)
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.end = nn.Sequential(group_norm(widths[0]), nn.SiLU(), zeroed(nn.Conv2d(widths[0], channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        x, skips = self._descend(x, time)
        for level in reversed(range(len(skips))):
            if level < len(skips) - 1:
                x = self.ups[level](F.interpolate(x, scale_factor=2.0))
            x = self.merges[level](torch.cat([x, skips[level]], 1))
            x = self.up_stages[level](x, time)
        return self.end(x).float()

    def middle(self, x: Tensor, t: Tensor) -> Tensor:
        x, _ = self._descend(x, self.time(t))
        return x.float().mean((2, 3))

    def _descend(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.start(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, stage in enumerate(self.down_stages):
            if level:
                x = self.downs[level - 1](x)
            x = stage(x, time)
            skips.append(x)
        first, attention, second = self.middle_stage
        return second(attention(first(x, time)), time), skips


class Stage(nn.Module):
    def __init__(self, width, blocks, attention, time_width):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, time_width) for _ in range(blocks))
        self.attentions = nn.ModuleList(Attention(width) if attention else nn.Identity() for _ in range(blocks))

    def forward(self, x, time):
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x, time))
        return x


class ResidualBlock(nn.Module):
    def __init__(self, width, time_width):
        super().__init__()
        self.norm_1 = group_norm(width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * width)
        self.norm_2 = group_norm(width)
        self.conv_2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x, time):
        hidden = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        hidden = torch.addcmul(shift, self.norm_2(hidden), 1 + scale)
        return x + self.conv_2(F.silu(hidden))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = group_norm(width)
        self.to_heads = nn.Linear(width, 3 * width)
        self.from_heads = zeroed(nn.Linear(width, width))

    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).mT
        q, k, v = self.to_heads(tokens).view(b, h * w, 3, 1, c).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.from_heads(mixed).mT.reshape(b, c, h, w)


class TimeEmbedding(nn.Module):
    def __init__(self, width, time_width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU())
        self.width = width

    def forward(self, t):
        with torch.autocast(t.device.type, enabled=False):
            half = self.width // 2
            f = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / (half - 1)))
            angles = t.float()[:, None] * f
            return self.layers(torch.cat([angles.sin(), angles.cos()], 1))


def zeroed(m):
    nn.init.zeros_(m.weight)
    nn.init.zeros_(m.bias)
    return m


def group_norm(width):
    return nn.GroupNorm(width // GROUP, width)
