"""Inpainting of two correlated Gaussian pixels, whose conditional is known; and by networks."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from genssl.config import DDPMConfig, FlowConfig
from genssl.models import unet
from genssl.models.build import build
from genssl.models.diffusion import StepCallback, linear_schedule
from genssl.models.flow import fill
from genssl.models.method import CanInpaint
from genssl.models.samplers import jump_path, repaint
from genssl.models.sampling_times import quadratic_times
from genssl.models.unet import Layout
from genssl.runtime import generator, generators
from genssl.settings import Config

VARIANCE, CORRELATION, KNOWN = 0.25, 0.8, 0.5
COVARIANCE = VARIANCE * torch.tensor([[1, CORRELATION], [CORRELATION, 1]], dtype=torch.float64)
# of the second pixel, given that the first is KNOWN
MEAN, CONDITIONAL_VARIANCE = CORRELATION * KNOWN, VARIANCE * (1 - CORRELATION**2)
MASK = torch.tensor([False, True])
STEPS, N = 50, 8_000
SCHEDULE = linear_schedule(1000)
EYE = torch.eye(2, dtype=torch.float64)
Moments = tuple[Tensor, Tensor]  # mean (2,) and covariance (2, 2)


def gain(alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x] = gain x for x = alpha x_0 + sigma epsilon, (2, 2)."""
    return (alpha * COVARIANCE).matmul(torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE))


def epsilon(x: Tensor, t: Tensor) -> Tensor:
    alpha_bar = math.exp(SCHEDULE.log_alphas_cumprod[int(t[0])])
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return (x - alpha * x @ gain(alpha, sigma).T) / sigma


def velocity(x: Tensor, t: Tensor) -> Tensor:
    share = float(t[0])
    x_start = x @ gain(1 - share, share).T
    return (x - (1 - share) * x_start) / share - x_start


def repainted(jump_length: int, resamplings: int) -> tuple[float, float]:
    """Mean and variance of the second pixel by `repaint`, propagated step by step: all maps are affine."""
    bars = [math.exp(SCHEDULE.log_alphas_cumprod[t]) for t in quadratic_times(999, STEPS)] + [1.0]
    mean, covariance = torch.zeros(2, dtype=torch.float64), EYE
    for i, j in pairwise(jump_path(STEPS, jump_length, resamplings)):
        (a, s), (b, r) = ((math.sqrt(bars[k]), math.sqrt(1 - bars[k])) for k in (i, j))
        if j < i:
            mean, covariance = b / a * mean, (b / a) ** 2 * covariance + (1 - (b / a) ** 2) * EYE
            continue
        # q(x_next | x, x_0): condition x_next = b x_0 + r e on x = (a / b) x_next + what the step added
        weight = a / b * r**2 / s**2
        step = b * gain(a, s) + weight * (EYE - a * gain(a, s))
        mean, covariance = step @ mean, step @ covariance @ step.T + (r**2 - weight * a / b * r**2) * EYE
        mean, covariance = replaced(mean, covariance, b * KNOWN, r**2)
    return float(mean[1]), float(covariance[1, 1])


def replaced(mean: Tensor, covariance: Tensor, known: float, variance: float) -> Moments:
    """The moments after the first pixel is drawn anew, whatever it was."""
    drawn = torch.tensor([variance, float(covariance[1, 1])], dtype=torch.float64)
    return torch.stack([torch.tensor(known, dtype=torch.float64), mean[1]]), torch.diag(drawn)


def filled(jump_length: int, resamplings: int) -> tuple[float, float]:
    """The same of `fill`."""
    mean, covariance = torch.zeros(2, dtype=torch.float64), EYE
    for i, j in pairwise(jump_path(STEPS, jump_length, resamplings)):
        t, s = 1 - i / STEPS, 1 - j / STEPS
        if j < i:
            share = (1 - s) / (1 - t)
            mean, covariance = share * mean, share**2 * covariance + (s**2 - share**2 * t**2) * EYE
            continue
        toward = gain(1 - t, t)
        step = EYE + (s - t) * ((EYE - (1 - t) * toward) / t - toward)
        step[0] = torch.tensor([s / t, 0])  # the line: what is left of x - x_0 shrinks with the time
        mean, covariance = step @ mean, step @ covariance @ step.T
        mean[0] += (1 - s / t) * KNOWN
    return float(mean[1]), float(covariance[1, 1])


def draw(name: str, jump_length: int, resamplings: int, callback: StepCallback | None = None) -> Tensor:
    source = generator(0, "test")

    def noise(_: int = 0) -> Tensor:
        return torch.randn(N, 2, generator=source, dtype=torch.float64)

    known = torch.tensor([KNOWN, math.nan], dtype=torch.float64)  # what is below the mask must not matter
    if name == "fill":
        return fill(velocity, noise(), STEPS, noise, known, MASK, jump_length, resamplings, callback)
    numbers = (jump_length, resamplings)
    return repaint(epsilon, SCHEDULE, noise(), STEPS, noise, known, MASK, *numbers, callback=callback)


@pytest.mark.parametrize("name", ["repaint", "fill"])
@pytest.mark.parametrize(("jump_length", "resamplings"), [(5, 1), (5, 5), (2, 10)])
def test_completions_have_the_mean_and_variance_that_the_algorithm_must_give(
    name: str, jump_length: int, resamplings: int
) -> None:
    expected: Callable[[int, int], tuple[float, float]] = {"repaint": repainted, "fill": filled}[name]
    mean, variance = expected(jump_length, resamplings)
    x = draw(name, jump_length, resamplings)
    assert (x[:, 0] == KNOWN).all()
    # four standard errors of a mean and of a variance of N Gaussian draws
    assert abs(float(x[:, 1].mean()) - mean) < 4 * math.sqrt(variance / N)
    assert abs(float(x[:, 1].var()) - variance) < 4 * variance * math.sqrt(2 / N)


@pytest.mark.parametrize("name", ["repaint", "fill"])
def test_on_the_way_known_pixels_are_those_of_the_forward_process(name: str) -> None:
    seen: list[int] = []

    def check(t: int, x: Tensor) -> None:
        if name == "fill":
            alpha, sigma = 1 - (t + 1) / STEPS, (t + 1) / STEPS
        else:
            alpha_bar = 1.0 if t < 0 else math.exp(SCHEDULE.log_alphas_cumprod[t])
            alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        # five standard errors: a hundred levels are looked at
        assert abs(float(x[:, 0].mean()) - alpha * KNOWN) <= 5 * sigma / math.sqrt(N) + 1e-12
        assert abs(float(x[:, 0].var()) - sigma**2) <= 5 * sigma**2 * math.sqrt(2 / N) + 1e-12
        seen.append(t)

    draw(name, 5, 2, check)
    assert len(seen) == len(jump_path(STEPS, 5, 2)) - 1
    assert seen[-1] == -1


@pytest.mark.parametrize("expected", [repainted, filled])
def test_resampling_leads_to_the_conditional(expected: Callable[[int, int], tuple[float, float]]) -> None:
    (once, _), (often, _), (long, variance) = (expected(5, n) for n in (1, 5, 40))
    assert MEAN - once > 0.15
    assert MEAN - often < 0.08
    assert abs(MEAN - long) < 0.02
    assert variance == pytest.approx(CONDITIONAL_VARIANCE, rel=0.25)


def published_path(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """The times of the paper's appendix, counted down to -1, the clean image."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamplings - 1)
    t, times = steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize("numbers", [(250, 10, 10), (50, 5, 5), (7, 2, 3), (6, 5, 2), (4, 1, 3), (3, 9, 1)])
def test_the_path_is_that_of_the_paper(numbers: tuple[int, int, int]) -> None:
    steps, jump_length, _ = numbers
    times = [steps - 1 - i for i in jump_path(*numbers)]
    single = [times[0]]
    for t, t_next in pairwise(times):  # a jump in one leap is as many single steps up
        single += range(t + 1, t_next + 1) if t_next > t else [t_next]
        assert t_next in {t - 1, t + jump_length}
    assert single == published_path(*numbers)


def test_the_paper_takes_2410_calls_and_the_defaults_230() -> None:
    for numbers, calls in (((250, 10, 10), 2410), ((50, 5, 5), 230)):
        assert sum(j > i for i, j in pairwise(jump_path(*numbers))) == calls


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 5, 5), "must be 1 or more, not 0, 5, 5"),
        ((9, 0, 5), "must be 1 or more"),
        ((9, 5, 0), "must be 1 or more"),
        ((5, 5, 2), "a jump of 5 steps needs more than 5 steps, not 5"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jump_path(*numbers)


@pytest.fixture(params=["ddpm", "flow"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
    common = {"network": "tiny", "image_size": 16, "conditional": True, "num_classes": 10}
    if request.param == "flow":
        return FlowConfig(**common)
    return DDPMConfig(timesteps=20, features_t=3, prediction="v", **common)


def test_a_completion_keeps_what_is_known_and_depends_on_its_own_generator_and_class(config: Config) -> None:
    method = build(config).eval()
    assert isinstance(method, CanInpaint)
    for parameter in method.parameters():  # untrained, its blocks are the identity and its output 0
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(1, "test"))
    images = torch.rand(3, 3, 16, 16, generator=generator(2, "test")) * 2 - 1
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 3:9] = True
    labels = torch.tensor([3, 7, 3])

    def complete(rows: slice, below: float = 0.0, classes: Tensor = labels) -> Tensor:
        chosen = torch.where(mask, torch.full_like(images, below), images)[rows]
        noise = generators(0, "eval", range(3)[rows])
        with torch.no_grad():
            return method.inpaint(
                chosen, mask, noise, steps=6, jump_length=2, resamplings=2, labels=classes[rows], guidance=0.5
            )

    three, last = complete(slice(0, 3)), complete(slice(2, 3), below=0.9)
    assert torch.equal(three[..., ~mask], images[..., ~mask])
    torch.testing.assert_close(three[2:], last, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        complete(slice(2, 3), classes=labels.roll(1))[..., mask], last[..., mask], atol=1e-3
    )
    assert not torch.allclose(three[0][..., mask], three[2][..., mask], atol=1e-2)
    with pytest.raises(ValueError, match="from 0 to 9"):
        complete(slice(0, 3), classes=labels + 10)


def test_it_takes_no_more_steps_than_there_are_times() -> None:
    small = build(DDPMConfig(network="tiny", timesteps=20, features_t=3))
    assert isinstance(small, CanInpaint)
    assert small.inpaint_steps == 20
    with pytest.raises(ValueError, match="from 1 to 20"):
        small.inpaint(torch.zeros(1, 3, 32, 32), torch.ones(32, 32, dtype=torch.bool), steps=21)
