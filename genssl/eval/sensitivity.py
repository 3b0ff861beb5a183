"""`fidelity --sensitivity`: what a feature space notices of real images that were disturbed."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.disturbances import DISTURBANCES, Disturbance
from genssl.eval.feature_cache import FeatureSpace, cached_features, extract_features
from genssl.eval.result import EvalResult
from genssl.metrics.fidelity import frechet_distance, squared_mmd
from genssl.runtime import Tick, measuring

LEAST = 32  # images in a half
SHOWN = 4  # images of each strength in the picture
SIDE, GAP, LABEL, NAME = 64, 6, 18, 150  # pixels of the picture
DISTANCES = ("frechet_distance", "kernel_distance")


@measuring()
def sensitivity(real: Split, space: FeatureSpace, batch_size: int, tick: Tick) -> EvalResult:
    """Distances between one half of real images and the other half, disturbed at three strengths each.

    A feature space is worth what it notices (Heusel et al. 2017, figure 3): a distance has to rise with the
    strength, and a disturbance whose distance stays near that of undisturbed images goes unnoticed.

    Args:
        real: shuffled; an even number of images is used.
        space: the feature extractor.
        batch_size: of the encoder, in images.
        tick: called with (done, total).

    Raises:
        UserError: fewer than 64 images, or features that are not finite.
    """
    half = len(real) // 2
    if half < LEAST:
        raise UserError(f"{len(real)} images are too few for two halves; take {2 * LEAST} or more")
    features = cached_features(space, real, batch_size, tick)
    reference, undisturbed = features[:half], features[half : 2 * half]
    baseline = dict(zip(DISTANCES, _distances(reference, undisturbed), strict=True))
    images = real.images[half : 2 * half]
    rows = []
    for i, disturbance in enumerate(DISTURBANCES):
        for strength in disturbance.strengths:
            changed = Split(disturbance.apply(images, strength), None, (), "disturbed", "disturbed", "")
            encoded = extract_features(space.encode, changed, batch_size, lambda *_: None)
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
    return EvalResult(
        values, {"disturbances": draw_disturbances(images[:SHOWN], rows)}, _notes(values), name="sensitivity",
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
        images: uint8 (n, C, H, W), undisturbed.
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
    for k, image in enumerate(disturbance.apply(images.cpu(), strength)):
        shown = figures.one(image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        sheet.paste(shown, (corner[0] + k * SIDE, corner[1]))
