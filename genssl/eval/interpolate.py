"""Paths through a VAE's latent space."""

from typing import Literal

import torch
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.outcome import Outcome, header_of
from genssl.eval.require import check_size, require_vae
from genssl.models.method import Method
from genssl.models.vae import VAE
from genssl.pixels import to_model
from genssl.runtime import generators, measuring

Shape = Literal["linear", "spherical"]


@measuring()
def interpolate(
    method: Method,
    split: Split | None,
    *,
    rows: int,
    steps: int,
    shape: Shape,
    seed: int,
    device: torch.device,
) -> Outcome:
    """`rows` paths of `steps` images each.

    Args:
        method: a VAE.
        split: ends are the posterior means of its images 0 and 1, 2 and 3, ...; prior draws when None.
        rows: how many paths.
        steps: images on a path, both ends included.
        shape: linear, or spherical (great circles, with the length interpolated too).
        seed: of the prior's draws.
        device: where to compute.

    Raises:
        UserError: not a VAE, or too few images, steps or rows.
    """
    vae = require_vae(method, "interpolate").to(device)
    if steps < 2 or rows < 1:
        raise UserError(f"a picture needs at least 1 row and 2 steps, not {rows} and {steps}")
    z = _ends(vae, split, rows, seed)
    if shape == "linear":
        images = vae.interpolate(z[0::2], z[1::2], steps)
    else:
        images = vae.decode_path(spherical_path(z[0::2], z[1::2], steps))
    by_row = images.transpose(0, 1).flatten(0, 1)  # (rows steps, 3, H, W)
    # How even the path is: the largest step between neighbours over the mean one, averaged over rows
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
    return Outcome(values, {"interpolations": picture})


def shares(steps: int) -> list[str]:
    """Titles of the columns of paths: 0 at one end, 1 at the other."""
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


def _ends(vae: VAE, split: Split | None, rows: int, seed: int) -> Tensor:
    if split is None:
        return vae.sample_prior(2 * rows, generators(seed, "sample", range(2 * rows)))
    check_size(vae, split)
    if len(split) < 2 * rows:
        raise UserError(f"{rows} paths need {2 * rows} images, and the split has {len(split)}")
    return vae.features(to_model(split.images[: 2 * rows]))
