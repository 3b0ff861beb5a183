"""Fast samplers: from noise to images in a few network calls, and from images to noise.

All take (model, schedule, x, steps) first. They visit `steps` of the schedule's times, one network call
each (`heun`: two), from `t_start` (T - 1 when not given) to the clean image; x is (B, ...) at time t_start.
`spacing` says which of the times, see `sampling_levels`. `prediction` is what the model predicts: "epsilon",
"v" or "x". `clip` keeps every predicted x_0 in [-1, 1]. `callback` is called with (time, x) after each step,
time -1 for the clean image. All raise ValueError when the steps or t_start do not fit the schedule.

Samplers know nothing of classes: `genssl.models.guidance` makes a model of a class from a network.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from genssl.models.diffusion import (
    Noise,
    NoiseSchedule,
    Prediction,
    Predictor,
    StepCallback,
    Variance,
    check_start,
    x_start_and_epsilon,
)
from genssl.models.sampling_times import CLEAN, LEAST_LOG_SNR, Level, Spacing, level_at, sampling_levels

# Of inpainting, where none are asked for. Lugmayr et al. 2022 take 250 steps, jumps of 10 and 10 visits,
# 2,410 network calls; these take 230
INPAINT_STEPS = 50
JUMP_LENGTH = 5
RESAMPLINGS = 5


def ddim(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    noise: Noise | None = None,
    eta: float = 0.0,
    *,
    spacing: Spacing = "quadratic",
    prediction: Prediction = "epsilon",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Song et al. 2021 (DDIM), equation 12: deterministic with eta = 0, ancestral with eta = 1.

    Args:
        model, schedule, x, steps, t_start, spacing, prediction, clip, callback: see the module.
        noise: t -> standard normal (B, ...), needed when eta > 0; not asked for the last step.
        eta: the standard deviation of the noise that a step adds, as a share of the posterior's.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> gray = lambda x, t: torch.full_like(x, 0.5)  # predicts x_0, and has seen one image
        >>> ddim(gray, linear_schedule(), torch.randn(1, 4), steps=10, prediction="x")[0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds noise at each step: give it")
    levels = sampling_levels(schedule, check_start(schedule, t_start), steps, spacing)
    for level, level_next in pairwise(levels):
        # "Predicted x_0", "direction pointing to x_t" and "random noise" of equation 12; the variance of the
        # last two is that of the next level, whatever eta is
        x_start, epsilon = _predict(model, x, level, prediction, clip)
        sigma_added = eta * math.sqrt(posterior_variance(level, level_next))
        x = level_next.alpha * x_start + math.sqrt(max(level_next.variance - sigma_added**2, 0.0)) * epsilon
        if noise is not None and sigma_added > 0:
            x = x + sigma_added * noise(level.t)
        _report(callback, level_next, x)
    return x


def ddim_invert(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_end: int | None = None,
    *,
    prediction: Prediction = "epsilon",
    callback: StepCallback | None = None,
) -> Tensor:
    """Run `ddim` (eta = 0) backwards: the noise that it would make the clean images x (B, ...) from.

    Each step takes epsilon where it starts and not, as `ddim` did, where it ends: the two maps undo each
    other up to an error that falls in proportion to 1 / steps.

    Args:
        model, schedule, x, steps, prediction, callback: see the module.
        t_end: the time to reach, T - 1 when not given.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> images, still = torch.ones(1, 4), lambda x, t: torch.zeros_like(x)  # finds no noise anywhere
        >>> noise = ddim_invert(still, linear_schedule(), images, steps=10)
        >>> torch.allclose(ddim(still, linear_schedule(), noise, steps=10), images, atol=1e-4)
        True
    """
    levels = sampling_levels(schedule, check_start(schedule, t_end), steps, "quadratic")[::-1]
    for level, level_next in pairwise(levels):
        # The network was trained on t >= 0: at the clean image it is asked at t = 0
        output = model(x, _times(x, max(level.t, 0)))
        if level.t == CLEAN:
            # x is x_0 itself; the little noise that the network finds at t = 0 stands for epsilon
            first = level_at(schedule, 0)
            _, epsilon = x_start_and_epsilon(prediction, output, x, first.alpha, first.sigma)
            x_start = x
        else:
            x_start, epsilon = x_start_and_epsilon(prediction, output, x, level.alpha, level.sigma)
        x = level_next.alpha * x_start + level_next.sigma * epsilon
        _report(callback, level_next, x)
    return x


def ancestral(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    noise: Noise | None = None,
    variance: Variance = "posterior",
    *,
    spacing: Spacing = "quadratic",
    prediction: Prediction = "epsilon",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Ho et al. 2020, algorithm 2; with fewer steps than times, on the process that visits only those.

    Args:
        model, schedule, x, steps, t_start, spacing, prediction, clip, callback: see the module.
        noise: t -> standard normal (B, ...); not asked for the last step, which takes the mode.
        variance: of a step: "posterior", or "large", all the variance that the forward step added.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> gray, noise = lambda x, t: torch.full_like(x, 0.5), lambda t: torch.randn(1, 4)
        >>> x = ancestral(gray, linear_schedule(), torch.randn(1, 4), 10, noise=noise, prediction="x")
        >>> [round(value, 3) for value in x[0].tolist()]
        [0.5, 0.5, 0.5, 0.5]
    """
    if noise is None:
        raise ValueError("ancestral sampling adds noise at each step: give it")
    levels = sampling_levels(schedule, check_start(schedule, t_start), steps, spacing)
    for level, level_next in pairwise(levels):
        x_start, _ = _predict(model, x, level, prediction, clip)
        x = _posterior_mean(x_start, x, level, level_next)
        if level_next.t != CLEAN:
            large = variance == "large"
            added = forward_variance(level, level_next) if large else posterior_variance(level, level_next)
            x = x + math.sqrt(added) * noise(level.t)
        _report(callback, level_next, x)
    return x


def dpm_solver_pp(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    *,
    spacing: Spacing = "karras",
    prediction: Prediction = "epsilon",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order, multistep, deterministic.

    It solves the same ordinary differential equation as `ddim` with eta = 0, and is close to the solution
    after 10 to 20 steps. The step to the clean image is of first order: lambda is infinite there.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> times, gray = [], lambda x, t: times.append(int(t[0])) or torch.full_like(x, 0.5)
        >>> dpm_solver_pp(gray, linear_schedule(), torch.randn(1, 4), steps=5, prediction="x").tolist()
        [[0.5, 0.5, 0.5, 0.5]]
        >>> len(times), times[0], times[-1]
        (5, 999, 0)
    """
    levels = sampling_levels(schedule, check_start(schedule, t_start), steps, spacing)
    level_prev: Level | None = None
    x_start_prev = x
    for level, level_next in pairwise(levels):
        x_start, _ = _predict(model, x, level, prediction, clip)
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


def heun(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    *,
    spacing: Spacing = "karras",
    prediction: Prediction = "epsilon",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Heun's method of second order on the equation of `ddim` (Karras et al. 2022, algorithm 1).

    In y = x / alpha and s = sigma / alpha the equation is dy/ds = epsilon. A step goes to the next level
    along epsilon, asks the network again there, and takes the mean of both. The step to the clean image is
    Euler's, so that `steps` steps cost 2 steps - 1 network calls. So is a step from almost pure noise, beyond
    LEAST_LOG_SNR, whose second call goes unused.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> calls, gray = [], lambda x, t: calls.append(t) or torch.full_like(x, 0.5)
        >>> x = heun(gray, linear_schedule(), torch.randn(1, 4), steps=5, prediction="x")
        >>> [round(value, 3) for value in x[0].tolist()], len(calls)
        ([0.5, 0.5, 0.5, 0.5], 9)
    """
    levels = sampling_levels(schedule, check_start(schedule, t_start), steps, spacing)
    for level, level_next in pairwise(levels):
        x_start, epsilon = _predict(model, x, level, prediction, clip)
        # Euler's step, which is the one of `ddim`
        x_euler = level_next.alpha * x_start + level_next.sigma * epsilon
        if level_next.t == CLEAN:
            x = x_euler
        else:
            _, epsilon_next = _predict(model, x_euler, level_next, prediction, clip)
            # x_euler + alpha_next (s_next - s) (epsilon_next - epsilon) / 2, without s (it may be infinite).
            # From beyond LEAST_LOG_SNR the step stays Euler's: alpha_next / alpha, 158 in the first of 20
            # steps on the cosine schedule, would multiply every error of epsilon there
            is_noise = level.log_snr < LEAST_LOG_SNR
            ratio = level_next.sigma / level.sigma if is_noise else level_next.alpha / level.alpha
            x = x_euler + 0.5 * (level_next.sigma - ratio * level.sigma) * (epsilon_next - epsilon)
        _report(callback, level_next, x)
    return x


def unipc(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    t_start: int | None = None,
    *,
    spacing: Spacing = "karras",
    prediction: Prediction = "epsilon",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """UniPC-2 with B(h) = e^-h - 1 (Zhao et al. 2023, algorithms 5 to 8): predictor and corrector.

    The predictor is the step of `dpm_solver_pp`; the corrector moves its result by what the network says
    there, a call that the next step needs anyway. It is of third order at no further calls.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> gray = lambda x, t: torch.full_like(x, 0.5)
        >>> x = unipc(gray, linear_schedule(), torch.randn(1, 4), steps=5, prediction="x")
        >>> [round(value, 3) for value in x[0].tolist()]
        [0.5, 0.5, 0.5, 0.5]
    """
    levels = sampling_levels(schedule, check_start(schedule, t_start), steps, spacing)
    level_prev: Level | None = None
    x_start_prev = x
    x_start, _ = _predict(model, x, levels[0], prediction, clip)
    for level, level_next in pairwise(levels):
        sigma_ratio = level_next.sigma / level.sigma
        # -alpha_next (e^-h - 1), as in `dpm_solver_pp`
        factor = level_next.alpha - sigma_ratio * level.alpha
        base = sigma_ratio * x + factor * x_start
        is_last = level_next.t == CLEAN
        change = torch.zeros_like(x)  # of x_0 over this step, as over the last one
        if level_prev is not None and not is_last:
            ratio = (level_next.log_snr - level.log_snr) / (level.log_snr - level_prev.log_snr)
            change = ratio * (x_start - x_start_prev)
        predicted = base + 0.5 * factor * change
        if is_last:
            _report(callback, level_next, predicted)
            return predicted
        x_start_next, _ = _predict(model, predicted, level_next, prediction, clip)
        weight_prev, weight_next = _corrector(level_prev, level, level_next)
        x = base + factor * (weight_prev * change + weight_next * (x_start_next - x_start))
        level_prev, x_start_prev, x_start = level, x_start, x_start_next
        _report(callback, level_next, x)
    return x


def _corrector(level_prev: Level | None, level: Level, level_next: Level) -> tuple[float, float]:
    """The weights of both differences of x_0, which make the step exact for x_0 a polynomial of lambda.

    Zhao et al. 2023, theorem 3.1, in terms of hh = -h: the first two moments of the difference quotients at
    r = (lambda_prev - lambda) / h and at 1 are those of the exact integral.
    """
    if level_prev is None or math.isinf(level_prev.log_snr) or math.isinf(level.log_snr):
        return 0.0, 0.5
    h = level_next.log_snr - level.log_snr
    r = (level_prev.log_snr - level.log_snr) / h
    hh = -h
    phi_1 = math.expm1(hh) / hh
    phi_2 = (phi_1 - 1) / hh
    phi_3 = (phi_2 - 0.5) / hh
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    # [1 1; r 1] (w_prev, w_next) = (b_1, b_2); `change` above is (x_0_prev - x_0) / r
    weight_prev = (b_1 - b_2) / (1 - r)
    return weight_prev, b_1 - weight_prev


def repaint(
    model: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    known: Tensor,
    mask: Tensor,
    jump_length: int = JUMP_LENGTH,
    resamplings: int = RESAMPLINGS,
    *,
    prediction: Prediction = "epsilon",
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """RePaint (Lugmayr et al. 2022, algorithm 1): fill a part of clean images by `ancestral` steps.

    After each step the known pixels are drawn from q(x_t | x_0), whatever the model made of them. A single
    way down would fit the filled ones to a noisy neighborhood only; jumps back to more noise and down again
    let both come to agree (section 4.2).

    Args:
        model, schedule, steps, prediction, clip: see the module.
        x: noise, (B, ...).
        noise: t -> standard normal (B, ...), asked for the known pixels, for each step and for each jump.
        known: x_0 where the mask is false, (B, ...).
        mask: where to fill, bool, broadcast to x.
        jump_length, resamplings: see `jump_path`.
        callback: called with (time, x) after each step and each jump.

    Examples:
        >>> from genssl.models.diffusion import linear_schedule
        >>> gray, noise = lambda x, t: torch.full_like(x, 0.5), lambda t: torch.randn(1, 4)
        >>> known, mask = torch.ones(1, 4), torch.tensor([False, False, True, True])
        >>> repaint(gray, linear_schedule(), noise(0), 10, noise, known, mask, prediction="x").tolist()
        [[1.0, 1.0, 0.5, 0.5]]
    """
    levels = sampling_levels(schedule, check_start(schedule, None), steps, "quadratic")
    for i, j in pairwise(jump_path(steps, jump_length, resamplings)):
        level, level_next = levels[i], levels[j]
        if j < i:  # a jump: q(x_next | x) of the forward process
            x = level_next.alpha / level.alpha * x
            x = x + math.sqrt(forward_variance(level_next, level)) * noise(level.t)
        elif level_next.t == CLEAN:
            x_start, _ = _predict(model, x, level, prediction, clip)
            x = torch.where(mask, x_start, known)
        else:
            x_start, _ = _predict(model, x, level, prediction, clip)
            std = math.sqrt(posterior_variance(level, level_next))
            filled = _posterior_mean(x_start, x, level, level_next) + std * noise(level.t)
            x = torch.where(mask, filled, level_next.alpha * known + level_next.sigma * noise(level.t))
        _report(callback, level_next, x)
    return x


def jump_path(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """The levels that inpainting visits in turn, from 0 (noise) to `steps` (clean); a falling one is a jump.

    Args:
        steps: number of steps from noise to the clean image.
        jump_length: steps that a jump goes back. Every so many steps, up to the last but one, is a level to
            jump from, as in the paper's appendix.
        resamplings: how often such a level is reached; 1: no jumps.

    Raises:
        ValueError: a number is less than 1, or a jump is longer than the way to the last level but one.

    Examples:
        >>> jump_path(steps=4, jump_length=2, resamplings=2)
        [0, 1, 2, 3, 1, 2, 3, 4]
    """
    if min(steps, jump_length, resamplings) < 1:
        raise ValueError(
            f"steps, jump length and resamplings must be 1 or more, not {steps}, {jump_length}, {resamplings}"
        )
    if resamplings > 1 and jump_length >= steps:
        raise ValueError(
            f"a jump of {jump_length} steps needs more than {jump_length} steps, not {steps}; "
            "jump less far, or resample once"
        )
    left = dict.fromkeys(range(steps - 1, jump_length - 1, -jump_length), resamplings - 1)
    path = [0]
    while path[-1] < steps:
        i = path[-1]
        if left.get(i, 0):
            left[i] -= 1
            path.append(i - jump_length)
        else:
            path.append(i + 1)
    return path


def forward_variance(level: Level, level_next: Level) -> float:
    """Variance that the forward process adds from `level_next` to the noisier `level`; beta for neighbors.

    Examples:
        >>> round(forward_variance(Level(1, math.log(0.5)), Level(0, math.log(0.8))), 4)  # 1 - 0.5 / 0.8
        0.375
    """
    # expm1 keeps the digits that 1 - alpha_bar / alpha_bar_next loses between two near times
    return -math.expm1(level.log_alpha_bar - level_next.log_alpha_bar)


def posterior_variance(level: Level, level_next: Level) -> float:
    """Of q(x_next | x, x_0) (Ho et al. 2020, equation 7); 0 for the clean image.

    Examples:
        >>> round(posterior_variance(Level(1, math.log(0.5)), Level(0, math.log(0.8))), 4)
        0.15
    """
    return forward_variance(level, level_next) * level_next.variance / level.variance


def _posterior_mean(x_start: Tensor, x: Tensor, level: Level, level_next: Level) -> Tensor:
    # Ho et al. 2020, equation 7, for two levels that need not be neighbors
    from_start = level_next.alpha * forward_variance(level, level_next) / level.variance
    from_x = level.alpha / level_next.alpha * level_next.variance / level.variance
    return from_start * x_start + from_x * x


def _times(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _predict(
    model: Predictor, x: Tensor, level: Level, prediction: Prediction, clip: bool
) -> tuple[Tensor, Tensor]:
    """(x_0, epsilon), which always make up x: epsilon follows x_0 when that is clipped."""
    output = model(x, _times(x, level.t))
    x_start, epsilon = x_start_and_epsilon(prediction, output, x, level.alpha, level.sigma)
    # Clipping x_0 alone would leave an epsilon that belongs to another image
    if clip:
        x_start = x_start.clamp(-1, 1)
        epsilon = (x - level.alpha * x_start) / level.sigma
    return x_start, epsilon


def _report(callback: StepCallback | None, level: Level, x: Tensor) -> None:
    if callback is not None:
        callback(level.t, x)
