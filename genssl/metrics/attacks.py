"""Adversarial examples by projected gradient ascent (Madry et al. 2018), and the interval of an accuracy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genssl.runtime import Randomness, Tick, normal, uniform

Norm = Literal["linf", "l2"]
Losses = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> what to raise, (B,)
Z = 1.959963984540054  # of the normal distribution, 95 % are within so many deviations
TINY = 1e-12


@dataclass(frozen=True)
class Attack:
    """How an image is attacked. Lengths are in the range [0, 1] of a channel.

    Attributes:
        norm: of the perturbation: "linf", its largest entry, or "l2", its Euclidean length.
        epsilon: the perturbation's norm, at most.
        step_size: the norm of one step.
        steps: number of steps; 0: no attack.
    """

    norm: Norm = "linf"
    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 40


@torch.inference_mode(False)
@torch.enable_grad()
def pgd(
    losses: Losses,
    images: Tensor,
    attack: Attack,
    generator: Randomness = None,
    *,
    draws: int = 1,
    tick: Tick | None = None,
) -> Tensor:
    """Images near the given ones whose losses are high, (B, C, H, W) in [0, 1].

    Steepest ascent from a random point of the ball of radius epsilon around an image; after each step the
    image is put back into the ball and into [0, 1]. The last image is the result.

    Where the loss itself is random, a step follows the mean gradient of several draws: expectation over
    transformation (Athalye et al. 2018), without which randomness alone would hide the direction.

    Args:
        losses: of each image, differentiable; of an image alone, whatever the others in its batch are.
        images: (B, C, H, W) in [0, 1].
        attack: the ball, and the steps in it.
        generator: of the start; one for all, or one per image.
        draws: of the loss, for one step.
        tick: called with the steps done and in total.

    Examples:
        >>> images, attack = torch.full((1, 3, 4, 4), 0.5), Attack(epsilon=0.25, step_size=0.25, steps=4)
        >>> brighter = pgd(lambda x: x.flatten(1).sum(1), images, attack)
        >>> (brighter - images).unique()
        tensor([0.2500])
    """
    if attack.steps == 0:
        return images
    # A copy, since a tensor of inference mode takes part in no gradient
    images = images.detach().clone()
    x = (images + random_start(images, attack, generator)).clamp(0, 1)
    for i in range(attack.steps):
        x.requires_grad_()
        gradient = torch.zeros_like(images)
        for _ in range(draws):
            # Each loss depends on its own image alone: the gradient of the sum holds all of their gradients
            gradient += torch.autograd.grad(losses(x).sum(), x)[0]
        x = project(x.detach() + attack.step_size * steepest(gradient, attack.norm), images, attack)
        if tick is not None:
            tick(i + 1, attack.steps)
    return x


def random_start(images: Tensor, attack: Attack, generator: Randomness = None) -> Tensor:
    """A perturbation drawn uniformly from the ball of `attack`, (B, C, H, W).

    Examples:
        >>> delta = random_start(torch.zeros(2, 3, 4, 4), Attack(epsilon=0.1))
        >>> delta.shape, bool((delta.abs() <= 0.1).all())
        (torch.Size([2, 3, 4, 4]), True)
    """
    if attack.norm == "linf":
        return attack.epsilon * (2 * uniform(images.shape, generator, images.device) - 1)
    direction = steepest(normal(images.shape, generator, images.device), "l2")
    # The volume within radius r grows as r^D: a uniform point has the D-th root of a uniform number as radius
    radius = uniform((len(images), 1, 1, 1), generator, images.device) ** (1 / images[0].numel())
    return attack.epsilon * radius * direction


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The perturbation of norm 1 along which a loss rises fastest, (B, ...); none where its gradient is 0.

    It maximizes gradient . d over |d| <= 1: the signs for linf, the unit vector for l2.

    Examples:
        >>> gradient = torch.tensor([[3.0, -4.0]])
        >>> steepest(gradient, "linf").tolist(), steepest(gradient, "l2")
        ([[1.0, -1.0]], tensor([[ 0.6000, -0.8000]]))
    """
    if norm == "linf":
        return gradient.sign()
    return gradient / _length(gradient).clamp(min=TINY)


def project(x: Tensor, images: Tensor, attack: Attack) -> Tensor:
    """The image nearest to x (B, ...) within both the ball around `images` and, after that, [0, 1].

    `images` are in [0, 1] themselves: cutting off what is beyond leads no farther away from them.

    Examples:
        >>> project(torch.tensor([[0.875, 0.625]]), torch.tensor([[0.5, 0.5]]), Attack(epsilon=0.25)).tolist()
        [[0.75, 0.625]]
    """
    delta = x - images
    if attack.norm == "linf":
        delta = delta.clamp(-attack.epsilon, attack.epsilon)
    else:
        delta = delta * (attack.epsilon / _length(delta).clamp(min=max(attack.epsilon, TINY)))
    return (images + delta).clamp(0, 1)


def _length(x: Tensor) -> Tensor:
    """The Euclidean length of each image, (B, 1, 1, 1)."""
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths.view(-1, *[1] * (x.ndim - 1))


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, given `right` of `n` independent images (Wilson 1927).

    The shares from which the observed one is no more than 1.96 of their own standard deviations away: it
    stays within [0, 1], and is of use for 0 of n, too.

    Raises:
        ValueError: not 0 <= right <= n, or there are no images.

    Examples:
        >>> [round(share, 3) for share in wilson_interval(0, 10)]
        [0.0, 0.278]
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} of {n} images is no share")
    # The two roots p of (share - p)^2 = Z^2 p (1 - p) / n
    share, weight = right / n, Z**2 / n
    center = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    # Exactly at the ends, where rounding would miss them
    return (center - half if right else 0.0), (center + half if right < n else 1.0)
