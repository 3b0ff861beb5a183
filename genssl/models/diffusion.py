"""The diffusion process of Ho et al. 2020 (DDPM): schedules, forward process, reverse process, loss.

Time is zero-based: t = 0 is the paper's t = 1, and alpha-bar "before" t = 0 is 1. A model is any callable
(x (B, ...), t (B,) int64) -> its prediction, shape of x: by default the noise epsilon in x, or what
`prediction` names, see `x_start_and_epsilon`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from genssl.runtime import Randomness, normal, to_float64, uniform

Predictor = Callable[[Tensor, Tensor], Tensor]  # (x (B, ...), t (B,)) -> prediction (B, ...)
Noise = Callable[[int], Tensor]  # standard normal noise for the step that leaves time t, shape of x
# Called after each step of a sampler with the time (-1: the clean image) and x
StepCallback = Callable[[int, Tensor], None]
Loss = Literal["smooth_l1", "mse"]
Variance = Literal["posterior", "large"]
Prediction = Literal["epsilon", "v", "x"]
Weighting = Literal["simple", "min_snr"]
TimestepSampling = Literal["uniform", "logit_normal"]
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 4.2


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

    Examples:
        >>> schedule = NoiseSchedule.from_betas(torch.tensor([0.5, 0.5]))
        >>> schedule.timesteps, schedule.alphas_cumprod, schedule.alphas_cumprod_prev
        (2, tensor([0.5000, 0.2500]), tensor([1.0000, 0.5000]))
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
        """Every coefficient from the betas (T,); a ValueError unless there are some, all in (0, 1).

        The last one may be 1: then nothing of the image is left at T - 1 (`zero_terminal_snr`).
        """
        betas = to_float64(betas)
        in_range = (betas > 0) & (betas < 1)
        in_range[1:][-1:] |= betas[1:][-1:] == 1
        if not (len(betas) and bool(in_range.all())):
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
        scaled: multiply the betas by 1000 / T, so that the end is equally noisy for every T above
            1000 beta_end; fewer would take the last beta to 1 or beyond.

    Examples:
        >>> linear_schedule(3, 0.25, 0.5).betas.tolist()
        [0.25, 0.375, 0.5]
    """
    # On the CPU also where a network is built without memory, to check a checkpoint: schedules are no weights
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64, device="cpu")
    return NoiseSchedule.from_betas(betas * (1000 / timesteps) if scaled else betas)


def cosine_schedule(timesteps: int, s: float = 0.008) -> NoiseSchedule:
    """alpha-bar(t) = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2), betas at most 0.999.

    Nichol & Dhariwal 2021, equation 17.

    Examples:
        >>> schedule = cosine_schedule(1000)
        >>> [round(schedule.alphas_cumprod[t].item(), 2) for t in (0, 499, 999)]
        [1.0, 0.49, 0.0]
    """
    time = torch.arange(timesteps + 1, dtype=torch.float64, device="cpu") / timesteps
    alphas_cumprod = ((time + s) / (1 + s) * math.pi / 2).cos().square()
    # The last beta would be 1: nothing of x_{T-1} would be left, and no reverse step from it is defined
    return NoiseSchedule.from_betas((1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule shifted and scaled so that x_{T-1} is pure noise (Lin et al. 2024, algorithm 1).

    sqrt(alpha-bar) keeps its first value and ends at 0 exactly. A network that predicts epsilon learns
    nothing about x_0 there: predict v or x.

    Examples:
        >>> schedule = linear_schedule()
        >>> [round(s.sqrt_alphas_cumprod[-1].item(), 4) for s in (schedule, zero_terminal_snr(schedule))]
        [0.0064, 0.0]
    """
    # Common schedules leave a little of the image in x_{T-1}, its mean color above all, and sampling starts
    # from noise that has none: generated images would all be of medium brightness
    roots = torch.tensor(schedule.log_alphas_cumprod, dtype=torch.float64, device="cpu").mul(0.5).exp()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    alphas_cumprod = roots.square()
    before = torch.cat([torch.ones_like(roots[:1]), alphas_cumprod[:-1]])
    return NoiseSchedule.from_betas(1 - alphas_cumprod / before)


def extract(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """values (T,) at t (B,), shaped (B, 1, ...) to multiply x (B, ...).

    Examples:
        >>> extract(torch.tensor([0.5, 0.25]), torch.tensor([1, 0, 1]), torch.zeros(3, 8, 4, 4)).shape
        torch.Size([3, 1, 1, 1])
    """
    return values[t].view(-1, *[1] * (x.ndim - 1))


def q_sample(schedule: NoiseSchedule, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Noise clean images: a sample of q(x_t | x_0) (equation 4).

    Args:
        schedule: of T steps.
        x_start: x_0, (B, ...).
        t: (B,) int64 in [0, T).
        noise: standard normal, (B, ...).

    Examples:
        >>> x_start, t = torch.ones(2, 1), torch.tensor([0, 999])
        >>> x = q_sample(linear_schedule(), x_start, t, noise=torch.zeros(2, 1))
        >>> [round(share, 2) for share in x.flatten().tolist()]  # nearly all of the image, and hardly any
        [1.0, 0.01]
    """
    signal = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    return signal * x_start + extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start) * noise


def predict_x_start(
    schedule: NoiseSchedule, x: Tensor, t: Tensor, output: Tensor, prediction: Prediction = "epsilon"
) -> Tensor:
    """x_0 (equation 4), given x_t (B, ...) and what the model predicts there.

    Examples:
        >>> schedule, t = linear_schedule(), torch.tensor([9, 99])
        >>> x_start, noise = torch.ones(2, 4), torch.randn(2, 4)
        >>> x = q_sample(schedule, x_start, t, noise)
        >>> torch.allclose(predict_x_start(schedule, x, t, noise), x_start, atol=1e-4)
        True
    """
    signal = extract(schedule.sqrt_alphas_cumprod, t, x)
    std = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x)
    return x_start_and_epsilon(prediction, output, x, signal, std)[0]


def x_start_and_epsilon(
    prediction: Prediction, output: Tensor, x: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """(x_0, epsilon) of x = alpha x_0 + sigma epsilon, given a model's output: the only conversion there is.

    Args:
        prediction: what `output` is. "epsilon"; "x", which is x_0; or "v" = alpha epsilon - sigma x_0
            (Salimans & Ho 2022, appendix D), which tells x_0 apart at any noise level, as sigma -> 1 too.
        output: of the model, (B, ...).
        x: the model's input, (B, ...).
        alpha: the share of the image in x, sqrt(alpha-bar).
        sigma: the standard deviation of the noise in x; alpha^2 + sigma^2 = 1.

    Examples:
        >>> alpha, sigma, x_start, epsilon = 0.8, 0.6, torch.tensor([1.0]), torch.tensor([-2.0])
        >>> x, v = alpha * x_start + sigma * epsilon, alpha * epsilon - sigma * x_start
        >>> [round(value.item(), 4) for value in x_start_and_epsilon("v", v, x, alpha, sigma)]
        [1.0, -2.0]
    """
    # With alpha = cos(phi) and sigma = sin(phi), (x, v) is (x_0, epsilon) turned by phi: turn it back
    if prediction == "v":
        return alpha * x - sigma * output, sigma * x + alpha * output
    if prediction == "x":
        return output, (x - alpha * output) / sigma
    return (x - sigma * output) / alpha, output


def p_sample(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    variance: Variance = "posterior",
    clip: bool = False,
) -> Tensor:
    """One reverse step, a sample of p(x_{t-1} | x_t) (algorithm 2); its mode where t = 0.

    In the paper's words, for a model that predicts epsilon. `DDPM.sample` takes `samplers.ancestral`, which
    visits any number of times and takes every prediction.

    Args:
        model: predicts epsilon.
        schedule, t, noise: as for `q_sample`.
        x: x_t, (B, ...).
        variance: "posterior", that of q(x_{t-1} | x_t, x_0), or "large", beta_t (section 3.2).
        clip: keep the predicted x_0 in [-1, 1].

    Examples:
        >>> schedule, t = linear_schedule(), torch.tensor([0])
        >>> x_start, noise = torch.ones(1, 4), torch.randn(1, 4)
        >>> x = q_sample(schedule, x_start, t, noise)
        >>> x_before = p_sample(lambda x, t: noise, schedule, x, t, torch.randn(1, 4))
        >>> torch.allclose(x_before, x_start, atol=1e-4)
        True
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
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    t_start: int | None = None,
    *,
    variance: Variance = "posterior",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Every reverse step from `t_start` to 0 (algorithm 2), t_start + 1 network calls; see `p_sample`.

    Args:
        model, schedule, variance, clip: as for `p_sample`.
        x: (B, ...) at time t_start.
        noise: t -> standard normal (B, ...); not asked at t = 0, where the mode is taken.
        t_start: T - 1 when not given.
        callback: called with (t - 1, x_{t-1}) after each step; t - 1 = -1 is the clean image.

    Raises:
        ValueError: t_start is not in [0, T).

    Examples:
        >>> schedule = linear_schedule(50, scaled=True)
        >>> def model(x, t):  # it has seen one image, of 0.5 everywhere
        ...     alpha, sigma = schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
        ...     return (x - 0.5 * alpha[:, None]) / sigma[:, None]
        >>> x = p_sample_loop(model, schedule, torch.randn(1, 3), noise=lambda t: torch.randn(1, 3))
        >>> [round(value, 2) for value in x[0].tolist()]
        [0.5, 0.5, 0.5]
    """
    for t in reversed(range(check_start(schedule, t_start) + 1)):
        times = torch.full((len(x),), t, device=x.device)
        z = noise(t) if t > 0 else torch.zeros_like(x)
        x = p_sample(model, schedule, x, times, z, variance=variance, clip=clip)
        if callback is not None:
            callback(t - 1, x)
    return x


def check_start(schedule: NoiseSchedule, t_start: int | None) -> int:
    """The time to start from, T - 1 when not given; a ValueError when it is not in [0, T).

    Examples:
        >>> check_start(linear_schedule(1000), None)
        999
    """
    last = schedule.timesteps - 1
    if t_start is not None and not 0 <= t_start <= last:
        raise ValueError(f"t_start must be from 0 to {last}, not {t_start}")
    return last if t_start is None else t_start


def t_sample(
    timesteps: int, n: int, generator: Randomness = None, sampling: TimestepSampling = "uniform"
) -> Tensor:
    """Times drawn from 0 .. T - 1, (n,) int64.

    Uniformly, or "logit_normal": T times the sigmoid of a standard normal number, which prefers the middle
    (Esser et al. 2024, section 3.1).

    Examples:
        >>> t = t_sample(1000, 64)
        >>> t.shape, t.dtype, bool((t < 1000).all())
        (torch.Size([64]), torch.int64, True)
    """
    share = normal((n,), generator).sigmoid() if sampling == "logit_normal" else uniform((n,), generator)
    # A float32 just below 1 times T may round up to T
    return (share * timesteps).long().clamp(max=timesteps - 1)


def probability_of_times(timesteps: int, first: int, end: int, sampling: TimestepSampling) -> float:
    """The probability that `t_sample` draws a time in [first, end).

    Examples:
        >>> [round(probability_of_times(1000, 0, 250, kind), 3) for kind in ("uniform", "logit_normal")]
        [0.25, 0.136]
    """
    if sampling == "uniform":
        return (end - first) / timesteps

    # In plain numbers, which a compiled graph takes as constants
    def below(time: int) -> float:
        share = time / timesteps
        return share if share in {0, 1} else 0.5 * math.erfc(-math.log(share / (1 - share)) / math.sqrt(2))

    return below(end) - below(first)


def loss_weights(snr: Tensor, prediction: Prediction, weighting: Weighting) -> Tensor:
    """The weight of each image's loss, given its signal-to-noise ratio (B,): (B,).

    "simple" weighs the errors of whatever is predicted alike. "min_snr" weighs errors of x_0 by
    min(SNR, 5) (Hang et al. 2023, equation 6): a squared error of epsilon is SNR times as large, and one of
    v SNR + 1 times, so their weights are divided by that. Pure noise (SNR = 0) keeps the weight 1: sampling
    begins there.

    Examples:
        >>> loss_weights(torch.tensor([1.0, 10.0, 100.0]), "epsilon", "min_snr")
        tensor([1.0000, 0.5000, 0.0500])
    """
    if weighting == "simple":
        return torch.ones_like(snr)
    # Weighing x_0 by the full SNR is "simple" for epsilon: nearly clean images would count for all, though
    # there is little to learn from them
    weights = torch.where(snr > 0, snr.clamp(max=MIN_SNR_GAMMA), 1.0)
    match prediction:
        case "epsilon":
            return weights / snr
        case "v":
            return weights / (snr + 1)
    return weights


def p_losses(
    model: Predictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    loss: Loss = "smooth_l1",
    *,
    prediction: Prediction = "epsilon",
    weighting: Weighting = "simple",
) -> Tensor:
    """The simplified objective (equation 14), a scalar: the mean over images and dimensions.

    Examples:
        >>> schedule, t = linear_schedule(), torch.tensor([9, 99])
        >>> x_start, noise = torch.ones(2, 4), torch.randn(2, 4)
        >>> models = (lambda x, t: noise, lambda x, t: noise + 2)
        >>> [round(float(p_losses(model, schedule, x_start, t, noise, "mse")), 3) for model in models]
        [0.0, 4.0]
    """
    return p_losses_per_image(
        model, schedule, x_start, t, noise, loss, prediction=prediction, weighting=weighting
    ).mean()


def p_losses_per_image(
    model: Predictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    loss: Loss = "smooth_l1",
    *,
    prediction: Prediction = "epsilon",
    weighting: Weighting = "simple",
) -> Tensor:
    """How far the model's prediction is from the true one, the mean over dimensions: (B,) float32.

    Args:
        model: predicts epsilon, v or x_0.
        schedule, x_start, t, noise: as for `q_sample`.
        loss: "mse", or "smooth_l1": half the square up to 1 and the absolute value less 1/2 beyond.
        prediction: what the model predicts, see `x_start_and_epsilon`.
        weighting: of the images, see `loss_weights`.

    Examples:
        >>> schedule, t = linear_schedule(), torch.tensor([9, 99])
        >>> x_start, noise = torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [3.0, 3.0]])
        >>> p_losses_per_image(lambda x, t: 0 * x, schedule, x_start, t, noise, "mse").tolist()
        [1.0, 9.0]
    """
    output = model(q_sample(schedule, x_start, t, noise), t)
    # In float32 even under bf16 autocast: the loss is a mean over small differences
    error = (output.float() - _target(schedule, x_start, t, noise, prediction)).flatten(1)
    if loss == "mse":
        losses = error.square().mean(1)
    else:
        size = error.abs()
        losses = torch.where(size < 1, 0.5 * size.square(), size - 0.5).mean(1)
    if weighting == "simple":
        return losses
    return loss_weights(schedule.snr[t], prediction, weighting) * losses


def _target(
    schedule: NoiseSchedule, x_start: Tensor, t: Tensor, noise: Tensor, prediction: Prediction
) -> Tensor:
    if prediction == "epsilon":
        return noise
    if prediction == "x":
        return x_start
    signal = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    return signal * noise - extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start
