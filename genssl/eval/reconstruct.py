"""Reconstructions of test images: through the latents of a VAE, or from a noise level of a DDPM."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from genssl import figures
from genssl.data.rows import read_slice
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.result import EvalResult, check_size, header_of, require_ability
from genssl.metrics.reconstruction import mean_squared_error, psnr
from genssl.models.ddpm import FAST_STEPS, Sampler, default_spacing
from genssl.models.diffusion import StepCallback, q_sample
from genssl.models.method import CanDenoise, CanReconstruct, Method
from genssl.models.sampling_times import Spacing
from genssl.pixels import to_model
from genssl.runtime import Counter, Tick, chunks, generators, measuring, normal

UNITS = {"psnr_db": "dB", "noised_psnr_db": "dB", "t_prime": "noising steps", "seconds": "s"}


@measuring()
def reconstruct(
    method: Method, split: Split, n: int, *, seed: int, batch_size: int, tick: Tick
) -> EvalResult:
    """Pairs of `n` images, drawn by `seed`, and their reconstructions; the error over the whole split.

    The error is the mean squared difference in the model's range [-1, 1], at the posterior mean, and the
    peak signal-to-noise ratio 10 log10(4 / mse) per image, averaged.
    """
    model = require_ability(method, CanReconstruct, "reconstruct")
    check_size(method, split)
    errors = []
    for rows in chunks(len(split), batch_size):
        x = to_model(read_slice(split.images, rows).to(method.device))
        errors.append(mean_squared_error(model.reconstruct(x), x))
        tick(rows.stop, len(split))
    mse = torch.cat(errors).cpu()
    values = {
        "images": len(split),
        "mse": float(mse.mean()),
        "rmse": float(mse.mean().sqrt()),
        "psnr_db": float(psnr(mse).mean()),
    }
    shown = to_model(split.take(n, seed).images.to(method.device))
    pairs = torch.stack([shown, model.reconstruct(shown)], 1).flatten(0, 1)  # (2 n, C, H, W)
    error = f"PSNR {values['psnr_db']:.1f} dB over {len(split):,} images"
    header = header_of(method, f"{len(shown)} {split.name} {split.part} images and reconstructions, {error}")
    titles = ("original", "reconstruction")
    columns = min(8, len(pairs))
    return EvalResult(
        values, {"reconstructions": figures.titled_grid(pairs, header, columns, titles)}, name="reconstruct",
        title="Reconstructions", headline=("psnr_db", "rmse"), units=UNITS,
    )  # fmt: skip


def check_level(diffusion: CanDenoise, t_prime: int) -> None:
    """Check that a noise level exists.

    Raises:
        UserError: t' is not in 1..T.
    """
    last = diffusion.schedule.timesteps
    if not 1 <= t_prime <= last:
        raise UserError(f"t' must be from 1 to the run's {last} timesteps, not {t_prime}")


@dataclass(frozen=True)
class Reverse:
    """The reverse process from noised images.

    Attributes:
        diffusion: the diffusion model.
        sampler: one of the DDPM's, see `DDPM.denoise`.
        steps: of the sampler; None: all for "ancestral", 20 for the others, fewer where t' is less.
        spacing: of the times that the sampler visits; the sampler's default when None.
    """

    diffusion: CanDenoise
    sampler: Sampler
    steps: int | None = None
    spacing: Spacing | None = None

    def steps_from(self, t_prime: int) -> int:
        """Steps from t'.

        Raises:
            UserError: fewer than 1, or more of them are asked for than there are.
        """
        if self.steps is not None:
            if not 1 <= self.steps <= t_prime:
                raise UserError(f"steps must be from 1 to {t_prime} from t' = {t_prime}, not {self.steps}")
            return self.steps
        return t_prime if self.sampler == "ancestral" else min(FAST_STEPS, t_prime)

    def __call__(
        self, x: Tensor, t_prime: int, noise: list[torch.Generator], callback: StepCallback | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise images x (B, C, H, W) to t' and denoise them: (noised, reconstructed).

        The generator of an image gives its noise first, then the noise of the sampler.

        Raises:
            UserError: t' or the steps do not fit the process, or the sampler is unknown.
        """
        check_level(self.diffusion, t_prime)
        t = t_prime - 1  # the paper counts from 1, the code from 0
        times = torch.full((len(x),), t, device=x.device)
        noised = q_sample(self.diffusion.schedule, x, times, normal(x.shape, noise, x.device))
        steps = self.steps_from(t_prime)
        try:
            return noised, self.diffusion.denoise(
                noised, t, noise, self.sampler, steps, spacing=self.spacing, callback=callback
            )
        except ValueError as error:
            raise UserError(f"cannot denoise from t' = {t_prime}: {error}") from error


def calls_of(sampler: Sampler, steps: int) -> int:
    """Network calls per image: one per step, and in every step but the last of Heun's method another.

    Examples:
        >>> calls_of("dpm++", 5), calls_of("heun", 5)
        (5, 9)
    """
    return 2 * steps - 1 if sampler == "heun" else steps


class StepCounter(Counter):
    """Counts images times steps, as the callback of a sampler."""

    def __call__(self, _: int, x: Tensor) -> None:
        """Count one step of the images x."""
        self.add(len(x))


class Snapshots:
    """Stores intermediate states of a sampler on the CPU, evenly spaced over its steps, without both ends.

    Attributes:
        states: (noising steps left, x), at most `n`.
    """

    def __init__(self, steps: int, n: int, count: StepCallback) -> None:
        n = min(n, steps - 1)
        self._chosen = {i * steps // (n + 1) for i in range(1, n + 1)}
        self._count, self._step = count, 0
        self.states: list[tuple[int, Tensor]] = []

    def __call__(self, t: int, x: Tensor) -> None:
        """Callback after each step: the time t, one less than the noising steps left, and x (B, C, H, W)."""
        self._step += 1
        self._count(t, x)
        if self._step in self._chosen:
            self.states.append((t + 1, x.cpu()))


def _trajectories(
    reverse: "Reverse",
    images: Tensor,
    t_prime: int,
    seed: int,
    batch_size: int,
    snapshots: int,
    count: "StepCounter",
) -> tuple[Tensor, list[int]]:
    """Each image, noised, at some steps of the reverse process, and restored: (N, columns, C, H, W).

    Also the noising steps that are left in the columns between the image and its reconstruction.
    """
    rows, left = [], [t_prime]
    for chosen in chunks(len(images), batch_size):
        x = to_model(images[chosen])
        trajectory = Snapshots(reverse.steps_from(t_prime), snapshots, count)
        noise = generators(seed, "eval", range(*chosen.indices(len(images))))
        noised, restored = reverse(x, t_prime, noise, trajectory)
        left = [t_prime, *(step for step, _ in trajectory.states)]
        states = [x.cpu(), noised.cpu(), *(state for _, state in trajectory.states), restored.cpu()]
        rows.append(torch.stack(states, 1))
    return torch.cat(rows), left


@measuring()
def reconstruct_from(
    method: Method,
    split: Split,
    t_prime: int,
    n: int,
    *,
    seed: int,
    batch_size: int,
    sampler: Sampler = "ancestral",
    steps: int | None = None,
    spacing: Spacing | None = None,
    snapshots: int = 8,
    tick: Tick,
) -> EvalResult:
    """Noise `n` images, drawn by `seed`, to t' and run the reverse process from there.

    The figure has one row per image: the original, noised, snapshots of the reverse process, the result. The
    noise of image i depends on (seed, i) alone. Errors are mean squares in [-1, 1], and PSNR is
    10 log10(4 / mse), both averaged over images.

    Args:
        method: one that denoises.
        split: where the images come from.
        t_prime: noising steps, counted from 1 as in the paper.
        n: images.
        seed: random seed of the images and the noise.
        batch_size: in images.
        sampler, steps, spacing: of the reverse process, see `Reverse`.
        snapshots: maximum number of columns between the noised image and the result.
        tick: called with the network evaluations (images times steps) done and in total.

    Raises:
        UserError: it does not denoise, images of another size, or numbers that do not fit it.
    """
    diffusion = require_ability(method, CanDenoise, "reconstruct from a noise level")
    check_size(method, split)
    check_level(diffusion, t_prime)
    if n < 1:
        raise UserError(f"-n must be at least 1, not {n}")
    start = time.perf_counter()
    images = split.take(n, seed).images.to(diffusion.device)
    reverse = Reverse(diffusion, sampler, steps, spacing)
    steps = reverse.steps_from(t_prime)
    calls = calls_of(sampler, steps)
    count = StepCounter(steps * len(images), tick)
    shown, left = _trajectories(reverse, images, t_prime, seed, batch_size, snapshots, count)
    before, after = (mean_squared_error(shown[:, column], shown[:, 0]) for column in (1, -1))
    values = {
        "images": len(images),
        "t_prime": t_prime,
        "snr": float(diffusion.schedule.snr[t_prime - 1]),
        "sampler": sampler,
        "spacing": spacing or default_spacing(sampler),
        "steps": steps,
        "network_calls": calls * len(images),
        "mse": float(after.mean()),
        "psnr_db": float(psnr(after).mean()),
        "noised_mse": float(before.mean()),
        "noised_psnr_db": float(psnr(before).mean()),
        "seconds": round(time.perf_counter() - start, 3),
    }
    titles = ["original", *(f"t' = {step}" for step in left), "result"]
    what = f"{len(images)} {split.name} {split.part} images noised to t' = {t_prime} and back by {sampler}"
    header = header_of(method, f"{what}, {calls} network calls per image, PSNR {values['psnr_db']:.1f} dB")
    picture = figures.titled_grid(shown.flatten(0, 1), header, shown.shape[1], titles)
    return EvalResult(
        values, {"reconstructions": picture}, name="reconstruct",
        title=f"Reconstructions from t' = {t_prime}",
        headline=("t_prime", "psnr_db", "noised_psnr_db", "sampler", "steps"), units=UNITS,
    )  # fmt: skip
