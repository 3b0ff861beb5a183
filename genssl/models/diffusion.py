"""The diffusion process of Ho et al. 2020 (DDPM): schedules, forward process, reverse process, loss.

Time is zero-based: t = 0 is the paper's t = 1, and alpha-bar "before" t = 0 is 1. A model is any callable
(x (B, ...), t (B,) int64) -> the noise epsilon that it finds in x, shape of x.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from genssl.runtime import Randomness, to_float64, uniform

NoisePredictor = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]  # standard normal noise for the step that leaves time t, shape of x
# Called after each step of a sampler with the time (-1: the clean image) and x
StepCallback = Callable[[int, Tensor], None]
Loss = Literal["smooth_l1", "mse"]
Variance = Literal["posterior", "large"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The coefficients of the process, each (T,) float32, computed in float64.

    x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) epsilon (Ho et al. 2020, equation 4).

    Attributes:
        betas: variance that step t adds.
        alphas: 1 - beta.
        sqrt_recip_alphas: 1 / sqrt(alpha).
        alphas_cumprod: alpha-bar_t, the product of the alphas up to and including t.
        sqrt_alphas_cumprod: how much of the image is left in x_t.
        sqrt_one_minus_alphas_cumprod: standard deviation of the noise in x_t.
        alphas_cumprod_prev: alpha-bar_{t-1}; 1 at t = 0.
        posterior_variance: of q(x_{t-1} | x_t, x_0), equation 7; 0 at t = 0.
    """

    betas: Tensor
    alphas: Tensor
    sqrt_recip_alphas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    posterior_variance: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor) -> Self:
        """Every coefficient from the betas (T,); a ValueError unless there are some, all in (0, 1)."""
        betas = to_float64(betas)
        if not (len(betas) and bool(((betas > 0) & (betas < 1)).all())):
            raise ValueError(f"betas must be one or more, between 0 and 1, not {betas[:1].tolist()} ...")
        # alpha-bar in logarithms: 1 - alpha-bar near t = 0 would be a difference of nearly equal numbers
        log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
        alphas_cumprod = log_alphas_cumprod.exp()
        one_minus = -torch.expm1(log_alphas_cumprod)  # 1 - alpha-bar_t
        one_minus_prev = torch.cat([torch.zeros_like(one_minus[:1]), one_minus[:-1]])  # 1 - alpha-bar_{t-1}
        coefficients = {
            "betas": betas,
            "alphas": 1 - betas,
            "sqrt_recip_alphas": (1 - betas).rsqrt(),
            "alphas_cumprod": alphas_cumprod,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": one_minus.sqrt(),
            "alphas_cumprod_prev": 1 - one_minus_prev,
            # Equation 7: beta-tilde_t = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t
            "posterior_variance": betas * one_minus_prev / one_minus,
        }
        return cls(**{name: values.float() for name, values in coefficients.items()})

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio alpha-bar / (1 - alpha-bar) at each t, (T,)."""
        return (self.sqrt_alphas_cumprod / self.sqrt_one_minus_alphas_cumprod).square()

    @cached_property
    def log_alphas_cumprod(self) -> list[float]:
        """log alpha-bar at each t in float64 on the host, for samplers that leap from one t to another.

        The share of signal that is lost between two near times, 1 - alpha-bar_t / alpha-bar_s, would
        keep three digits when taken from float32 products.
        """
        betas, alphas = self.betas.cpu().double(), self.alphas.cpu().double()
        # From whichever of beta and alpha has more digits in float32
        log_alphas = torch.where(betas < 0.5, torch.log1p(-betas), alphas.log())
        log_alphas_cumprod: list[float] = log_alphas.cumsum(0).tolist()
        return log_alphas_cumprod

    def to(self, device: torch.device | str) -> Self:
        """The same schedule on another device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


def linear_schedule(
    timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, *, scaled: bool = False
) -> NoiseSchedule:
    """Betas on a straight line from `beta_start` to `beta_end` (Ho et al. 2020, section 4).

    Args:
        timesteps: T.
        beta_start: of t = 0.
        beta_end: of t = T - 1.
        scaled: multiply the betas by 1000 / T, so that the end is equally noisy for every T.
    """
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    return NoiseSchedule.from_betas(betas * (1000 / timesteps) if scaled else betas)


def cosine_schedule(timesteps: int, s: float = 0.008) -> NoiseSchedule:
    """alpha-bar(t) = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2), betas at most 0.999.

    Nichol & Dhariwal 2021, equation 17.
    """
    time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    alphas_cumprod = ((time + s) / (1 + s) * math.pi / 2).cos().square()
    # The last beta would be 1: nothing of x_{T-1} would be left, and no reverse step from it is defined
    return NoiseSchedule.from_betas((1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999))


def extract(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """values (T,) at t (B,), shaped (B, 1, ...) to multiply x (B, ...)."""
    return values[t].view(-1, *[1] * (x.ndim - 1))


def q_sample(schedule: NoiseSchedule, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Noise clean images: a sample of q(x_t | x_0) (equation 4).

    Args:
        schedule: of T steps.
        x_start: x_0, (B, ...).
        t: (B,) int64 in [0, T).
        noise: standard normal, (B, ...).
    """
    signal = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    return signal * x_start + extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start) * noise


def predict_x_start(schedule: NoiseSchedule, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
    """Solve equation 4 for x_0, given x_t (B, ...) and the noise in it."""
    noise = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x) * epsilon
    return (x - noise) / extract(schedule.sqrt_alphas_cumprod, t, x)


def p_sample(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    variance: Variance = "posterior",
    clip: bool = False,
) -> Tensor:
    """One reverse step, a sample of p(x_{t-1} | x_t) (algorithm 2); its mode where t = 0.

    Args:
        model: finds the noise.
        schedule, t, noise: as for `q_sample`.
        x: x_t, (B, ...).
        variance: "posterior", that of q(x_{t-1} | x_t, x_0), or "large", beta_t (section 3.2).
        clip: keep the predicted x_0 in [-1, 1].
    """
    epsilon = model(x, t)
    beta, std = extract(schedule.betas, t, x), extract(schedule.sqrt_one_minus_alphas_cumprod, t, x)
    if clip:
        signal = extract(schedule.sqrt_alphas_cumprod, t, x)
        epsilon = (x - signal * predict_x_start(schedule, x, t, epsilon).clamp(-1, 1)) / std
    mean = extract(schedule.sqrt_recip_alphas, t, x) * (x - beta / std * epsilon)  # equation 11
    # Section 3.2: beta_t is optimal for x_0 ~ N(0, I), the posterior variance for a single point x_0
    variances = schedule.betas if variance == "large" else schedule.posterior_variance
    is_not_last = (t > 0).view(-1, *[1] * (x.ndim - 1))  # at t = 0 the mode is returned
    return mean + is_not_last * extract(variances, t, x).sqrt() * noise


def p_sample_loop(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    t_start: int | None = None,
    *,
    variance: Variance = "posterior",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Every reverse step from `t_start` to 0 (algorithm 2), t_start + 1 network calls.

    Args:
        model, schedule, variance, clip: as for `p_sample`.
        x: (B, ...) at time t_start.
        noise: t -> standard normal (B, ...); not asked at t = 0, where the mode is taken.
        t_start: T - 1 when not given.
        callback: called with (t - 1, x_{t-1}) after each step; t - 1 = -1 is the clean image.

    Raises:
        ValueError: t_start is not in [0, T).
    """
    for t in reversed(range(check_start(schedule, t_start) + 1)):
        times = torch.full((len(x),), t, device=x.device)
        z = noise(t) if t > 0 else torch.zeros_like(x)
        x = p_sample(model, schedule, x, times, z, variance=variance, clip=clip)
        if callback is not None:
            callback(t - 1, x)
    return x


def check_start(schedule: NoiseSchedule, t_start: int | None) -> int:
    """The time to start from, T - 1 when not given; a ValueError when it is not in [0, T)."""
    last = schedule.timesteps - 1
    if t_start is not None and not 0 <= t_start <= last:
        raise ValueError(f"t_start must be from 0 to {last}, not {t_start}")
    return last if t_start is None else t_start


def t_sample(timesteps: int, n: int, generator: Randomness = None) -> Tensor:
    """Times drawn uniformly from 0 .. T - 1, (n,) int64."""
    # A float32 just below 1 times T may round up to T
    return (uniform((n,), generator) * timesteps).long().clamp(max=timesteps - 1)


def p_losses(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    loss: Loss = "smooth_l1",
) -> Tensor:
    """The simplified objective (equation 14), a scalar: the mean over images and dimensions."""
    return p_losses_per_image(model, schedule, x_start, t, noise, loss).mean()


def p_losses_per_image(
    model: NoisePredictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    loss: Loss = "smooth_l1",
) -> Tensor:
    """How far the model's epsilon is from the true one, the mean over dimensions: (B,) float32.

    Args:
        model: finds the noise.
        schedule, x_start, t, noise: as for `q_sample`.
        loss: "mse", or "smooth_l1": half the square up to 1 and the absolute value less 1/2 beyond.
    """
    # In float32 even under bf16 autocast: the loss is a mean over small differences
    error = (model(q_sample(schedule, x_start, t, noise), t).float() - noise).flatten(1)
    if loss == "mse":
        return error.square().mean(1)
    size = error.abs()
    return torch.where(size < 1, 0.5 * size.square(), size - 0.5).mean(1)
