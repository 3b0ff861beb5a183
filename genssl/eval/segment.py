"""Segmentation from few labeled images by features of pixels (Baranchuk et al. 2022), beside baselines."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genssl import figures
from genssl.data.rows import read_rows, read_slice
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import untrained_copy
from genssl.eval.result import EvalResult, check_size, header_of, require_ability
from genssl.metrics.segmentation import (
    ClassifierSettings,
    PixelClassifiers,
    fit_pixel_classifiers,
    intersection_over_union,
    mean_iou,
    pixel_confusion,
)
from genssl.models.method import HasSpatialFeatures, Method
from genssl.pixels import IGNORE, to_channels, to_model, with_channels
from genssl.runtime import Counter, Tick, chunks, generator, measuring, normal, uniform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUND = "ground"
FOREGROUND = "not ground"
Classes = Literal["ground", "all"]
NUMBERS = 2**24  # features of images that are computed at once
KEPT = 2**27  # of labeled images that are held at once: of larger ones, some pixels are drawn
SHOWN = 8  # test images in the picture
# Of classes in the picture, from 1 on, and again from the first; ground is black, what is ignored gray
COLORS = torch.tensor([
    [0, 0, 0], [31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189],
    [140, 86, 75], [227, 119, 194], [188, 189, 34], [23, 190, 207], [174, 199, 232],
], dtype=torch.uint8)  # fmt: skip
IGNORED_COLOR = 127
SpatialEncoder = Callable[[Tensor], Tensor]  # images (B, C, H, W) in the model's range -> (B, D, H, W)


@dataclass(frozen=True)
class SegmentSettings:
    """What is compared, and how.

    Attributes:
        labeled: numbers of labeled images; pictures and headline numbers are of the first.
        repeats: draws of the labeled images.
        blocks: one-based, of the run itself; all when None.
        times: noise levels, of the run itself; the method's when None.
        classes: "ground": tell ground from everything else; "all": every class of the masks.
        heat_map: also train on each block and time by itself, on the first draw.
        classifiers: of the ensembles.
        seed: of the draws, the noise and the ensembles.
    """

    labeled: Sequence[int] = (50,)
    repeats: int = 5
    blocks: Sequence[int] | None = None
    times: Sequence[float] | None = None
    classes: Classes = "ground"
    heat_map: bool = True
    classifiers: ClassifierSettings = field(default_factory=ClassifierSettings)
    seed: int = 0


@dataclass(frozen=True)
class _Cell:
    """A block at a time, one-based, or at none; and its channels among the features."""

    block: int
    time: float | None
    channels: slice


@dataclass(frozen=True)
class _Fitted:
    """An ensemble, what it is for, and the channels that it sees."""

    labeled: int
    repeat: int
    model: PixelClassifiers
    channels: slice
    cell: _Cell | None


@dataclass(frozen=True)
class _Problem:
    """The images, the classes of their pixels, and which rows of train are labeled in each draw.

    Images may stay on the host: a portion at a time goes to the device.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    draws: list[Tensor]
    settings: SegmentSettings
    device: torch.device


@measuring()
def segment(
    method: Method,
    train: Split,
    test: Split,
    settings: SegmentSettings | None = None,
    *,
    beside: Mapping[str, Method] | None = None,
    tick: Tick,
) -> EvalResult:
    """Train ensembles of pixel classifiers on a few labeled images, and segment the test images.

    In one table: the features of the run, of its untrained network, of other runs, and raw pixels; all on the
    same draws. Noise, where a method looks at noisy images, is one draw for all images and times.

    Args:
        method: with spatial features, in eval mode, on its device.
        train: where the labeled images are drawn from; with masks; on the device or on the host, as `test`.
        test: with masks.
        settings: the defaults when None.
        beside: other methods by name, likewise; with all their blocks and their own times.
        tick: called with the number of ensembles that are trained, and of those to train.

    Raises:
        UserError: a method without spatial features, no masks, images of another size, a block or time that
            it does not have, or more labeled images than there are.
    """
    settings = settings or SegmentSettings()
    start = time.perf_counter()
    problem = _problem(train, test, settings, method.device)
    encoders, cells = _encoders(method, beside or {}, problem), _cells(method, problem)
    total = len(encoders) * len(settings.labeled) * settings.repeats + len(cells)
    count = Counter(total, tick)
    rows, by_class, by_cell = list[dict[str, Any]](), dict[str, Tensor](), list[dict[str, Any]]()
    for name, encoder in encoders.items():
        fitted = _fit(encoder, problem, [] if rows else cells, count)
        if not rows:
            picture = _picture(method, encoder, problem, fitted[0])
        results = list(zip(fitted, _confusions(encoder, problem, fitted), strict=True))
        by_cell += [_cell_row(f.cell, matrix) for f, matrix in results if f.cell is not None]
        for n in settings.labeled:
            matrices = [matrix for f, matrix in results if f.labeled == n and f.cell is None]
            dimensions = fitted[0].model.dimensions
            sizes = {"dimensions": dimensions, "pixels_per_image": _pixels_per_image(problem, dimensions)}
            rows.append({"what": name, "labeled": n, **_scores(matrices), **sizes})
            if n == settings.labeled[0]:
                by_class[name] = torch.stack([intersection_over_union(m) for m in matrices]).nanmean(0)
    values = _values(method, problem, rows, by_class, by_cell)
    values["seconds"] = round(time.perf_counter() - start, 3)
    drawn: dict[str, Figure | Image.Image] = {
        "predictions": picture,
        "mean IoU": _bars(method, problem, rows),
    }
    if by_cell:
        drawn["heat map"] = _heat_map(method, by_cell)
    return EvalResult(
        values, drawn, _notes(problem), name="segment", title="Segmentation",
        headline=("mean_iou", "std", "labeled"), units={"seconds": "s"},
    )  # fmt: skip


def _problem(train: Split, test: Split, settings: SegmentSettings, device: torch.device) -> _Problem:
    """Check the images and the numbers, and draw the labeled images."""
    for split in (train, test):
        if split.masks is None:
            raise UserError(
                f"the {split.part} images of {split.name} have no masks; take --data synthetic, or a folder "
                "with images/NAME.* and masks/NAME.png"
            )
    most = max(settings.labeled)
    if most > len(train):
        raise UserError(f"--labeled must be at most the number of train images, {len(train)}, not {most}")
    classes = (GROUND, *train.classes)
    if settings.classes == "ground":
        classes = (GROUND, FOREGROUND)
        train, test = (replace(split, masks=_foreground(split.masks)) for split in (train, test))
    # "labelled" names the stream of random numbers: under another name, other images would be drawn
    order = [
        torch.randperm(len(train), generator=generator(settings.seed, "labelled", i))[:most]
        for i in range(settings.repeats)
    ]
    for rows in order:
        few = rows[: min(settings.labeled)].to(train.images.device)
        if train.masks is None or not (train.masks[few] != IGNORE).any():
            raise UserError(
                f"no pixel of {len(few)} labeled images counts; raise --labeled, or mend the masks"
            )
    if test.masks is None or not (test.masks != IGNORE).any():
        raise UserError(f"no pixel of {len(test)} test images counts; take more images, or mend the masks")
    return _Problem(train, test, classes, order, settings, device)


def _foreground(masks: Tensor | None) -> Tensor:
    assert masks is not None
    return torch.where(masks == IGNORE, masks, masks.clamp(max=1))


def _encoders(method: Method, beside: Mapping[str, Method], problem: _Problem) -> dict[str, SpatialEncoder]:
    """What is compared, by name, that of the run first."""
    settings, name = problem.settings, method.config.method
    for other in (method, *beside.values()):
        require_ability(other, HasSpatialFeatures, "segment")
        for split in (problem.train, problem.test):
            check_size(other, split)
    blocks = None if settings.blocks is None else [block - 1 for block in settings.blocks]
    untrained = untrained_copy(method, method.device)
    networks = {name: method, f"untrained {name}": untrained}
    return {
        **{n: _encoder(m, settings.seed, blocks, settings.times) for n, m in networks.items()},
        **{n: _encoder(m, settings.seed) for n, m in beside.items()},
        "raw pixels": lambda images: images,
        "raw pixels, 3x3": neighborhoods,
    }


def _encoder(
    method: Method, seed: int, blocks: Sequence[int] | None = None, times: Sequence[float] | None = None
) -> SpatialEncoder:
    """The spatial features of a method; images of another number of channels are converted."""
    spatial = require_ability(method, HasSpatialFeatures, "segment")
    channels, size = method.config.channels, method.config.image_size
    noise = normal((channels, size, size), generator(seed, "eval"))

    def encode(images: Tensor) -> Tensor:
        try:
            images = with_channels(images, channels)
            return spatial.spatial_features(images, noise.to(images.device), blocks=blocks, times=times)
        except ValueError as error:
            raise UserError(f"this {method.config.method} has no such features: {error}") from error

    return encode


def neighborhoods(images: Tensor) -> Tensor:
    """The pixels of each 3x3 neighborhood, (B, C, H, W) -> (B, 9 C, H, W); edges are repeated."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    patches: Tensor = F.unfold(padded, 3)  # (B, 9 C, H W)
    return patches.view(len(images), -1, *images.shape[2:])


def _cells(method: Method, problem: _Problem) -> list[_Cell]:
    """Each block at each time of the run, in the order of its features."""
    settings = problem.settings
    spatial = require_ability(method, HasSpatialFeatures, "segment")
    if settings.times is not None and not spatial.spatial_times:
        raise UserError(f"a {method.config.method} looks at images without noise; omit --times")
    blocks = settings.blocks or range(1, spatial.spatial_blocks + 1)
    times = (spatial.spatial_times if settings.times is None else settings.times) or (None,)
    image, cells, start = to_model(problem.train.images[:1].to(problem.device)), list[_Cell](), 0
    for level in times:
        for block in blocks:
            encode = _encoder(method, settings.seed, [block - 1], None if level is None else [level])
            width = encode(image).shape[1]
            cells.append(_Cell(block, level, slice(start, start + width)))
            start += width
    return cells if settings.heat_map and len(cells) > 1 else []


def _features(encoder: SpatialEncoder, images: Tensor, places: Tensor | None = None) -> Tensor:
    """Features of pixels of uint8 images (N, C, H, W), in portions: (N, P, D) float32.

    `places`: int64 (N, P), of each image's pixels in reading order; all when None.
    """
    portions, dimensions = [], encoder(to_model(images[:1])).shape[1]
    size = images.shape[2] * images.shape[3]
    for rows in chunks(len(images), max(1, NUMBERS // (size * dimensions))):
        batch = to_model(images[rows]).contiguous(memory_format=torch.channels_last)
        pixels = encoder(batch).flatten(2).transpose(1, 2)
        if places is not None:
            pixels = pixels.gather(1, places[rows, :, None].expand(-1, -1, dimensions))
        portions.append(pixels)
    return torch.cat(portions)


def _fit(encoder: SpatialEncoder, problem: _Problem, cells: Sequence[_Cell], count: Counter) -> list[_Fitted]:
    """The ensembles of one kind of features: of each draw and number of images, then of each cell."""
    fitted, labeled = list[_Fitted](), problem.settings.labeled
    for repeat, rows in enumerate(problem.draws):
        pixels, labels = _labeled_pixels(encoder, problem, rows, repeat)
        jobs: list[tuple[int, _Cell | None]] = [(n, None) for n in labeled]
        jobs += [(labeled[0], cell) for cell in cells] if repeat == 0 else []
        for n, cell in jobs:
            channels = slice(None) if cell is None else cell.channels
            model = fit_pixel_classifiers(
                pixels[:n, :, channels].flatten(0, 1), labels[:n].flatten(), len(problem.classes),
                problem.settings.classifiers, seed=problem.settings.seed, draw=repeat,
            )  # fmt: skip
            fitted.append(_Fitted(n, repeat, model, channels, cell))
            count.add()
    return fitted


def _labeled_pixels(
    encoder: SpatialEncoder, problem: _Problem, rows: Tensor, repeat: int
) -> tuple[Tensor, Tensor]:
    """Features (n, P, D) and classes (n, P) of the labeled images: of all pixels, or of as many as fit."""
    assert problem.train.masks is not None
    rows = rows.to(problem.train.images.device)
    images, masks = (
        read_rows(t, rows).to(problem.device) for t in (problem.train.images, problem.train.masks)
    )
    labels = masks.flatten(1).long()
    dimensions = encoder(to_model(images[:1])).shape[1]
    most = _pixels_per_image(problem, dimensions)
    if labels.shape[1] == most:
        return _features(encoder, images), labels
    source = generator(problem.settings.seed, "pixels", repeat)
    # Those that do not count come last
    chances = uniform(labels.shape, source).to(labels.device) + (labels == IGNORE)
    places = chances.argsort(1)[:, :most]
    return _features(encoder, images, places), labels.gather(1, places)


def _pixels_per_image(problem: _Problem, dimensions: int) -> int:
    """How many pixels of each labeled image are learned from: all, or as many as fit into memory."""
    height, width = problem.train.images.shape[2:]
    return min(height * width, max(1, KEPT // (max(problem.settings.labeled) * dimensions)))


def _confusions(encoder: SpatialEncoder, problem: _Problem, fitted: Sequence[_Fitted]) -> list[Tensor]:
    """The counts (C, C) of each ensemble over all pixels of the test images, a portion at a time."""
    test, classes = problem.test, len(problem.classes)
    assert test.masks is not None
    matrices = [torch.zeros(classes, classes, dtype=torch.int64) for _ in fitted]
    for rows in chunks(len(test), SHOWN):
        images, masks = (read_slice(t, rows).to(problem.device) for t in (test.images, test.masks))
        features, labels = _features(encoder, images), masks.flatten(1).long()
        for f, matrix in zip(fitted, matrices, strict=True):
            # An image at a time: its hidden layers stay in a CPU's cache
            predicted = torch.stack([f.model.vote(pixels[:, f.channels])[0] for pixels in features])
            matrix.add_(pixel_confusion(labels, predicted, classes).cpu())
    return matrices


# Numbers


def _scores(matrices: Sequence[Tensor]) -> dict[str, float | None]:
    """Mean and deviation of the mean IoU over draws, and the share of pixels whose class is right.

    Of more than two classes also the mean IoU where all but ground are one.
    """
    values = [mean_iou(matrix) for matrix in matrices]
    scores = {"mean_iou": fmean(values), "std": stdev(values) if len(values) > 1 else None}
    if len(matrices[0]) > 2:
        scores["ground_or_not_iou"] = fmean(mean_iou(ground_or_not(matrix)) for matrix in matrices)
    right = [float(matrix.diagonal().sum() / matrix.sum()) for matrix in matrices]
    return {**scores, "pixel_accuracy": fmean(right)}


def ground_or_not(matrix: Tensor) -> Tensor:
    """Counts (C, C) with all classes but the first one joined, (2, 2)."""
    rows = torch.stack([matrix[0], matrix[1:].sum(0)])
    return torch.stack([rows[:, 0], rows[:, 1:].sum(1)], 1)


def _cell_row(cell: _Cell, matrix: Tensor) -> dict[str, Any]:
    return {"block": cell.block, "time": cell.time, "mean_iou": mean_iou(matrix)}


def _values(
    method: Method,
    problem: _Problem,
    rows: list[dict[str, Any]],
    by_class: Mapping[str, Tensor],
    by_cell: list[dict[str, Any]],
) -> dict[str, Any]:
    settings, classifiers = problem.settings, problem.settings.classifiers
    spatial = require_ability(method, HasSpatialFeatures, "segment")
    table = [
        {"class": name} | {what: float(iou[i]) for what, iou in by_class.items()}
        for i, name in enumerate(problem.classes)
    ]
    return {
        **{name: rows[0][name] for name in ("mean_iou", "std", "labeled")},
        "repeats": settings.repeats,
        "train_images": len(problem.train),
        "test_images": len(problem.test),
        "classes": len(problem.classes),
        "blocks": list(settings.blocks or range(1, spatial.spatial_blocks + 1)),
        "times": list(spatial.spatial_times if settings.times is None else settings.times),
        "classifiers": classifiers.members,
        "steps": classifiers.steps,
        "pixels_a_step": classifiers.batch_size,
        "learning_rate": classifiers.learning_rate,
        "compared": rows,
        "iou_by_class": table,
        **({"iou_by_block_and_time": by_cell} if by_cell else {}),
    }


def _notes(problem: _Problem) -> tuple[str, ...]:
    settings = problem.settings
    notes, classifiers = list(_about_classes(problem)), settings.classifiers
    if settings.repeats > 1:
        notes.append(f"std is the deviation over {settings.repeats} draws of images, the same for all rows")
    if classifiers == ClassifierSettings():
        notes.append(
            f"{classifiers.members} classifiers of {classifiers.steps} steps were chosen for a CPU; "
            "Baranchuk et al. 2022 train 10: --members 10"
        )
    return tuple(notes)


def _about_classes(problem: _Problem) -> tuple[str, ...]:
    if problem.settings.classes == "all" and len(problem.classes) > 2:
        return ("ground_or_not_iou: of the same predictions, with all classes but ground as one",)
    if len(problem.train.classes) < 2:
        return ()
    several = len(problem.train.classes) + 1
    return (f"of the {several} classes of the masks, all but ground are one; --classes all tells them apart",)


# Pictures


def _picture(method: Method, encoder: SpatialEncoder, problem: _Problem, fitted: _Fitted) -> Image.Image:
    """Test images with their masks, the predictions, and how many of the ensemble disagree."""
    test = problem.test.images[:SHOWN]
    assert problem.test.masks is not None
    votes = [fitted.model.vote(pixels) for pixels in _features(encoder, test.to(problem.device))]
    predicted, disagreement = (
        torch.stack(column).view(len(test), *test.shape[2:]) for column in zip(*votes, strict=True)
    )
    gray = (255 * disagreement).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    columns = [to_channels(test, 3), colored(problem.test.masks[:SHOWN]), colored(predicted), gray]
    n = f"{fitted.labeled} labeled images"
    header = header_of(method, f"{problem.test.name} {problem.test.part} images segmented from {n}")
    pictures = torch.stack([column.cpu() for column in columns], 1).flatten(0, 1)
    return figures.titled_grid(pictures, header, 8, ["image", "mask", "predicted", "disagreement"])


def colored(masks: Tensor) -> Tensor:
    """Classes (N, H, W) as colors, uint8 (N, 3, H, W)."""
    masks = masks.long()
    index = torch.where(masks == 0, 0, (masks - 1) % (len(COLORS) - 1) + 1)
    colors = COLORS.to(masks.device)[index].permute(0, 3, 1, 2)
    return torch.where((masks == IGNORE)[:, None], IGNORED_COLOR, colors).to(torch.uint8)


def _bars(method: Method, problem: _Problem, rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """The mean IoU of all features, a bar for each number of labeled images."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    figure, (axis,) = figures.new_figure(1, 1, 6.4, 0.6 + 0.45 * len(names))
    height = 0.8 / len(problem.settings.labeled)
    for i, n in enumerate(problem.settings.labeled):
        chosen = [row for row in rows if row["labeled"] == n]
        positions = [j + i * height for j in range(len(names))]
        axis.barh(
            positions, [100 * row["mean_iou"] for row in chosen], 0.9 * height, label=f"{n} labeled images",
            xerr=[100 * (row["std"] or 0) for row in chosen],
        )  # fmt: skip
    axis.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names)
    axis.invert_yaxis()
    repeats = problem.settings.repeats
    draws = f", mean and deviation of {repeats} draws" if repeats > 1 else ""
    axis.set(xlabel=f"mean IoU over {len(problem.classes)} classes (%){draws}")
    axis.legend(frameon=False)
    figure.suptitle(header_of(method, f"{len(problem.test)} {problem.test.name} test images"))
    return figure


def _heat_map(method: Method, cells: Sequence[Mapping[str, Any]]) -> "Figure":
    """The mean IoU of each block alone, from coarse to fine, at each time alone."""
    blocks = list(dict.fromkeys(cell["block"] for cell in cells))
    times = list(dict.fromkeys(cell["time"] for cell in cells))
    shares = torch.tensor([100 * cell["mean_iou"] for cell in cells]).view(len(times), len(blocks))
    figure, (axis,) = figures.new_figure(1, 1, 2.2 + 0.7 * len(blocks), 1.6 + 0.6 * len(times))
    axis.grid(visible=False)
    drawn = axis.imshow(shares.numpy(), cmap="viridis")
    middle = float(shares.min() + shares.max()) / 2
    for row, line in enumerate(shares.tolist()):
        for column, share in enumerate(line):
            color = "white" if share < middle else "black"
            axis.text(column, row, f"{share:.1f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axis.set_yticks(range(len(times)), ["" if level is None else f"{level:g}" for level in times])
    axis.set(xlabel="block", ylabel="" if times == [None] else "time")
    figure.colorbar(drawn, label="mean IoU (%)")
    figure.suptitle(f"{method.config.method}, one block and time alone", size="medium")
    return figure
