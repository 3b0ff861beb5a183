"""Paths between images through the noise of a diffusion model."""

from typing import Literal

import torch
from torch import Tensor

from genssl import figures
from genssl.data.batches import chunks
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.interpolate import shares, spherical_path
from genssl.eval.outcome import Outcome, header_of
from genssl.eval.require import check_size, require_ddpm
from genssl.eval.sample import Tick
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import Keep, NoisePredictor, extract, predict_x_start, q_sample
from genssl.models.method import Method
from genssl.models.samplers import ddim, ddim_invert
from genssl.pixels import to_model
from genssl.runtime import generators, measuring, normal

Way = Literal["ddim", "noise"]


@measuring()
def interpolate(
    method: Method,
    split: Split,
    *,
    rows: int,
    steps: int,
    seed: int,
    batch_size: int,
    way: Way,
    t_prime: int | None,
    calls: int,
    tick: Tick,
) -> Outcome:
    """`rows` paths of `steps` images between images 0 and 1, 2 and 3, ... of the split.

    Args:
        method: a DDPM.
        split: at least 2 `rows` images.
        rows: how many paths.
        steps: images on a path, both ends included.
        seed: of the noise of "noise"; path i's depends on (seed, i) alone.
        batch_size: images at once; bounds the memory.
        way: "ddim", deterministic: both ends are inverted, and a great circle between them is decoded (Song
            et al. 2021, section 5.3). "noise": both ends get one noise, a straight path between them is
            denoised by the ancestral process (Ho et al. 2020, section 4.4).
        t_prime: how many steps of noise the ends get; all T for "ddim", T / 2 for "noise" when None.
        calls: network calls of "ddim" in each direction; "noise" takes t_prime.
        tick: told how many images are made, inverted ends included.

    Raises:
        UserError: not a DDPM, images of another size, or numbers that do not fit.
    """
    ddpm = require_ddpm(method, "interpolation through noise")
    check_size(method, split)
    _check_picture(split, rows, steps)
    t_prime = _check_t_prime(ddpm, way, t_prime, calls)
    ends = to_model(split.images[: 2 * rows].to(ddpm.device))
    if way == "ddim":
        path = _deterministic(ddpm, ends, steps, calls, t_prime - 1, batch_size, tick)
    else:
        path = _stochastic(ddpm, ends, steps, seed, t_prime - 1, batch_size, tick)
    path = path.clamp(-1, 1)  # (rows, steps, C, H, W)
    change = _rmse(path[:, 1:] - path[:, :-1])  # (rows, steps - 1)
    values = {
        "rows": rows,
        "steps": steps,
        "way": way,
        "t_prime": t_prime,
        "network_calls_per_image": 2 * calls if way == "ddim" else t_prime,
        "round_trip_rmse": float(_rmse(path[:, [0, -1]] - _pairs(ends)).square().mean().sqrt()),
        "mean_step_rmse": float(change.mean()),
        "largest_to_mean_step": float((change.amax(1) / change.mean(1).clamp(min=1e-12)).mean()),
    }
    shown = torch.cat([_pairs(ends)[:, :1], path, _pairs(ends)[:, 1:]], 1)
    note = "each row begins and ends with an original; the path between them holds what became of both"
    how = (
        f"ddim, {calls} network calls each way" if way == "ddim" else "noised, mixed and denoised (ancestral)"
    )
    what = f"{rows} paths between {split.name} {split.part} images through t' = {t_prime}, {how}"
    titles = ["original", *shares(steps), "original"]
    picture = figures.titled_grid(shown.flatten(0, 1), header_of(method, what), steps + 2, titles)
    return Outcome(values, {"interpolations": picture}, (note,))


def _check_picture(split: Split, rows: int, steps: int) -> None:
    if steps < 2 or rows < 1:
        raise UserError(f"a picture needs at least 1 row and 2 steps, not {rows} and {steps}")
    if len(split) < 2 * rows:
        raise UserError(f"{rows} paths need {2 * rows} images, and the split has {len(split)}")


def _check_t_prime(ddpm: DDPM, way: Way, t_prime: int | None, calls: int) -> int:
    timesteps = ddpm.schedule.timesteps
    if t_prime is None:
        t_prime = timesteps if way == "ddim" else max(1, timesteps // 2)
    if not 1 <= t_prime <= timesteps:
        raise UserError(f"--t-prime must be from 1 to {timesteps}, the steps of this run, not {t_prime}")
    if way == "ddim" and not 1 <= calls <= t_prime:
        raise UserError(f"ddim takes from 1 to {t_prime} network calls at t' = {t_prime}, not {calls}")
    return t_prime


def _deterministic(
    ddpm: DDPM, ends: Tensor, steps: int, calls: int, t: int, batch_size: int, tick: Tick
) -> Tensor:
    """The great circle between the inverted ends (2 rows, C, H, W), decoded: (rows, steps, C, H, W).

    Predicted images are clipped in both directions, so that decoding undoes inversion and the middle of a
    path, where a network is less at home, does not drift out of range.
    """
    rows, total = len(ends) // 2, len(ends) + len(ends) // 2 * steps
    model = _clipped(ddpm)
    latents = []
    for batch in chunks(len(ends), batch_size):
        keep = _keep(tick, batch, calls, total)
        latents.append(ddim_invert(model, ddpm.schedule, ends[batch], calls, t, keep=keep))
    z = torch.cat(latents).flatten(1)
    circle = spherical_path(z[0::2], z[1::2], steps).transpose(0, 1)  # (rows, steps, D)
    points = circle.reshape(rows * steps, *ends.shape[1:])
    decoded = []
    for batch in chunks(len(points), batch_size):
        keep = _keep(tick, batch, calls, total, len(ends))
        decoded.append(ddim(model, ddpm.schedule, points[batch], calls, t, keep=keep))
    return torch.cat(decoded).view(rows, steps, *ends.shape[1:])


def _clipped(ddpm: DDPM) -> NoisePredictor:
    """The network's epsilon made to fit its predicted image when that is kept in [-1, 1]."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        found = predict_x_start(ddpm.schedule, x, t, ddpm.network(x, t)).clamp(-1, 1)
        signal = extract(ddpm.schedule.sqrt_alphas_cumprod, t, x)
        return (x - signal * found) / extract(ddpm.schedule.sqrt_one_minus_alphas_cumprod, t, x)

    return model


def _stochastic(
    ddpm: DDPM, ends: Tensor, steps: int, seed: int, t: int, batch_size: int, tick: Tick
) -> Tensor:
    """The line between the noised ends (2 rows, C, H, W), denoised: (rows, steps, C, H, W).

    All of a row share their noise, that of the start as well as that of each reverse step: the mixture
    keeps its variance, and what changes along a row is the share of the two ends alone.
    """
    rows = len(ends) // 2
    noise = normal((rows, *ends.shape[1:]), generators(seed, "eval", range(rows)), ends.device)
    times = torch.full((len(ends),), t, device=ends.device)
    first, last = _pairs(q_sample(ddpm.schedule, ends, times, noise.repeat_interleave(2, 0))).unbind(1)
    share = torch.linspace(0, 1, steps, device=ends.device).view(1, steps, 1, 1, 1)
    points = ((1 - share) * first[:, None] + share * last[:, None]).flatten(0, 1)
    denoised = []
    for batch in chunks(len(points), batch_size):
        fresh = generators(seed, "sample", [place // steps for place in range(batch.start, batch.stop)])
        keep = _keep(tick, batch, t + 1, len(points))
        denoised.append(ddpm.denoise(points[batch], t, fresh, "ancestral", keep=keep))
    return torch.cat(denoised).view(rows, steps, *ends.shape[1:])


def _keep(tick: Tick, batch: slice, calls: int, total: int, before: int = 0) -> Keep:
    """Tells `tick` of a batch's work at each of its network calls, and keeps nothing."""
    made = 0

    def told(_t: int, _x: Tensor) -> None:
        nonlocal made
        made += 1
        tick(before + batch.start + (batch.stop - batch.start) * made // calls, total)

    return told


def _pairs(ends: Tensor) -> Tensor:
    """(2 rows, ...) -> (rows, 2, ...)."""
    return ends.view(-1, 2, *ends.shape[1:])


def _rmse(difference: Tensor) -> Tensor:
    """Root mean square over an image: (..., C, H, W) -> (...)."""
    return difference.square().flatten(-3).mean(-1).sqrt()
