"""The noise level at which an image is lost, measured: identity, class and error over noise levels."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from genssl.data.batches import chunks
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.noise_judge import Encoder, Judge, prepare
from genssl.eval.noise_levels import Counter, Reverse, Trail, check_level
from genssl.eval.noise_pictures import Rows, draw_sweep
from genssl.eval.noise_summary import notes_of, summarise, values_of
from genssl.eval.outcome import Outcome
from genssl.eval.require import check_size, require_ddpm
from genssl.eval.sample import Tick
from genssl.models.ddpm import DDPM, FAST_STEPS, Sampler
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import generators, measuring

ROWS_SHOWN = 16
SNAPSHOTS = 16
WHITE = 1.0  # in the model's range


@measuring()
def sweep(
    method: Method,
    split: Split,
    levels: Sequence[int],
    *,
    queries: int = 256,
    seed: int,
    batch_size: int,
    sampler: Sampler = "dpm++",
    steps: int | None = None,
    encoder: Encoder | None = None,
    bank_split: Split | None = None,
    tick: Tick,
) -> Outcome:
    """Noise test images to each level, bring them back, and find t*, where half have lost their identity.

    A reconstruction keeps its identity when its nearest neighbour in the whole split is its own original:
    in pixels by Euclidean distance, in features by cosine. It keeps its class when kNN finds its label, in
    features where there are some. A query has the same noise at every level.

    Args:
        method: a DDPM.
        split: the test images: queries are drawn from it, and all of it are candidates.
        levels: t', rising.
        queries: images, drawn by `seed`; all where there are fewer.
        seed: of the choice, of the noise and of the bootstrap.
        batch_size: images at once.
        sampler: of the curves; the rows of the picture take every step of the reverse process.
        steps: of the sampler, fewer where t' is less; None: 20, or all for "ancestral".
        encoder: of images (B, 3, H, W) in the model's range, features to compare; None: pixels only.
        bank_split: labelled images for the classes by kNN; None: no classes.
        tick: told the network calls done and to do, images times steps.

    Returns:
        "levels" has a row a level, "t_star_pixels" and "t_star_features" what `half_level` finds.

    Raises:
        UserError: not a DDPM, images of another size, or numbers that do not fit it.
    """
    ddpm = require_ddpm(method, "a sweep over noise levels")
    _check(ddpm, split, bank_split, levels, queries, steps)
    start = time.perf_counter()
    own = _drawn(split, queries, seed)
    count = Counter(network_calls(levels, len(own), sampler, steps), tick)
    rows = _rows(ddpm, split.images[own[:1]], levels, seed, count)
    judge = prepare(split, encoder, bank_split, batch_size)
    measured = []
    for level in levels:
        reverse = Reverse(ddpm, sampler, steps_at(level, sampler, steps))
        measured.append(_measure(reverse, judge, split, own, level, seed, batch_size, count))
    found = {name: torch.stack([one[name] for one in measured]) for name in measured[0]}  # (L, Q)
    curves = summarise(ddpm.schedule.snr.cpu(), judge, split, own, levels, found, seed)
    used = [steps_at(level, sampler, steps) for level in levels]
    values = {"sampler": sampler, **values_of(curves, found, used), "network_calls": count.done}
    values["seconds"] = round(time.perf_counter() - start, 3)
    drawn = f"{len(own)} of {len(split):,} {split.name} {split.part} images"
    title = f"Noised to t' and brought back: one image by every step; beneath, {drawn} by {sampler}"
    how = f"curves: {sampler} with at most {max(used)} steps; rows of the picture: every ancestral step"
    picture = draw_sweep(rows, curves, title)
    return Outcome(values, {"noise levels": picture}, (how, *notes_of(curves, found)))


def network_calls(
    levels: Sequence[int], queries: int, sampler: Sampler = "dpm++", steps: int | None = None
) -> int:
    """What a sweep costs, in images times steps, its picture included."""
    return queries * sum(steps_at(level, sampler, steps) for level in levels) + sum(_shown(levels))


def steps_at(level: int, sampler: Sampler, steps: int | None) -> int:
    """Steps of the sampler from t': as many as it has, at most `steps`."""
    if steps is None:
        return level if sampler == "ancestral" else min(FAST_STEPS, level)
    return min(steps, level)


def _check(
    ddpm: DDPM,
    split: Split,
    bank_split: Split | None,
    levels: Sequence[int],
    queries: int,
    steps: int | None,
) -> None:
    for part in (split, bank_split):
        if part is not None:
            check_size(ddpm, part)
    if not levels or any(a >= b for a, b in pairwise(levels)):
        raise UserError(f"a sweep needs one or more rising levels, not {list(levels)}")
    for level in (levels[0], levels[-1]):
        check_level(ddpm, level)
    if queries < 1 or (steps is not None and steps < 1):
        raise UserError(f"a sweep needs 1 or more queries and steps, not {queries} and {steps}")


def _drawn(split: Split, queries: int, seed: int) -> Tensor:
    """Which images `split.take` takes, (Q,) int64."""
    numbered = replace(split, labels=torch.arange(len(split), device=split.images.device))
    own = numbered.take(queries, seed).labels
    assert own is not None
    return own


def _shown(levels: Sequence[int]) -> list[int]:
    """At most 16 of the levels, evenly spaced, the first and the last among them."""
    count = min(ROWS_SHOWN, len(levels))
    return [levels[i * (len(levels) - 1) // max(count - 1, 1)] for i in range(count)]


def _rows(ddpm: DDPM, image: Tensor, levels: Sequence[int], seed: int, count: Counter) -> Rows:
    """One image, uint8 (1, 3, H, W), through every step of the reverse process from each level."""
    reverse, rows, titles = Reverse(ddpm, "ancestral"), [], []
    for level in _shown(levels):
        x = to_model(image)
        trail = Trail(level, SNAPSHOTS, count)
        noised, restored = reverse(x, level, generators(seed, "eval", [0]), trail)
        states = [state for _, state in trail.states]
        blank = [torch.full_like(x, WHITE).cpu()] * (SNAPSHOTS - len(states))
        rows.append(torch.cat([x.cpu(), noised.cpu(), *states, *blank, restored.cpu()]))
        titles.append(f"t' = {level}, SNR {float(ddpm.schedule.snr[level - 1]):.2g}")
    return Rows(torch.stack(rows), titles)


def _measure(
    reverse: Reverse,
    judge: Judge,
    split: Split,
    own: Tensor,
    level: int,
    seed: int,
    batch_size: int,
    count: Counter,
) -> dict[str, Tensor]:
    """What the judge finds of every query at one level, (Q,) each."""
    parts = []
    for rows in chunks(len(own), batch_size):
        x = to_model(split.images[own[rows]])
        noise = generators(seed, "eval", range(rows.start, rows.stop))
        noised, restored = reverse(x, level, noise, count)
        parts.append(judge(x, noised, restored, own[rows]))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
