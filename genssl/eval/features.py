"""The features of a split, for other people's tools, and a picture of them in two dimensions."""

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.eval.feature_cache import extract_features
from genssl.eval.result import EvalResult, check_size
from genssl.metrics.collapse import output_std, rankme
from genssl.metrics.linalg import principal_components
from genssl.models.method import Method
from genssl.runtime import Tick, generator, measuring

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 5000  # in the picture; more of them only cover each other
INK = 12_000  # area of all points together, in square points
COLORED = 20  # classes up to which each has a color


@measuring()
def features(
    method: Method, split: Split, *, batch_size: int = 256, tick: Tick
) -> tuple[EvalResult, dict[str, Tensor]]:
    """The features of every image of a split, and their first two principal components as a picture.

    Returns:
        The result, and the tensors by name: "features" float32 (N, D), and "labels" int64 (N,) where the
        split has labels. Rows are in the split's order.

    Raises:
        UserError: images of another size than the method's, or features that are not finite.
    """
    check_size(method, split)
    encoded = extract_features(method.features, split, batch_size, tick, method.device)
    points, shares = principal_components(encoded, 2)
    values = {
        "images": len(split),
        "dimensions": encoded.shape[1],
        "explained_variance": shares.tolist(),
        "std_l2_normalized": output_std(encoded),
        "rankme": rankme(encoded),
    }
    tensors = {"features": encoded}
    if split.labels is not None:
        tensors["labels"] = split.labels
    result = EvalResult(
        values, {"principal components": draw_components(points, shares, split)}, name="features",
        title=f"Features of the {split.part} split", headline=("dimensions", "std_l2_normalized", "rankme"),
    )  # fmt: skip
    return result, tensors


def metadata_of(split: Split) -> dict[str, str]:
    """What the features are of, for the file's metadata."""
    return {
        "data": split.name,
        "part": split.part,
        "data_digest": split.digest,
        "classes": json.dumps(split.classes),
    }


def draw_components(points: Tensor, shares: Tensor, split: Split) -> "Figure":
    """Up to 5,000 images as points (N, 2), colored by class; axes on the same scale."""
    from matplotlib import colormaps

    figure, (axis,) = figures.new_figure(1, 1, 6.5, 5.0)
    shown = torch.randperm(len(points), generator=generator(0, "eval"))[:MOST_POINTS]  # no class on top
    labels = None if split.labels is None else split.labels.cpu()[shown].tolist()
    colored = labels is not None and len(split.classes) <= COLORED
    size = 10 if len(split.classes) <= 10 else COLORED  # of matplotlib's palettes
    palette = [colormaps[f"tab{size}"](i) for i in range(size)]
    colors = [palette[label] for label in labels or ()] if colored else palette[0]
    x, y = points[shown].T.tolist()
    axis.scatter(x, y, s=min(20.0, INK / len(shown)), color=colors, linewidths=0, alpha=0.7)
    drawn = figures.drawn_names(split.classes if colored else ())
    for name, color in zip(drawn.names, palette, strict=False):
        axis.scatter([], [], s=25, color=color, label=name)
    if colored:
        family = {"family": drawn.families}
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), prop=family)
    first, second = (100 * share for share in shares.tolist())
    axis.set(
        xlabel=f"first principal component ({first:.1f} % of the variance)",
        ylabel=f"second ({second:.1f} %)",
        title=f"features of {len(shown)} {split.part} images",
    )
    axis.set_aspect("equal", "datalim")
    return figure
