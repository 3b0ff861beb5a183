"""The times that a sampler visits, and the noise levels there.

A sampler with fewer steps than the schedule has times leaves most of them out; which ones remain decides how
far it is from what it would make with all of them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genssl.models.diffusion import NoiseSchedule

CLEAN = -1  # the time of the clean image, one before t = 0
Spacing = Literal["karras", "log-snr", "quadratic", "uniform"]
RHO = 7  # Karras et al. 2022, table 1
# Bound on lambda = log(alpha / sigma), where sigma is 164 times alpha: about where the linear schedule of
# 1,000 times ends (157). DPM-Solver's authors advise it for the cosine schedule, which ends with 20,000
# times, and start there; here the first step leads to the time that follows it
LEAST_LOG_SNR = -5.1


@dataclass(frozen=True)
class Level:
    """One noise level, x_t = alpha x_0 + sigma epsilon, in float64 on the host.

    Attributes:
        t: its time; CLEAN is the image itself.
        log_alpha_bar: log alpha-bar.

    Examples:
        >>> level = Level(t=0, log_alpha_bar=math.log(0.64))
        >>> round(level.alpha, 3), round(level.sigma, 3)
        (0.8, 0.6)
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


def sampling_levels(schedule: NoiseSchedule, t_start: int, steps: int, spacing: Spacing) -> list[Level]:
    """The levels of `steps` times of the schedule, falling from t_start to 0, and that of the clean image.

    Args:
        schedule: of T times.
        t_start: the first time, from 0 to T - 1.
        steps: number of times, from 1 to t_start + 1.
        spacing: "karras" (`karras_times`), "log-snr" (`log_snr_times`), "quadratic" (`quadratic_times`) or
            "uniform", evenly spaced in t.

    Raises:
        ValueError: steps that do not fit t_start, or another spacing.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> [level.t for level in sampling_levels(linear_schedule(), t_start=999, steps=4, spacing="uniform")]
        [999, 666, 333, 0, -1]
    """
    match spacing:
        case "karras":
            times = karras_times(schedule, t_start, steps)
        case "log-snr":
            times = log_snr_times(schedule, t_start, steps)
        case "quadratic":
            times = quadratic_times(t_start, steps)
        case "uniform":
            _check_steps(t_start, steps)
            times = _distinct([round(t_start * share) for share in _falling(steps)])
        case _:
            raise ValueError(f"unknown spacing {spacing!r}; use karras, log-snr, quadratic or uniform")
    return [level_at(schedule, t) for t in [*times, CLEAN]]


def level_at(schedule: NoiseSchedule, t: int) -> Level:
    """The level of a time of the schedule, or of the clean image.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> level_at(linear_schedule(), CLEAN).alpha, round(level_at(linear_schedule(), 999).alpha, 4)
        (1.0, 0.0064)
    """
    return Level(t, 0.0 if t == CLEAN else schedule.log_alphas_cumprod[t])


def karras_times(schedule: NoiseSchedule, t_start: int, steps: int) -> list[int]:
    """`steps` times from t_start down to 0 (of one step t_start), evenly spaced in (sigma / alpha)^(1 / 7).

    Karras et al. 2022, equation 5. Compared with even steps in lambda, more of them are where there is much
    noise, and fewer where there is little. A start beyond LEAST_LOG_SNR counts as if it were there, so that
    few steps are spent on nothing but noise: of 20 even steps in lambda, nine are at t > 980 of the cosine
    schedule's 1,000 times.

    Examples:
        >>> from genssl.models.diffusion import cosine_schedule
        >>> schedule = cosine_schedule(1000)
        >>> karras_times(schedule, t_start=999, steps=6)
        [999, 986, 949, 727, 128, 0]
        >>> log_snr_times(schedule, t_start=999, steps=6)
        [999, 998, 986, 760, 73, 0]
    """
    _check_steps(t_start, steps)
    lambdas = _log_snrs(schedule, t_start)
    last = float(lambdas[0])
    first = min(max(float(lambdas[-1]), LEAST_LOG_SNR), last)
    # sigma / alpha = e^-lambda
    roots = torch.linspace(math.exp(-first / RHO), math.exp(-last / RHO), steps, dtype=torch.float64)
    return [t_start, *_nearest(-RHO * roots.log(), lambdas)[1:]]


def log_snr_times(schedule: NoiseSchedule, t_start: int, steps: int) -> list[int]:
    """`steps` times from t_start down to 0 (of one step t_start), evenly spaced in lambda.

    Lu et al. 2022, section 6.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> times = log_snr_times(linear_schedule(), t_start=999, steps=4)
        >>> len(times), times[0], times[-1]
        (4, 999, 0)
    """
    _check_steps(t_start, steps)
    lambdas = _log_snrs(schedule, t_start)
    if lambdas[-1] == -math.inf:  # pure noise: a time by itself, and even steps from the next to 0
        if steps <= 2:
            return [t_start, 0][:steps]
        return [t_start, *log_snr_times(schedule, t_start - 1, steps - 1)]
    return _nearest(
        torch.linspace(float(lambdas[-1]), float(lambdas[0]), steps, dtype=torch.float64), lambdas
    )


def quadratic_times(t_start: int, steps: int) -> list[int]:
    """`steps` times from t_start down to 0, evenly spaced in their square roots.

    Song et al. 2021, appendix D.2. For Gaussian data, where the right answer is known, it brings `ddim`
    and `ancestral` closer to it than even steps in t or in lambda, at 10 to 100 steps.

    Examples:
        >>> quadratic_times(t_start=999, steps=4)
        [999, 444, 111, 0]
    """
    _check_steps(t_start, steps)
    return _distinct([round(t_start * share**2) for share in _falling(steps)])


def _falling(steps: int) -> list[float]:
    return [1 - i / max(steps - 1, 1) for i in range(steps)]


def _log_snrs(schedule: NoiseSchedule, t_start: int) -> Tensor:
    """lambda at the times 0 to t_start, falling, float64."""
    values = [level_at(schedule, t).log_snr for t in range(t_start + 1)]
    return torch.tensor(values, dtype=torch.float64)


def _nearest(wanted: Tensor, lambdas: Tensor) -> list[int]:
    """The times whose lambda is nearest to each of `wanted`, which rises."""
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
