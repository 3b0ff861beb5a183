"""The process against formulas written out again in numpy, and against Gaussian algebra."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from genssl.models.diffusion import (
    Loss,
    NoiseSchedule,
    Variance,
    cosine_schedule,
    extract,
    linear_schedule,
    p_losses,
    p_losses_per_image,
    p_sample,
    p_sample_loop,
    predict_x_start,
    q_sample,
    t_sample,
)
from genssl.runtime import generator, generators

from .gaussian_data import GaussianData


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def cosine_betas(timesteps: int) -> np.ndarray:
    def kept(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - kept(t + 1) / kept(t), 0.999) for t in range(timesteps)])


@pytest.mark.parametrize("timesteps", [1, 10, 1000])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_every_coefficient_is_its_formula(kind: str, timesteps: int) -> None:
    if kind == "linear":
        schedule, betas = linear_schedule(timesteps), np.linspace(1e-4, 0.02, timesteps)
    else:
        schedule, betas = cosine_schedule(timesteps), cosine_betas(timesteps)
    kept = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], kept[:-1]])
    # 1 - alpha-bar as the sum of what each step adds, which loses no digits
    noise = np.array([np.sum(betas[: t + 1] * before[: t + 1]) for t in range(timesteps)])
    expected = {
        "betas": betas,
        "alphas": 1 - betas,
        "sqrt_recip_alphas": 1 / np.sqrt(1 - betas),
        "alphas_cumprod": kept,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(noise),
        "alphas_cumprod_prev": before,
        "posterior_variance": betas * np.concatenate([[0.0], noise[:-1]]) / noise,
        "snr": kept / noise,
        "log_alphas_cumprod": np.log1p(-betas).cumsum(),
    }
    assert schedule.timesteps == timesteps
    for name, values in expected.items():
        found = torch.as_tensor(getattr(schedule, name))
        assert found.shape == (timesteps,)
        np.testing.assert_allclose(found.double(), values, rtol=5e-7, atol=1e-12, err_msg=name)


def test_the_course_schedule_ends_in_noise_and_the_short_one_does_not() -> None:
    ends = {steps: float(linear_schedule(steps).alphas_cumprod[-1]) for steps in (500, 1000, 1500)}
    assert ends == pytest.approx({500: 6.4e-3, 1000: 4.0e-5, 1500: 2.6e-7}, rel=0.02)
    scaled = linear_schedule(500, scaled=True)
    torch.testing.assert_close(scaled.betas, linear_schedule(500).betas * 2)
    assert float(scaled.alphas_cumprod[-1]) == pytest.approx(4.0e-5, rel=0.2)
    assert float(linear_schedule().snr[100]) == pytest.approx(8.7, abs=0.2)


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [1.0, 0.1], [math.nan]])
def test_betas_that_are_none_are_refused(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        NoiseSchedule.from_betas(torch.tensor(betas))


def test_a_moved_schedule_is_the_same() -> None:
    schedule = cosine_schedule(7)
    assert schedule.to("cpu").timesteps == 7
    assert schedule.to("meta").posterior_variance.device.type == "meta"


def test_noised_images_have_the_moments_of_equation_4() -> None:
    schedule, n = linear_schedule(), 20_000
    t = torch.tensor([0, 100, 999])
    x_start = torch.tensor([-0.9, 0.3, 0.8], dtype=torch.float64)
    x = q_sample(schedule, x_start[:, None].expand(3, n), t, randn(3, n))
    kept = schedule.alphas_cumprod[t].double()
    error = (1 - kept).sqrt() / math.sqrt(n)
    assert ((x.mean(1) - kept.sqrt() * x_start).abs() < 4 * error).all()
    assert ((x.var(1) / (1 - kept) - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_the_image_is_found_again_from_its_noise() -> None:
    schedule, x_start, noise = linear_schedule(), randn(4, 3, 2, 2), randn(4, 3, 2, 2, seed=1)
    t = torch.tensor([0, 50, 300, 999])
    x = q_sample(schedule, x_start, t, noise)
    torch.testing.assert_close(predict_x_start(schedule, x, t, noise), x_start, rtol=1e-6, atol=1e-6)


def posterior(schedule: NoiseSchedule, x_start: Tensor, x: Tensor, t: int) -> tuple[Tensor, float]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), by multiplying the two Gaussians that make it."""
    betas = schedule.betas.double()
    kept = float((1 - betas[:t]).prod())  # alpha-bar_{t-1}
    beta = float(betas[t])
    precision = 1 / (1 - kept) + (1 - beta) / beta
    mean = (math.sqrt(kept) * x_start / (1 - kept) + math.sqrt(1 - beta) * x / beta) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("t", [1, 2, 20, 500, 999])
def test_a_reverse_step_is_the_posterior_when_the_noise_is_known(t: int) -> None:
    schedule, x_start, noise, fresh = linear_schedule(), randn(5, 8), randn(5, 8, seed=1), randn(5, 8, seed=2)
    times = torch.full((5,), t)
    x = q_sample(schedule, x_start, times, noise)
    mean, variance = posterior(schedule, x_start, x, t)
    found = p_sample(lambda *_: noise, schedule, x, times, fresh)
    torch.testing.assert_close(found, mean + math.sqrt(variance) * fresh, rtol=1e-5, atol=1e-5)
    large = p_sample(lambda *_: noise, schedule, x, times, fresh, variance="large")
    expected = mean + schedule.betas[t].double().sqrt() * fresh
    torch.testing.assert_close(large, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "large"])
def test_the_last_step_takes_the_mode(variance: Variance) -> None:
    schedule, x_start, noise = linear_schedule(), randn(5, 8), randn(5, 8, seed=1)
    t = torch.tensor([0, 3, 0, 3, 0])
    x = q_sample(schedule, x_start, t, noise)
    found = p_sample(lambda *_: noise, schedule, x, t, randn(5, 8, seed=2), variance=variance)
    torch.testing.assert_close(found[::2], x_start[::2], rtol=1e-6, atol=1e-6)
    assert ((found - x_start)[1::2].abs() > 1e-4).all()


def test_clipping_holds_the_predicted_image() -> None:
    schedule, t = linear_schedule(), torch.tensor([400, 0])
    x_start, noise = 3 * randn(2, 8), randn(2, 8, seed=1)
    x = q_sample(schedule, x_start, t, noise)
    found = p_sample(lambda *_: noise, schedule, x, t, torch.zeros_like(x), clip=True)
    mean, _ = posterior(schedule, x_start.clamp(-1, 1), x, 400)
    torch.testing.assert_close(found[0], mean[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], x_start[1].clamp(-1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t_start", [None, 0, 9])
def test_the_loop_is_its_steps_in_order(t_start: int | None) -> None:
    schedule = linear_schedule(20)
    data = GaussianData(schedule)
    first = 19 if t_start is None else t_start
    start, fresh = data.noised(first, 3), randn(20, 3, 32, seed=4)
    kept: list[tuple[int, Tensor]] = []
    found = p_sample_loop(
        data, schedule, start, lambda t: fresh[t], t_start, callback=lambda t, x: kept.append((t, x))
    )
    x = start
    for t in range(first, -1, -1):
        x = p_sample(data, schedule, x, torch.full((3,), t), fresh[t])
        assert torch.equal(kept[first - t][1], x)
    assert torch.equal(found, x)
    assert [t for t, _ in kept] == list(range(first - 1, -2, -1))


@pytest.mark.parametrize("t_start", [-1, 20])
def test_a_start_beyond_the_schedule_is_refused(t_start: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 19"):
        p_sample_loop(lambda x, t: x, linear_schedule(20), randn(1, 4), lambda t: randn(1, 4), t_start)


@pytest.mark.parametrize("variance", ["posterior", "large"])
def test_all_steps_give_back_the_data(variance: str) -> None:
    # Linear maps of Gaussians: one row from each unit vector, one from zero, give mean and variance exactly
    schedule = linear_schedule()
    data = GaussianData(schedule)
    variances = torch.ones(32, dtype=torch.float64)
    mean = torch.zeros(1, 32, dtype=torch.float64)
    added = schedule.betas if variance == "large" else schedule.posterior_variance
    for t in range(999, -1, -1):
        times = torch.full((2,), t)
        ends = p_sample(data, schedule, torch.cat([mean, mean + 1]), times, torch.zeros(2, 32))
        variances = (ends[1] - ends[0]).square() * variances + (float(added[t]) if t else 0.0)
        mean = ends[:1]
    torch.testing.assert_close(mean[0], data.mean, rtol=0, atol=2e-3)
    # a thousand steps are not infinitely many: the narrow dimensions come out some per cent off
    torch.testing.assert_close(variances.sqrt(), data.std, rtol=0.08, atol=0)
    torch.testing.assert_close(variances.sqrt()[16:], data.std[16:], rtol=0.02, atol=0)


@pytest.mark.parametrize(("loss", "torchs"), [("smooth_l1", "smooth_l1_loss"), ("mse", "mse_loss")])
def test_the_loss_is_torchs(loss: Loss, torchs: str) -> None:
    schedule, t = linear_schedule(), torch.tensor([0, 10, 500, 999])
    x_start, noise = randn(4, 3, 4, 4).float(), randn(4, 3, 4, 4, seed=1).float()

    def model(x: Tensor, times: Tensor) -> Tensor:
        assert torch.equal(times, t)
        torch.testing.assert_close(x, q_sample(schedule, x_start, t, noise))
        return 2 * x  # errors on both sides of 1

    error = getattr(torch.nn.functional, torchs)
    prediction = 2 * q_sample(schedule, x_start, t, noise)
    found = p_losses(model, schedule, x_start, t, noise, loss)
    torch.testing.assert_close(found, error(prediction, noise))
    single = p_losses_per_image(model, schedule, x_start, t, noise, loss)
    expected = torch.stack([error(p, n) for p, n in zip(prediction, noise, strict=True)])
    torch.testing.assert_close(single, expected)


def test_times_are_uniform() -> None:
    n, timesteps = 60_000, 7
    t = t_sample(timesteps, n, generator(0, "test"))
    assert t.shape == (n,)
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=timesteps)
    assert len(counts) == timesteps
    std = math.sqrt(n / timesteps * (1 - 1 / timesteps))  # of a binomial count; 4.5 of them: 5e-5 in all
    assert ((counts - n / timesteps).abs() < 4.5 * std).all()
    assert t_sample(1, 5, generator(0, "test")).tolist() == [0] * 5
    each = t_sample(1000, 3, generators(0, "test", range(3)))
    assert torch.equal(each[1:2], t_sample(1000, 1, generators(0, "test", [1])))


def test_values_are_taken_at_their_times() -> None:
    values = torch.arange(5.0)
    assert extract(values, torch.tensor([3, 1]), torch.zeros(2, 3, 4, 4)).shape == (2, 1, 1, 1)
    assert extract(values, torch.tensor([3, 1]), torch.zeros(2, 6)).flatten().tolist() == [3, 1]
