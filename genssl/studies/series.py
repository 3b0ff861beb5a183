"""A series of numbers over epochs in a panel: the mean over seeds and its spread."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]  # one an epoch, with the number "epoch" and others


def draw_mean(axis: "Axes", histories: Sequence[Records], name: str, **style: Any) -> None:
    """The mean of `name` over seeds and, for several, a band one standard deviation wide on each side."""
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
