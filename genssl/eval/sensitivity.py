"""`fidelity --sensitivity`: what a feature space notices of real images that were disturbed, weak to strong.

As Heusel et al. 2017 (figure 3) did for the FID, with the changes that features trained to ignore them miss:
gray, swapped channels and blur.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl import figures
from genssl.data.augment.color import WEIGHTS
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace, cached_features, extract_features
from genssl.eval.result import EvalResult
from genssl.metrics.fidelity import frechet_distance, squared_mmd
from genssl.runtime import Tick, generator, measuring

PATCH = 8  # pixels, the side of a swapped patch


@dataclass(frozen=True)
class Disturbance:
    """A change of images at three strengths.

    Attributes:
        name: as a noun phrase, e.g. "Gaussian blur".
        strengths: from weak to strong.
        label: a strength with its unit, as text.
        apply: uint8 (N, C, H, W) and a strength -> uint8 (N, C, H, W).
    """

    name: str
    strengths: tuple[float, float, float]
    label: Callable[[float], str]
    apply: Callable[[Tensor, float], Tensor]


def desaturate(images: Tensor, amount: float) -> Tensor:
    """Blend every image with its gray version; 1 is gray."""
    gray = (images.float() * images.new_tensor(WEIGHTS, dtype=torch.float32).view(3, 1, 1)).sum(
        1, keepdim=True
    )
    return _bytes(images.float().lerp(gray.expand_as(images), amount))


def permute_channels(images: Tensor, amount: float) -> Tensor:
    """Swap red and blue in a share of the images up to 1; above, rotate the channels of all, red to green."""
    return images.roll(1, 1) if amount > 1 else _of_a_share(images, amount, images.flip(1))


def blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of `sigma` pixels; edges are reflected."""
    from torchvision.transforms.v2 import (
        functional as transforms,
    )  # here: torchvision takes seconds to import

    side = 2 * max(1, round(3 * sigma)) + 1
    blurred: Tensor = transforms.gaussian_blur(images, [side, side], [sigma, sigma])
    return blurred


def add_noise(images: Tensor, std: float) -> Tensor:
    """Add Gaussian noise of `std` gray levels."""
    noise = torch.randn(images.shape, generator=generator(0, "eval")).to(images.device)
    return _bytes(images.float() + std * noise)


def brighten(images: Tensor, levels: float) -> Tensor:
    """Add gray levels to all channels."""
    return _bytes(images.float() + levels)


def raise_contrast(images: Tensor, factor: float) -> Tensor:
    """Scale the differences from the mean of each image."""
    mean = images.float().mean((1, 2, 3), keepdim=True)
    return _bytes(mean + factor * (images.float() - mean))


def invert(images: Tensor, share: float) -> Tensor:
    """Turn a share of the images into photographic negatives."""
    return _of_a_share(images, share, 255 - images)


def mirror(images: Tensor, share: float) -> Tensor:
    """Mirror a share of the images, left to right."""
    return _of_a_share(images, share, images.flip(3))


def shift(images: Tensor, pixels: float) -> Tensor:
    """Shift to the lower right; the edge is repeated."""
    by = int(pixels)
    padded = F.pad(images.float(), (by, 0, by, 0), mode="replicate")
    return padded[..., : images.shape[2], : images.shape[3]].to(torch.uint8)


def swap_patches(images: Tensor, pairs: float) -> Tensor:
    """Swap random pairs of patches of 8 x 8 pixels in every image; what is left over at the edge stays."""
    rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
    inner = images[:, :, : rows * PATCH, : columns * PATCH]
    patches = inner.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH))  # (N, 3, rows, 8, columns, 8)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, rows * columns, 3, 8, 8)
    draws = torch.rand(patches.shape[:2], generator=generator(0, "eval")).to(images.device)
    order = draws.argsort(1)
    chosen = order[:, : 2 * min(int(pairs), order.shape[1] // 2)]
    # The second of each pair takes the place of the first
    source = torch.arange(order.shape[1], device=images.device).expand_as(order).clone()
    source.scatter_(1, chosen, chosen.unflatten(1, (-1, 2)).flip(2).flatten(1))
    swapped = patches.gather(1, source[:, :, None, None, None].expand_as(patches))
    result = images.clone()
    swapped = swapped.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    result[:, :, : rows * PATCH, : columns * PATCH] = swapped.reshape(inner.shape)
    return result


def _of_a_share(images: Tensor, share: float, changed: Tensor) -> Tensor:
    """The first `share` of the images changed: the split is shuffled, so that these are random ones."""
    count = round(share * len(images))
    return torch.cat([changed[:count], images[count:]])


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


PERMUTED = {0.5: "red and blue swapped in 50%", 1.0: "in all images", 2.0: "all three rotated"}
SHARES = (0.25, 0.5, 1.0)
DISTURBANCES = (
    Disturbance("gray", (0.5, 0.75, 1.0), "{:.0%} of the color lost".format, desaturate),
    Disturbance("channels permuted", (0.5, 1.0, 2.0), PERMUTED.__getitem__, permute_channels),
    Disturbance("blur", (0.5, 1.0, 2.0), "sigma {:g} px".format, blur),
    Disturbance("noise", (5.0, 10.0, 20.0), "std {:g} levels".format, add_noise),
    Disturbance("brightness", (25.0, 50.0, 75.0), "+{:g} levels".format, brighten),
    Disturbance("contrast", (1.35, 1.7, 2.4), "x{:g}".format, raise_contrast),
    Disturbance("negative", SHARES, "{:.0%} of the images".format, invert),
    Disturbance("mirrored", SHARES, "{:.0%} of the images".format, mirror),
    Disturbance("shifted", (2.0, 4.0, 8.0), "{:g} px".format, shift),
    Disturbance("patches swapped", (1.0, 2.0, 4.0), "{:g} pairs".format, swap_patches),
)


LEAST = 32  # images in a half
SHOWN = 4  # images of each strength in the picture
SIDE, GAP, LABEL, NAME = 64, 6, 18, 150  # pixels of the picture
DISTANCES = ("frechet_distance", "kernel_distance")


@measuring()
def sensitivity(
    real: Split, space: FeatureSpace, batch_size: int, tick: Tick, device: torch.device | None = None
) -> EvalResult:
    """Distances between one half of real images and the other half, disturbed at three strengths each.

    A feature space is worth what it notices (Heusel et al. 2017, figure 3): a distance has to rise with the
    strength, and a disturbance whose distance stays near that of undisturbed images goes unnoticed.

    Args:
        real: shuffled; an even number of images is used.
        space: the feature extractor.
        batch_size: of the encoder, in images.
        tick: called with (done, total).
        device: where features are computed; that of the images when None.

    Raises:
        UserError: fewer than 64 images, or features that are not finite.
    """
    half = len(real) // 2
    if half < LEAST:
        raise UserError(f"{len(real)} images are too few for two halves; take {2 * LEAST} or more")
    features = cached_features(space, real, batch_size, tick, device)
    reference, undisturbed = features[:half], features[half : 2 * half]
    baseline = dict(zip(DISTANCES, _distances(reference, undisturbed), strict=True))
    images = real.images[half : 2 * half]
    rows = []
    for i, disturbance in enumerate(DISTURBANCES):
        for strength in disturbance.strengths:
            changed = Split(disturbance.apply(images, strength), None, (), "disturbed", "disturbed", "")
            encoded = extract_features(space.encode, changed, batch_size, lambda *_: None, device)
            frechet, kernel = _distances(reference, encoded)
            rows.append(
                {
                    "disturbance": disturbance.name,
                    "strength": disturbance.label(strength),
                    "frechet_distance": frechet,
                    "over_undisturbed": frechet / baseline["frechet_distance"],
                    "kernel_distance": kernel,
                }
            )
        tick(i + 1, len(DISTURBANCES))
    values = {
        "images": half,
        "features": space.name,
        "features_digest": space.digest or None,
        "dimensions": reference.shape[1],
        **{f"{name}_undisturbed": value for name, value in baseline.items()},
        "disturbances": rows,
        "not_rising": not_rising(rows),
    }
    picture = draw_disturbances(images[:SHOWN].cpu(), rows)
    return EvalResult(
        values, {"disturbances": picture}, _notes(values), name="sensitivity",
        title="Sensitivity of the features", headline=("disturbances",),
        units=dict.fromkeys(DISTANCES, "squared feature units"),
    )  # fmt: skip


def _distances(reference: Tensor, other: Tensor) -> tuple[float, float]:
    return frechet_distance(reference, other), squared_mmd(reference, other)


def not_rising(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The disturbances of which one of the two distances falls somewhere from weak to strong."""
    names = dict.fromkeys(row["disturbance"] for row in rows)
    return [
        name
        for name in names
        if not all(
            before[distance] < after[distance]
            for distance in DISTANCES
            for before, after in pairwise([row for row in rows if row["disturbance"] == name])
        )
    ]


def _notes(values: Mapping[str, Any]) -> tuple[str, ...]:
    rows = values["disturbances"]
    middle = [row for i, row in enumerate(rows) if i % 3 == 1]
    unnoticed = [row["disturbance"] for row in middle if row["over_undisturbed"] < 2]
    notes = [
        "over_undisturbed: the Frechet distance of the disturbed half over that of the undisturbed one, "
        f"{values['frechet_distance_undisturbed']:.3g} for {values['images']} images",
    ]
    if values["not_rising"]:
        notes.append(f"a distance falls while the disturbance grows: {', '.join(values['not_rising'])}")
    if unnoticed:
        notes.append(f"the middle strength less than doubles the Frechet distance: {', '.join(unnoticed)}")
    return tuple(notes)


def draw_disturbances(images: Tensor, rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """A row per disturbance: its name, and some images at each strength under their Frechet distance.

    Args:
        images: uint8 (n, C, H, W), undisturbed, on the host.
        rows: of `sensitivity`.
    """
    block = len(images) * SIDE + GAP
    sheet = Image.new("RGB", (NAME + 3 * block, len(DISTURBANCES) * (SIDE + LABEL + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, disturbance in enumerate(DISTURBANCES):
        top = i * (SIDE + LABEL + GAP)
        draw.text((4, top + LABEL + SIDE // 2 - 7), disturbance.name, fill="black", font=font)
        for column in range(3):
            row, left = rows[3 * i + column], NAME + column * block
            text = f"{row['strength']}: {row['over_undisturbed']:.2f} x"
            draw.text((left, top + 2), text, fill="black", font=font)
            _paste_examples(sheet, images, disturbance, column, (left, top + LABEL))
    return sheet


def _paste_examples(
    sheet: Image.Image, images: Tensor, disturbance: Disturbance, column: int, corner: tuple[int, int]
) -> None:
    strength = disturbance.strengths[column]
    for k, image in enumerate(disturbance.apply(images, strength)):
        shown = figures.one(image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        sheet.paste(shown, (corner[0] + k * SIDE, corner[1]))
