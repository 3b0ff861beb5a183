"""Test images beside what a VAE makes of them."""

import torch

from genssl import figures
from genssl.data.batches import chunks
from genssl.data.split import Split
from genssl.eval.outcome import Outcome, header_of
from genssl.eval.require import check_size, require_vae
from genssl.eval.sample import Tick
from genssl.metrics.recovery import mean_squared_error, psnr
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import measuring


@measuring()
def reconstruct(method: Method, split: Split, n: int, *, seed: int, batch_size: int, tick: Tick) -> Outcome:
    """Pairs of `n` images, drawn by `seed`, and their reconstructions; the error over the whole split.

    The error is the mean squared difference in the model's range [-1, 1], at the posterior mean, and the
    peak signal-to-noise ratio 10 log10(4 / mse) per image, averaged.
    """
    vae = require_vae(method, "reconstruct")
    check_size(method, split)
    errors = []
    for rows in chunks(len(split), batch_size):
        x = to_model(split.images[rows])
        errors.append(mean_squared_error(vae.reconstruct(x), x).cpu())
        tick(rows.stop, len(split))
    mse = torch.cat(errors)
    values = {
        "images": len(split),
        "mse": float(mse.mean()),
        "rmse": float(mse.mean().sqrt()),
        "psnr_db": float(psnr(mse).mean()),
    }
    shown = to_model(split.take(n, seed).images)
    pairs = torch.stack([shown, vae.reconstruct(shown)], 1).flatten(0, 1)  # (2 n, 3, H, W)
    error = f"PSNR {values['psnr_db']:.1f} dB over {len(split):,} images"
    header = header_of(method, f"{len(shown)} {split.name} {split.part} images and reconstructions, {error}")
    titles = ("original", "reconstruction")
    columns = min(8, len(pairs))
    return Outcome(values, {"reconstructions": figures.titled_grid(pairs, header, columns, titles)})
