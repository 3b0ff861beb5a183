"""The linear probe: softmax regression on frozen features by SGD, written out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.metrics.linalg import mean_and_covariance
from genssl.runtime import Tick, chunks, epoch_permutation, measuring

ProbeFeatures = Tensor | Callable[[int], Tensor]  # train features (N, D), or those of a zero-based epoch
ROWS = 16384  # scored at once
STEEPEST = 0.25  # variance along the leading direction, once scaled: see `linear_probe`
NOISE = 1e-14  # variances below this share of the squared mean are float32's rounding


@dataclass(frozen=True)
class ProbeSettings:
    """The linear protocol of MoCo (He et al. 2020, section 4.1) and its successors, for 100 epochs.

    Attributes:
        epochs: passes over the train features.
        batch_size: features a step.
        learning_rate: at the first step; it falls to 0 on a cosine over all steps.
        momentum: of SGD.
        weight_decay: of SGD, on the bias, too.

    Examples:
        >>> ProbeSettings(epochs=10).learning_rate
        30.0
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 30.0
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass(frozen=True)
class ProbeResult:
    """What the probe reaches. Of the lists an entry is an epoch, and the last one is the result.

    Attributes:
        train_accuracy: share of the train features classified right after the epoch.
        test_accuracy: share of the test features.
        train_loss: mean cross-entropy, nats.
        test_loss: likewise.
        predicted: the class of each test feature after the last epoch, int64 (M,).
        scale: what all features were divided by, once centered.

    Examples:
        >>> features, labels = torch.tensor([[0.0], [1.0]]).repeat(8, 1), torch.arange(16) % 2
        >>> settings = ProbeSettings(epochs=3, batch_size=8)
        >>> result = linear_probe(features, labels, features, labels, 2, settings)
        >>> len(result.test_accuracy), result.predicted.shape
        (3, torch.Size([16]))
    """

    train_accuracy: list[float]
    test_accuracy: list[float]
    train_loss: list[float]
    test_loss: list[float]
    predicted: Tensor
    scale: float


@measuring()
def linear_probe(
    train: ProbeFeatures,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    settings: ProbeSettings | None = None,
    *,
    seed: int = 0,
    tick: Tick | None = None,
) -> ProbeResult:
    """Fit a linear classifier to train features, and see after each epoch what it makes of both sets.

    All features lose the mean of the train features and are divided by one number, so that a rate of 30
    means the same for every network. It is chosen so that the train features vary by 1/4 along their leading
    direction, and the bias is a feature of 1/2. The curvature of the loss is at most half of that, 1/8
    (Boehning 1992), and gradient descent with momentum 0.9 is stable up to 2 (1 + 0.9) / (1/8) = 30.4.
    The classifiers that can be expressed stay the same. Weights start at 0: nothing but the order is random.

    Args:
        train: features (N, D), or a function from the zero-based epoch to them (augmented anew).
        train_labels: int64 (N,), in [0, classes).
        test: features (M, D).
        test_labels: int64 (M,).
        classes: C.
        settings: of the optimizer; those of the protocol when None.
        seed: of the order in which train features are seen.
        tick: called with the number of epochs done, and of all epochs.

    Examples:
        >>> labels = torch.arange(40) % 2
        >>> features = labels[:, None] + 0.1 * torch.rand(40, 1)
        >>> settings = ProbeSettings(epochs=5, batch_size=10)
        >>> result = linear_probe(features[:30], labels[:30], features[30:], labels[30:], 2, settings)
        >>> result.test_accuracy[-1]
        1.0
    """
    settings = settings or ProbeSettings()
    # Scaled by the statistics of the train features alone: those of the test features are not to be known
    features = train if isinstance(train, Tensor) else train(0)
    center, scale = _center_and_scale(features)
    inputs, test_inputs = _inputs(features, center, scale), _inputs(test, center, scale)
    targets = F.one_hot(train_labels, classes).float()
    weights = inputs.new_zeros(inputs.shape[1], classes)
    velocity = torch.zeros_like(weights)
    scores = []
    for epoch in range(settings.epochs):
        if epoch and not isinstance(train, Tensor):
            inputs = _inputs(train(epoch), center, scale)
        places = epoch_permutation(seed, epoch, len(inputs), inputs.device)
        _fit(weights, velocity, inputs[places], targets[places], epoch, settings)
        score, test_score = _score(weights, inputs, train_labels), _score(weights, test_inputs, test_labels)
        scores.append(torch.stack([*score, *test_score]))
        if tick is not None:
            tick(epoch + 1, settings.epochs)
    # Read from the device once, and not in every epoch
    train_accuracy, train_loss, test_accuracy, test_loss = torch.stack(scores).T.tolist()
    predicted = (test_inputs @ weights).argmax(1)
    return ProbeResult(train_accuracy, test_accuracy, train_loss, test_loss, predicted, scale)


def _center_and_scale(features: Tensor) -> tuple[Tensor, float]:
    """The mean of the train features (D,), and the number that leaves a leading variance of STEEPEST."""
    mean, covariance = mean_and_covariance(features)
    leading = float(torch.linalg.eigvalsh(covariance)[-1])
    if not leading > NOISE * float(mean.square().sum()):
        return mean.float().to(features.device), 1.0  # constant features: nothing to scale
    return mean.float().to(features.device), math.sqrt(leading / STEEPEST)


def _inputs(features: Tensor, center: Tensor, scale: float) -> Tensor:
    """Features (N, D) to (N, D + 1): centered, scaled, and a constant column for the bias."""
    return F.pad((features.float() - center) / scale, (0, 1), value=math.sqrt(STEEPEST))


def _fit(
    weights: Tensor, velocity: Tensor, inputs: Tensor, targets: Tensor, epoch: int, settings: ProbeSettings
) -> None:
    """An epoch of SGD with momentum on the mean cross-entropy, in place.

    Its gradient is x^T (softmax(x W) - y) / B.
    """
    batches = list(chunks(len(inputs), settings.batch_size))
    for i, rows in enumerate(batches):
        # The gradient of softmax cross-entropy in closed form: no autograd for a single matrix
        x = inputs[rows]
        error = torch.softmax(x @ weights, 1).sub_(targets[rows])
        gradient = (x.T @ error).div_(len(x)).add_(weights, alpha=settings.weight_decay)
        velocity.mul_(settings.momentum).add_(gradient)
        weights.sub_(velocity, alpha=_rate(settings, epoch + i / len(batches)))


def _rate(settings: ProbeSettings, epoch: float) -> float:
    """The learning rate after so many epochs: half a cosine (Loshchilov and Hutter 2017, equation 5)."""
    return settings.learning_rate * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2


def _score(weights: Tensor, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy (nats), still on the device."""
    right, loss = weights.new_zeros(()), weights.new_zeros(())
    for rows in chunks(len(inputs), ROWS):
        logits = inputs[rows] @ weights
        # Summed on the device: a host read per batch would cost more than the products
        right += (logits.argmax(1) == labels[rows]).sum()
        loss += F.cross_entropy(logits, labels[rows], reduction="sum")
    return right / len(inputs), loss / len(inputs)
