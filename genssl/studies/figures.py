"""The figures of studies."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from genssl import figures, files
from genssl.data.registry import short_name
from genssl.run_info import progress_of
from genssl.studies.measures import SAMPLES
from genssl.studies.results import (
    ACCURACIES,
    BY_EPOCH,
    KNN,
    LINEAR,
    LINEAR_TRAIN,
    ArmRuns,
    Measured,
    Rank,
    Records,
    Statistic,
    draw_mean,
)
from genssl.training.monitor import COLLAPSED_RANK, COLLAPSED_STD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 4
SIZE, LINE = 16, 21  # of the titles' letters and lines, pixels
MARGIN = 10


@dataclass(frozen=True)
class ImagePanel:
    """A grid and what is written over it, a line each."""

    lines: tuple[str, ...]
    grid: Image.Image

    @property
    def width(self) -> int:
        """Of what is wider, in pixels."""
        return math.ceil(max([self.grid.width, *(_font().getlength(line) for line in self.lines)]))


def side_by_side(panels: Sequence[ImagePanel]) -> Image.Image:
    """The panels in a row, or in rows of four; none is scaled, so that a pixel stays a pixel."""
    columns = min(len(panels), MOST_COLUMNS)
    head = LINE * max(len(panel.lines) for panel in panels)
    width = max(panel.width for panel in panels) + MARGIN
    height = head + max(panel.grid.height for panel in panels) + MARGIN
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, panel in enumerate(panels):
        left, top = MARGIN + i % columns * width, MARGIN + i // columns * height
        for number, line in enumerate(panel.lines):
            draw.text((left, top + number * LINE), line, fill="black", font=_font())
        sheet.paste(panel.grid, (left, top + head))
    return sheet


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SIZE)


COLUMNS = 3
LEAST_SPAN = 0.05  # of an axis of shares: less would make mountains of molehills
HALF_A_LINE = 64  # characters of a name below the panels
MARKED = 30  # epochs up to which each is a dot on its line


@dataclass(frozen=True)
class Panel:
    """What is drawn over epochs: a term of the history, or (`of_probe`) a curve of the linear probe."""

    name: str
    title: str
    of_probe: bool = False
    share: bool = False

    def series(self, run: Measured) -> Records:
        """The records that hold it, one per epoch."""
        if not self.of_probe:
            return run.history
        values = run.findings.curves.get(f"{self.name}{BY_EPOCH}", [])
        return [{"epoch": epoch, self.name: value} for epoch, value in enumerate(values, 1)]

    def is_in(self, run: Measured) -> bool:
        """Whether the run has it."""
        return any(record.get(self.name) is not None for record in self.series(run))


LOSS = "loss"
WATCHED = (
    Panel(LOSS, "training loss"),
    Panel("knn_accuracy", "kNN accuracy while training", share=True),
    Panel("output_std", "output std: 1 healthy, 0 collapsed"),
    Panel("rankme", "effective rank of the output (RankMe)"),
    Panel("output_scale", "deviation of an output"),
)
PROBED = (
    Panel(LINEAR_TRAIN, "linear probe: train accuracy", of_probe=True, share=True),
    Panel(LINEAR, "linear probe: test accuracy", of_probe=True, share=True),
)


def has_outputs(arm: ArmRuns) -> bool:
    """Whether the arm's runs have outputs that may collapse."""
    return any("output_std" in run.findings.numbers for run in arm.runs)


def draw_representations(
    arms: Sequence[ArmRuns], title: str, colors: Mapping[str, str], terms: Sequence[str]
) -> "Figure":
    """A panel a series that an arm has, over epochs, and below them the arms with their last accuracies.

    Args:
        arms: what to draw; those with several runs as mean and standard deviation.
        title: of the whole.
        colors: by the arm's name.
        terms: of the history; all but the loss come after the other panels.
    """
    panels = _panels([run for arm in arms for run in arm.runs], terms)
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    figure, axes = figures.new_figure(rows, COLUMNS, 4.0, 3.0)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, arms, panel, colors)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _add_names(figure, axes[0], arms, colors)
    figure.suptitle(title)
    return figure


def _panels(runs: Sequence[Measured], terms: Sequence[str]) -> list[Panel]:
    """Those that a run has: what was watched above, what was probed below, what is left over at the end."""
    watched = [panel for panel in WATCHED if panel.name != LOSS or LOSS in terms]
    watched += [Panel(name, name.replace("_", " ")) for name in terms if name != LOSS]
    result = [panel for panel in watched if any(panel.is_in(run) for run in runs)]
    probed = [panel for panel in PROBED if any(panel.is_in(run) for run in runs)]
    return [*result[:COLUMNS], *probed, *result[COLUMNS:]]


def _draw_panel(axis: "Axes", arms: Sequence[ArmRuns], panel: Panel, colors: Mapping[str, str]) -> None:
    for arm in arms:
        histories = [panel.series(run) for run in arm.runs]
        marker = "." if len(histories[0]) <= MARKED else None
        draw_mean(axis, histories, panel.name, color=colors[arm.arm.name], marker=marker)
    title = panel.title
    if panel.name == LOSS and any(arm.redefines() for arm in arms):
        title += " (not the same quantity)"
    if panel.name in figures.HELD_OUT and (splits := _monitor_splits(arms)) != "test":
        title += f" ({splits})"
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch of the probe" if panel.of_probe else "epoch")
    axis.locator_params(axis="x", integer=True)
    if panel.share:
        _make_percent(axis)
    if panel.name == "output_std":
        _mark_collapse(axis)
    if panel.name == "rankme":
        axis.axhline(COLLAPSED_RANK, color="0.4", linestyle="--", linewidth=1)
        axis.set_ylim(bottom=0)


def _monitor_splits(arms: Sequence[ArmRuns]) -> str:
    """The splits that were measured while training: test, validation, or both."""
    return " or ".join(sorted({run.info.config.monitor_split for arm in arms for run in arm.runs}))


def _make_percent(axis: "Axes") -> None:
    low, high = axis.get_ylim()
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    axis.set_ylim(low - missing, high + missing)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


def _mark_collapse(axis: "Axes") -> None:
    axis.set_ylim(0, 1.05)
    axis.axhline(COLLAPSED_STD, color="0.4", linestyle="--", linewidth=1)
    axis.text(0.01, 0.02, "collapsed", color="0.4", size=7, transform=axis.get_yaxis_transform())


def _add_names(figure: "Figure", axis: "Axes", arms: Sequence[ArmRuns], colors: Mapping[str, str]) -> None:
    """Below the panels: the arms with their last numbers; `axis` makes the lines."""
    labels = [_label(arm) for arm in arms]
    lines = [
        axis.plot([], [], color=colors[arm.arm.name], label=label)[0]
        for arm, label in zip(arms, labels, strict=True)
    ]
    measured = any(KNN in arm.numbers() for arm in arms)
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=2 if len(arms) > 2 and max(map(len, labels)) <= HALF_A_LINE else 1,
        frameon=False,
        title="kNN: all test images, all train images; linear: last epoch" if measured else None,
    )


def _label(arm: ArmRuns) -> str:
    """The arm's name and its last numbers."""
    numbers = arm.numbers()
    parts = [
        f"{what} {_percent(numbers[name])}"
        for what, name in (("kNN", KNN), ("linear", LINEAR))
        if name in numbers
    ]
    if any(run.collapsed for run in arm.runs) and "output_std" in numbers:
        words = {"output_std": "output std", "rankme": "rank", "output_scale": "scale"}
        known = [f"{word} {numbers[name].mean:.2g}" for name, word in words.items() if name in numbers]
        parts.append(f"collapsed ({', '.join(known)})")
    name = _shortened(arm.arm.name)
    return f"{name}: {', '.join(parts)}" if parts else name


def _percent(number: Statistic) -> str:
    spread = "" if number.std is None else f" ± {100 * number.std:.1f}"
    return f"{100 * number.mean:.1f}{spread} %"


TERMS = ("loss",)  # of the history, drawn over epochs; test_<term> or validation_<term> joins its panel
BARS = (
    "bits_per_dim",
    "training_seconds",
    "sampling_seconds",
    "ancestral_seconds",
)  # numbers drawn as bars, where an arm has them
MAX_SAMPLE_COLUMNS = 5
LONGEST_NAME = 60  # characters of a figure's
LINE_OF_AN_ARM = 0.45  # inches of the ranking


def draw_study(arms: Sequence[ArmRuns], title: str, terms: Sequence[str] = TERMS) -> "dict[str, Figure]":
    """All arms in one figure; where several changes are made to a self-supervised method, also one a change.

    A color means the same arm in all of them. The first arm is the baseline.
    """
    done = [arm for arm in arms if arm.runs]
    colors = {arm.arm.name: f"C{i}" for i, arm in enumerate(arms)}
    if sum(has_outputs(arm) for arm in done) < min(2, len(done)):  # nothing to lay side by side
        return {"study": _draw_arms(done, title, colors, terms)}
    return {"study": draw_representations(done, title, colors, terms)}


def draw_changes(arms: Sequence[ArmRuns], title: str) -> "dict[str, Figure]":
    """The baseline beside each arm of a self-supervised method alone, by the arm's name; of several arms."""
    baseline, *changed = arms
    if len(changed) < 2 or not baseline.runs or not has_outputs(baseline):
        return {}
    colors = {arm.arm.name: f"C{i}" for i, arm in enumerate(arms)}
    return {
        _file_name(arm.arm.name): draw_representations([baseline, arm], title, colors, TERMS)
        for arm in changed
        if arm.runs
    }


def draw_ranking(
    arms: Sequence[ArmRuns], ranks: Sequence[Rank], metric: str, title: str
) -> "dict[str, Figure]":
    """A line per arm, the best above: the mean over seeds, their range, and each seed; of a sweep alone.

    A sweep has several seeds or more than two arms. Arms that do not compare are left out.
    """
    shown = [item for item in ranks if not item.remark]
    if len(shown) < 2 or (len(arms) == 2 and all(len(item.values) == 1 for item in shown)):
        return {}
    colors = {arm.arm.name: f"C{i}" for i, arm in enumerate(arms)}
    figure, (axis,) = figures.new_figure(1, 1, 7.0, 1.3 + LINE_OF_AN_ARM * len(shown))
    for i, item in enumerate(shown):
        color = colors[item.arm]
        axis.plot([min(item.values), max(item.values)], [i, i], color=color, linewidth=2, alpha=0.5)
        axis.plot(item.values, [i] * len(item.values), "|", color=color, markersize=9)
        axis.plot([statistics.fmean(item.values)], [i], "o", color=color)
    seeds = [f"{len(item.values)} seed{'s' if len(item.values) > 1 else ''}" for item in shown]
    names = [f"{_shortened(item.arm)}\n{count}" for item, count in zip(shown, seeds, strict=True)]
    axis.set_yticks(range(len(shown)), names, fontsize=8)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    if metric in ACCURACIES:
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    better = "higher" if metric in ACCURACIES else "lower"
    axis.set_xlabel(f"{ACCURACIES.get(metric, metric.replace('_', ' '))} ({better} is better)")
    axis.set_title("dot: mean over seeds; line: from the lowest to the highest seed", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return {"ranking": figure}


def _shortened(name: str) -> str:
    return name if len(name) <= HALF_A_LINE else f"{name[: HALF_A_LINE - 1]}…"


def title_of(runs: Sequence[Measured]) -> str:
    """What all of some runs have in common: data, how many images, encoder, epochs."""
    described = [_describe(run) for run in runs]
    names = dict.fromkeys(name for item in described for name in item)
    values = [{item.get(name) for item in described} for name in names]
    return ", ".join(str(result.pop()) for result in values if len(result) == 1)


def _describe(run: Measured) -> dict[str, str]:
    config, images = run.info.config, run.findings.numbers.get("train_images")
    result = {"data": short_name(config.data)}
    if images is not None:
        result["images"] = f"{images:,} images"
    if hasattr(config, "encoder"):
        result["encoder"] = f"encoder {config.encoder}"
    epochs = progress_of(run.info.epochs_trained, config.epochs)
    result["epochs"] = f"{epochs} epoch{'s' if config.epochs != 1 else ''}"
    return result


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:LONGEST_NAME].strip("-.")


def _draw_arms(
    arms: Sequence[ArmRuns], title: str, colors: Mapping[str, str], terms: Sequence[str]
) -> "Figure":
    """One panel a curve, one a bar chart, then one a grid of samples, titled by its arm."""
    curves = [name for name in terms if any(name in run.history[-1] for run in _with_history(arms))]
    bars = [name for name in BARS if any(name in arm.numbers() for arm in arms)]
    grids = [arm for arm in arms if (arm.runs[0].info.folder / SAMPLES).exists()]
    columns = min(MAX_SAMPLE_COLUMNS, max(2, len(curves) + len(bars), len(grids)))
    top = math.ceil((len(curves) + len(bars)) / columns)
    figure, axes = figures.new_figure(max(1, top + math.ceil(len(grids) / columns)), columns, 4.0, 3.4)
    for axis in axes:
        axis.set_visible(False)  # those that are drawn on show themselves
    for axis, name in zip(axes, curves, strict=False):
        _draw_curves(axis, arms, name, colors)
    for axis, name in zip(axes[len(curves) :], bars, strict=False):
        _draw_bars(axis, arms, name, colors)
    for axis, arm in zip(axes[top * columns :], grids, strict=False):
        _draw_samples(axis, arm)
    figure.suptitle(title)
    return figure


def _with_history(arms: Sequence[ArmRuns]) -> list[Measured]:
    return [run for arm in arms for run in arm.runs if run.history]


def _draw_curves(axis: "Axes", arms: Sequence[ArmRuns], name: str, colors: Mapping[str, str]) -> None:
    for arm in arms:
        histories, color = [run.history for run in arm.runs], colors[arm.arm.name]
        draw_mean(axis, histories, name, color=color, linestyle="--", alpha=0.6)
        split = arm.runs[0].info.config.monitor_split
        draw_mean(axis, histories, f"{split}_{name}", color=color, marker=".")
        axis.plot([], [], color=color, label=arm.arm.name)
    title = f"{name.replace('_', ' ')} (dashed: train, solid: {_monitor_splits(arms)})"
    axis.set(xlabel="epoch", title=title, visible=True)
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False, fontsize=8)


def _draw_bars(axis: "Axes", arms: Sequence[ArmRuns], name: str, colors: Mapping[str, str]) -> None:
    for i, arm in enumerate(arms):
        number = arm.numbers().get(name)
        if number is not None:
            axis.bar(i, number.mean, yerr=number.std, color=colors[arm.arm.name], width=0.6, capsize=3)
    axis.set_xticks(range(len(arms)), [_broken(arm.arm.name) for arm in arms], fontsize=8)
    axis.set(title=name.replace("_", " "), visible=True)
    axis.grid(visible=False, axis="x")


def _draw_samples(axis: "Axes", arm: ArmRuns) -> None:
    axis.imshow(files.read_picture(arm.runs[0].info.folder / SAMPLES), interpolation="nearest")
    axis.set(title=arm.arm.name, visible=True)
    axis.set_axis_off()


def _broken(name: str) -> str:
    """A long name over several lines."""
    return name.replace(", ", "\n").replace(" (", "\n(")
