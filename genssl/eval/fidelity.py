"""Sample quality: generated images against real ones, beside real images in the samples' place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace, cached_features, extract_features
from genssl.eval.result import EvalResult
from genssl.metrics.fidelity import frechet_distance, kernel_distance, prdc, squared_mmd
from genssl.metrics.memorization import NearestTraining, find_nearest_training, leave_one_out
from genssl.metrics.sharpness import diversity, sharpness
from genssl.runtime import Tick, generator, measuring

PERCENT = (0.025, 0.975)
SUBSETS, LARGEST_SUBSET = 100, 1000  # of the kernel distance
ENOUGH = 10  # images per feature dimension, below which the Frechet distance is largely bias
UNITS = {
    "frechet_distance": "squared feature units",
    "frechet_distance_infinity": "squared feature units",
    "kernel_distance": "squared feature units",
    "sharpness": "squared gray levels",
}
LEAVE_ONE_OUT = 3  # training images below which none can be left out of the others
UNBIASED = {"kernel_distance", "frechet_distance_infinity"}  # estimates that chance may take below 0
SHARES = {"precision", "recall", "coverage", "authenticity"}  # from 0 to 1


@dataclass(frozen=True)
class FidelitySettings:
    """Settings of the measurement.

    Attributes:
        neighbors: k of precision, recall, density and coverage.
        resamples: random halves for the intervals; 0: no intervals.
        seed: random seed of the subsets and the halves.
        batch_size: of the encoder, in images.
        memorization: look for copies of training images; encodes all of them.
        device: where to measure; that of the real images when None. Images may be on the host, where they
            are too many for the device, and are taken from there in batches.
    """

    neighbors: int = 5
    resamples: int = 100
    seed: int = 0
    batch_size: int = 256
    memorization: bool = True
    device: torch.device | None = None


@dataclass(frozen=True)
class SampleSet:
    """The statistics of a set of images.

    Attributes:
        features: (N, D).
        sharpness: (N,).
        authentic: (N,) bool, False for near copies of training images; None: not measured.
    """

    features: Tensor
    sharpness: Tensor
    authentic: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, index: slice | Tensor) -> "SampleSet":
        """A subset of the images."""
        authentic = None if self.authentic is None else self.authentic[index]
        return SampleSet(self.features[index], self.sharpness[index], authentic)

    def half(self, draw: torch.Generator) -> "SampleSet":
        """Half of the images, drawn without replacement."""
        order = torch.randperm(len(self), generator=draw)
        return self.rows(order[: len(self) // 2].to(self.features.device))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: over all images.
        low, high: ends of the interval; None: no interval was computed.
    """

    value: float
    low: float | None = None
    high: float | None = None


def measure(
    real: SampleSet, generated: SampleSet, settings: FidelitySettings, tick: Tick
) -> tuple[dict[str, Estimate], float]:
    """All metrics by name, and the standard deviation of the kernel distance over its subsets."""
    values = numbers(real, generated, settings.neighbors)
    size = subset_size(real, generated)
    mean, deviation = kernel_distance(real.features, generated.features, SUBSETS, size, seed=settings.seed)
    values["kernel_distance"] = mean
    halves = []
    for i in range(settings.resamples):
        draw = generator(settings.seed, "eval", i)
        halves.append(numbers(real.half(draw), generated.half(draw), settings.neighbors))
        tick(i + 1, settings.resamples)
    estimates = {name: _with_interval(name, value, halves) for name, value in values.items()}
    if halves:
        mean_half = sum(half["frechet_distance"] for half in halves) / len(halves)
        unbiased = Estimate(extrapolate(values["frechet_distance"], mean_half))
        # Behind the distance that it corrects
        estimates = (
            {"frechet_distance": estimates.pop("frechet_distance")}
            | {"frechet_distance_infinity": unbiased}
            | estimates
        )
    return estimates, deviation


def extrapolate(whole: float, half: float) -> float:
    """The Frechet distance of infinitely many images, from its values for N and for N / 2 images.

    Its bias is proportional to 1 / N (Chong and Forsyth 2020, "FID-infinity"): d(N) = d + b / N, so that
    d = 2 d(N) - d(N / 2). They fit the line to more sizes of fewer draws each; here the second point is the
    mean over many random halves. It may be below 0 by chance.
    """
    return 2 * whole - half


def numbers(real: SampleSet, generated: SampleSet, neighbors: int) -> dict[str, float]:
    """The metrics by name; the kernel distance is over all pairs, without subsets."""
    values = {
        "frechet_distance": frechet_distance(real.features, generated.features),
        "kernel_distance": squared_mmd(real.features, generated.features),
        **prdc(real.features, generated.features, neighbors)._asdict(),
    }
    if generated.authentic is not None:
        values["authenticity"] = float(generated.authentic.cpu().double().mean())
    return values | {
        "sharpness": float(generated.sharpness.mean()),
        "diversity": diversity(generated.features),
    }


def subset_size(real: SampleSet, generated: SampleSet) -> int:
    """The size of the subsets of the kernel distance: at most a half, so that they differ."""
    return min(LARGEST_SUBSET, len(real) // 2, len(generated) // 2)


def _with_interval(name: str, value: float, halves: Sequence[Mapping[str, float]]) -> Estimate:
    if not halves:
        return Estimate(value)
    low, high = interval(value, torch.tensor([half[name] for half in halves], dtype=torch.float64))
    if name in SHARES:
        high = min(1.0, high)
    # The kernel distance and the extrapolated distance are estimates that may be below 0; the others cannot
    return Estimate(value, low if name in UNBIASED else max(0.0, low), high)


def interval(value: float, resampled: Tensor) -> tuple[float, float]:
    """95 % of what random halves of the images gave (R,), moved so that its mean is `value`.

    Halves drawn without replacement spread as new images of the whole number would (the delete-d jackknife of
    Shao and Wu 1989, with d = N / 2), and hold no image twice: the repeats of a bootstrap would be
    neighbors at no distance. Being fewer, they are biased, which the move takes away.
    """
    ends = (resampled - resampled.mean()).quantile(torch.tensor(PERCENT, dtype=torch.float64))
    return value + float(ends[0]), value + float(ends[1])


ROWS = 8  # in each of the two blocks
SIDE = 72  # pixels of a shown image
BORDER = 3
GAP = 8
CAPTION = 17
HEAD = 44
BETWEEN = 40  # the blocks
CELL, LINE = SIDE + 2 * BORDER + GAP, SIDE + 2 * BORDER + CAPTION + GAP
NOT_AUTHENTIC, AUTHENTIC, PLAIN = "#c8102e", "#3a7d44", "#9a9a9a"


def draw_nearest_training(samples: Tensor, train: Tensor, nearest: NearestTraining) -> Image.Image:
    """Two blocks of rows: the samples closest to training images, and the first samples.

    A row is a sample, its nearest training image with their distance, and the nearest neighbor of that one
    with theirs. Below the sample is the ratio of the two: a copy has 0; up to 1 it is not authentic, framed
    red.

    Args:
        samples: uint8 (M, C, H, W).
        train: uint8 (N, C, H, W).
        nearest: of the samples.
    """
    nearest = NearestTraining(*(getattr(nearest, field.name).cpu() for field in fields(nearest)))
    closest = nearest.closeness.argsort()[:ROWS]
    rows = min(ROWS, len(samples))
    width = 2 * (3 * CELL + GAP) + BETWEEN
    sheet = Image.new("RGB", (width, HEAD + rows * LINE), "white")
    titles = ("closest to training images", "the first samples")
    chosen = (closest.tolist(), list(range(rows)))
    for block, (title, indices) in enumerate(zip(titles, chosen, strict=True)):
        left = GAP + block * (3 * CELL + GAP + BETWEEN)
        _draw_heads(sheet, title, left)
        for row, i in enumerate(indices):
            _draw_row(sheet, samples[i], train, _one(nearest, i), (left, HEAD + row * LINE))
    return sheet


def _one(nearest: NearestTraining, i: int) -> tuple[int, float, int, float]:
    columns = (nearest.index, nearest.distance, nearest.neighbor, nearest.spacing)
    index, distance, neighbor, spacing = (column[i].item() for column in columns)
    return int(index), float(distance), int(neighbor), float(spacing)


def _draw_heads(sheet: Image.Image, title: str, left: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 5), title, fill="black", font=ImageFont.load_default(14))
    for column, head in enumerate(("sample", "nearest", "its nearest")):
        draw.text((left + column * CELL, 25), head, fill="black", font=ImageFont.load_default(12))


def _draw_row(
    sheet: Image.Image,
    sample: Tensor,
    train: Tensor,
    row: tuple[int, float, int, float],
    corner: tuple[int, int],
) -> None:
    index, distance, neighbor, spacing = row
    authentic = distance > spacing
    captions = (
        f"ratio {distance / spacing if distance else 0:.2f}" if spacing else "",
        f"at {distance:.3g}",
        f"at {spacing:.3g}",
    )
    colors = (AUTHENTIC if authentic else NOT_AUTHENTIC, PLAIN, PLAIN)
    images = (sample, train[index], train[neighbor])
    _draw_cells(sheet, images, captions, colors, corner)


def _draw_cells(
    sheet: Image.Image,
    images: Sequence[Tensor],
    captions: Sequence[str],
    colors: Sequence[str],
    corner: tuple[int, int],
) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = corner[1]
    for column, (image, caption, color) in enumerate(zip(images, captions, colors, strict=True)):
        left = corner[0] + column * CELL
        side = SIDE + 2 * BORDER
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill=color)
        picture = figures.one(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + BORDER, top + BORDER))
        draw.text((left, top + side + 1), caption, fill="black", font=font)


# The other metrics are best where those of the training images are
BETTER = {
    "frechet_distance": "lower",
    "frechet_distance_infinity": "lower",
    "kernel_distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "coverage": "higher",
}


@measuring()
def fidelity(
    samples: Tensor,
    real: Split,
    train: Split | None,
    space: FeatureSpace,
    settings: FidelitySettings,
    tick: Tick,
) -> EvalResult:
    """Compare samples with as many real images, beside real images in the samples' place.

    The reference rows are the same numbers of as many training images, which a perfect copy of the training
    distribution would get, and of other images of the same split as the real ones: sampling noise alone.

    Args:
        samples: uint8 (n, C, H, W).
        real: shuffled. The first n are the reference; the next n are the other images. Where there are fewer
            than 2 n, the latter row compares one half with the other.
        train: the training images of the generator; None: no row of training images, no authenticity.
        space: the feature extractor.
        settings: of the measurement.
        tick: called with (done, total), several times from the start.

    Raises:
        UserError: fewer images than the neighbors need, sizes that differ, features that are not finite.
    """
    _check(samples, real, settings.neighbors)
    device = settings.device or real.images.device
    settings = replace(settings, device=device)
    generated = sample_set(samples, space, settings, tick)
    real_features = cached_features(space, real, settings.batch_size, tick, device).to(device)
    real_set = SampleSet(real_features, sharpness(real.images, device))
    count = min(len(generated), len(real) // 2)
    references = {"other": (real_set.rows(slice(count)), real_set.rows(slice(count, 2 * count)))}
    pictures = {}
    if train is not None:
        generated, train_set, nearest = _beside_training_images(generated, train, space, settings, tick)
        if nearest is not None:
            pictures["nearest training images"] = draw_nearest_training(samples, train.images, nearest)
        # Where the real images are training images themselves, these would be compared with themselves
        if real.part not in {"train", "all"} and len(train_set) >= _least(settings.neighbors):
            references = {"train": (real_set.rows(slice(len(train_set))), train_set)} | references
    reference = real_set.rows(slice(len(generated)))
    estimates, deviation = measure(reference, generated, settings, tick)
    rows = {name: measure(*pair, settings, tick)[0] for name, pair in references.items()}
    values = _provenance(reference, generated, space, settings)
    values |= {"train_images": None if train is None else len(train)}
    values["other_images"] = len(references["other"][1])
    if "train" in references:
        values |= {"train_row_images": len(references["train"][1])}
    values |= {"kernel_deviation_over_subsets": deviation, "measures": _table(estimates, rows)}
    notes = _notes(values, real, settings, "train" in rows)
    return EvalResult(
        values, dict(pictures), notes, name="fidelity", title="Sample quality", headline=("measures",),
        units=UNITS,
    )  # fmt: skip


def sample_set(images: Tensor, space: FeatureSpace, settings: FidelitySettings, tick: Tick) -> SampleSet:
    """The statistics of images, uint8 (N, C, H, W) anywhere, on the device of the settings."""
    split = Split(images, None, (), "samples", "generated", "")
    features = extract_features(space.encode, split, settings.batch_size, tick, settings.device)
    return SampleSet(features.to(settings.device), sharpness(images, settings.device))


def _beside_training_images(
    generated: SampleSet, train: Split, space: FeatureSpace, settings: FidelitySettings, tick: Tick
) -> tuple[SampleSet, SampleSet, NearestTraining | None]:
    """The samples with their authenticity, as many training images with theirs, and the nearest ones."""
    order = torch.randperm(len(train), generator=generator(settings.seed, "eval"))
    chosen = order[: len(generated)]
    images = train.select(chosen).images
    if not settings.memorization or len(train) < LEAVE_ONE_OUT:
        return generated, sample_set(images, space, settings, tick), None
    device = generated.features.device
    bank = cached_features(space, train, settings.batch_size, tick, device)
    nearest = find_nearest_training(bank, generated.features)
    authentic = leave_one_out(bank, chosen.to(device)).authentic
    train_set = SampleSet(bank[chosen].to(device), sharpness(images, device), authentic)
    return replace(generated, authentic=nearest.authentic), train_set, nearest


def _provenance(
    reference: SampleSet, generated: SampleSet, space: FeatureSpace, settings: FidelitySettings
) -> dict[str, Any]:
    return {
        "samples": len(generated),
        "real_images": len(reference),
        "features": space.name,
        "features_digest": space.digest or None,
        "dimensions": generated.features.shape[1],
        "neighbors": settings.neighbors,
        "resampled_halves": settings.resamples,
        "kernel_subsets": SUBSETS,
        "kernel_subset_size": subset_size(reference, generated),
    }


def _check(samples: Tensor, real: Split, neighbors: int) -> None:
    if samples.shape[1:] != real.images.shape[1:]:
        sizes = [f"{images.shape[-2]}x{images.shape[-1]}" for images in (samples, real.images)]
        raise UserError(
            f"the samples are {sizes[0]} pixels, {real.name} is {sizes[1]}; choose another --data"
        )
    if neighbors < 1:
        raise UserError(f"-k must be at least 1, not {neighbors}")
    least = _least(neighbors)
    for name, count, needed in (("samples", len(samples), least), ("real images", len(real), 2 * least)):
        if count < needed:
            raise UserError(
                f"{neighbors} neighbors need {needed} {name} or more, and there are {count}; "
                "take more, or a smaller -k"
            )


def _least(neighbors: int) -> int:
    """The least number of images of which a half still has k neighbors."""
    return 2 * (neighbors + 1)


def _table(
    samples: Mapping[str, Estimate], references: Mapping[str, Mapping[str, Estimate]]
) -> list[dict[str, Any]]:
    """One row per metric: of the samples, of training images, and of other real images in their place."""
    rows = []
    for name, number in samples.items():
        row: dict[str, Any] = {
            "measure": name,
            "samples": number.value,
            "low": number.low,
            "high": number.high,
        }
        for reference, estimates in references.items():
            other = estimates.get(name)
            row |= {reference: other and other.value}
            row |= {f"{reference}_low": other and other.low, f"{reference}_high": other and other.high}
        rows.append(row | {"better": BETTER.get(name, "like real images")})
    return rows


def _notes(
    values: Mapping[str, Any], real: Split, settings: FidelitySettings, has_train: bool
) -> tuple[str, ...]:
    count, dimensions, others = values["samples"], values["dimensions"], values["other_images"]
    notes = [
        f"other: {others} other {real.part} images in the samples' place, which is sampling noise alone",
        "distances depend on the features and on the number of images: compare only those of the same",
    ]
    if has_train:
        notes.insert(
            0,
            "train: training images in the samples' place, as a perfect copy of the training data would have",
        )
    if settings.resamples:
        notes += [
            f"low and high: 95 % of {settings.resamples} random halves of both sets, around the number",
            "frechet_distance_infinity: extrapolated to infinitely many images (Chong and Forsyth 2020)",
        ]
    if others < count:
        notes.append(
            f"too few real images: 2 x {others} give the row of other images, not 2 x {count}; "
            "its distances would be lower"
        )
    in_row = values.get("train_row_images", count)
    if in_row < count:
        notes.append(
            f"few training images: {in_row:,} give the row of training images, not {count:,}; with as many "
            "its distances would be lower"
        )
    if count < ENOUGH * dimensions:
        notes.append(
            f"warning: {count} samples for {dimensions} feature dimensions; below {ENOUGH} per dimension "
            f"({ENOUGH * dimensions:,}) much of the Frechet distance is bias: look at its excess over "
            "that of the other images, or at the extrapolated one"
        )
    if settings.memorization and (values["train_images"] or 0) >= LEAVE_ONE_OUT:
        notes.append(
            "authenticity: the share of the samples that are farther from their nearest training image than "
            "that one is from its own nearest; a share clearly below that of the training images, each left "
            "out of the others, means that the samples repeat them"
        )
    return tuple(notes)
