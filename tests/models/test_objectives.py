"""What a diffusion model is trained on: predictions, weights, times, and schedules that end in pure noise."""

import math

import pytest
import torch

from genssl.config import make
from genssl.models.build import build
from genssl.models.diffusion import (
    Prediction,
    linear_schedule,
    loss_weights,
    p_losses_per_image,
    probability_of_times,
    q_sample,
    t_sample,
    x_start_and_epsilon,
    zero_terminal_snr,
)
from genssl.runtime import generator

SCHEDULE = linear_schedule()
X_START = torch.linspace(-1, 1, 4 * 12, dtype=torch.float64).view(4, 3, 2, 2)
NOISE = torch.randn(X_START.shape, generator=generator(0, "test"), dtype=torch.float64)
T = torch.tensor([0, 200, 600, 999])
ALPHA, SIGMA = (
    values.double()[T].view(-1, 1, 1, 1)
    for values in (SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod)
)
TRUE = {"epsilon": NOISE, "x": X_START, "v": ALPHA * NOISE - SIGMA * X_START}


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x"])
def test_every_prediction_gives_back_image_and_noise(prediction: Prediction) -> None:
    x = ALPHA * X_START + SIGMA * NOISE
    x_start, epsilon = x_start_and_epsilon(prediction, TRUE[prediction], x, ALPHA, SIGMA)
    # the schedule is float32: alpha^2 + sigma^2 is 1 to 1e-7, and both are divided by as little as 0.006
    torch.testing.assert_close(x_start, X_START, rtol=0, atol=1e-6)
    torch.testing.assert_close(epsilon, NOISE, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x"])
def test_the_true_prediction_has_no_loss(prediction: Prediction) -> None:
    losses = p_losses_per_image(
        lambda *_: TRUE[prediction], SCHEDULE, X_START, T, NOISE, prediction=prediction
    )
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x"])
def test_min_snr_weighs_the_error_of_the_image_whatever_is_predicted(prediction: Prediction) -> None:
    """Hang et al. 2023, equation 6: min(SNR, 5) |x_0 - predicted x_0|^2, the same for every prediction."""
    guess = TRUE[prediction] + 0.1
    x = q_sample(SCHEDULE, X_START, T, NOISE)
    losses = p_losses_per_image(
        lambda *_: guess, SCHEDULE, X_START, T, NOISE, "mse", prediction=prediction, weighting="min_snr"
    )
    x_start, _ = x_start_and_epsilon(prediction, guess, x, ALPHA, SIGMA)
    snr = (ALPHA / SIGMA).square().flatten()
    expected = snr.clamp(max=5) * (x_start - X_START).square().flatten(1).mean(1)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    assert (loss_weights(snr, prediction, "simple") == 1).all()


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_pure_noise_is_learned_from_too(prediction: Prediction) -> None:
    """Sampling begins there with zero_terminal_snr, and min(SNR, 5) would be 0."""
    snr = torch.tensor([0.0, 1.0])
    assert loss_weights(snr, prediction, "min_snr").tolist() == [1.0, 0.5 if prediction == "v" else 1.0]


def test_zero_terminal_snr_is_that_of_the_paper() -> None:
    """Lin et al. 2024, algorithm 1, written with cumulative products."""
    roots = (1 - SCHEDULE.betas.double()).cumprod(0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    shifted = zero_terminal_snr(SCHEDULE)
    torch.testing.assert_close(shifted.sqrt_alphas_cumprod.double(), roots, rtol=1e-5, atol=1e-7)
    assert shifted.alphas_cumprod[-1] == 0
    assert shifted.betas[-1] == 1
    assert shifted.snr[-1] == 0
    torch.testing.assert_close(shifted.alphas_cumprod[0], SCHEDULE.alphas_cumprod[0])
    assert shifted.log_alphas_cumprod[-1] == -math.inf
    # a network that predicts v learns the image from pure noise: its mean
    noise_only = q_sample(shifted, X_START.float(), torch.full((4,), 999), NOISE.float())
    assert torch.equal(noise_only, NOISE.float())


def test_times_of_the_logit_normal_distribution() -> None:
    n, timesteps = 40_000, 1000
    t = t_sample(timesteps, n, generator(0, "test"), "logit_normal")
    assert t.min() >= 0
    assert t.max() < timesteps
    shares = []
    for first, end in ((0, 333), (333, 666), (666, 1000)):
        expected = probability_of_times(timesteps, first, end, "logit_normal")
        share = float(((t >= first) & (t < end)).float().mean())
        # four standard deviations of a share of n draws
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
        shares.append(expected)
    assert sum(shares) == pytest.approx(1)
    assert probability_of_times(timesteps, 0, 250, "uniform") == 0.25


@pytest.mark.parametrize("method", ["ddpm", "flow"])
def test_dropout_is_for_training_alone(method: str, miniature_unet: None) -> None:
    base = {"data": "synthetic", "image_size": 16, "network": "small"}
    plain, dropping = (build(make(method, {**base, "dropout": p})) for p in (0.0, 0.3))
    with torch.no_grad():
        for one, other in zip(plain.parameters(), dropping.parameters(), strict=True):
            one.add_(0.05 * torch.randn(one.shape, generator=generator(0, "moved")))
            other.copy_(one)
    images = torch.rand(4, 3, 16, 16, generator=generator(0, "test")) * 2 - 1
    draws = dropping.draws(4, generator(0, "method"))
    fewer = plain.draws(4, generator(0, "method"))
    # What else is drawn stays as it was
    assert set(draws) - set(fewer) == {"dropout_mask"}
    assert all(torch.equal(value, draws[name]) for name, value in fewer.items())
    expected = plain.loss((images,), fewer)["loss"]
    assert not torch.equal(dropping.train().loss((images,), draws)["loss"], expected)
    assert torch.equal(
        dropping.eval().loss((images,), draws)["loss"], plain.eval().loss((images,), fewer)["loss"]
    )
