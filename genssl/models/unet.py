"""The U-Net that finds the noise in an image (Ho et al. 2020, appendix B)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels a group of every group norm. CPUs normalize bf16 in vectors of 16: with groups of 4 channels, as
# in the paper, the norms' backward pass alone takes a quarter of a training step.
GROUP = 16
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Layout:
    """The shape of a U-Net, level by level from the finest to the coarsest; each halves the side.

    Attributes:
        widths: channels, multiples of 16.
        blocks: residual blocks on the way down, and again on the way up.
        attention: whether self-attention follows each of these blocks; it is always in the middle.
        patch: pixels per side of the squares whose colors become the channels of one place at the start.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    patch: int = 1


LAYOUTS = {
    "tiny": Layout((32, 64, 96), (1, 1, 1), (False, False, False)),
    # As quick as "tiny" on a CPU, where a step waits for memory more than for multiplications: fewer places,
    # and more channels at each
    "compact": Layout((64, 96, 96), (2, 2, 1), (False, False, False), patch=2),
    "small": Layout((64, 128, 256), (2, 2, 2), (False, False, False)),
    "base": Layout((128, 256, 256, 256), (3, 3, 3, 3), (False, True, False, False)),
}


class UNet(nn.Module):
    """f(x_t, t): residual blocks down to the coarsest level and up again, with one skip a level.

    Images are (B, channels, H, W), H and W multiples of 2^(levels - 1).

    Args:
        layout: widths and depths.
        channels: of the images.
        classes: number of classes that it is conditioned on; 0: none. The label `classes` stands for none.

    Examples:
        >>> network = UNet(Layout((16, 32), (1, 1), (False, True)))
        >>> network(torch.zeros(2, 3, 8, 8), torch.tensor([0, 999])).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, layout: Layout, channels: int = 3, classes: int = 0) -> None:
        super().__init__()
        widths, finest, coarsest = layout.widths, layout.widths[0], layout.widths[-1]
        time_width = 4 * finest
        levels = list(zip(widths, layout.blocks, layout.attention, strict=True))
        self.time_embedding = TimeEmbedding(finest, time_width)
        self.layout, self.classes, self.patch = layout, classes, layout.patch
        colors = channels * layout.patch**2  # of one place
        self.start = nn.Conv2d(colors, finest, 3, padding=1)
        self.down_stages = nn.ModuleList(Stage(*level, time_width) for level in levels)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.middle_stage = Stage(coarsest, 1, True, time_width)
        self.middle_block = ResidualBlock(coarsest, time_width)
        self.merges = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths)
        self.up_stages = nn.ModuleList(Stage(*level, time_width) for level in levels)
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.end_norm = group_norm(finest)
        # Zero weights at the end: the untrained network predicts epsilon = 0
        self.end = zeroed(nn.Conv2d(finest, colors, 3, padding=1))
        # Last, so that a network without classes has the weights that it always had
        self.class_embedding = nn.Embedding(classes + 1, time_width) if classes else None

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, dropout: "Dropout | None" = None
    ) -> Tensor:
        """The prediction for x (B, channels, H, W) at times t (B,): (B, channels, H, W) float32.

        Args:
            x: noisy images.
            t: their times.
            labels: (B,) int64 in [0, classes] of a network with classes; None: no class.
            dropout: of a training step; None: no dropout.
        """
        time = self._condition(t, labels)
        x = self._ascend(*self._descend(x, time, dropout), time, dropout=dropout)
        prediction: Tensor = self.end(F.silu(self.end_norm(x)))
        prediction = F.pixel_shuffle(prediction, self.patch) if self.patch > 1 else prediction
        return prediction.float()

    def middle(self, x: Tensor, t: Tensor) -> Tensor:
        """What the middle of the network sees in x (B, channels, H, W), averaged over places: (B, D)."""
        x, _ = self._descend(x, self._condition(t, None))
        return x.float().mean((2, 3))

    def up_maps(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """The output of each residual block on the way up for x (B, channels, H, W), coarsest first.

        Each is (B, width, h, w) float32, h and w those of its level.
        """
        # Blocks on the way up know both what a place looks like, by the skips, and what the whole shows
        time, maps = self._condition(t, None), list[Tensor]()
        self._ascend(*self._descend(x, time), time, maps)
        return [features.float() for features in maps]

    @property
    def up_blocks(self) -> int:
        """How many residual blocks there are on the way up."""
        return sum(len(stage.blocks) for stage in self.up_stages)  # type: ignore[arg-type, misc]

    def _condition(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """What every block is conditioned on, (B, time_width): the time, and the class if any."""
        time: Tensor = self.time_embedding(t)
        if self.class_embedding is None:
            return time
        # "No class" is a class of its own: training hides the true one now and then, and guidance needs both
        if labels is None:
            none = self.class_embedding.num_embeddings - 1
            labels = torch.full(t.shape, none, dtype=torch.int64, device=t.device)
        condition: Tensor = time + self.class_embedding(labels)
        return condition

    def dropout_size(self, side: int) -> int:
        """Number of values of an image of `side` pixels that dropout may set to zero, in all blocks."""
        places = [((side // self.patch) >> level) ** 2 for level in range(len(self.layout.widths))]
        blocks = zip(self.layout.widths, self.layout.blocks, places, strict=True)
        # Down and up alike, and two more blocks in the middle
        both_ways = 2 * sum(width * count * area for width, count, area in blocks)
        return both_ways + 2 * self.layout.widths[-1] * places[-1]

    def _descend(
        self, x: Tensor, time: Tensor, dropout: "Dropout | None" = None
    ) -> tuple[Tensor, list[Tensor]]:
        """From images through the middle; its output, and the skips from fine to coarse."""
        # Space to depth: the same numbers on a quarter of the places, where a convolution costs a quarter
        x = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        x = self.start(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, stage in enumerate(self.down_stages):
            if level > 0:
                x = self.downs[level - 1](x)
            x = stage(x, time, dropout=dropout)
            skips.append(x)
        middle: Tensor = self.middle_block(self.middle_stage(x, time, dropout=dropout), time, dropout)
        return middle, skips

    def _ascend(
        self,
        x: Tensor,
        skips: list[Tensor],
        time: Tensor,
        maps: list[Tensor] | None = None,
        dropout: "Dropout | None" = None,
    ) -> Tensor:
        """From the middle to the finest level; the output of each block is appended to `maps`."""
        # Back up: double the side, join the skip of the same level, and mix
        for level in reversed(range(len(skips))):
            if level < len(skips) - 1:
                x = self.ups[level](F.interpolate(x, scale_factor=2.0))
            x = self.merges[level](torch.cat([x, skips[level]], 1))
            x = self.up_stages[level](x, time, maps, dropout)
        return x


class Stage(nn.Module):
    """Residual blocks of one width, each followed by attention where it is asked for."""

    def __init__(self, width: int, blocks: int, attention: bool, time_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, time_width) for _ in range(blocks))
        self.attentions = nn.ModuleList(
            Attention(width) if attention else nn.Identity() for _ in range(blocks)
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        maps: list[Tensor] | None = None,
        dropout: "Dropout | None" = None,
    ) -> Tensor:
        """(B, width, H, W) -> the same, given embedded times (B, time_width).

        The output of each block is appended to `maps`, where that is given.
        """
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x, time, dropout))
            if maps is not None:
                maps.append(x)
        return x


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second norm scaled and shifted by the time.

    The scale and shift are those of Dhariwal & Nichol 2021, section 4.3. Dropout, if any, comes before the
    second convolution, as in Ho et al. 2020.
    """

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.norm_1 = group_norm(width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.scale_shift = nn.Linear(time_width, 2 * width)
        self.norm_2 = group_norm(width)
        self.conv_2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, dropout: "Dropout | None" = None) -> Tensor:
        """(B, width, H, W) -> the same, given embedded times (B, time_width)."""
        # (1 + scale) and shift per channel: the only way in which the block learns how noisy its input is
        hidden = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
        scale, shift = self.scale_shift(time)[:, :, None, None].to(hidden.dtype).chunk(2, 1)
        hidden = F.silu(torch.addcmul(shift, hidden, 1 + scale))
        change: Tensor = self.conv_2(hidden if dropout is None else dropout(hidden))
        return x + change


class Dropout:
    """Sets values of one training step's features to zero, each with the same probability.

    The mask is drawn beforehand, for all blocks in a row: a network draws no random numbers, so that a
    step can be repeated, compiled, and divided among processes.

    Args:
        mask: bool (B, `UNet.dropout_size`), false for the values that become zero.
        p: the probability of that; the other values are divided by 1 - p, so that means stay the same.

    Examples:
        >>> dropout = Dropout(torch.tensor([[True, False, True, True]]), p=0.5)
        >>> dropout(torch.ones(1, 2, 1, 1)).flatten(), dropout(torch.ones(1, 1, 1, 2)).flatten()
        (tensor([2., 0.]), tensor([2., 2.]))
    """

    def __init__(self, mask: Tensor, p: float) -> None:
        self.mask, self.scale = mask, 1 / (1 - p)
        self.used = 0

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, by the next C H W values of the mask."""
        first, self.used = self.used, self.used + x[0].numel()
        # Beside each other in memory as those of x: (B, H, W, C)
        mask = self.mask[:, first : self.used].unflatten(1, (*x.shape[2:], x.shape[1])).permute(0, 3, 1, 2)
        # The mask first: a product with a number is rounded once, and 1 / (1 - p) itself is not
        scaled: Tensor = (x * mask.to(x.dtype)) * self.scale
        return scaled


class Attention(nn.Module):
    """x + self-attention between all places of x, with one head (Ho et al. 2020, appendix B)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        tokens = self.norm(x).flatten(2).mT  # (B, H W, C)
        query, key, value = self.query_key_value(tokens).unsqueeze(1).chunk(3, -1)  # (B, 1, H W, C)
        # softmax(Q K^T / sqrt(C)) V over the H W places
        mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1)  # (B, H W, C)
        change: Tensor = self.project(mixed).mT.reshape(x.shape)
        return x + change


class TimeEmbedding(nn.Module):
    """t as sines and cosines of many wavelengths (Vaswani et al. 2017), then two linear layers."""

    def __init__(self, dim: int, time_width: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(dim, time_width), nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU()
        )

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, time_width), in float32: bf16 cannot tell t = 900 from t = 901."""
        with torch.autocast(t.device.type, enabled=False):
            embedded: Tensor = self.layers(sinusoids(t, self.dim))
        return embedded


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """sin and cos of t (B,) at dim/2 angular frequencies from 1 down to 1/10,000: (B, dim) float32.

    Examples:
        >>> sinusoids(torch.tensor([0]), dim=4)
        tensor([[0., 0., 1., 1.]])
    """
    exponent = torch.linspace(0, 1, dim // 2, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponent)  # (B, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], 1)


def group_norm(width: int) -> nn.GroupNorm:
    """Group norm with GROUP channels a group.

    Examples:
        >>> group_norm(64).num_groups
        4
    """
    return nn.GroupNorm(width // GROUP, width)


def zeroed(layer: Layer) -> Layer:
    """The layer with zero weights, so that its block starts as the identity.

    Examples:
        >>> zeroed(nn.Linear(2, 2)).weight.tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
