"""The variational bound of a diffusion model, term by term (Ho et al. 2020, equation 5), in nats an image.

    -log p(x_0) <= KL(q(x_T | x_0) || N(0, I))                                    the prior's term
                 + sum over t > 0 of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))  the denoising terms
                 - log p(x_0 | x_1)                                               the decoder's term

Time is zero-based (see `genssl.models.diffusion`), so the decoder's term is the one at t = 0. It is that of
a discrete decoder, which gives bytes a probability; the sum is therefore a bound on bytes, in nats, and
needs no dequantisation. As in the official code, a predicted x_0 is clipped to [-1, 1] by default.

Expectations over x_t are estimated from one draw: each function takes standard normal noise of x_0's shape.
"""

import math
from typing import Any

import torch
from torch import Tensor

from genssl.models.diffusion import NoiseSchedule, Prediction, Predictor, Variance, predict_x_start, q_sample
from genssl.pixels import BIN_WIDTH, to_bytes
from genssl.runtime import to_float64


def bound_terms(
    model: Predictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    variance: Variance = "posterior",
    clip: bool = True,
    prediction: Prediction = "epsilon",
) -> Tensor:
    """The term of each image's own time: the decoder's at t = 0, else the denoising one, (B,) nats.

    Args:
        model: predicts what `prediction` names.
        schedule: of T steps.
        x_start: x_0, images in [-1, 1], (B, ...).
        t: (B,) int64 in [0, T). On the host, since which terms there are is decided there.
        noise: standard normal, (B, ...).
        variance: of p(x_{t-1} | x_t) at t > 0, as for `p_sample`.
        clip: keep the predicted x_0 in [-1, 1].
        prediction: what the model predicts.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> x_start, noise, t = torch.zeros(3, 4), torch.randn(3, 4), torch.tensor([0, 10, 999])
        >>> terms = bound_terms(lambda x, t: torch.zeros_like(x), linear_schedule(), x_start, t, noise)
        >>> terms.shape, bool((terms >= 0).all())
        (torch.Size([3]), True)
    """
    terms = x_start.new_empty(len(x_start))
    common: dict[str, Any] = {"clip": clip, "prediction": prediction}
    device, t = x_start.device, t.cpu()
    last, denoising = (rows.nonzero().flatten().to(device) for rows in (t == 0, t > 0))
    if len(last):
        terms[last] = decoder_nll(model, schedule, x_start[last], noise[last], **common)
    if len(denoising):
        rest = (x_start[denoising], t.to(device)[denoising], noise[denoising])
        terms[denoising] = denoising_kl(model, schedule, *rest, variance=variance, **common)
    return terms


def prior_kl(schedule: NoiseSchedule, x_start: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) of x_start (B, ...): (B,) nats. No network takes part in it.

    With q = N(sqrt(k) x_0, 1 - k), k = alpha-bar_T, it is (k x_0^2 - k - log(1 - k)) / 2 a dimension.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> kl = prior_kl(linear_schedule(1000), torch.ones(1, 1000))
        >>> round(float(kl), 2)  # x_T is nearly pure noise: 1,000 dimensions have hardly any nats
        0.02
    """
    alpha_bar = math.exp(schedule.log_alphas_cumprod[-1])
    # About alpha_bar^2 / 2, a difference of nearly equal numbers: in float64
    variance_term = -alpha_bar - math.log1p(-alpha_bar)
    return 0.5 * (alpha_bar * x_start.square() + variance_term).flatten(1).sum(1)


def denoising_kl(
    model: Predictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    variance: Variance = "posterior",
    clip: bool = True,
    prediction: Prediction = "epsilon",
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at x_t = q_sample(x_0, t, noise): (B,) nats.

    Both are Gaussian (equations 6 and 7), and both means are c x_0 + c' x_t, one with the true x_0 and one
    with the model's: they differ by c (x_0 - predicted x_0). With the posterior variance for p, this
    difference is all there is.

    Args:
        model, schedule, x_start, noise, variance, clip, prediction: as for `bound_terms`.
        t: (B,) int64 in [1, T).

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> x_start, noise, t = torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([10, 999])
        >>> perfect = denoising_kl(lambda x, t: torch.ones_like(x), linear_schedule(), x_start, t, noise)
        >>> [round(nats, 4) for nats in perfect.tolist()]
        [0.0, 0.0]
    """
    x_start_predicted = _predict_x_start(model, schedule, x_start, t, noise, clip, prediction)
    alpha_bar_prev, beta = schedule.alphas_cumprod_prev[t], schedule.betas[t]
    one_minus_alpha_bar = schedule.sqrt_one_minus_alphas_cumprod[t].square()
    # Equation 7: the coefficient of x_0 in the posterior mean
    coefficient = alpha_bar_prev.sqrt() * beta / one_minus_alpha_bar
    squared_distance = coefficient.square() * (x_start - x_start_predicted).square().flatten(1).sum(1)
    if variance == "posterior":
        return 0.5 * squared_distance / schedule.posterior_variance[t]
    # With r = 1 - posterior variance / beta the variances add -r - log(1 - r), about r^2 / 2: in float64
    r = to_float64(alpha_bar_prev * beta / one_minus_alpha_bar)
    variance_term = (-r - torch.log1p(-r)).to(x_start.dtype).to(x_start.device)
    return 0.5 * (squared_distance / beta + variance_term * x_start[0].numel())


def decoder_nll(
    model: Predictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    noise: Tensor,
    *,
    clip: bool = True,
    prediction: Prediction = "epsilon",
) -> Tensor:
    """-log p(x_0 | x_1), x_1 the image after the first step of noise, for the discrete decoder: (B,) nats.

    The mean is the predicted x_0. The posterior variance is 0 at t = 0; the decoder takes that of t = 1,
    as the official code does, for either choice of the other variances.

    Args:
        model, schedule, x_start, noise, clip, prediction: as for `bound_terms`.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> x_start, noise = torch.zeros(2, 4), torch.ones(2, 4)
        >>> models = (lambda x, t: torch.ones_like(x), lambda x, t: torch.zeros_like(x))
        >>> right, wrong = (decoder_nll(model, linear_schedule(), x_start, noise) for model in models)
        >>> bool((right < wrong).all())  # the first model finds the noise
        True
    """
    first = torch.zeros(len(x_start), dtype=torch.int64, device=x_start.device)
    mean = _predict_x_start(model, schedule, x_start, first, noise, clip, prediction)
    log_p = byte_log_probability(to_bytes(x_start), mean, decoder_std(schedule))
    return -log_p.flatten(1).sum(1).to(x_start.dtype).to(x_start.device)


def decoder_std(schedule: NoiseSchedule) -> float:
    """The standard deviation of the decoder's Gaussian; with T = 1, that of the only step.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> round(decoder_std(linear_schedule()), 4)
        0.0074
    """
    variances = schedule.posterior_variance[1:] if schedule.timesteps > 1 else schedule.betas
    return math.sqrt(float(variances[0]))


def byte_log_probability(images: Tensor, mean: Tensor, std: float) -> Tensor:
    """log of the mass of N(mean, std^2) in the bin of each byte (equation 13), float64, shape of the mean.

    Bins are 1/128 wide and tile [-1, 1]; those of 0 and 255 are open to the outside.

    Args:
        images: uint8.
        mean: same shape, in the model's range.
        std: in the model's range.

    Examples:
        >>> values = torch.arange(256).to(torch.uint8)
        >>> round(float(byte_log_probability(values, torch.zeros(256), 0.1).exp().sum()), 6)
        1.0
    """
    mean, values = to_float64(mean), to_float64(images)
    edge = values * BIN_WIDTH - 1
    lower = ((edge - mean) / std).masked_fill(values == 0, -math.inf)
    upper = ((edge + BIN_WIDTH - mean) / std).masked_fill(values == 255, math.inf)
    # The normal distribution function keeps its digits in the left tail only: mirror what lies to the right
    mirrored = lower + upper > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    log_p: Tensor = log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
    return log_p


def _predict_x_start(
    model: Predictor,
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    clip: bool,
    prediction: Prediction,
) -> Tensor:
    x = q_sample(schedule, x_start, t, noise)
    x_start_predicted = predict_x_start(schedule, x, t, model(x, t), prediction)
    return x_start_predicted.clamp(-1, 1) if clip else x_start_predicted
