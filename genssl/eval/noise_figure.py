"""The figure of a sweep over noise levels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from genssl import figures
from genssl.metrics.reconstruction import Crossing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_SNR = 1e-30
SNR_TICKS = (100, 30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
TICK_ROOM = 0.07  # between two of them, as a share of the axis
COLORS = {"pixels": "tab:blue", "features": "tab:orange", "class": "tab:green", "noised": "0.6"}


@dataclass(frozen=True)
class Rows:
    """One image from several noise levels.

    Attributes:
        images: (levels, columns, C, H, W) in the model's range: original, noised, ..., result.
        titles: of each row.
    """

    images: Tensor
    titles: list[str]


@dataclass(frozen=True)
class Curves:
    """The measurements of a sweep, by noise level.

    Attributes:
        levels: t', increasing.
        psnr_db: of "noised" images and of results ("pixels").
        identity: top-1 retrieval accuracy by space ("pixels", "features").
        half: t* by space, and of the "class".
        identity_chance: one over the number of candidates.
        classes: class accuracy of the results, or None.
        class_chance: the fraction of the largest class.
        class_ceiling: class accuracy of the originals.
        spaces: the name of the feature extractor by space; the last one is the kNN classifier's.
        snr: at each t of the schedule, (T,), falling.
    """

    levels: list[int]
    psnr_db: Mapping[str, list[float]]
    identity: Mapping[str, list[float]]
    half: Mapping[str, Crossing]
    identity_chance: float
    classes: list[float] | None
    class_chance: float
    class_ceiling: float
    spaces: Mapping[str, str]
    snr: Tensor

    @property
    def class_space(self) -> str:
        """The space of the kNN classifier."""
        return list(self.spaces)[-1]

    @property
    def class_half(self) -> float:
        """The class accuracy half-way between that at the first level and chance."""
        assert self.classes is not None
        return (self.classes[0] + self.class_chance) / 2


def draw_sweep(rows: Rows, curves: Curves, title: str) -> "Figure":
    """The rows above, the curves against t' and the signal-to-noise ratio beneath."""
    from matplotlib.figure import Figure

    count, columns = rows.images.shape[:2]
    width = 13.0
    tall = (width - 2.2) * count / columns + 0.5  # cells are square, labels take the rest
    figure = Figure(figsize=(width, tall + 3.7), layout="constrained", dpi=120)
    above, beneath = figure.subfigures(2, 1, height_ratios=[tall, 3.7], squeeze=False)[:, 0]
    above.suptitle(title)
    _draw_rows(above.subplots(), rows)
    panels = list(beneath.subplots(1, 2 if curves.classes is None else 3))
    _draw_psnr(panels[0], curves)
    _draw_identity(panels[1], curves)
    if curves.classes is not None:
        _draw_classes(panels[2], curves)
    for panel in panels:
        panel.spines["right"].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set(xlabel="t' (noising steps)", xlim=(0, curves.levels[-1] * 1.02))
        _add_snr_axis(panel, curves.snr)
    return figure


def _draw_rows(axis: "Axes", rows: Rows) -> None:
    count, columns = rows.images.shape[:2]
    images = rows.images.flatten(0, 1)
    sheet = figures.grid(images, columns, figures.magnification(images, columns))
    cell = sheet.width / columns
    axis.imshow(np.asarray(sheet))
    axis.set_yticks([(position + 0.5) * cell for position in range(count)], rows.titles, fontsize=9)
    heads = {0: "original", 1: "noised", (columns - 1) / 2 + 0.5: "reverse process →", columns - 1: "result"}
    axis.set_xticks([(position + 0.5) * cell for position in heads], list(heads.values()), fontsize=9)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)


def _draw_psnr(axis: "Axes", curves: Curves) -> None:
    names = {"pixels": "denoised", "noised": "noised"}
    for name, values in curves.psnr_db.items():
        axis.plot(curves.levels, values, marker=".", color=COLORS[name], label=names[name])
    axis.set(ylabel="PSNR against the original (dB)")
    axis.legend(frameon=False)


def _draw_identity(axis: "Axes", curves: Curves) -> None:
    for name, shares in curves.identity.items():
        label = f"in {name}: {describe_half(curves.half[name])}"
        axis.plot(curves.levels, shares, marker=".", color=COLORS[name], label=label)
        _draw_crossing(axis, curves, name, 0.5)
    axis.axhline(0.5, color="0.7", linewidth=0.8)
    axis.axhline(curves.identity_chance, color="0.3", linestyle="--", linewidth=1, label="chance")
    _finish_shares(axis, "instance retrieval (top-1)")


def _draw_crossing(axis: "Axes", curves: Curves, name: str, height: float) -> None:
    half = curves.half[name]
    if half.level is not None:
        axis.plot([half.level] * 2, [0, height], color=COLORS[name], linewidth=1)
        last = curves.levels[-1] if half.high is None else half.high
        axis.axvspan(half.low or half.level, last, color=COLORS[name], alpha=0.15, linewidth=0)


def _draw_classes(axis: "Axes", curves: Curves) -> None:
    assert curves.classes is not None
    label = f"kNN in {curves.class_space}: {describe_half(curves.half['class'])}"
    axis.plot(curves.levels, curves.classes, marker=".", color=COLORS["class"], label=label)
    _draw_crossing(axis, curves, "class", curves.class_half)
    axis.axhline(curves.class_half, color="0.7", linewidth=0.8)
    axis.axhline(curves.class_ceiling, color="0.3", linestyle=":", linewidth=1, label="originals")
    chance = "chance: the largest class"
    axis.axhline(curves.class_chance, color="0.3", linestyle="--", linewidth=1, label=chance)
    _finish_shares(axis, "class accuracy")


def _finish_shares(axis: "Axes", label: str) -> None:
    axis.set(ylabel=label, ylim=(-0.03, 1.33), yticks=[0, 0.25, 0.5, 0.75, 1])  # room for the legend above
    axis.legend(frameon=False, fontsize=8, loc="upper right")


def describe_half(half: Crossing) -> str:
    """t* with its interval, as text."""
    if half.level is None:
        return "t* not reached"
    low, high = ("beyond" if end is None else f"{end:.0f}" for end in (half.low, half.high))
    return f"t* = {half.level:.0f} ({low} to {high})"


def _add_snr_axis(axis: "Axes", snr: Tensor) -> None:
    """A second x axis on top: signal-to-noise ratios."""
    last = min(round(axis.get_xlim()[1]), len(snr))
    # Pure noise, where a schedule ends in it, has no logarithm
    falling = snr[:last].clamp(min=SMALLEST_SNR).cpu().numpy()[::-1]
    ticks: dict[str, float] = {}
    for ratio in SNR_TICKS:
        position = float(np.interp(math.log(ratio), np.log(falling), np.arange(last, 0, -1)))
        inside = falling[0] <= ratio <= falling[-1]
        if inside and all(abs(position - other) > TICK_ROOM * last for other in ticks.values()):
            ticks[f"{ratio:g}"] = position
    top = axis.secondary_xaxis("top")
    top.set_xticks(list(ticks.values()), list(ticks), fontsize=8)
    top.set_xlabel("signal-to-noise ratio", fontsize=8)
