"""Interpolation between images: in a latent space, or through the noise of a diffusion model."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.result import EvalResult, check_size, header_of, require_ability
from genssl.models.diffusion import Predictor, StepCallback, predict_x_start, q_sample
from genssl.models.method import CanDenoise, CanInterpolate, Method
from genssl.models.samplers import ddim, ddim_invert
from genssl.pixels import to_model
from genssl.runtime import Tick, chunks, generators, measuring, normal

if TYPE_CHECKING:
    from PIL.Image import Image

Shape = Literal["linear", "spherical"]
HEADLINE = ("path", "noise_method", "t_prime", "round_trip_rmse", "largest_to_mean_step")


@measuring()
def interpolate_latents(
    method: Method,
    split: Split | None,
    *,
    rows: int,
    steps: int,
    shape: Shape,
    seed: int,
    device: torch.device,
) -> EvalResult:
    """`rows` paths of `steps` images each.

    Args:
        method: one with latents.
        split: ends are the posterior means of its images 0 and 1, 2 and 3, ...; prior draws when None.
        rows: number of paths.
        steps: images per path, both ends included.
        shape: linear, or spherical (great circles, with the norm interpolated too).
        seed: random seed of the prior draws.
        device: of the computation.

    Raises:
        UserError: the method cannot do it, or too few images, steps or rows.
    """
    latent_model = require_ability(method.to(device), CanInterpolate, "interpolate")
    if steps < 2 or rows < 1:
        raise UserError(f"a picture needs at least 1 row and 2 steps, not {rows} and {steps}")
    z = _ends(method, latent_model, split, rows, seed)
    if shape == "linear":
        images = latent_model.interpolate(z[0::2], z[1::2], steps)
    else:
        images = latent_model.decode_path(spherical_path(z[0::2], z[1::2], steps))
    by_row = images.transpose(0, 1).flatten(0, 1)  # (rows steps, C, H, W)
    # How even the path is: the largest step between neighbors over the mean one, averaged over rows
    step = (images[1:] - images[:-1]).square().flatten(2).mean(2).sqrt()  # (steps - 1, rows)
    values = {
        "rows": rows,
        "steps": steps,
        "path": shape,
        "ends": "prior" if split is None else f"{split.name} {split.part} images",
        "mean_step_rmse": float(step.mean()),
        "largest_to_mean_step": float((step.amax(0) / step.mean(0).clamp(min=1e-12)).mean()),
    }
    what = f"{rows} {shape} paths of {steps} images, ends: {values['ends']}"
    what += f", seed {seed}" if split is None else ""
    picture = figures.titled_grid(by_row, header_of(method, what), steps, shares(steps))
    return EvalResult(
        values, {"interpolations": picture}, name="interpolate", title="Interpolations", headline=HEADLINE
    )


def shares(steps: int) -> list[str]:
    """Titles of the columns: the interpolation weight, 0 at one end and 1 at the other."""
    return [f"{i / (steps - 1):.2g}" for i in range(steps)]


def spherical_path(z_1: Tensor, z_2: Tensor, n: int) -> Tensor:
    """`n` points on the great circle from z_1 to z_2, both (B, D): (n, B, D) (Shoemake 1985).

    The direction turns at constant speed and the length changes linearly, so that any two ends do.
    """
    share = torch.linspace(0, 1, n, device=z_1.device).view(n, 1, 1)
    length_1, length_2 = z_1.norm(dim=-1, keepdim=True), z_2.norm(dim=-1, keepdim=True)
    unit_1, unit_2 = z_1 / length_1, z_2 / length_2
    angle = (unit_1 * unit_2).sum(-1, keepdim=True).clamp(-1, 1).acos().clamp(min=1e-6)
    turned = (((1 - share) * angle).sin() * unit_1 + (share * angle).sin() * unit_2) / angle.sin()
    path: Tensor = turned * ((1 - share) * length_1 + share * length_2)
    return path


def _ends(method: Method, latent_model: CanInterpolate, split: Split | None, rows: int, seed: int) -> Tensor:
    if split is None:
        return latent_model.sample_prior(2 * rows, generators(seed, "sample", range(2 * rows)))
    check_size(method, split)
    if len(split) < 2 * rows:
        raise UserError(f"{rows} paths need {2 * rows} images, and the split has {len(split)}")
    return method.features(to_model(split.images[: 2 * rows].to(method.device)))


NoiseMethod = Literal["ddim", "noise"]
NFE = 50  # of ddim each way, where none are asked for


@measuring()
def interpolate_through_noise(
    method: Method,
    split: Split,
    *,
    rows: int,
    steps: int,
    seed: int,
    batch_size: int,
    noise_method: NoiseMethod,
    t_prime: int | None,
    nfe: int | None,
    tick: Tick,
) -> EvalResult:
    """`rows` paths of `steps` images between images 0 and 1, 2 and 3, ... of the split.

    Args:
        method: one that denoises.
        split: at least 2 `rows` images.
        rows: number of paths.
        steps: images per path, both ends included.
        seed: random seed of "noise"; path i depends on (seed, i) alone.
        batch_size: in images.
        noise_method: "ddim", deterministic: both ends are inverted, and a great circle between them is
            decoded (Song et al. 2021, section 5.3). "noise": both ends get one noise, a straight path
            between them is denoised by the ancestral process (Ho et al. 2020, section 4.4).
        t_prime: noising steps of the ends; all T for "ddim", T / 2 for "noise" when None.
        nfe: network evaluations of "ddim" in each direction, NFE or t' if less when None; of "noise" t_prime.
        tick: called with the images done and in total, inverted ends included.

    Raises:
        UserError: it does not denoise, images of another size, or numbers that do not fit.
    """
    diffusion = require_ability(method, CanDenoise, "interpolation through noise")
    check_size(method, split)
    _check_picture(split, rows, steps)
    t_prime, nfe = _check_t_prime(diffusion, noise_method, t_prime, nfe)
    ends = to_model(split.images[: 2 * rows].to(diffusion.device))
    if noise_method == "ddim":
        path = _deterministic(diffusion, ends, steps, nfe, t_prime - 1, batch_size, tick)
    else:
        path = _stochastic(diffusion, ends, steps, seed, t_prime - 1, batch_size, tick)
    path = path.clamp(-1, 1)  # (rows, steps, C, H, W)
    change = _rmse(path[:, 1:] - path[:, :-1])  # (rows, steps - 1)
    values = {
        "rows": rows,
        "steps": steps,
        "noise_method": noise_method,
        "t_prime": t_prime,
        "nfe": nfe if noise_method == "ddim" else t_prime,
        "round_trip_rmse": float(_rmse(path[:, [0, -1]] - _pairs(ends)).square().mean().sqrt()),
        "mean_step_rmse": float(change.mean()),
        "largest_to_mean_step": float((change.amax(1) / change.mean(1).clamp(min=1e-12)).mean()),
    }
    note = "each row begins and ends with an original; the path between them includes their reconstructions"
    deterministic = f"ddim, {nfe} network calls each way"
    how = deterministic if noise_method == "ddim" else "noised, mixed and denoised (ancestral)"
    what = f"{rows} paths between {split.name} {split.part} images through t' = {t_prime}, {how}"
    picture = _draw(path, ends, header_of(method, what))
    return EvalResult(
        values, {"interpolations": picture}, (note,), name="interpolate", title="Interpolations",
        headline=HEADLINE, units={"t_prime": "noising steps", "nfe": "network calls in each direction"},
    )  # fmt: skip


def _draw(path: Tensor, ends: Tensor, header: str) -> "Image":
    """One row per path (rows, steps, C, H, W), between its originals."""
    steps = path.shape[1]
    shown = torch.cat([_pairs(ends)[:, :1], path, _pairs(ends)[:, 1:]], 1)
    titles = ["original", *shares(steps), "original"]
    return figures.titled_grid(shown.flatten(0, 1), header, steps + 2, titles)


def _check_picture(split: Split, rows: int, steps: int) -> None:
    if steps < 2 or rows < 1:
        raise UserError(f"a picture needs at least 1 row and 2 steps, not {rows} and {steps}")
    if len(split) < 2 * rows:
        raise UserError(f"{rows} paths need {2 * rows} images, and the split has {len(split)}")


def _check_t_prime(
    diffusion: CanDenoise, noise_method: NoiseMethod, t_prime: int | None, nfe: int | None
) -> tuple[int, int]:
    """t' and the network calls each way, with their defaults."""
    timesteps = diffusion.schedule.timesteps
    if t_prime is None:
        t_prime = timesteps if noise_method == "ddim" else max(1, timesteps // 2)
    if not 1 <= t_prime <= timesteps:
        raise UserError(f"--t-prime must be from 1 to {timesteps}, the steps of this run, not {t_prime}")
    nfe = min(NFE, t_prime) if nfe is None else nfe
    if noise_method == "ddim" and not 1 <= nfe <= t_prime:
        raise UserError(f"--nfe of ddim must be from 1 to {t_prime} at t' = {t_prime}, not {nfe}")
    return t_prime, nfe


def _deterministic(
    diffusion: CanDenoise, ends: Tensor, steps: int, nfe: int, t: int, batch_size: int, tick: Tick
) -> Tensor:
    """The great circle between the inverted ends (2 rows, C, H, W), decoded: (rows, steps, C, H, W).

    Predicted images are clipped in both directions, so that decoding undoes inversion and the middle of a
    path, where a network is less at home, does not drift out of range.
    """
    rows, total = len(ends) // 2, len(ends) + len(ends) // 2 * steps
    model = _clipped(diffusion)
    latents = []
    for batch in chunks(len(ends), batch_size):
        callback = _progress_callback(tick, batch, nfe, total)
        latents.append(
            ddim_invert(model, diffusion.schedule, ends[batch], nfe, t, prediction="x", callback=callback)
        )
    z = torch.cat(latents).flatten(1)
    circle = spherical_path(z[0::2], z[1::2], steps).transpose(0, 1)  # (rows, steps, D)
    points = circle.reshape(rows * steps, *ends.shape[1:])
    decoded = []
    for batch in chunks(len(points), batch_size):
        callback = _progress_callback(tick, batch, nfe, total, len(ends))
        decoded.append(
            ddim(model, diffusion.schedule, points[batch], nfe, t, prediction="x", callback=callback)
        )
    return torch.cat(decoded).view(rows, steps, *ends.shape[1:])


def _clipped(diffusion: CanDenoise) -> Predictor:
    """The predicted image clamped to [-1, 1]; an x_t without any image in it tells the noise by it, too."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        output = diffusion.network(x, t)
        return predict_x_start(diffusion.schedule, x, t, output, diffusion.prediction).clamp(-1, 1)

    return model


def _stochastic(
    diffusion: CanDenoise, ends: Tensor, steps: int, seed: int, t: int, batch_size: int, tick: Tick
) -> Tensor:
    """The line between the noised ends (2 rows, C, H, W), denoised: (rows, steps, C, H, W).

    All images of a row share the noise of the start and of each reverse step: the mixture keeps its variance,
    and only the weights of the two ends change along a row.
    """
    rows = len(ends) // 2
    noise = normal((rows, *ends.shape[1:]), generators(seed, "eval", range(rows)), ends.device)
    times = torch.full((len(ends),), t, device=ends.device)
    first, last = _pairs(q_sample(diffusion.schedule, ends, times, noise.repeat_interleave(2, 0))).unbind(1)
    share = torch.linspace(0, 1, steps, device=ends.device).view(1, steps, 1, 1, 1)
    points = ((1 - share) * first[:, None] + share * last[:, None]).flatten(0, 1)
    denoised = []
    for batch in chunks(len(points), batch_size):
        fresh = generators(seed, "sample", [i // steps for i in range(batch.start, batch.stop)])
        callback = _progress_callback(tick, batch, t + 1, len(points))
        denoised.append(diffusion.denoise(points[batch], t, fresh, "ancestral", callback=callback))
    return torch.cat(denoised).view(rows, steps, *ends.shape[1:])


def _progress_callback(tick: Tick, batch: slice, nfe: int, total: int, before: int = 0) -> StepCallback:
    """A sampler callback that reports progress after each network call of a batch."""
    calls = 0

    def callback(_t: int, _x: Tensor) -> None:
        nonlocal calls
        calls += 1
        tick(before + batch.start + (batch.stop - batch.start) * calls // nfe, total)

    return callback


def _pairs(ends: Tensor) -> Tensor:
    """(2 rows, ...) -> (rows, 2, ...)."""
    return ends.view(-1, 2, *ends.shape[1:])


def _rmse(difference: Tensor) -> Tensor:
    """Root mean square over an image: (..., C, H, W) -> (...)."""
    return difference.square().flatten(-3).mean(-1).sqrt()
