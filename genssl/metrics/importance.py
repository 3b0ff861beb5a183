"""Importance-sampled likelihoods from log-weights."""

import torch
from torch import Tensor


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many equal weights the weights are worth, (sum w)^2 / sum w^2: (k, B) -> (B,), in [1, k]."""
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
    """
    rows = torch.tensor(counts, device=log_weights.device)
    running = torch.logcumsumexp(log_weights, 0)[rows - 1]
    return running - rows.to(running.dtype).log()[:, None]
