"""The mean latent code of each class (figure 5 of the assignment)."""

import math
from typing import TYPE_CHECKING

import torch

from genssl import figures
from genssl.data.rows import read_slice
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.result import EvalResult, check_size, require_ability
from genssl.metrics.latents import Profile, active_units, class_profile
from genssl.models.method import HasLatents, Method
from genssl.pixels import to_model
from genssl.runtime import Tick, chunks, measuring

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISCRIMINATIVE = 5  # dimensions marked in the picture
MOST_PANELS = 40  # classes that are drawn


@measuring()
def latent_profile(method: Method, split: Split, *, batch_size: int, tick: Tick) -> EvalResult:
    """Bar charts, one per class, of the mean posterior mean over the split's images, with its spread.

    Raises:
        UserError: the method cannot do it, or the data have no labels.
    """
    require_ability(method, HasLatents, "latent-profile")
    check_size(method, split)
    if split.labels is None:
        raise UserError(f"{split.name} has no labels, and a profile is of a class; choose another --data")
    codes = []
    for rows in chunks(len(split), batch_size):
        codes.append(method.features(to_model(read_slice(split.images, rows).to(method.device))))
        tick(rows.stop, len(split))
    means = torch.cat(codes).cpu().double()
    profile = class_profile(means, split.labels.cpu(), len(split.classes))
    discriminative = profile.separation.argsort(descending=True)[:DISCRIMINATIVE].tolist()
    values = {
        "images": len(split),
        "z_dim": means.shape[1],
        "active_units": active_units(means),
        "most_discriminative_dims": discriminative,
        "their_separation": [round(float(profile.separation[d]), 4) for d in discriminative],
        "largest_peak_by_class": {
            name: _peak(profile, i) for i, name in enumerate(split.classes) if profile.counts[i] > 0
        },
    }
    return EvalResult(
        values, {"latent profile": draw_profile(profile, split.classes, discriminative)},
        name="latent-profile", title="Latent profile",
        headline=("active_units", "z_dim", "most_discriminative_dims"),
    )  # fmt: skip


def _peak(profile: Profile, i: int) -> dict[str, float]:
    dimension = int(profile.means[i].abs().argmax())
    return {"dimension": dimension, "mean": round(float(profile.means[i, dimension]), 4)}


def draw_profile(profile: Profile, classes: tuple[str, ...], discriminative: list[int]) -> "Figure":
    """One panel per class: bars of the mean, whiskers of two standard errors; discriminative ones in orange.

    No more than MOST_PANELS of them.

    Two panels below: the spread within the classes, far larger than the means, and how discriminative a
    dimension is.
    """
    shown = classes[:MOST_PANELS]
    rows = math.ceil(len(shown) / 2) + 1
    figure, axes = figures.new_figure(rows, 2, 5.5, 1.7)
    dimensions = range(profile.means.shape[1])
    colors = ["tab:orange" if d in discriminative else "tab:blue" for d in dimensions]
    errors = 2 * profile.stds / profile.counts.clamp(min=1).sqrt()[:, None]
    reach = float((profile.means.abs() + errors).max()) * 1.05
    drawn = figures.drawn_names(shown)
    for i, (name, axis) in enumerate(zip(drawn.names, axes, strict=False)):
        whisker = {"ecolor": "0.5", "elinewidth": 0.8}
        axis.bar(
            dimensions,
            profile.means[i].tolist(),
            yerr=errors[i].tolist(),
            color=colors,
            error_kw=whisker,
        )
        axis.set(ylim=(-reach, reach))
        axis.set_title(f"{name}  ({int(profile.counts[i])} images)", family=drawn.families)
    for axis in axes[len(shown) : -2]:
        axis.set_visible(False)
    present = profile.counts > 0
    axes[-2].bar(dimensions, profile.stds[present].mean(0).tolist(), color=colors)
    axes[-2].set(title="spread within a class (std, mean over classes)")
    axes[-1].bar(dimensions, profile.separation.tolist(), color=colors)
    number = int(present.sum())
    chance = (number - 1) / max(1.0, float(profile.counts.sum()) - number)
    axes[-1].axhline(chance, color="0.3", linestyle="--", linewidth=1, label="if classes did not matter")
    axes[-1].set(title="how discriminative: variance between / within classes")
    axes[-1].legend(frameon=False)
    figure.supxlabel(
        "latent dimension (orange: most discriminative; whisker: two standard errors of the mean)"
    )
    figure.supylabel("mean of the posterior mean")
    return figure
