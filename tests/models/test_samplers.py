"""The samplers on Gaussian data, where the optimal model and the exact flow are known."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from genssl.models.diffusion import (
    NoiseSchedule,
    Prediction,
    cosine_schedule,
    linear_schedule,
    p_sample_loop,
    zero_terminal_snr,
)
from genssl.models.samplers import ancestral, ddim, ddim_invert, dpm_solver_pp, heun, unipc
from genssl.models.sampling_times import (
    LEAST_LOG_SNR,
    RHO,
    Spacing,
    karras_times,
    level_at,
    log_snr_times,
    sampling_levels,
)
from genssl.runtime import generator

from ..peers import import_peer
from .gaussian_data import GaussianData, Predicting, distance

Sampler = Callable[..., Tensor]
# Times are whole numbers: with so many of them, a grid of 100 steps is as even as asked
FINE = linear_schedule(20_000, scaled=True)


def fresh_noise(x: Tensor, seed: int = 1) -> Callable[[int], Tensor]:
    source = generator(seed, "test")
    return lambda t: torch.randn(x.shape, generator=source, dtype=x.dtype)


def output_distribution(
    sampler: Sampler, data: GaussianData, steps: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation (D,) of what a sampler makes of standard normal x.

    Every step is linear and acts on each dimension alone, so one run shows how the output depends on the
    start and on each step's noise: row 0 is all zero, row 1 starts at one, row 2 + k has one as noise k.
    """
    x = torch.zeros(2 + steps, 32, dtype=torch.float64)
    x[1] = 1
    asked = 0

    def noise(t: int) -> Tensor:
        nonlocal asked
        drawn = torch.zeros_like(x)
        drawn[2 + asked] = 1
        asked += 1
        return drawn

    out = sampler(data, data.schedule, x, steps, noise=noise, **options)
    assert asked in (0, steps - 1)  # not for the last step
    return out[0], (out[1:] - out[0]).square().sum(0).sqrt()


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ancestral, {}),
        (ancestral, {"variance": "large"}),
        (ddim, {"eta": 0.0}),
        (ddim, {"eta": 0.5}),
        (ddim, {"eta": 1.0}),
    ],
)
@pytest.mark.parametrize(("steps", "tolerance"), [(1000, 0.08), (100, 0.3)])
def test_samples_are_distributed_like_the_data(
    sampler: Sampler, options: dict[str, Any], steps: int, tolerance: float
) -> None:
    data = GaussianData(linear_schedule())
    mean, std = output_distribution(sampler, data, steps, **options)
    torch.testing.assert_close(mean, data.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(std, data.std, rtol=tolerance, atol=0)
    torch.testing.assert_close(std[24:], data.std[24:], rtol=tolerance / 4, atol=0)  # the wide dimensions


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule(1000)])
@pytest.mark.parametrize(
    ("spacing", "bounds"),
    [("karras", (0.05, 0.021)), ("log-snr", (0.02, 0.012))],
)
def test_deterministic_samplers_follow_the_exact_flow(
    schedule: NoiseSchedule, spacing: Spacing, bounds: tuple[float, float]
) -> None:
    data = GaussianData(schedule)
    x = data.noised(999)
    exact = data.flow(x, 999)
    for steps, bound in zip((10, 20), bounds, strict=True):
        error = distance(dpm_solver_pp(data, schedule, x, steps, spacing=spacing), exact)
        assert error < bound
        assert error < 0.5 * distance(ddim(data, schedule, x, steps, spacing=spacing), exact)
    assert distance(ddim(data, schedule, x, 1000), exact) < 0.005


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver_pp, 2)])
def test_errors_fall_at_the_methods_order(sampler: Sampler, order: int) -> None:
    data = GaussianData(FINE, narrowest=0.3)
    x = data.noised(19_999)
    coarse, fine = (distance(sampler(data, FINE, x, n), data.flow(x, 19_999)) for n in (25, 100))
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp, heun, unipc])
@pytest.mark.parametrize("t_start", [0, 49, 300])
def test_a_sampler_starts_where_it_is_told(sampler: Sampler, t_start: int) -> None:
    data = GaussianData(linear_schedule())
    x = data.noised(t_start)
    out = sampler(data, data.schedule, x, min(t_start + 1, 40), t_start)
    assert distance(out, data.flow(x, t_start)) < 0.01


def test_dpm_solver_takes_the_steps_of_its_paper() -> None:
    # Lu et al. 2022, algorithm 2, in the paper's letters, on three times
    schedule = linear_schedule()
    data = GaussianData(schedule)
    x = data.noised(600)
    times = karras_times(schedule, 600, 3)
    alpha, sigma = data.alpha[times], data.variance[times].sqrt()
    lam = (alpha / sigma).log()

    def x_theta(x: Tensor, i: int) -> Tensor:
        return (x - sigma[i] * data(x, torch.full((len(x),), times[i]))) / alpha[i]

    h_1, h_2 = lam[1] - lam[0], lam[2] - lam[1]
    first = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h_1) * x_theta(x, 0)
    r = h_1 / h_2
    d = (1 + 1 / (2 * r)) * x_theta(first, 1) - 1 / (2 * r) * x_theta(x, 0)
    second = sigma[2] / sigma[1] * first - alpha[2] * torch.expm1(-h_2) * d
    expected = x_theta(second, 2)  # to the clean image, h is infinite
    found = dpm_solver_pp(data, schedule, x, 3, 600)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_ddim_with_all_noise_and_all_steps_is_ancestral() -> None:
    schedule = linear_schedule(100, scaled=True)
    data = GaussianData(schedule)
    x = data.noised(99)
    expected = p_sample_loop(data, schedule, x, fresh_noise(x))
    torch.testing.assert_close(
        ddim(data, schedule, x, 100, noise=fresh_noise(x), eta=1.0), expected, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        ancestral(data, schedule, x, 100, noise=fresh_noise(x)), expected, rtol=0, atol=1e-5
    )
    large = p_sample_loop(data, schedule, x, fresh_noise(x), variance="large", clip=True)
    found = ancestral(data, schedule, x, 100, noise=fresh_noise(x), variance="large", clip=True)
    torch.testing.assert_close(found, large, rtol=0, atol=1e-5)
    clipped = p_sample_loop(data, schedule, 3 * x, fresh_noise(x), clip=True)
    found = ddim(data, schedule, 3 * x, 100, noise=fresh_noise(x), eta=1.0, clip=True)
    torch.testing.assert_close(found, clipped, rtol=0, atol=1e-4)


def test_an_inverted_image_comes_back() -> None:
    data = GaussianData(linear_schedule())
    images = data.mean + data.std * torch.randn(8, 32, generator=generator(2, "test"), dtype=torch.float64)

    def round_trip(steps: int, t: int) -> float:
        noise = ddim_invert(data, data.schedule, images, steps, t)
        return distance(ddim(data, data.schedule, noise, steps, t), images)

    errors = [round_trip(steps, 999) for steps in (50, 200, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.006
    assert round_trip(300, 299) < 0.006
    # and the noise is that of the exact flow, which is standard normal for these data
    noise = ddim_invert(data, data.schedule, images, 1000)
    assert distance(data.flow(noise, 999), images) < 0.006
    assert float(noise.std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sampler", [ddim, ancestral, dpm_solver_pp, heun, unipc])
def test_clipping_keeps_predicted_images_in_range(sampler: Sampler) -> None:
    schedule = linear_schedule()
    data = GaussianData(schedule)
    x = 5 * data.noised(999)
    options = {"noise": fresh_noise(x)} if sampler is ancestral else {}
    assert float(sampler(data, schedule, x, 10, **options).abs().max()) > 1.1
    assert float(sampler(data, schedule, x, 10, clip=True, **options).abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("sampler", [ddim, ancestral, dpm_solver_pp, ddim_invert, heun, unipc])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_one_network_call_a_step_and_the_states_are_told(sampler: Sampler, steps: int) -> None:
    schedule = linear_schedule(20)
    data = GaussianData(schedule)
    calls: list[int] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (len(x),)
        calls.append(int(t[0]))
        return data(x, t)

    x = data.noised(19, 3)
    options = {"noise": fresh_noise(x)} if sampler is ancestral else {}
    kept: list[tuple[int, Tensor]] = []
    out = sampler(model, schedule, x, steps, callback=lambda t, x: kept.append((t, x)), **options)
    assert len(kept) == steps
    if sampler is heun:  # another one at the end of each step but the last
        assert calls[1:-1:2] == calls[2::2]
        calls = calls[::2]
    assert len(calls) == steps
    assert torch.equal(kept[-1][1], out)
    if sampler is ddim_invert:
        assert kept[-1][0] == 19
        assert calls == [0, *[t for t, _ in kept[:-1]]]
    else:
        assert kept[-1][0] == -1
        assert calls == [19, *[t for t, _ in kept[:-1]]]


@pytest.mark.parametrize("sampler", [ddim, ancestral, dpm_solver_pp, ddim_invert, heun, unipc])
@pytest.mark.parametrize(
    ("steps", "t_start", "message"),
    [
        (0, None, "from 1 to 20"),
        (21, None, "from 1 to 20"),
        (6, 4, "from 1 to 5"),
        (1, 20, "from 0 to 19"),
        (1, -1, "from 0 to 19"),
    ],
)
def test_steps_that_do_not_fit_are_refused(
    sampler: Sampler, steps: int, t_start: int | None, message: str
) -> None:
    x = torch.zeros(1, 32, dtype=torch.float64)
    options = {"noise": fresh_noise(x)} if sampler is ancestral else {}
    with pytest.raises(ValueError, match=message):
        sampler(lambda x, t: x, linear_schedule(20), x, steps, t_start, **options)


def test_stochastic_samplers_need_noise() -> None:
    x = torch.zeros(1, 32)
    with pytest.raises(ValueError, match="adds noise"):
        ddim(lambda x, t: x, linear_schedule(20), x, 5, eta=0.5)
    with pytest.raises(ValueError, match="adds noise"):
        ancestral(lambda x, t: x, linear_schedule(20), x, 5)


@pytest.mark.parametrize("t_start", [0, 1, 9, 175, 999])
@pytest.mark.parametrize(
    "schedule", [linear_schedule(), cosine_schedule(1000), zero_terminal_snr(linear_schedule())]
)
def test_times_fall_from_the_start_to_zero_without_repeating(schedule: NoiseSchedule, t_start: int) -> None:
    for steps in {1, 2, t_start // 2 + 1, t_start, t_start + 1} & set(range(1, t_start + 2)):
        for spacing in get_args(Spacing):
            *times, clean = (level.t for level in sampling_levels(schedule, t_start, steps, spacing))
            assert clean == -1
            assert len(times) == steps
            assert times[0] == t_start
            assert times[-1] == 0 or steps == 1
            assert all(a > b for a, b in pairwise(times))


def test_karras_times_are_even_in_the_root_of_the_noise() -> None:
    # Karras et al. 2022, equation 5: sigma_i = (sigma_0^(1/7) + i / (N - 1) (sigma_(N-1)^(1/7) - ...))^7
    levels = [level_at(FINE, t) for t in karras_times(FINE, 19_999, 20)]
    roots = [(level.sigma / level.alpha) ** (1 / 7) for level in levels]
    for i, root in enumerate(roots):
        assert root == pytest.approx(roots[0] + i / 19 * (roots[-1] - roots[0]), rel=2e-3)


def test_few_karras_steps_are_spent_on_pure_noise() -> None:
    schedule = cosine_schedule(1000)
    levels = sampling_levels(schedule, 999, 20, "karras")[:-1]
    assert levels[0].log_snr < LEAST_LOG_SNR - 4  # it starts where it is told
    # and goes on as if it had started at the bound: the second level is one step from there
    bound, last = (math.exp(-x / RHO) for x in (LEAST_LOG_SNR, levels[-1].log_snr))
    second = -RHO * math.log(bound + (last - bound) / 19)
    assert levels[1].log_snr == pytest.approx(second, abs=0.15)  # times are whole numbers
    assert sum(level.t > 980 for level in levels) == 5
    assert sum(level.t > 980 for level in sampling_levels(schedule, 999, 20, "log-snr")) == 9


def test_each_spacing_is_the_one_of_its_name() -> None:
    schedule = linear_schedule()
    shares = torch.linspace(1, 0, 7, dtype=torch.float64)
    lambdas = torch.tensor([level_at(schedule, t).log_snr for t in range(1000)], dtype=torch.float64)
    nearest = [
        int((lambdas - wanted).abs().argmin()) for wanted in lambdas[0] * (1 - shares) + lambdas[-1] * shares
    ]
    expected = {
        "karras": karras_times(schedule, 999, 7),
        "log-snr": nearest,
        "quadratic": (999 * shares**2).round().int().tolist(),
        "uniform": (999 * shares).round().int().tolist(),
    }
    for spacing in get_args(Spacing):
        times = [level.t for level in sampling_levels(schedule, 999, 7, spacing)]
        assert times == [*expected[spacing], -1]


def test_another_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match="use karras, log-snr, quadratic or uniform"):
        sampling_levels(linear_schedule(), 999, 5, "even")  # type: ignore[arg-type]


# Other predictions


@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("sampler", [ancestral, ddim, dpm_solver_pp, heun, unipc])
def test_what_is_predicted_changes_nothing(sampler: Sampler, prediction: Prediction) -> None:
    data = GaussianData(linear_schedule())
    x = data.noised(999)
    noise = {"noise": lambda _: torch.ones_like(x)} if sampler is ancestral else {}
    for clip in (False, True):
        expected = sampler(data, data.schedule, x, 10, clip=clip, **noise)
        out = sampler(
            Predicting(data, prediction), data.schedule, x, 10, prediction=prediction, clip=clip, **noise
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)
    inverted = ddim_invert(Predicting(data, prediction), data.schedule, x, 10, prediction=prediction)
    torch.testing.assert_close(inverted, ddim_invert(data, data.schedule, x, 10), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "bound"), [(ddim, 0.08), (dpm_solver_pp, 0.02), (heun, 0.02), (unipc, 0.02)]
)
def test_samplers_start_from_pure_noise(sampler: Sampler, bound: float) -> None:
    schedule = zero_terminal_snr(linear_schedule())
    data = Predicting(GaussianData(schedule), "v")
    x = data.data.noised(999)
    out = sampler(data, schedule, x, 40, prediction="v")
    assert distance(out, data.data.flow(x, 999)) < bound


@pytest.mark.parametrize("sampler", [dpm_solver_pp, heun, unipc])
def test_images_of_large_variance_come_out_of_almost_pure_noise(sampler: Sampler) -> None:
    # The first principal components of images: the cosine schedule ends with 20,000 times as much noise as
    # image, of which the first step of 20 leads to 130 times as much
    schedule = cosine_schedule(1000)
    data = GaussianData(schedule)
    data.std = torch.full((32,), 20.0, dtype=torch.float64)
    x = data.noised(999)
    for steps in (20, 40):
        out, exact = sampler(data, schedule, x, steps), data.flow(x, 999)
        ratio = (out - data.mean).std() / (exact - data.mean).std()
        assert float(ratio) == pytest.approx(1, abs=0.02)


def test_karras_steps_suit_images_of_large_variance_on_the_cosine_schedule() -> None:
    data = GaussianData(cosine_schedule(1000))
    data.std = torch.full((32,), 20.0, dtype=torch.float64)
    x = data.noised(999)
    exact = data.flow(x, 999)
    karras, even = (
        distance(dpm_solver_pp(data, data.schedule, x, 20, spacing=spacing), exact)
        for spacing in get_args(Spacing)[:2]
    )
    assert karras < 0.5 * even


@pytest.mark.parametrize("sampler", [heun, unipc])
def test_higher_orders_converge_faster_than_euler(sampler: Sampler) -> None:
    data = GaussianData(FINE)
    x = data.noised(19_999)
    exact = data.flow(x, 19_999)
    errors = [distance(sampler(data, FINE, x, steps), exact) for steps in (25, 50, 100)]
    assert errors[0] < distance(ddim(data, FINE, x, 50), exact)
    # second order: a quarter of the error with twice the steps, once the last step to the image allows it
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1]


# Against diffusers


@pytest.mark.slow
def test_steps_are_those_of_diffusers() -> None:
    diffusers = import_peer("diffusers")
    schedule = linear_schedule(50)
    data = GaussianData(schedule)
    x = 1.5 * data.noised(49)
    for clip in (False, True):
        for eta in (0.0, 0.5, 1.0):
            peer = diffusers.DDIMScheduler(50, 1e-4, 0.02, clip_sample=clip)
            peer.set_timesteps(50)
            noise, theirs = fresh_noise(x), x
            for t in peer.timesteps:
                drawn = noise(int(t)) if eta > 0 and t > 0 else torch.zeros_like(x)
                epsilon = data(theirs, t.expand(len(x)))
                theirs = peer.step(
                    epsilon, t, theirs, eta, use_clipped_model_output=True, variance_noise=drawn
                ).prev_sample
            ours = ddim(data, schedule, x, 50, noise=fresh_noise(x), eta=eta, clip=clip)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
        for ours_kind, theirs_kind in (("posterior", "fixed_small"), ("large", "fixed_large")):
            peer = diffusers.DDPMScheduler(50, 1e-4, 0.02, variance_type=theirs_kind, clip_sample=clip)
            source, theirs = generator(1, "test"), x
            for t in peer.timesteps:
                theirs = peer.step(data(theirs, t.expand(len(x))), t, theirs, generator=source).prev_sample
            options: dict[str, Any] = {"variance": ours_kind, "clip": clip}
            ours = p_sample_loop(data, schedule, x, fresh_noise(x), **options)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_dpm_solver_is_that_of_diffusers_and_nearer_to_the_flow() -> None:
    diffusers = import_peer("diffusers")
    schedule = linear_schedule()
    data = GaussianData(schedule)
    x = data.noised(999)

    def theirs(times: list[int] | None, steps: int, **options: Any) -> Tensor:
        peer = diffusers.DPMSolverMultistepScheduler(
            1000, 1e-4, 0.02, lower_order_final=False, final_sigmas_type="zero", **options
        )
        peer.set_timesteps(None if times else steps, timesteps=times)
        out = x
        for t in peer.timesteps:
            out = peer.step(data(out, t.long().expand(len(x))), t, out).prev_sample
        return out

    for steps in (10, 20):
        ours = dpm_solver_pp(data, schedule, x, steps, spacing="log-snr")
        same_times = theirs(log_snr_times(schedule, 999, steps), steps)
        torch.testing.assert_close(ours, same_times, rtol=0, atol=1e-3)
        exact = data.flow(x, 999)
        error = distance(ours, exact)
        assert error < 0.5 * distance(theirs(None, steps), exact)
        assert error < 0.5 * distance(theirs(None, steps, use_karras_sigmas=True), exact)
        # even steps in lambda are ours too, but for how they are rounded to whole times
        assert error < 1.1 * distance(theirs(None, steps, use_lu_lambdas=True), exact)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_karras_times_are_those_of_diffusers(steps: int) -> None:
    diffusers = import_peer("diffusers")
    peer = diffusers.DPMSolverMultistepScheduler(1000, 1e-4, 0.02, use_karras_sigmas=True)
    peer.set_timesteps(steps)
    # it rounds a time between two, we take the nearer in lambda; and no time comes twice here
    torch.testing.assert_close(
        torch.tensor(karras_times(linear_schedule(), 999, steps)), peer.timesteps.long(), rtol=0, atol=1
    )


def sigmas_of(schedule: NoiseSchedule, times: list[int]) -> Tensor:
    """sigma / alpha of diffusers' schedulers at falling times, and 0 for the clean image; float64."""
    log_alphas_cumprod = torch.tensor([schedule.log_alphas_cumprod[t] for t in times], dtype=torch.float64)
    ratios = (-torch.expm1(log_alphas_cumprod) / log_alphas_cumprod.exp()).sqrt()
    return torch.cat([ratios, ratios.new_zeros(1)])


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_unipc_is_that_of_diffusers(prediction: Prediction) -> None:
    diffusers = import_peer("diffusers")
    schedule = linear_schedule()
    data = Predicting(GaussianData(schedule), prediction)
    x = data.data.noised(999)
    names = {"epsilon": "epsilon", "v": "v_prediction"}
    for steps in (5, 20):
        times = log_snr_times(schedule, 999, steps)
        peer = diffusers.UniPCMultistepScheduler(
            1000, 1e-4, 0.02, prediction_type=names[prediction], final_sigmas_type="zero"
        )
        peer.set_timesteps(steps)
        peer.timesteps, peer.sigmas = torch.tensor(times), sigmas_of(schedule, times)
        theirs = x
        for t in peer.timesteps:
            theirs = peer.step(data(theirs, t.expand(len(x))), t, theirs).prev_sample
        ours = unipc(data, schedule, x, steps, spacing="log-snr", prediction=prediction)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_heun_is_that_of_diffusers() -> None:
    diffusers = import_peer("diffusers")
    schedule = linear_schedule()
    data = GaussianData(schedule)
    x = data.noised(999)
    for steps in (5, 20):
        times = log_snr_times(schedule, 999, steps)
        peer = diffusers.HeunDiscreteScheduler(1000, 1e-4, 0.02)
        peer.set_timesteps(steps)
        sigmas, steps_of = sigmas_of(schedule, times), torch.tensor(times)
        repeated = sigmas[1:-1].repeat_interleave(2)
        peer.sigmas = torch.cat([sigmas[:1], repeated, sigmas[-1:]])
        peer.timesteps = torch.cat([steps_of[:1], steps_of[1:].repeat_interleave(2)])
        alpha = math.exp(0.5 * schedule.log_alphas_cumprod[999])
        theirs = x / alpha
        for t in peer.timesteps:
            epsilon = data(peer.scale_model_input(theirs, t), t.expand(len(x)))
            theirs = peer.step(epsilon, t, theirs).prev_sample
        ours = heun(data, schedule, x, steps, spacing="log-snr")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
