"""Fast samplers: from noise to images in a few network calls, and from images to noise.

All take (model, schedule, x, steps) first. They visit `steps` of the schedule's times, one network call
each, from `t_start` (T - 1 when not given) to the clean image; x is (B, ...) at time t_start. `clip` keeps
every predicted x_0 in [-1, 1]. `callback` is called with (time, x) after each step, time -1 for the clean
image. All raise ValueError when the steps or t_start do not fit the schedule.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from genssl.models.diffusion import Noise, NoisePredictor, NoiseSchedule, StepCallback, Variance, check_start

CLEAN = -1  # the time of the clean image, one before t = 0


@dataclass(frozen=True)
class Level:
    """One noise level, x_t = alpha x_0 + sigma epsilon, in float64 on the host.

    Attributes:
        t: its time; CLEAN is the image itself.
        log_alpha_bar: log alpha-bar.
    """

    t: int
    log_alpha_bar: float

    @property
    def alpha(self) -> float:
        """The share of the image, sqrt(alpha-bar)."""
        return math.exp(0.5 * self.log_alpha_bar)

    @property
    def variance(self) -> float:
        """Of the noise, sigma^2 = 1 - alpha-bar."""
        return -math.expm1(self.log_alpha_bar)

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise."""
        return math.sqrt(self.variance)

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return math.inf if self.t == CLEAN else 0.5 * (self.log_alpha_bar - math.log(self.variance))


def ddim(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    noise: Noise | None = None,
    eta: float = 0.0,
    *,
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Song et al. 2021 (DDIM), equation 12: deterministic with eta = 0, ancestral with eta = 1.

    Args:
        model, schedule, x, steps, t_start, clip, callback: see the module.
        noise: t -> standard normal (B, ...), needed when eta > 0; not asked for the last step.
        eta: the standard deviation of the noise that a step adds, as a share of the posterior's.
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds noise at each step: give it")
    levels = _levels(schedule, quadratic_times(check_start(schedule, t_start), steps))
    for level, level_next in pairwise(levels):
        # "Predicted x_0", "direction pointing to x_t" and "random noise" of equation 12; the variance of the
        # last two is that of the next level, whatever eta is
        x_start, epsilon = _predict(model, x, level, clip)
        sigma_added = eta * math.sqrt(posterior_variance(level, level_next))
        x = level_next.alpha * x_start + math.sqrt(max(level_next.variance - sigma_added**2, 0.0)) * epsilon
        if noise is not None and sigma_added > 0:
            x = x + sigma_added * noise(level.t)
        _report(callback, level_next, x)
    return x


def ddim_invert(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_end: int | None = None,
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """Run `ddim` (eta = 0) backwards: the noise that it would make the clean images x (B, ...) from.

    Each step takes epsilon where it starts and not, as `ddim` did, where it ends: the two maps undo each
    other up to an error that falls in proportion to 1 / steps.

    Args:
        model, schedule, x, steps, callback: see the module.
        t_end: the time to reach, T - 1 when not given.
    """
    levels = list(_levels(schedule, quadratic_times(check_start(schedule, t_end), steps)))[::-1]
    for level, level_next in pairwise(levels):
        # The network was trained on t >= 0: at the clean image it is asked at t = 0
        epsilon = model(x, _times(x, max(level.t, 0)))
        x = level_next.alpha * (x - level.sigma * epsilon) / level.alpha + level_next.sigma * epsilon
        _report(callback, level_next, x)
    return x


def ancestral(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    noise: Noise | None = None,
    variance: Variance = "posterior",
    *,
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Ho et al. 2020, algorithm 2; with fewer steps than times, on the process that visits only those.

    Args:
        model, schedule, x, steps, t_start, clip, callback: see the module.
        noise: t -> standard normal (B, ...); not asked for the last step, which takes the mode.
        variance: of a step: "posterior", or "large", all the variance that the forward step added.
    """
    if noise is None:
        raise ValueError("ancestral sampling adds noise at each step: give it")
    levels = _levels(schedule, quadratic_times(check_start(schedule, t_start), steps))
    for level, level_next in pairwise(levels):
        x_start, _ = _predict(model, x, level, clip)
        x = _posterior_mean(x_start, x, level, level_next)
        if level_next.t != CLEAN:
            large = variance == "large"
            added = forward_variance(level, level_next) if large else posterior_variance(level, level_next)
            x = x + math.sqrt(added) * noise(level.t)
        _report(callback, level_next, x)
    return x


def dpm_solver_pp(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    *,
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order, multistep, deterministic.

    It solves the same ordinary differential equation as `ddim` with eta = 0, and is close to the solution
    after 10 to 20 steps. The step to the clean image is of first order: lambda is infinite there.
    """
    levels = _levels(schedule, log_snr_times(schedule, check_start(schedule, t_start), steps))
    level_prev: Level | None = None
    x_start_prev = x
    for level, level_next in pairwise(levels):
        x_start, _ = _predict(model, x, level, clip)
        # Second order: x_0 is extrapolated from the last two predictions in lambda = log(alpha / sigma)
        target = x_start
        if level_prev is not None and level_next.t != CLEAN:
            ratio = (level_next.log_snr - level.log_snr) / (level.log_snr - level_prev.log_snr)
            target = x_start + 0.5 * ratio * (x_start - x_start_prev)
        # Equation 9 with h = lambda_next - lambda: x_next = (sigma_next / sigma) x - alpha_next (e^-h - 1) D.
        # e^-h = (sigma_next / alpha_next) (alpha / sigma), which turns the factor of D into the one below
        sigma_ratio = level_next.sigma / level.sigma
        x = sigma_ratio * x + (level_next.alpha - sigma_ratio * level.alpha) * target
        level_prev, x_start_prev = level, x_start
        _report(callback, level_next, x)
    return x


def forward_variance(level: Level, level_next: Level) -> float:
    """Variance that the forward process adds from `level_next` to the noisier `level`; beta for neighbors."""
    # expm1 keeps the digits that 1 - alpha_bar / alpha_bar_next loses between two near times
    return -math.expm1(level.log_alpha_bar - level_next.log_alpha_bar)


def posterior_variance(level: Level, level_next: Level) -> float:
    """Of q(x_next | x, x_0) (Ho et al. 2020, equation 7); 0 for the clean image."""
    return forward_variance(level, level_next) * level_next.variance / level.variance


def _posterior_mean(x_start: Tensor, x: Tensor, level: Level, level_next: Level) -> Tensor:
    # Ho et al. 2020, equation 7, for two levels that need not be neighbors
    from_start = level_next.alpha * forward_variance(level, level_next) / level.variance
    from_x = level.alpha / level_next.alpha * level_next.variance / level.variance
    return from_start * x_start + from_x * x


def quadratic_times(t_start: int, steps: int) -> list[int]:
    """`steps` times from t_start down to 0, evenly spaced in their square roots.

    Song et al. 2021, appendix D.2. For Gaussian data, where the right answer is known, it brings `ddim`
    and `ancestral` closer to it than even steps in t or in lambda, at 10 to 100 steps.
    """
    _check_steps(t_start, steps)
    shares = [1 - i / max(steps - 1, 1) for i in range(steps)]
    return _distinct([round(t_start * share**2) for share in shares])


def log_snr_times(schedule: NoiseSchedule, t_start: int, steps: int) -> list[int]:
    """`steps` times from t_start down to 0, evenly spaced in lambda (Lu et al. 2022, section 6)."""
    _check_steps(t_start, steps)
    levels = [_level(schedule, t).log_snr for t in range(t_start + 1)]
    lambdas = torch.tensor(levels, dtype=torch.float64)  # falling
    wanted = torch.linspace(levels[-1], levels[0], steps, dtype=torch.float64)
    return _distinct((wanted[:, None] - lambdas).abs().argmin(1).tolist())


def _distinct(wanted: list[int]) -> list[int]:
    """The falling times with repeated ones moved: each once, and enough left for the steps to come."""
    times: list[int] = []
    for left, t in zip(reversed(range(len(wanted))), wanted, strict=True):
        times.append(max(min(t, times[-1] - 1), left) if times else t)
    return times


def _check_steps(t_start: int, steps: int) -> None:
    if not 1 <= steps <= t_start + 1:
        raise ValueError(f"steps must be from 1 to {t_start + 1} from t = {t_start}, not {steps}")


def _level(schedule: NoiseSchedule, t: int) -> Level:
    return Level(t, 0.0 if t == CLEAN else schedule.log_alphas_cumprod[t])


def _levels(schedule: NoiseSchedule, times: list[int]) -> Iterator[Level]:
    return (_level(schedule, t) for t in [*times, CLEAN])


def _times(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _predict(model: NoisePredictor, x: Tensor, level: Level, clip: bool) -> tuple[Tensor, Tensor]:
    """(x_0, epsilon), which always make up x: epsilon follows x_0 when that is clipped."""
    epsilon = model(x, _times(x, level.t))
    x_start = (x - level.sigma * epsilon) / level.alpha
    # Clipping x_0 alone would leave an epsilon that belongs to another image
    if clip:
        x_start = x_start.clamp(-1, 1)
        epsilon = (x - level.alpha * x_start) / level.sigma
    return x_start, epsilon


def _report(callback: StepCallback | None, level: Level, x: Tensor) -> None:
    if callback is not None:
        callback(level.t, x)
