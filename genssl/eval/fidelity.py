"""Sample quality: generated images against real ones, beside a baseline of other real images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from genssl.metrics.memorization import NearestTraining, find_nearest_training
from genssl.metrics.sharpness import diversity, sharpness
from genssl.runtime import Tick, generator, measuring

PERCENT = (0.025, 0.975)
SUBSETS, LARGEST_SUBSET = 100, 1000  # of the kernel distance
UNITS = {
    "frechet_distance": "squared feature units",
    "kernel_distance": "squared feature units",
    "sharpness": "squared gray levels",
}
SHARES = {"precision", "recall", "coverage", "authenticity"}  # from 0 to 1


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement.

    Attributes:
        neighbors: k of precision, recall, density and coverage.
        resamples: random halves for the intervals; 0: no intervals.
        seed: random seed of the subsets and the halves.
        batch_size: of the encoder, in images.
    """

    neighbors: int = 5
    resamples: int = 100
    seed: int = 0
    batch_size: int = 256


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
    real: SampleSet, generated: SampleSet, settings: Settings, tick: Tick
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
    return {name: _with_interval(name, value, halves) for name, value in values.items()}, deviation


def numbers(real: SampleSet, generated: SampleSet, neighbors: int) -> dict[str, float]:
    """The metrics by name; the kernel distance is over all pairs, without subsets."""
    values = {
        "frechet_distance": frechet_distance(real.features, generated.features),
        "kernel_distance": squared_mmd(real.features, generated.features),
        **prdc(real.features, generated.features, neighbors)._asdict(),
    }
    if generated.authentic is not None:
        values["authenticity"] = float(generated.authentic.double().mean())
    return values | {"sharpness": float(generated.sharpness.mean()), "variety": diversity(generated.features)}


def subset_size(real: SampleSet, generated: SampleSet) -> int:
    """The size of the subsets of the kernel distance: at most a half, so that they differ."""
    return min(LARGEST_SUBSET, len(real) // 2, len(generated) // 2)


def _with_interval(name: str, value: float, halves: Sequence[Mapping[str, float]]) -> Estimate:
    if not halves:
        return Estimate(value)
    low, high = interval(value, torch.tensor([half[name] for half in halves], dtype=torch.float64))
    return Estimate(value, max(0.0, low), min(1.0, high)) if name in SHARES else Estimate(value, low, high)


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
        samples: uint8 (M, 3, H, W).
        train: uint8 (N, 3, H, W).
        nearest: of the samples.
    """
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


# The other metrics are best where the floor is
BETTER = {
    "frechet_distance": "lower",
    "kernel_distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "coverage": "higher",
}


@measuring()
def fidelity(
    samples: Tensor, real: Split, train: Split | None, space: FeatureSpace, settings: Settings, tick: Tick
) -> EvalResult:
    """Compare samples with as many real images, and other real images with the same ones: the floor.

    Args:
        samples: uint8 (n, 3, H, W).
        real: shuffled. The first n are the reference; the next n take the role of the samples for the
            floor. Where there are fewer than 2 n, the floor compares one half with the other.
        train: the training images of the generator, for authenticity; None: skip it.
        space: the feature extractor.
        settings: of the measurement.
        tick: called with (done, total), several times from the start.

    Raises:
        UserError: fewer images than the neighbors need, sizes that differ, features that are not finite.
    """
    _check(samples, real, settings.neighbors)
    sample_split = Split(samples.to(real.images.device), None, (), "samples", "generated", "")
    generated = SampleSet(
        extract_features(space.encode, sample_split, settings.batch_size, tick),
        sharpness(sample_split.images),
    )
    real_set = SampleSet(cached_features(space, real, settings.batch_size, tick), sharpness(real.images))
    # The floor: what a perfect generator would have, the same metrics between two sets of real images
    floor = min(len(generated), len(real) // 2)
    reference = real_set.rows(slice(len(generated)))
    baseline = real_set.rows(slice(floor, 2 * floor))
    figures = {}
    if train is not None:
        bank = cached_features(space, train, settings.batch_size, tick)
        generated, nearest = _with_authenticity(generated, bank)
        # Training images are their own nearest neighbors
        if real.part != "train":
            baseline, _ = _with_authenticity(baseline, bank)
        figures["nearest training images"] = draw_nearest_training(sample_split.images, train.images, nearest)
    estimates, deviation = measure(reference, generated, settings, tick)
    floor_estimates, _ = measure(real_set.rows(slice(floor)), baseline, settings, tick)
    values = _provenance(reference, generated, space, settings)
    values |= {"floor_images": floor, "train_images": None if train is None else len(train)}
    values |= {"kernel_deviation_over_subsets": deviation, "measures": _table(estimates, floor_estimates)}
    notes = _notes(generated, floor, real, settings, train is not None)
    return EvalResult(
        values, dict(figures), notes, name="fidelity", title="Sample quality", headline=("measures",),
        units=UNITS,
    )  # fmt: skip


def _provenance(
    reference: SampleSet, generated: SampleSet, space: FeatureSpace, settings: Settings
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
    # A half must still have k neighbors
    least = 2 * (neighbors + 1)
    for name, count, needed in (("samples", len(samples), least), ("real images", len(real), 2 * least)):
        if count < needed:
            raise UserError(
                f"{neighbors} neighbors need {needed} {name} or more, and there are {count}; "
                "take more, or a smaller -k"
            )


def _with_authenticity(group: SampleSet, bank: Tensor) -> tuple[SampleSet, NearestTraining]:
    nearest = find_nearest_training(bank, group.features)
    return replace(group, authentic=nearest.authentic), nearest


def _table(generated: Mapping[str, Estimate], floor: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """One row per metric: of the samples, and of real images in their place (the floor)."""
    rows = []
    for name, number in generated.items():
        other = floor.get(name)
        row = {"measure": name, "samples": number.value, "low": number.low, "high": number.high}
        row |= {"floor": other and other.value, "floor_low": other and other.low}
        rows.append(row | {"floor_high": other and other.high, "better": BETTER.get(name, "like the floor")})
    return rows


def _notes(
    generated: SampleSet, floor: int, real: Split, settings: Settings, has_authenticity: bool
) -> tuple[str, ...]:
    count, dimensions = generated.features.shape
    notes = [
        f"floor: the same numbers of {floor} other {real.part} images in the samples' place, as a perfect "
        "generator would have them",
        "distances depend on the features and on the number of images: compare only those of the same",
    ]
    if settings.resamples:
        notes.append(
            f"low and high: 95 % of {settings.resamples} random halves of both sets, around the number"
        )
    if floor < count:
        notes.append(
            f"too few real images: {2 * floor} give a floor of {floor} against {floor}, not of {count}, "
            "which would be lower"
        )
    if count < dimensions:
        notes.append(
            f"warning: {count} samples are fewer than the {dimensions} feature dimensions, so that the "
            "Frechet distance is mostly bias; look at its distance from the floor, or take more with -n"
        )
    if has_authenticity:
        notes.append(
            "authenticity: the share of the samples that are farther from their nearest training image than "
            "that one is from its nearest neighbor"
        )
    if has_authenticity and real.part == "train":
        notes.append("authenticity has no floor here: that takes images that were not trained on")
    return tuple(notes)
