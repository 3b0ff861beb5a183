"""The bound against distributions of torch and scipy, the official arithmetic, and data of known entropy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genssl.models.diffusion import NoiseSchedule, Predictor, Variance, linear_schedule, q_sample
from genssl.models.vlb import (
    bound_terms,
    byte_log_probability,
    decoder_nll,
    decoder_std,
    denoising_kl,
    prior_kl,
)
from genssl.pixels import to_bytes, to_model
from genssl.runtime import generator

from .gaussian_data import GaussianData

VARIANCES: list[Variance] = ["posterior", "large"]
BYTES = torch.arange(256, dtype=torch.uint8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def half(x: Tensor, t: Tensor) -> Tensor:
    """A model that is wrong everywhere."""
    return 0.5 * x


def coefficients(schedule: NoiseSchedule, t: int) -> tuple[float, float, float, float]:
    """Of the posterior (equation 7): the mean's shares of x_0 and x_t, the variance; and beta."""
    betas = schedule.betas.double().numpy()
    kept = np.cumprod(1 - betas)
    before = kept[t - 1] if t else 1.0
    of_start = math.sqrt(before) * betas[t] / (1 - kept[t])
    of_x = math.sqrt(1 - betas[t]) * (1 - before) / (1 - kept[t])
    return of_start, of_x, betas[t] * (1 - before) / (1 - kept[t]), betas[t]


def predicted(model: Predictor, schedule: NoiseSchedule, x: Tensor, t: int) -> Tensor:
    kept = math.exp(schedule.log_alphas_cumprod[t])
    return (x - math.sqrt(1 - kept) * model(x, torch.full((len(x),), t))) / math.sqrt(kept)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("t", [1, 2, 50, 999])
def test_a_denoising_term_is_the_kl_of_two_gaussians(t: int, variance: Variance, clip: bool) -> None:
    schedule, x_start, noise = linear_schedule(), randn(3, 2, 4).clamp(-1, 1), randn(3, 2, 4, seed=1)
    times = torch.full((3,), t)
    x = q_sample(schedule, x_start, times, noise)
    guess = predicted(half, schedule, x, t)
    guess = guess.clamp(-1, 1) if clip else guess
    of_start, of_x, posterior, beta = coefficients(schedule, t)
    q = Normal(of_start * x_start + of_x * x, math.sqrt(posterior))
    p = Normal(of_start * guess + of_x * x, math.sqrt(beta if variance == "large" else posterior))
    expected = kl_divergence(q, p).sum((1, 2))
    found = denoising_kl(half, schedule, x_start, times, noise, variance=variance, clip=clip)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-12)  # as the schedule is in float32


@pytest.mark.parametrize("std", [1e-3, 0.0074, 0.1, 1.0, 50.0])
def test_the_decoder_gives_the_bytes_a_probability_of_one(std: float) -> None:
    mean = torch.tensor([-3.0, -1.0, -0.9971, 0.0, 0.3, 1.0, 3.0], dtype=torch.float64).expand(256, 7)
    log_p = byte_log_probability(BYTES[:, None].expand(256, 7), mean, std)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-14)
    assert log_p.isfinite().all()


@pytest.mark.parametrize("std", [0.0074, 0.1, 1.0])
@pytest.mark.parametrize("mean", [-2.0, -0.5, 0.0012, 0.9, 1.5])
def test_the_decoder_is_the_integral_of_its_density(mean: float, std: float) -> None:
    # quadrature in the log domain holds far out in the tails, where differences of cdfs are 0
    nodes, weights = np.polynomial.legendre.leggauss(100)
    centers = (np.arange(256)[:, None] + 0.5) / 128 - 1
    log_density = stats.norm.logpdf(centers + nodes / 256, mean, std)
    expected = np.logaddexp.reduce(log_density + np.log(weights / 256), axis=1)
    expected[0] = stats.norm.logcdf(-1 + 1 / 128, mean, std)
    expected[255] = stats.norm.logsf(1 - 1 / 128, mean, std)
    found = byte_log_probability(BYTES, torch.full((256,), mean, dtype=torch.float64), std)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_decoder_sees_the_first_step_with_the_variance_of_the_second() -> None:
    schedule, noise = linear_schedule(), randn(3, 8, seed=1)
    x_start = to_model(torch.randint(0, 256, (3, 8), generator=generator(2, "test"), dtype=torch.uint8))
    assert decoder_std(schedule) == pytest.approx(math.sqrt(coefficients(schedule, 1)[2]), rel=1e-6)
    guess = predicted(
        half, schedule, q_sample(schedule, x_start, torch.zeros(3, dtype=torch.int64), noise), 0
    )
    p = Normal(guess.clamp(-1, 1), decoder_std(schedule))
    lower, upper = p.cdf(x_start - 1 / 256), p.cdf(x_start + 1 / 256)
    upper[x_start > 0.995], lower[x_start < -0.995] = 1.0, 0.0
    expected = -(upper - lower).log().sum(1)
    torch.testing.assert_close(
        decoder_nll(half, schedule, x_start, noise).double(), expected, rtol=1e-5, atol=1e-4
    )
    assert decoder_std(linear_schedule(1)) == pytest.approx(1e-2)


@pytest.mark.parametrize("timesteps", [10, 500, 1000])
def test_the_prior_term_is_its_kl(timesteps: int) -> None:
    schedule, x_start = linear_schedule(timesteps), randn(3, 3, 4, 4).clamp(-1, 1)
    kept = float(np.prod(1 - schedule.betas.double().numpy()))
    q = Normal(math.sqrt(kept) * x_start, math.sqrt(1 - kept))
    expected = kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(prior_kl(schedule, x_start), expected, rtol=2e-4, atol=1e-10)
    bits = prior_kl(schedule, torch.ones(1, 3072, dtype=torch.float64)) / 3072 / math.log(2)
    assert bits < 5e-5 if timesteps == 1000 else bits > 4e-3  # half the course's steps end too early


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("t", [1, 30, 300, 999])
def test_terms_of_gaussian_data_are_known(t: int, variance: Variance) -> None:
    """E KL_t = c^2 mmse / (2 variance) + the part of the variances, mmse = s^2 / (1 + s^2 SNR_t)."""
    schedule, n = linear_schedule(), 4000
    data = GaussianData(schedule)
    x_start = data.mean + data.std * randn(n, 32)
    found = denoising_kl(
        data, schedule, x_start, torch.full((n,), t), randn(n, 32, seed=1), variance=variance, clip=False
    )
    snr = data.alpha**2 / data.variance
    mmse = (data.std**2 / (1 + data.std**2 * snr[t])).sum()
    of_start, _, posterior, beta = coefficients(schedule, t)
    if variance == "posterior":  # c^2 / variance = SNR_{t-1} - SNR_t
        expected = 0.5 * (snr[t - 1] - snr[t]) * mmse
    else:
        of_variance = 32 * (math.log(beta / posterior) + posterior / beta - 1)
        expected = 0.5 * (of_start**2 / beta * mmse + of_variance)
    assert abs(found.mean() - expected) < 5 * found.std() / math.sqrt(n) + 1e-4 * expected


def test_denoising_terms_approach_what_the_steps_tell_as_these_become_fine() -> None:
    """I(x_0; x at SNR a) - I(x_0; x at SNR b) = log((1 + s^2 a) / (1 + s^2 b)) / 2, for the range a to b.

    The terms are an upper Riemann sum of half the integral of mmse over SNR (Guo et al. 2005).
    """
    n, high, low, excess = 1000, 400.0, 4e-3, []
    for timesteps in (16, 64, 256):
        snr = torch.logspace(math.log10(high), math.log10(low), timesteps, dtype=torch.float64)
        kept = snr / (1 + snr)
        schedule = NoiseSchedule.from_betas(1 - kept / torch.cat([torch.ones(1).double(), kept[:-1]]))
        data = GaussianData(schedule)
        x_start, total = data.mean + data.std * randn(n, 32), torch.zeros(n, dtype=torch.float64)
        for t in range(1, timesteps):
            noise = randn(n, 32, seed=1 + t)
            total += bound_terms(data, schedule, x_start, torch.full((n,), t), noise, clip=False)
        told = 0.5 * ((1 + data.std**2 * high) / (1 + data.std**2 * low)).log().sum()
        assert total.std() / math.sqrt(n) < 0.2 * (total.mean() - told)
        excess.append(float(total.mean() - told))
    assert 0 < excess[2] < 0.4 * excess[1] < 0.16 * excess[0]
    assert excess[2] < 0.02 * float(told)


def test_the_bound_of_gaussian_bytes_is_known() -> None:
    """With bins that are fine beside the noise, all three parts have closed forms."""
    std, n, timesteps = 0.1, 400, 100
    schedule = linear_schedule(timesteps, scaled=True)
    data = GaussianData(schedule)
    data.std = torch.full((32,), std, dtype=torch.float64)
    x_start = to_model(to_bytes(data.mean + std * randn(n, 32))).double()
    bound = prior_kl(schedule, x_start)
    for t in range(timesteps):
        bound += bound_terms(data, schedule, x_start, torch.full((n,), t), randn(n, 32, seed=1 + t))
    snr = data.alpha**2 / data.variance
    mmse = std**2 / (1 + std**2 * snr)
    denoising = 0.5 * ((snr[:-1] - snr[1:]) * mmse[1:]).sum()
    width = decoder_std(schedule)
    decoder = math.log(width * math.sqrt(2 * math.pi) * 128) + mmse[0] / (2 * width**2)
    kept = data.alpha[-1] ** 2
    prior = 0.5 * (kept * (data.mean.square().mean() + std**2 - 1) - torch.log1p(-kept))
    found, error = (bound.mean() / 32, bound.std() / 32 / math.sqrt(n))
    assert abs(found - (prior + denoising + decoder)) < 5 * error + 0.01
    assert found > math.log(128 * std * math.sqrt(2 * math.pi * math.e))  # the entropy


def test_a_model_that_knows_the_image_pays_for_the_decoder_alone() -> None:
    schedule = linear_schedule(40)
    image = to_model(torch.randint(0, 256, (1, 3, 4, 4), generator=generator(0, "test"), dtype=torch.uint8))

    def knows(x: Tensor, t: Tensor) -> Tensor:
        kept = schedule.alphas_cumprod[t].double().view(-1, 1, 1, 1)
        return (x - kept.sqrt() * image) / (1 - kept).sqrt()

    t, x_start = torch.arange(40), image.double().expand(40, 3, 4, 4)
    terms = bound_terms(knows, schedule, x_start, t, randn(40, 3, 4, 4))
    assert (terms[1:].abs() < 1e-4).all()
    inside = ((image > -0.99) & (image < 0.99)).double()
    width = 0.5 / 128 / decoder_std(schedule)
    expected = -(
        inside * math.log(2 * stats.norm.cdf(width) - 1) + (1 - inside) * stats.norm.logcdf(width)
    ).sum()
    assert float(terms[0]) == pytest.approx(float(expected), rel=1e-3)


def test_each_image_gets_the_term_of_its_own_time() -> None:
    schedule, x_start, noise = linear_schedule(), randn(4, 8).clamp(-1, 1), randn(4, 8, seed=1)
    t = torch.tensor([7, 0, 999, 0])
    found = bound_terms(half, schedule, x_start, t, noise, variance="large", clip=False)
    decoder = decoder_nll(half, schedule, x_start, noise, clip=False)
    later = denoising_kl(half, schedule, x_start, t, noise, variance="large", clip=False)
    torch.testing.assert_close(found, torch.where(t == 0, decoder, later))
    assert found.shape == (4,)


def test_a_wild_prediction_costs_a_finite_number() -> None:
    schedule, x_start, noise = linear_schedule(), randn(3, 8).clamp(-1, 1).float(), randn(3, 8).float()
    t = torch.tensor([0, 1, 999])
    wild, clipped = (
        bound_terms(lambda x, _: 1e4 * x, schedule, x_start, t, noise, clip=clip) for clip in (False, True)
    )
    assert wild.dtype == torch.float32
    assert wild.isfinite().all()
    assert (wild > clipped).all()


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_official_arithmetic_agrees(variance: Variance) -> None:
    """Written again from Ho et al.'s diffusion_utils_2.py, its tanh for erf included; the bins are ours."""
    schedule, rng = linear_schedule(), np.random.default_rng(0)
    x_start = (rng.integers(0, 256, (2, 20)) + 0.5) / 128 - 1
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    posterior = betas * (1 - np.append(1.0, kept[:-1])) / (1 - kept)
    log_posterior = np.log(np.append(posterior[1], posterior[1:]))
    log_model = np.log(np.append(posterior[1], betas[1:])) if variance == "large" else log_posterior

    def cdf(z: np.ndarray) -> np.ndarray:
        probability: np.ndarray = 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        return probability

    for t in (0, 1, 400):
        noise = 0.1 * rng.standard_normal((2, 20))
        x = np.sqrt(kept[t]) * x_start + np.sqrt(1 - kept[t]) * noise
        guess = np.clip((x - np.sqrt(1 - kept[t]) * 0.5 * x) / np.sqrt(kept[t]), -1, 1)
        of_start, of_x, _, _ = coefficients(schedule, t)
        mean, true = of_start * guess + of_x * x, of_start * x_start + of_x * x
        off = log_posterior[t] - log_model[t]
        kl = 0.5 * (-1 - off + np.exp(off) + (true - mean) ** 2 * np.exp(-log_model[t]))
        scale = np.exp(-0.5 * log_model[t])
        upper, lower = cdf(scale * (x_start - mean + 1 / 256)), cdf(scale * (x_start - mean - 1 / 256))
        upper, lower = np.where(x_start > 0.995, 1.0, upper), np.where(x_start < -0.995, 0.0, lower)
        expected = (kl if t else -np.log(np.maximum(upper - lower, 1e-12))).sum(1)
        found = bound_terms(
            half, schedule, torch.tensor(x_start), torch.full((2,), t), torch.tensor(noise), variance=variance
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3 if t else 0.02)
