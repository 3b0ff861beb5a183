"""What images cost in bits/dim: the variational bound of a diffusion model, or the likelihood of a flow.

The bound is that of Ho et al. 2020, section 4.3.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from genssl import figures
from genssl.data.rows import read_slice
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.result import EvalResult, check_size, require_ability
from genssl.models.diffusion import Variance
from genssl.models.method import CanDenoise, HasFlow, Method
from genssl.models.vlb import bound_terms, prior_kl
from genssl.pixels import BIN_WIDTH, to_model
from genssl.runtime import Tick, chunks, generators, measuring, step_noise, uniform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = 10  # of the times, in the table
UNIFORM = "an upper bound on what the bytes cost: 8 bits/dim for uniform bytes, and less is better"
STRATIFIED = (
    "estimated from {} of {} timesteps per image: t = 1, and one drawn from each of {} ranges that cover the "
    "others; it has no bias, and the standard error includes the drawing"
)
VISIBLE = (
    "x_T still shows the image: the prior's term is {:.2g} bits/dim; more timesteps, or training with "
    "--set scale_betas=true, make it vanish"
)
FLOW_STEPS = 100  # of Heun's method
HUTCHINSON = (
    "{} steps of Heun's method; one dequantization and one estimate of the divergence per image, and the "
    "standard error includes both, but not the error of the steps: twice as many show it"
)
TERMS = ("prior_bits_per_dim", "denoising_bits_per_dim", "decoder_bits_per_dim")
UNITS = dict.fromkeys(("bits_per_dim", "standard_error", *TERMS), "bits/dim")
VISIBLE_FROM = 1e-3  # bits/dim


@dataclass(frozen=True)
class Strata:
    """A partition of the timesteps into contiguous strata; t = 0 is a stratum by itself.

    Attributes:
        firsts: the first timestep (zero-based) of each stratum, (S,) int64, increasing.
        sizes: number of timesteps in each, (S,) int64.
    """

    firsts: Tensor
    sizes: Tensor

    @classmethod
    def make(cls, timesteps: int, t_samples: int | None) -> Self:
        """t = 0, then `t_samples` strata; None: one stratum per timestep.

        Their sizes grow in proportion to t. The terms fall like a power of t, and with strata of equal size
        the first one would dominate the error: 100 times as much, for a network trained on SVHN.

        Raises:
            UserError: there are fewer timesteps after t = 0 than `t_samples`.
        """
        later = timesteps - 1
        if t_samples is not None and not 1 <= t_samples <= later:
            raise UserError(f"--t-samples must be from 1 to {later} with T = {timesteps}, not {t_samples}")
        runs = later if t_samples is None else t_samples
        edges = [0, 1]
        for run in range(1, runs + 1):
            edges.append(max(edges[-1] + 1, round(timesteps ** (run / runs))))
        return cls(torch.tensor(edges[:-1]), torch.tensor(edges).diff())

    def draw(self, chance: Tensor) -> Tensor:
        """One timestep per stratum from uniform numbers (B, S) in [0, 1): (B, S) int64 on the CPU."""
        return self.firsts + (chance.cpu().double() * self.sizes).long()


@dataclass
class TermSums:
    """Running sums over the images, in bits/dim; its size does not depend on T.

    Attributes:
        bounds: the bound per image, one (B,) tensor per batch.
        prior: sum of the prior terms.
        by_stratum: sum of the terms per stratum, (S,).
        by_part: sum of the denoising terms in each tenth of the timesteps, (10,).
    """

    timesteps: int
    bounds: list[Tensor] = field(default_factory=list)
    prior: float = 0.0
    by_stratum: Tensor | float = 0.0
    by_part: Tensor | float = 0.0

    def add(self, t: Tensor, bits: Tensor, prior: Tensor) -> None:
        """Add images: their times and terms, weighted by the strata's sizes, (B, S); prior terms (B,)."""
        self.bounds.append(bits.sum(1) + prior)
        self.prior += float(prior.sum())
        self.by_stratum += bits.sum(0)
        parts = t[:, 1:] * PARTS // self.timesteps
        self.by_part += torch.bincount(parts.flatten(), bits[:, 1:].flatten(), PARTS)


@measuring()
def bits_per_dim(
    method: Method,
    split: Split,
    *,
    t_samples: int | None,
    seed: int,
    batch_size: int,
    tick: Tick,
    variance: Variance = "posterior",
) -> EvalResult:
    """Bits/dim of images: a DDPM's variational bound with its terms by time, or a flow's likelihood.

    The network runs in float32.

    Args:
        method: one that denoises, or a flow.
        split: images as bytes.
        t_samples: stratified timesteps per image after t = 0; None: all.
        seed: random seed; the timesteps and noise of image i depend on (seed, i) alone.
        batch_size: in images.
        tick: called with the images done and in total.
        variance: of the reverse process.

    Raises:
        UserError: it does not denoise, images of another size, or no such number of times.
    """
    check_size(method, split)
    if isinstance(method, HasFlow):
        if t_samples is not None or variance != "posterior":
            raise UserError(f"a {method.config.method} has no --t-samples and no --variance; omit them")
        return flow_likelihood(method, split, seed=seed, batch_size=batch_size, tick=tick)
    diffusion = require_ability(method, CanDenoise, "bits-per-dim", HasFlow)
    timesteps = diffusion.schedule.timesteps
    strata = Strata.make(timesteps, t_samples)
    sums = TermSums(timesteps)
    for rows in chunks(len(split), batch_size):
        noise = generators(seed, "eval", range(rows.start, rows.stop))
        t = strata.draw(uniform((len(noise), len(strata.sizes)), noise))
        x = to_model(read_slice(split.images, rows).to(diffusion.device))
        bits = _terms(diffusion, x, t, noise, variance, _within(tick, rows, len(split))) * strata.sizes
        sums.add(t, bits, _in_bits(prior_kl(diffusion.schedule, x), x))
    values = {"images": len(split), "timesteps": timesteps, "variance": variance, **_summary(sums, strata)}
    figure = _draw(sums, strata, f"{len(split)} {split.part} images of {split.name}")
    return EvalResult(
        values, {"bits per dim": figure}, tuple(_notes(values)), name="bits-per-dim",
        title="Variational bound", headline=("bits_per_dim", "standard_error", *TERMS), units=UNITS,
    )  # fmt: skip


def flow_likelihood(
    method: HasFlow, split: Split, *, seed: int, batch_size: int, tick: Tick, steps: int = FLOW_STEPS
) -> EvalResult:
    """The cost of the bytes under a flow: an upper bound, by uniform dequantization, in bits/dim.

    -log P(bytes) <= E_u[-log p(x + u)] - D log(1/128), u uniform over a bin, one draw per image; log p by the
    change of variables, whose divergence is estimated with one draw per image.
    """
    log_ps = []
    for rows in chunks(len(split), batch_size):
        noise = generators(seed, "eval", range(rows.start, rows.stop))
        images = read_slice(split.images, rows).to(method.device)
        x = to_model(images, uniform(images.shape, noise, images.device))
        log_ps.append(method.log_likelihood_of_flow(x, steps, noise))
        tick(rows.stop, len(split))
    image = split.images[:1]
    bits = _in_bits(-(torch.cat(log_ps) + image.numel() * math.log(BIN_WIDTH)), image)
    values = {
        "images": len(split),
        "steps": steps,
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std()) / math.sqrt(len(bits)) if len(bits) > 1 else None,
    }
    figure, (axis,) = figures.new_figure(1, 1, 5, 3.5)
    axis.hist(bits.numpy(), bins=30)
    axis.set(xlabel="bits/dim", ylabel="images", title=f"{len(split)} {split.part} images of {split.name}")
    return EvalResult(
        values, {"bits per dim": figure}, (UNIFORM, HUTCHINSON.format(steps)), name="bits-per-dim",
        title="Likelihood of the flow", headline=("bits_per_dim", "standard_error"), units=UNITS,
    )  # fmt: skip


def _terms(
    diffusion: CanDenoise,
    x: Tensor,
    t: Tensor,
    noise: list[torch.Generator],
    variance: Variance,
    report: Callable[[float], None],
) -> Tensor:
    """The terms of images x (B, C, H, W) at their times t (B, S), on the host: (B, S) bits/dim."""
    columns, draw = [], step_noise(x.shape, noise, x.device)
    for column, times in enumerate(t.T):
        # Times on the host tell it which term it is; nothing is read before all are there
        terms = bound_terms(
            diffusion.network, diffusion.schedule, x, times, draw(column),
            variance=variance, prediction=diffusion.prediction,
        )  # fmt: skip
        columns.append(terms)
        report((column + 1) / t.shape[1])
    return _in_bits(torch.stack(columns, 1), x)


def _in_bits(nats: Tensor, x: Tensor) -> Tensor:
    """Nats per image, of any shape, to bits per dimension of x (B, ...), float64 on the CPU."""
    return nats.cpu().double() / (x[0].numel() * math.log(2))


def _within(tick: Tick, rows: slice, total: int) -> Callable[[float], None]:
    """Progress within a batch: with all timesteps, a single batch takes minutes on a CPU."""
    return lambda share: tick(rows.start + int((rows.stop - rows.start) * share), total)


def _summary(sums: TermSums, strata: Strata) -> dict[str, Any]:
    bounds = torch.cat(sums.bounds)
    n = len(bounds)
    decoder, *later = (torch.as_tensor(sums.by_stratum) / n).tolist()
    return {
        "evaluations_per_image": len(strata.sizes),
        "bits_per_dim": float(bounds.mean()),
        "standard_error": float(bounds.std()) / math.sqrt(n) if n > 1 else None,
        "prior_bits_per_dim": sums.prior / n,
        "denoising_bits_per_dim": sum(later),
        "decoder_bits_per_dim": decoder,
        "denoising_bits_per_dim_by_t": _by_part(torch.as_tensor(sums.by_part) / n, sums.timesteps),
    }


def _by_part(bits: Tensor, timesteps: int) -> dict[str, float]:
    """The ten sums by their range of timesteps, counted from 1 as on the command line."""
    edges = [-(-timesteps * part // PARTS) for part in range(PARTS + 1)]  # rounded up
    edges[0] = 1  # t = 0 is the decoder's
    return {
        f"{first + 1}-{end}": float(bits[part])
        for part, (first, end) in enumerate(pairwise(edges))
        if first < end
    }


def _notes(values: dict[str, Any]) -> Iterator[str]:
    yield UNIFORM
    evaluations, timesteps = values["evaluations_per_image"], values["timesteps"]
    if evaluations < timesteps:
        yield STRATIFIED.format(evaluations, timesteps, evaluations - 1)
    if values["prior_bits_per_dim"] > VISIBLE_FROM:
        yield VISIBLE.format(values["prior_bits_per_dim"])


def _draw(sums: TermSums, strata: Strata, title: str) -> "Figure":
    """Bits/dim of each step, averaged over its stratum, and their sum from the first step on."""
    n = sum(map(len, sums.bounds))
    bits = torch.as_tensor(sums.by_stratum) / n
    edges = torch.cat([strata.firsts, strata.firsts[-1:] + strata.sizes[-1:]]) + 1  # the paper's t
    figure, (per_step, summed) = figures.new_figure(1, 2, 5.0, 3.5)
    per_step.stairs(bits / strata.sizes, edges, baseline=None)
    per_step.set(xscale="log", yscale="log", xlabel="noising step t", ylabel="bits/dim of the step")
    summed.plot(edges[1:] - 1, bits.cumsum(0), drawstyle="steps-post", marker="." if len(bits) < 50 else None)
    whole = float(torch.cat(sums.bounds).mean())
    summed.axhline(whole, color="0.5", linestyle="--", label=f"the bound: {whole:.3f}")
    summed.set(xscale="log", xlabel="noising step t", ylabel="bits/dim of steps 1 to t", ylim=(0, None))
    summed.legend(frameon=False)
    figure.suptitle(title)
    return figure
