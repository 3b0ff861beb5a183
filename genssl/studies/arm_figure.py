"""The figure of a study: curves, bars and samples of its arms."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genssl import figures
from genssl.studies.measures import SAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from genssl.studies.comparison import ArmRuns

CURVES = ("loss",)  # terms of the history drawn over epochs; test_<term> joins its panel
BARS = (
    "bits_per_dim",
    "training_seconds",
    "sampling_seconds",
    "ancestral_seconds",
)  # numbers drawn as bars, where an arm has them
MOST_COLUMNS = 5


def draw_arms(arms: "Sequence[ArmRuns]", title: str) -> "Figure":
    """One panel a curve, one a bar chart, then one a grid of samples, titled by its arm."""
    arms = [arm for arm in arms if arm.runs]
    curves = [name for name in CURVES if any(name in arm.runs[0].history[-1] for arm in arms)]
    bars = [name for name in BARS if any(name in arm.numbers() for arm in arms)]
    grids = [arm for arm in arms if (arm.runs[0].info.folder / SAMPLES).exists()]
    columns = min(MOST_COLUMNS, max(2, len(curves) + len(bars), len(grids)))
    top = math.ceil((len(curves) + len(bars)) / columns)
    figure, axes = figures.new_figure(top + math.ceil(len(grids) / columns), columns, 4.0, 3.4)
    for axis in axes:
        axis.set_visible(False)  # those that are drawn on show themselves
    for axis, name in zip(axes, curves, strict=False):
        _draw_curves(axis, arms, name)
    for axis, name in zip(axes[len(curves) :], bars, strict=False):
        _draw_bars(axis, arms, name)
    for axis, arm in zip(axes[top * columns :], grids, strict=False):
        _draw_samples(axis, arm)
    figure.suptitle(title)
    return figure


def _draw_curves(axis: "Axes", arms: "Sequence[ArmRuns]", name: str) -> None:
    for place, arm in enumerate(arms):
        histories = [run.history for run in arm.runs]
        _draw_mean(axis, histories, name, color=f"C{place}", linestyle="--", alpha=0.6)
        _draw_mean(axis, histories, f"test_{name}", color=f"C{place}", marker=".")
        axis.plot([], [], color=f"C{place}", label=arm.arm.name)
    axis.set(xlabel="epoch", title=f"{name.replace('_', ' ')} (dashed: train, solid: test)", visible=True)
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False, fontsize=8)


def _draw_mean(
    axis: "Axes", histories: Sequence[Sequence[Mapping[str, Any]]], name: str, **style: Any
) -> None:
    """The mean over seeds and, for several, a band one standard deviation wide on each side."""
    found: dict[int, list[float]] = {}
    for record in (record for history in histories for record in history):
        if record.get(name) is not None:
            found.setdefault(record["epoch"], []).append(record[name])
    epochs = sorted(found)
    means = [statistics.fmean(found[epoch]) for epoch in epochs]
    # one epoch is a point, which a line without a marker does not show
    axis.plot(epochs, means, **{**style, "marker": style.get("marker", "." if len(epochs) == 1 else None)})
    if len(histories) > 1 and epochs:
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in (found[epoch] for epoch in epochs)]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _draw_bars(axis: "Axes", arms: "Sequence[ArmRuns]", name: str) -> None:
    for place, arm in enumerate(arms):
        number = arm.numbers().get(name)
        if number is not None:
            axis.bar(place, number.mean, yerr=number.std, color=f"C{place}", width=0.6, capsize=3)
    axis.set_xticks(range(len(arms)), [_broken(arm.arm.name) for arm in arms], fontsize=8)
    axis.set(title=name.replace("_", " "), visible=True)
    axis.grid(visible=False, axis="x")


def _draw_samples(axis: "Axes", arm: "ArmRuns") -> None:
    from PIL import Image

    with Image.open(arm.runs[0].info.folder / SAMPLES) as picture:
        axis.imshow(picture.convert("RGB"), interpolation="nearest")
    axis.set(title=arm.arm.name, visible=True)
    axis.set_axis_off()


def _broken(name: str) -> str:
    """A long name over several lines."""
    return name.replace(", ", "\n").replace(" (", "\n(")
