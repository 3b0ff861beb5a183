"""Models with latent codes: importance-sampled likelihoods, and what the dimensions of a code do."""

from dataclasses import dataclass

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01


def active_units(means: Tensor) -> int:
    """How many latent dimensions the data move: Var_x E_q[z] > 0.01 (Burda et al. 2016, section 5.2).

    Args:
        means: posterior means, (N, D).

    Examples:
        >>> active_units(torch.tensor([[-1.0, 0.5], [1.0, 0.5]]))  # the second dimension says nothing
        1
    """
    return int((means.var(0) > ACTIVE_VARIANCE).sum())


@dataclass(frozen=True)
class Profile:
    """Latent codes by class.

    Attributes:
        means: (C, D), the mean code of each class.
        stds: (C, D), its spread within the class.
        counts: (C,), images per class.
        separation: (D,), variance between the class means over the mean variance within classes,
            weighted by class sizes: how much a dimension tells about the class (an F ratio without
            its degrees of freedom).
    """

    means: Tensor
    stds: Tensor
    counts: Tensor
    separation: Tensor


def class_profile(codes: Tensor, labels: Tensor, classes: int) -> Profile:
    """Latent codes (N, D) by label (N,): means, spread, separation; zeros for a class without images.

    Examples:
        >>> codes = torch.tensor([[0.0, 5.0], [2.0, 5.0], [10.0, 5.0], [12.0, 5.0]])
        >>> profile = class_profile(codes, torch.tensor([0, 0, 1, 1]), classes=2)
        >>> profile.means.tolist()
        [[1.0, 5.0], [11.0, 5.0]]
        >>> profile.separation.tolist()  # the first dimension tells the classes apart
        [25.0, 0.0]
    """
    membership = torch.nn.functional.one_hot(labels, classes).to(codes.dtype)  # (N, C)
    counts = membership.sum(0)
    # Means over each class as one matrix product
    share = membership / counts.clamp(min=1)
    means = share.T @ codes
    variances = (share.T @ codes.square() - means.square()).clamp(min=0)
    weight = (counts / counts.sum())[:, None]
    center = (weight * means).sum(0)
    # Analysis of variance: what the class explains, over what it does not
    between = (weight * (means - center).square()).sum(0)
    within = (weight * variances).sum(0)
    return Profile(means, variances.sqrt(), counts, between / within.clamp(min=1e-12))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many equal weights the weights are worth, (sum w)^2 / sum w^2: (k, B) -> (B,), in [1, k].

    Examples:
        >>> equal, unequal = [0.0, 0.0], [0.0, -100.0]  # log-weights of two samples
        >>> sizes = effective_sample_size(torch.tensor([equal, unequal]).T)
        >>> [round(size, 3) for size in sizes.tolist()]
        [2.0, 1.0]
    """
    # In logarithms: weights of images differ by hundreds of nats, and their exponentials would overflow
    doubled = torch.logsumexp(log_weights, 0) * 2
    return (doubled - torch.logsumexp(2 * log_weights, 0)).exp()


def bound_by_samples(log_weights: Tensor, counts: list[int]) -> Tensor:
    """The bound log 1/K sum_k w_k from the first K log-weights, for each K of `counts`.

    Args:
        log_weights: (k, B), nats.
        counts: each in 1..k.

    Returns:
        (len(counts), B), nats. Its expectation does not fall as K grows (Burda et al. 2016, theorem 1).

    Examples:
        >>> log_weights = torch.tensor([[1.0], [3.0]]).log()
        >>> bounds = bound_by_samples(log_weights, [1, 2])
        >>> [round(bound, 3) for bound in bounds.exp().flatten().tolist()]  # means of the first weights
        [1.0, 2.0]
    """
    rows = torch.tensor(counts, device=log_weights.device)
    # One pass for all K: the sum of the first K weights is a running sum
    running = torch.logcumsumexp(log_weights, 0)[rows - 1]
    return running - rows.to(running.dtype).log()[:, None]
