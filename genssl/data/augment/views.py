"""Views: from uint8 images at rest to what a method trains on, as batched functions on the device."""

from typing import Protocol

import torch
from torch import Tensor

from genssl.config import ClassifierConfig, DSSLConfig, SelfSupervisedConfig
from genssl.data.augment import color, geometry, randaugment
from genssl.data.registry import allows_flips
from genssl.errors import UserError
from genssl.pixels import BIN_WIDTH, HALF, to_model
from genssl.runtime import Randomness, uniform
from genssl.settings import Config


class Views(Protocol):
    """One or several views of each image. All randomness is an argument."""

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each view, for people."""
        ...

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """The random parameters of `n` images' views; each tensor's first axis is `n`."""
        ...

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, C, H, W) -> views, each float (B, C, h, w) in the model's range."""
        ...


class Plain:
    """One view: the image itself."""

    names: tuple[str, ...] = ("image",)

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """Nothing is random."""
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, C, H, W) -> (float (B, C, H, W),)."""
        return (to_model(images),)


def choose_views(config: Config, classes: tuple[str, ...] = ()) -> Views:
    """The views that a config asks for in `Config.views`.

    Args:
        config: a method's.
        classes: names of the data's classes; flip = auto mirrors nothing where they are digits.

    Raises:
        UserError: no views have that name, or the config lacks their settings.

    Examples:
        >>> from genssl.config import VAEConfig
        >>> choose_views(VAEConfig()).names
        ('image',)
    """
    if config.views == "plain":
        return Plain()
    if isinstance(config, ClassifierConfig) and config.views == "supervised":
        return Supervised(config, classes)
    if isinstance(config, SelfSupervisedConfig) and config.views == "standard":
        return Standard(config, classes)
    if isinstance(config, DSSLConfig) and config.views == "directional":
        return Directional(config, classes)
    known = "plain, supervised, standard, directional"
    raise UserError(f"{config.method}: unknown views {config.views!r}; known: {known}")


def held_out_views(views: Views) -> Views:
    """The views of held-out images: the images themselves where training only moves them about."""
    return Plain() if isinstance(views, Supervised) else views


class Supervised:
    """One view of each image: shifted by up to `crop_padding` pixels, and mirrored if that keeps its class.

    The augmentation of He et al. 2016, section 4.2: the image is padded on each side, and a crop of its own
    size is taken from that, or from its mirror image.
    """

    names: tuple[str, ...] = ("crop",)

    def __init__(self, config: ClassifierConfig, classes: tuple[str, ...] = ()) -> None:
        """The views of a config; `classes` are the data's, for flip = auto."""
        self.padding = config.crop_padding
        self.flips = config.flip == "on" or (config.flip == "auto" and allows_flips(config.data, classes))

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """Chances in [0, 1): of the crop's place, (n, 2), down and across, and of mirroring, (n, 1)."""
        crop, flip = uniform((n, 3), generator).split([2, 1], 1)
        return {"crop": crop, "flip": flip}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, C, H, W) -> (float (B, C, H, W),): black where the crop is beyond the image."""
        height, width = images.shape[2:]
        # The row and the column of the image that each pixel of the crop shows, (B, H) and (B, W)
        shifts = (draws["crop"] * (2 * self.padding + 1)).floor().long() - self.padding
        rows, columns = (
            torch.arange(size, device=images.device) + shifts[:, axis : axis + 1]
            for axis, size in enumerate((height, width))
        )
        if self.flips:
            columns = torch.where(draws["flip"] < 0.5, width - 1 - columns, columns)
        is_inside = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
        index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        moved = images.flatten(2).gather(2, index).view_as(images)
        return (to_model(moved * is_inside[:, None]),)


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


VIEWS = 2


class Standard:
    """Two views of each image: crop and flip, color jitter, grayscale, blur (Chen and He 2021, appendix D).

    Their side S is the image's own, or `view_size`. All chances are uniform in [0, 1) and drawn for every
    image, whatever the config switches off.
    """

    names: tuple[str, ...] = ("view 1", "view 2")

    def __init__(self, config: SelfSupervisedConfig, classes: tuple[str, ...] = ()) -> None:
        """The views of a config; `classes` are the data's, for flip = auto."""
        self.config = config
        self.flips = config.flip == "on" or (config.flip == "auto" and allows_flips(config.data, classes))

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """Chances, each (n, 2, ...): crop, flip, jitter, order, grayscale, blur.

        Jitter: whether to apply it, then brightness, contrast, saturation and hue. Order: of those four, by
        rank. Blur: whether to apply it, and how much.
        """
        # Always all of them: switching one augmentation off leaves the others as they were, so that an
        # ablation changes one thing; and an image's views do not depend on what was drawn for its neighbors
        sizes = {"crop": geometry.CROP_CHANCES, "flip": 1, "jitter": 5, "order": 4, "grayscale": 1, "blur": 2}
        chances = uniform((n, VIEWS, sum(sizes.values())), generator)
        return dict(zip(sizes, chances.split(list(sizes.values()), 2), strict=True))

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, C, H, W) -> two views, each float32 (B, C, S, S) in the model's range."""
        # bf16 has 8 significant bits, and would round the pixels
        with torch.autocast(images.device.type, enabled=False):
            first, second = _to_model(self.planes(images, draws)).chunk(VIEWS)
        return first, second

    def planes(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (C, 2 B, S, S) in [0, 1], all first views before all second ones."""
        chances = {name: chance.transpose(0, 1).flatten(0, 1) for name, chance in draws.items()}
        height, width = images.shape[2:]
        boxes = geometry.crop_boxes(chances["crop"], height, width, self.config.crop_scale)
        flips = chances["flip"][:, 0] < 0.5 if self.flips else None
        crops = geometry.resized_crop(images.repeat(VIEWS, 1, 1, 1), boxes, flips, self.config.view_size)
        planes = crops.mul_(1 / 255)
        return self._change_colors(planes, chances)

    def _change_colors(self, planes: Tensor, chances: dict[str, Tensor]) -> Tensor:
        config = self.config
        if config.jitter > 0:
            planes = self._jittered(planes, chances)
        if config.grayscale > 0:
            planes = color.make_gray(planes, chances["grayscale"][:, 0] < config.grayscale)
        if config.blur > 0:
            apply, sigma = chances["blur"].unbind(1)
            low, high = color.SIGMAS
            planes = color.blur(planes, low + (high - low) * sigma, apply < config.blur)
        return planes

    def _jittered(self, planes: Tensor, chances: dict[str, Tensor]) -> Tensor:
        config = self.config
        apply = (chances["jitter"][:, :1] < config.jitter).float()
        # Uniform in [-1, 1); 0 where an image is not jittered, which makes its factors exactly 1: (N, 4)
        signed = (2 * chances["jitter"][:, 1:] - 1) * apply
        ranges = (config.brightness, config.contrast, config.saturation)
        factors = torch.stack([1 + most * signed[:, i] for i, most in enumerate(ranges)], 1)
        # One plane has no hue, and is its own gray: saturation blends it with itself
        turn = config.hue * signed[:, 3] if config.hue > 0 and len(planes) > 1 else None
        # The ranks of uniform numbers are a uniform permutation
        return color.jitter(planes, chances["order"].argsort(1), factors, turn)


class Directional:
    """Four views: two standard ones, and two heavy ones made from them by RandAugment (Bai et al. 2021)."""

    names: tuple[str, ...] = ("view 1", "view 2", "heavy 1", "heavy 2")

    def __init__(self, config: DSSLConfig, classes: tuple[str, ...] = ()) -> None:
        """The views of a config; `classes` are the data's, for flip = auto."""
        self.config = config
        self.standard = Standard(config, classes)

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """Those of the standard views, and for each of their operations (n, 2, K, 2): which, and its sign."""
        standard = self.standard.draws(n, generator)
        return standard | {"heavy": uniform((n, VIEWS, self.config.heavy_operations, 2), generator)}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, C, H, W) -> v1, v2, h1, h2: each float32 (B, C, S, S) in the model's range."""
        with torch.autocast(images.device.type, enabled=False):
            planes = self.standard.planes(images, draws)
            which, sign = draws["heavy"].transpose(0, 1).flatten(0, 1).unbind(2)  # (2 B, K)
            # Byte levels, since posterize, equalize and the like are defined on those
            kinds = (which * randaugment.OPERATIONS).long()
            signs = torch.where(sign < 0.5, -1.0, 1.0)
            levels = (planes * 255).round_().clamp_(0, 255)
            heavy = randaugment.randaugment(levels, kinds, signs, self.config.heavy_magnitude).mul_(1 / 255)
            return _to_model(planes).chunk(VIEWS) + _to_model(heavy).chunk(VIEWS)


def _to_model(planes: Tensor) -> Tensor:
    """float32 (C, N, H, W) in [0, 1] -> (N, C, H, W), contiguous, in the model's range."""
    images = planes.transpose(0, 1).contiguous()
    return images.mul_(255 * BIN_WIDTH).add_(HALF * BIN_WIDTH - 1)
