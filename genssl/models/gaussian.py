"""The diagonal Gaussian: every density of the VAE is one."""

import math

import torch
from torch import Tensor

from genssl.runtime import Randomness, normal

LOG_TWO_PI = math.log(2 * math.pi)
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


class DiagonalGaussianDistribution:
    """N(mean, diag(exp(logvar))) over all axes but the first, in float32.

    Args:
        mean: (B, ...).
        logvar: natural log of the variance, broadcastable to the mean, clamped to [-30, 20];
            None means identity covariance.

    Examples:
        >>> q = DiagonalGaussianDistribution(torch.ones(2, 3), torch.zeros(2, 3))
        >>> q.sample().shape, q.kl(), q.nll(torch.ones(2, 3))
        (torch.Size([2, 3]), tensor([1.5000, 1.5000]), tensor([2.7568, 2.7568]))
    """

    def __init__(self, mean: Tensor, logvar: Tensor | None = None) -> None:
        self.mean = mean.float()
        self.logvar = None if logvar is None else logvar.float().clamp(LOGVAR_MIN, LOGVAR_MAX)

    def sample(self, generator: Randomness = None) -> Tensor:
        """Draw one sample a row, shape of the mean, differentiable in mean and logvar."""
        return self.reparameterize(normal(self.mean.shape, generator, self.mean.device))

    def reparameterize(self, noise: Tensor) -> Tensor:
        """mean + std * noise: the standard normal `noise` (B, ...) as a sample (Kingma & Welling 2014)."""
        if self.logvar is None:
            return self.mean + noise
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL(self || N(0, I)) in nats, summed over dimensions, (B,): Kingma & Welling 2014, appendix B."""
        # 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2); the last three cancel for identity covariance
        squared = self.mean.square()
        if self.logvar is None:
            return 0.5 * squared.flatten(1).sum(1)
        return 0.5 * (squared + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)

    def nll(self, x: Tensor) -> Tensor:
        """-log density of `x` (B, ...) in nats, summed over dimensions, constants included: (B,)."""
        # 1/2 sum ((x - mu)^2 / sigma^2 + log sigma^2 + log 2 pi)
        squared = (x.float() - self.mean).square()
        if self.logvar is None:
            return 0.5 * (squared + LOG_TWO_PI).flatten(1).sum(1)
        scaled = squared * (-self.logvar).exp()
        return 0.5 * (scaled + self.logvar + LOG_TWO_PI).flatten(1).sum(1)

    def mode(self) -> Tensor:
        """The point of highest density: the mean."""
        return self.mean


def standard_normal_log_density(z: Tensor) -> Tensor:
    """Log density of N(0, I) at `z` (..., D) in nats: (...).

    Examples:
        >>> standard_normal_log_density(torch.zeros(1, 2))
        tensor([-1.8379])
    """
    return -0.5 * (z.float().square() + LOG_TWO_PI).sum(-1)


def gaussian_mixture_sample(
    weights: Tensor, means: Tensor, scales: Tensor, chance: Tensor, noise: Tensor
) -> Tensor:
    """Sample a Gaussian mixture: component by inverse distribution function, then mean + scale @ noise.

    Args:
        weights: (K,), summing to one.
        means: (K, D).
        scales: (K, D, D), lower Cholesky factors of the covariances.
        chance: (N,) uniform in [0, 1).
        noise: (N, D) standard normal.

    Returns:
        (N, D).

    Examples:
        >>> weights, means = torch.tensor([0.25, 0.75]), torch.tensor([[0.0], [10.0]])
        >>> chance, noise = torch.tensor([0.1, 0.5]), torch.tensor([[1.0], [-1.0]])
        >>> gaussian_mixture_sample(weights, means, torch.ones(2, 1, 1), chance, noise).tolist()
        [[1.0], [9.0]]
    """
    # The component whose interval of the cumulated weights holds the chance
    edges = weights.cumsum(0)
    component = torch.searchsorted(edges, chance * edges[-1], right=True).clamp(max=len(weights) - 1)
    return means[component] + torch.einsum("nij,nj->ni", scales[component], noise)
