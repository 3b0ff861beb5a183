"""log p(x) of a VAE by importance sampling."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genssl import figures
from genssl.data.rows import read_slice
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.result import EvalResult, check_size, require_ability
from genssl.metrics.latents import bound_by_samples, effective_sample_size
from genssl.models.method import HasLikelihood, Method
from genssl.pixels import bits_per_dim, to_model
from genssl.runtime import Tick, chunks, generators, measuring, to_float64, uniform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECODINGS = 1024  # decodings held at once: bounds memory whatever K is
STILL_CLIMBING = (
    "the weights of most images amount to fewer than 5 equal ones: the estimate still climbs with K, "
    "see the curve; read it as a lower bound"
)
NATS = "nats per image"
UNITS = dict.fromkeys(("log_p_nats", "standard_error_nats", "elbo_nats", "gap_to_elbo_nats"), NATS) | {
    "bits_per_dim": "bits/dim",
    "elbo_bits_per_dim": "bits/dim",
}
FEW = 5.0  # effective samples below which an estimate is called a bound


def importance_ll(method: Method, split: Split, k: int, *, seed: int, tick: Tick) -> EvalResult:
    """Mean log p(x) over the split in nats and bits/dim, with what is needed to believe it, in float32.

    The images are dequantized, x = (u + U[0, 1)) / 128 - 1, so that the density bounds the probability
    of the bytes (Theis et al. 2016). Image i's noise depends on (seed, i) alone.

    Raises:
        UserError: the method cannot do it, or k < 1.
    """
    model = require_ability(method, HasLikelihood, "importance-ll")
    check_size(method, split)
    if k < 1:
        raise UserError(f"-k must be at least 1, not {k}")
    counts = sample_counts(k)
    bounds, sizes, elbos = [], [], []
    batch = max(1, min(64, DECODINGS // k))
    for rows in chunks(len(split), batch):
        noise = generators(seed, "eval", range(rows.start, rows.stop))

        def weighed(done: int, rows: slice = rows) -> None:
            # Of one image a million samples take minutes
            tick(rows.start * k + done * (rows.stop - rows.start), len(split) * k)

        images = read_slice(split.images, rows).to(method.device)
        weights = _log_weights(model, images, k, DECODINGS // batch, noise, weighed)
        bounds.append(bound_by_samples(weights, counts))
        sizes.append(effective_sample_size(weights))
        elbos.append(weights.mean(0))
    bound, size, elbo = torch.cat(bounds, 1).cpu(), torch.cat(sizes).cpu(), torch.cat(elbos).cpu()
    values = _summary(bound, size, elbo, k, split)
    curve = _draw_bound(counts, bound.mean(1), values["elbo_nats"], split)
    return EvalResult(
        values, {"bound over K": curve}, tuple(_notes(model, values)), name="importance-ll",
        title="Log-likelihood by importance sampling",
        headline=(
            "log_p_nats", "standard_error_nats", "elbo_nats", "bits_per_dim", "k",
            "effective_sample_size_median",
        ),
        units=UNITS,
    )  # fmt: skip


def _notes(model: HasLikelihood, values: dict[str, Any]) -> Iterator[str]:
    if model.likelihood_caveat is not None:
        yield model.likelihood_caveat
    # Of K equal weights K are effective: a few of them say nothing of how uneven they are
    if values["effective_sample_size_median"] < min(FEW, values["k"] / 2):
        yield STILL_CLIMBING


@measuring()
def _log_weights(
    model: HasLikelihood,
    images: Tensor,
    k: int,
    portion: int,
    noise: list[torch.Generator],
    weighed: Callable[[int], None],
) -> Tensor:
    """(k, B) in float64, `portion` of the k samples at a time."""
    x = to_model(images, uniform(images.shape, noise, images.device))
    parts = []
    for done in range(0, k, portion):
        parts.append(model.log_weights(x, min(portion, k - done), noise))
        weighed(min(k, done + portion))
    return to_float64(torch.cat(parts))


def sample_counts(k: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to k, and k itself."""
    ladder = [digit * 10**power for power in range(len(str(k))) for digit in (1, 2, 5)]
    return sorted({count for count in ladder if count < k} | {k})


def _summary(bound: Tensor, size: Tensor, elbo: Tensor, k: int, split: Split) -> dict[str, Any]:
    log_p = bound[-1]
    dimensions = split.images[0].numel()
    error = float(log_p.std()) / math.sqrt(len(log_p)) if len(log_p) > 1 else None
    return {
        "images": len(split),
        "k": k,
        "log_p_nats": float(log_p.mean()),
        "standard_error_nats": error,
        "elbo_nats": float(elbo.mean()),
        "gap_to_elbo_nats": float((log_p - elbo).mean()),
        "bits_per_dim": bits_per_dim(-float(log_p.mean()), dimensions),
        "elbo_bits_per_dim": bits_per_dim(-float(elbo.mean()), dimensions),
        "effective_sample_size_mean": float(size.mean()),
        "effective_sample_size_median": float(size.median()),
    }


def _draw_bound(counts: list[int], bound: Tensor, elbo: float, split: Split) -> "Figure":
    figure, (axis,) = figures.new_figure(1, 1, 5.5, 3.5)
    axis.plot(counts, bound, marker="o", label="log 1/K Σ w")
    axis.axhline(elbo, color="0.5", linestyle="--", label="ELBO, mean over all samples")
    title = f"Importance-weighted bound, {len(split)} {split.part} images"
    axis.set(xscale="log", xlabel="samples K", ylabel="nats", title=title)
    axis.legend(frameon=False)
    return figure
