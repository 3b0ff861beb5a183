"""Fast samplers: from noise to images in a few network calls, and from images to noise.

All take (model, schedule, x, steps) first. They visit `steps` of the schedule's times, one network call
each, from `t_start` (T - 1 when not given) to the clean image; x is (B, ...) at time t_start. `clip` keeps
every predicted x_0 in [-1, 1]. `keep` is told (time, x) after each step, time -1 for the clean image;
nothing is kept otherwise. All raise ValueError when the steps or t_start do not fit the schedule.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from genssl.models.diffusion import Keep, Noise, NoisePredictor, NoiseSchedule, Variance, check_start

CLEAN = -1  # the time of the clean image, one before t = 0


@dataclass(frozen=True)
class Level:
    """One noise level, x_t = alpha x_0 + sigma epsilon, in float64 on the host.

    Attributes:
        t: its time; CLEAN is the image itself.
        log_kept: log alpha-bar.
    """

    t: int
    log_kept: float

    @property
    def alpha(self) -> float:
        """The share of the image, sqrt(alpha-bar)."""
        return math.exp(0.5 * self.log_kept)

    @property
    def variance(self) -> float:
        """Of the noise, sigma^2 = 1 - alpha-bar."""
        return -math.expm1(self.log_kept)

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise."""
        return math.sqrt(self.variance)

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return math.inf if self.t == CLEAN else 0.5 * (self.log_kept - math.log(self.variance))


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
    keep: Keep | None = None,
) -> Tensor:
    """Song et al. 2021 (DDIM), equation 12: deterministic with eta = 0, ancestral with eta = 1.

    Args:
        model, schedule, x, steps, t_start, clip, keep: see the module.
        noise: t -> standard normal (B, ...), needed when eta > 0; not asked for the last step.
        eta: the standard deviation of a step's fresh noise, as a share of the posterior's.
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds noise at each step: give it")
    for now, after in pairwise(_levels(schedule, quadratic_times(check_start(schedule, t_start), steps))):
        x_start, epsilon = _predict(model, x, now, clip)
        fresh = eta * math.sqrt(posterior_variance(now, after))
        x = after.alpha * x_start + math.sqrt(max(after.variance - fresh**2, 0.0)) * epsilon
        if noise is not None and fresh > 0:
            x = x + fresh * noise(now.t)
        _tell(keep, after, x)
    return x


def ddim_invert(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_end: int | None = None,
    *,
    keep: Keep | None = None,
) -> Tensor:
    """Run `ddim` (eta = 0) backwards: the noise that it would make the clean images x (B, ...) from.

    Each step takes epsilon where it starts and not, as `ddim` did, where it ends: the two maps undo each
    other up to an error that falls in proportion to 1 / steps.

    Args:
        model, schedule, x, steps, keep: see the module.
        t_end: the time to reach, T - 1 when not given.
    """
    levels = list(_levels(schedule, quadratic_times(check_start(schedule, t_end), steps)))[::-1]
    for now, after in pairwise(levels):
        epsilon = model(x, _times(x, max(now.t, 0)))  # the network knows no time before 0
        x = after.alpha * (x - now.sigma * epsilon) / now.alpha + after.sigma * epsilon
        _tell(keep, after, x)
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
    keep: Keep | None = None,
) -> Tensor:
    """Ho et al. 2020, algorithm 2; with fewer steps than times, on the process that visits only those.

    Args:
        model, schedule, x, steps, t_start, clip, keep: see the module.
        noise: t -> standard normal (B, ...); not asked for the last step, which takes the mode.
        variance: of a step: "posterior", or "large", all the variance that the forward step added.
    """
    if noise is None:
        raise ValueError("ancestral sampling adds noise at each step: give it")
    for now, after in pairwise(_levels(schedule, quadratic_times(check_start(schedule, t_start), steps))):
        x_start, _ = _predict(model, x, now, clip)
        x = _posterior_mean(x_start, x, now, after)
        if after.t != CLEAN:
            large = variance == "large"
            added = forward_variance(now, after) if large else posterior_variance(now, after)
            x = x + math.sqrt(added) * noise(now.t)
        _tell(keep, after, x)
    return x


def dpm_solver_pp(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    *,
    clip: bool = False,
    keep: Keep | None = None,
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order, multistep, deterministic.

    It solves the same ordinary differential equation as `ddim` with eta = 0, and is close to the solution
    after 10 to 20 steps. The step to the clean image is of first order: lambda is infinite there.
    """
    levels = _levels(schedule, log_snr_times(schedule, check_start(schedule, t_start), steps))
    before: Level | None = None
    x_before = x
    for now, after in pairwise(levels):
        x_start, _ = _predict(model, x, now, clip)
        target = x_start
        if before is not None and after.t != CLEAN:
            ratio = (after.log_snr - now.log_snr) / (now.log_snr - before.log_snr)
            target = x_start + 0.5 * ratio * (x_start - x_before)
        # exp(-(lambda_after - lambda_now)) = (sigma_after / alpha_after) (alpha_now / sigma_now)
        kept = after.sigma / now.sigma
        x = kept * x + (after.alpha - kept * now.alpha) * target
        before, x_before = now, x_start
        _tell(keep, after, x)
    return x


def forward_variance(now: Level, after: Level) -> float:
    """Variance that the forward process adds from `after` to the noisier `now`: beta, for neighbours."""
    return -math.expm1(now.log_kept - after.log_kept)


def posterior_variance(now: Level, after: Level) -> float:
    """Of q(x_after | x_now, x_0) (Ho et al. 2020, equation 7); 0 for the clean image."""
    return forward_variance(now, after) * after.variance / now.variance


def _posterior_mean(x_start: Tensor, x: Tensor, now: Level, after: Level) -> Tensor:
    from_start = after.alpha * forward_variance(now, after) / now.variance
    from_x = now.alpha / after.alpha * after.variance / now.variance
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


def _predict(model: NoisePredictor, x: Tensor, now: Level, clip: bool) -> tuple[Tensor, Tensor]:
    """(x_0, epsilon), which always make up x: epsilon follows x_0 when that is clipped."""
    epsilon = model(x, _times(x, now.t))
    x_start = (x - now.sigma * epsilon) / now.alpha
    if clip:
        x_start = x_start.clamp(-1, 1)
        epsilon = (x - now.alpha * x_start) / now.sigma
    return x_start, epsilon


def _tell(keep: Keep | None, level: Level, x: Tensor) -> None:
    if keep is not None:
        keep(level.t, x)
