"""The figure of self-supervised runs (figures 11 to 13 of the assignment): loss, accuracies, and collapse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genssl import figures
from genssl.studies.representations import BY_EPOCH, KNN, LINEAR, LINEAR_TRAIN
from genssl.studies.results import ArmRuns, Measured, Number
from genssl.studies.series import Records, draw_mean
from genssl.train.watch import COLLAPSED, COLLAPSED_RANK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        """The records that hold it, one an epoch."""
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
)
PROBED = (
    Panel(LINEAR_TRAIN, "linear probe: train accuracy", of_probe=True, share=True),
    Panel(LINEAR, "linear probe: validation accuracy", of_probe=True, share=True),
)


def has_outputs(arm: ArmRuns) -> bool:
    """Whether the arm's runs have outputs that may collapse."""
    return any("output_std" in run.findings.numbers for run in arm.runs)


def draw_representations(
    arms: Sequence[ArmRuns], title: str, colours: Mapping[str, str], terms: Sequence[str]
) -> "Figure":
    """A panel a series that an arm has, over epochs, and below them the arms with their last accuracies.

    Args:
        arms: what to draw; those with several runs as mean and standard deviation.
        title: of the whole.
        colours: by the arm's name.
        terms: of the history; all but the loss come after the other panels.
    """
    panels = _panels([run for arm in arms for run in arm.runs], terms)
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    figure, axes = figures.new_figure(rows, COLUMNS, 4.0, 3.0)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, arms, panel, colours)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _add_names(figure, axes[0], arms, colours)
    figure.suptitle(title)
    return figure


def _panels(runs: Sequence[Measured], terms: Sequence[str]) -> list[Panel]:
    """Those that a run has: what was watched above, what was probed below, what is left over at the end."""
    watched = [panel for panel in WATCHED if panel.name != LOSS or LOSS in terms]
    watched += [Panel(name, name.replace("_", " ")) for name in terms if name != LOSS]
    found = [panel for panel in watched if any(panel.is_in(run) for run in runs)]
    probed = [panel for panel in PROBED if any(panel.is_in(run) for run in runs)]
    return [*found[:COLUMNS], *probed, *found[COLUMNS:]]


def _draw_panel(axis: "Axes", arms: Sequence[ArmRuns], panel: Panel, colours: Mapping[str, str]) -> None:
    for arm in arms:
        histories = [panel.series(run) for run in arm.runs]
        marker = "." if len(histories[0]) <= MARKED else None
        draw_mean(axis, histories, panel.name, color=colours[arm.arm.name], marker=marker)
    title = panel.title
    if panel.name == LOSS and any(arm.redefines() for arm in arms):
        title += " (not the same quantity)"
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


def _make_percent(axis: "Axes") -> None:
    low, high = axis.get_ylim()
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    axis.set_ylim(low - missing, high + missing)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


def _mark_collapse(axis: "Axes") -> None:
    axis.set_ylim(0, 1.05)
    axis.axhline(COLLAPSED, color="0.4", linestyle="--", linewidth=1)
    axis.text(0.01, 0.02, "collapsed", color="0.4", size=7, transform=axis.get_yaxis_transform())


def _add_names(figure: "Figure", axis: "Axes", arms: Sequence[ArmRuns], colours: Mapping[str, str]) -> None:
    """Below the panels: the arms with their last numbers; `axis` makes the lines."""
    labels = [_label(arm) for arm in arms]
    lines = [
        axis.plot([], [], color=colours[arm.arm.name], label=label)[0]
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
        rank = f", rank {numbers['rankme'].mean:.2g}" if "rankme" in numbers else ""
        parts.append(f"collapsed (output std {numbers['output_std'].mean:.2g}{rank})")
    name = arm.arm.name if len(arm.arm.name) <= HALF_A_LINE else f"{arm.arm.name[: HALF_A_LINE - 1]}…"
    return f"{name}: {', '.join(parts)}" if parts else name


def _percent(number: Number) -> str:
    spread = "" if number.std is None else f" ± {100 * number.std:.1f}"
    return f"{100 * number.mean:.1f}{spread} %"
