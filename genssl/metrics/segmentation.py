"""Segmentation from features of pixels: an ensemble of small classifiers, and intersection over union."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl.metrics.knn import confusion_matrix
from genssl.pixels import IGNORE
from genssl.runtime import generator, uniform

HIDDEN = (128, 32)  # of Baranchuk et al. 2022
MOMENTUM, EPSILON = 0.1, 1e-5  # of the batch norms, as in torch
SMALLEST_STD = 1e-6  # of a channel; one that does not vary stays as it is


@dataclass(frozen=True)
class ClassifierSettings:
    """How the ensemble is trained; the defaults are for a CPU.

    Attributes:
        members: number of classifiers; 10 in Baranchuk et al. 2022.
        steps: of Adam.
        batch_size: pixels of each step, for each classifier others; 64 in the paper.
        learning_rate: of Adam, constant.
    """

    members: int = 5
    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 1e-3


class PixelClassifiers(nn.Module):
    """Independent MLPs D-128-32-C with ReLU and batch norm (Baranchuk et al. 2022), trained as one.

    Layer l has the weights of all members, (E, D_l, D_l+1): one batched product is a step of them all.

    Args:
        dimensions: D.
        classes: C.
        generators: one a member, of its initial weights.
    """

    center: Tensor  # (D,), of the channels of the pixels that it learned from
    scale: Tensor  # (D,), likewise

    def __init__(self, dimensions: int, classes: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.dimensions = dimensions
        widths, members = [dimensions, *HIDDEN, classes], len(generators)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            # Uniform within 1 / sqrt(fan-in), as torch's linear layers begin
            start = (2 * uniform((members, before + 1, after), generators) - 1) / math.sqrt(before)
            self.weights.append(nn.Parameter(start[:, :-1].clone()))
            self.biases.append(nn.Parameter(start[:, -1:].clone()))
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(members, 1, width)) for width in HIDDEN)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, width)) for width in HIDDEN)
        for i, width in enumerate(HIDDEN):
            self.register_buffer(f"mean_{i}", torch.zeros(members, 1, width))
            self.register_buffer(f"var_{i}", torch.ones(members, 1, width))
        self.register_buffer("center", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))

    def forward(self, pixels: Tensor) -> Tensor:
        """Standardized features (E, B, D), or (B, D) for all members alike: logits (E, B, C)."""
        x = pixels if pixels.ndim == 3 else pixels.expand(len(self.weights[0]), *pixels.shape)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = self._norm(i, F.relu(x))
        return x

    def _norm(self, i: int, x: Tensor) -> Tensor:
        """Batch norm of each member by itself: over its own pixels while training, else by the averages."""
        mean, var = getattr(self, f"mean_{i}"), getattr(self, f"var_{i}")
        if self.training:
            batch_var, batch_mean = torch.var_mean(x, 1, keepdim=True, correction=0)
            with torch.no_grad():
                unbiased = batch_var * (x.shape[1] / max(1, x.shape[1] - 1))
                mean.lerp_(batch_mean, MOMENTUM)
                var.lerp_(unbiased, MOMENTUM)
            mean, var = batch_mean, batch_var
        normed: Tensor = (x - mean) * (var + EPSILON).rsqrt() * self.gains[i] + self.shifts[i]
        return normed

    def vote(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The class that most members choose, and the share of members that choose another one.

        Args:
            pixels: features (N, D), as they come.

        Returns:
            int64 (N,), of classes with as many votes the first one; and float32 (N,).
        """
        logits = self((pixels - self.center) / self.scale)  # (E, N, C)
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)  # (N, C)
        most, winner = votes.max(1)
        return winner, 1 - most / len(logits)


@torch.inference_mode(False)
@torch.enable_grad()
def fit_pixel_classifiers(
    pixels: Tensor, labels: Tensor, classes: int, settings: ClassifierSettings, *, seed: int, draw: int = 0
) -> PixelClassifiers:
    """Train an ensemble by Adam on the cross-entropy of pixels; each member with its own weights and order.

    Channels are first standardized by the mean and deviation over these pixels.

    Args:
        pixels: features (N, D) float32.
        labels: int64 (N,) in [0, classes), or IGNORE.
        classes: C.
        settings: of the ensemble.
        seed: of weights and orders.
        draw: which of several trainings with this seed.

    Raises:
        ValueError: every pixel is ignored.

    Examples:
        >>> labels = torch.arange(64) % 2
        >>> pixels = torch.stack([labels, 1 - labels], 1).float()
        >>> settings = ClassifierSettings(members=2, steps=30, batch_size=16)
        >>> winner, disagreeing = fit_pixel_classifiers(pixels, labels, 2, settings, seed=0).vote(pixels)
        >>> bool((winner == labels).all()), float(disagreeing.max())
        (True, 0.0)
    """
    rows = (labels != IGNORE).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("every pixel is ignored")
    sources = [generator(seed, "pixel classifiers", draw, i) for i in range(settings.members)]
    model = PixelClassifiers(pixels.shape[1], classes, sources).to(pixels.device)
    std, center = torch.std_mean(pixels[rows], 0, correction=0)
    model.center, model.scale = center, torch.where(std > SMALLEST_STD, std, 1.0)
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    # Which pixels each member sees at each step, with replacement: drawn once, so that no step waits
    shape = (settings.members, settings.steps, settings.batch_size)
    chosen = (uniform(shape, sources) * len(rows)).long().clamp(max=len(rows) - 1).to(rows.device)
    for step in range(settings.steps):
        index = rows[chosen[:, step]]  # (E, B)
        logits = model((pixels[index] - model.center) / model.scale)
        # The sum over members, each a mean over its pixels: no member's gradient depends on another's
        losses = F.cross_entropy(logits.flatten(0, 1), labels[index].flatten(), reduction="none")
        optimizer.zero_grad()
        losses.view(len(index), -1).mean(1).sum().backward()
        optimizer.step()
    return model.eval()


def pixel_confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (C, C) int64, row the true class, of labels and predictions (...) without the ignored pixels.

    Examples:
        >>> pixel_confusion(torch.tensor([[0, 1], [1, IGNORE]]), torch.tensor([[0, 0], [1, 1]]), classes=2)
        tensor([[1, 0],
                [1, 1]])
    """
    counted = labels != IGNORE
    return confusion_matrix(labels[counted], predicted[counted], classes)


def intersection_over_union(matrix: Tensor) -> Tensor:
    """IoU of each class from counts (C, C): (C,) float64; NaN for a class that nowhere occurs.

    IoU_c = TP_c / (TP_c + FP_c + FN_c), over the pixels of all images together.

    Examples:
        >>> intersection_over_union(torch.tensor([[3, 1], [0, 4]]))
        tensor([0.7500, 0.8000], dtype=torch.float64)
    """
    matrix = matrix.cpu().double()
    intersection = matrix.diagonal()
    # Row sums count the true pixels of a class, column sums the predicted ones; the intersection is in both
    return intersection / (matrix.sum(0) + matrix.sum(1) - intersection)


def mean_iou(matrix: Tensor) -> float:
    """The mean IoU over the classes that occur, in the truth or in the prediction.

    Examples:
        >>> round(mean_iou(torch.tensor([[3, 1], [0, 4]])), 3)
        0.775
    """
    return float(intersection_over_union(matrix).nanmean())
