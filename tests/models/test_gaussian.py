"""The Gaussian against torch.distributions, which the package itself does not use."""

import math

import pytest
import torch
from torch import distributions

from genssl.models.gaussian import (
    DiagonalGaussianDistribution,
    gaussian_mixture_sample,
    standard_normal_log_density,
)
from genssl.runtime import generator


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"))


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 4)])
@pytest.mark.parametrize("identity", [True, False])
def test_kl_and_nll_agree_with_torch_distributions(shape: tuple[int, ...], identity: bool) -> None:
    mean, logvar, x = random(*shape), random(*shape, seed=1), random(*shape, seed=2)
    ours = DiagonalGaussianDistribution(mean, None if identity else logvar)
    scale = torch.ones(()) if identity else (0.5 * logvar).exp()
    theirs = distributions.Independent(distributions.Normal(mean, scale.expand(shape)), len(shape) - 1)
    standard = distributions.Independent(
        distributions.Normal(torch.zeros(shape), torch.ones(shape)), len(shape) - 1
    )
    torch.testing.assert_close(ours.nll(x), -theirs.log_prob(x))
    torch.testing.assert_close(ours.kl(), distributions.kl_divergence(theirs, standard))
    assert ours.nll(x).shape == ours.kl().shape == (shape[0],)


def test_one_shared_logvar_is_broadcast() -> None:
    mean, x, logvar = random(3, 4, 5), random(3, 4, 5, seed=1), torch.tensor(-0.7)
    full = DiagonalGaussianDistribution(mean, logvar.expand(3, 4, 5))
    torch.testing.assert_close(DiagonalGaussianDistribution(mean, logvar).nll(x), full.nll(x))


def test_kl_of_the_standard_normal_is_zero() -> None:
    zero = torch.zeros(3, 8)
    assert torch.equal(DiagonalGaussianDistribution(zero, zero).kl(), torch.zeros(3))
    assert torch.equal(DiagonalGaussianDistribution(zero).kl(), torch.zeros(3))


def test_samples_have_the_distributions_moments() -> None:
    n = 40_000
    mean, logvar = torch.tensor([1.5, -2.0]), torch.tensor([0.4, -1.0])
    wide = DiagonalGaussianDistribution(mean.expand(n, 2), logvar.expand(n, 2))
    drawn = wide.sample(generator(0, "test"))
    std = (0.5 * logvar).exp()
    # standard errors: std / sqrt(n) of the mean, std / sqrt(2 n) of the standard deviation; 5 of each
    assert ((drawn.mean(0) - mean).abs() < 5 * std / math.sqrt(n)).all()
    assert ((drawn.std(0) - std).abs() < 5 * std / math.sqrt(2 * n)).all()


def test_an_identity_covariance_samples_with_unit_variance() -> None:
    n = 40_000
    drawn = DiagonalGaussianDistribution(torch.full((n, 1), 2.0)).sample(generator(0, "test"))
    assert abs(float(drawn.mean()) - 2) < 5 / math.sqrt(n)
    assert abs(float(drawn.std()) - 1) < 5 / math.sqrt(2 * n)


def test_gradients_flow_through_a_sample() -> None:
    mean = torch.zeros(2, 3, requires_grad=True)
    logvar = torch.zeros(2, 3, requires_grad=True)
    noise = random(2, 3)
    DiagonalGaussianDistribution(mean, logvar).reparameterize(noise).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(2, 3))
    torch.testing.assert_close(logvar.grad, 0.5 * noise)  # d/dlogvar exp(logvar / 2) noise at 0


def test_extreme_logvar_stays_finite() -> None:
    wild = DiagonalGaussianDistribution(torch.zeros(1, 2), torch.tensor([[-1e4, 1e4]]))
    assert torch.isfinite(wild.kl()).all()
    assert torch.isfinite(wild.nll(torch.ones(1, 2))).all()


def test_standard_normal_log_density() -> None:
    z = random(4, 3, 6)
    theirs = distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(standard_normal_log_density(z), theirs)


def test_mixture_samples_have_the_mixtures_moments() -> None:
    n = 40_000
    weights = torch.tensor([0.3, 0.7])
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    scales = torch.tensor([[[0.5, 0.0], [0.2, 0.3]], [[1.0, 0.0], [-0.4, 0.6]]])
    source = generator(0, "test")
    drawn = gaussian_mixture_sample(
        weights, means, scales, torch.rand(n, generator=source), torch.randn(n, 2, generator=source)
    )
    center = weights @ means
    spread = torch.einsum("k,kij->ij", weights, scales @ scales.mT + means[:, :, None] * means[:, None])
    covariance = spread - torch.outer(center, center)
    error = covariance.diagonal().sqrt() / math.sqrt(n)
    assert ((drawn.mean(0) - center).abs() < 5 * error).all()
    # the fourth moments of these components keep the error of a covariance below 4 variances / sqrt(n)
    assert ((drawn.T.cov() - covariance).abs() < 5 * 4 * covariance.diagonal().max() / math.sqrt(n)).all()
