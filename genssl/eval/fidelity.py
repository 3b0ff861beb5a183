"""How close generated images are to real ones, beside how close other real images are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.fidelity_numbers import SUBSETS, Group, Number, Settings, measured, subset_size
from genssl.eval.originals_picture import draw_originals
from genssl.eval.outcome import Outcome
from genssl.eval.real_features import Space, real_features
from genssl.eval.representation import represent
from genssl.metrics.features import Tick
from genssl.metrics.originals import Originals, find_originals
from genssl.metrics.sharpness import sharpness
from genssl.runtime import measuring

BETTER = {  # the others are best where the floor is
    "frechet_distance": "lower",
    "kernel_distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "coverage": "higher",
}


@measuring()
def fidelity(
    samples: Tensor, real: Split, train: Split | None, space: Space, settings: Settings, tick: Tick
) -> Outcome:
    """Compare samples with as many real images, and other real images with these: the floor.

    Args:
        samples: uint8 (n, 3, H, W).
        real: shuffled. The first n are what is compared with; the next n take the samples' place for the
            floor. Where there are fewer than 2 n, the floor is of one half against the other.
        train: what the generator learnt from, for authenticity; None: that is left out.
        space: whose features.
        settings: how.
        tick: told the progress, in several rounds.

    Raises:
        UserError: fewer images than the neighbours need, sizes that differ, features that are not finite.
    """
    _check(samples, real, settings.neighbours)
    generated = Split(samples.to(real.images.device), None, (), "samples", "generated", "")
    own = Group(represent(space.encode, generated, settings.batch_size, tick), sharpness(generated.images))
    whole = Group(real_features(space, real, settings.batch_size, tick), sharpness(real.images))
    reference, floor = whole.rows(slice(len(own))), min(len(own), len(real) // 2)
    other = whole.rows(slice(floor, 2 * floor))
    figures = {}
    if train is not None:
        bank = real_features(space, train, settings.batch_size, tick)
        own, originals = _with_originals(own, bank)
        if real.part != "train":  # images to train on are their own nearest ones
            other, _ = _with_originals(other, bank)
        figures["nearest training images"] = draw_originals(generated.images, train.images, originals)
    found, deviation = measured(reference, own, settings, tick)
    beneath, _ = measured(whole.rows(slice(floor)), other, settings, tick)
    values = _about(reference, own, space, settings)
    values |= {"floor_images": floor, "train_images": None if train is None else len(train)}
    values |= {"kernel_deviation_over_subsets": deviation, "measures": _table(found, beneath)}
    return Outcome(values, dict(figures), _notes(own, floor, real, settings, train is not None))


def _about(reference: Group, own: Group, space: Space, settings: Settings) -> dict[str, Any]:
    return {
        "samples": len(own),
        "real_images": len(reference),
        "features": space.name,
        "features_digest": space.digest or None,
        "dimensions": own.features.shape[1],
        "neighbours": settings.neighbours,
        "resampled_halves": settings.resamples,
        "kernel_subsets": SUBSETS,
        "kernel_subset_size": subset_size(reference, own),
    }


def _check(samples: Tensor, real: Split, neighbours: int) -> None:
    if samples.shape[1:] != real.images.shape[1:]:
        sizes = [f"{images.shape[-2]}x{images.shape[-1]}" for images in (samples, real.images)]
        raise UserError(
            f"the samples are {sizes[0]} pixels, {real.name} is {sizes[1]}; choose another --data"
        )
    if neighbours < 1:
        raise UserError(f"-k must be at least 1, not {neighbours}")
    least = 2 * (neighbours + 1)  # half of them still have so many neighbours
    for name, count, needed in (("samples", len(samples), least), ("real images", len(real), 2 * least)):
        if count < needed:
            raise UserError(
                f"{neighbours} neighbours need {needed} {name} or more, and there are {count}; "
                "take more, or a smaller -k"
            )


def _with_originals(group: Group, bank: Tensor) -> tuple[Group, Originals]:
    originals = find_originals(bank, group.features)
    return replace(group, authentic=originals.authentic), originals


def _table(own: Mapping[str, Number], floor: Mapping[str, Number]) -> list[dict[str, Any]]:
    """A row a measure: of the samples, and of real images in their place."""
    rows = []
    for name, number in own.items():
        other = floor.get(name)
        row = {"measure": name, "samples": number.value, "low": number.low, "high": number.high}
        row |= {"floor": other and other.value, "floor_low": other and other.low}
        rows.append(row | {"floor_high": other and other.high, "better": BETTER.get(name, "like the floor")})
    return rows


def _notes(own: Group, floor: int, real: Split, settings: Settings, has_originals: bool) -> tuple[str, ...]:
    count, dimensions = own.features.shape
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
    if has_originals:
        notes.append(
            "authenticity: the share of the samples that are farther from their nearest training image than "
            "that one is from its nearest neighbour"
        )
    if has_originals and real.part == "train":
        notes.append("authenticity has no floor here: that takes images that were not trained on")
    return tuple(notes)
