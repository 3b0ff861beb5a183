"""Reconstruction over the noise levels of a diffusion model: retrieval, class and error (`--sweep`)."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data.rows import read_rows
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.feature_cache import PIXELS, FeatureSpace, cached_features
from genssl.eval.noise_figure import Curves, Rows, describe_half, draw_sweep
from genssl.eval.reconstruct import Reverse, Snapshots, StepCounter, calls_of, check_level
from genssl.eval.result import EvalResult, check_size, require_ability
from genssl.metrics.knn import knn_predict
from genssl.metrics.reconstruction import Crossing, half_crossing, is_top1_match, mean_squared_error, psnr
from genssl.models.ddpm import FAST_STEPS, Sampler, default_spacing
from genssl.models.method import CanDenoise, Method
from genssl.models.sampling_times import Spacing
from genssl.pixels import to_model
from genssl.runtime import Tick, chunks, generator, generators, measuring

NEIGHBORS = 200
BANK = 5000  # training images that vote for a class, at most
RATIO = 1.25  # of two levels beyond the last one that was asked for, at most
UNITS = {f"t_star_{name}.level": "noising steps" for name in ("pixels", "features", "class")} | {
    "seconds": "s"
}


@dataclass(frozen=True)
class InstanceRetrieval:
    """Instance retrieval (top-1): is the original the nearest neighbor of its reconstruction?

    Features are compared by cosine, as in kNN: they are scaled to unit length.

    Attributes:
        spaces: "pixels" and optionally "features".
        candidates: the vectors of the whole split in each space, (N, D).
        bank: labeled vectors (M, D) in the last space, for the class by kNN; None: no classes.
        bank_labels: (M,), or None.
        labels: of the candidates, (N,), or None.
        classes: number of classes.
    """

    spaces: dict[str, FeatureSpace]
    candidates: dict[str, Tensor]
    bank: Tensor | None
    bank_labels: Tensor | None
    labels: Tensor | None
    classes: int

    @property
    def class_space(self) -> str:
        """The space in which classes are predicted."""
        return list(self.spaces)[-1]

    def __call__(self, x: Tensor, noised: Tensor, restored: Tensor, query_index: Tensor) -> dict[str, Tensor]:
        """Measure images x (B, C, H, W), rows `query_index` (B,), on the host, of the candidates.

        Returns:
            By name, (B,) each: "mse", "noised_mse", a top-1 match under the name of each space,
            and "class": whether the predicted class is the original's label.
        """
        measured = {"mse": mean_squared_error(restored, x), "noised_mse": mean_squared_error(noised, x)}
        vectors = {name: _scaled(space, space.encode(restored)) for name, space in self.spaces.items()}
        for name, candidates in self.candidates.items():
            measured[name] = is_top1_match(candidates, vectors[name], query_index)
        if self.labels is not None:
            measured["class"] = self.predict(vectors[self.class_space]) == self.labels[query_index]
        return measured

    def predict(self, vectors: Tensor) -> Tensor:
        """Classes by kNN of vectors (B, D) in the last space: (B,)."""
        assert self.bank is not None
        assert self.bank_labels is not None
        k = min(NEIGHBORS, len(self.bank))
        return knn_predict(self.bank, self.bank_labels, vectors, self.classes, k)

    def crossings(self, levels: Sequence[int], measured: dict[str, Tensor], seed: int) -> dict[str, Crossing]:
        """t* by space, and of the class, from the matches (L, Q) at L levels."""
        chance: dict[str, float | None] = dict.fromkeys(self.spaces)
        if self.labels is not None:
            chance["class"] = self.class_chance
        return {
            name: half_crossing(levels, measured[name], seed=seed, chance=least)
            for name, least in chance.items()
        }

    @property
    def class_chance(self) -> float:
        """The fraction of the largest class."""
        assert self.labels is not None
        return float(self.labels.bincount().max()) / len(self.labels)


def make_retrieval(
    split: Split,
    space: FeatureSpace | None,
    bank_split: Split | None,
    batch_size: int,
    tick: Tick,
    device: torch.device | None = None,
) -> InstanceRetrieval:
    """Retrieval among the whole `split`, with `bank_split` for classes where both have labels.

    On `device`, that of the split when None; pixels that do not fit there stay on the host.
    """
    device = device or split.images.device
    spaces = {"pixels": PIXELS} if space is None else {"pixels": PIXELS, "features": space}

    def represent(part: Split, space: FeatureSpace) -> Tensor:
        return _scaled(space, cached_features(space, part, batch_size, tick, device))

    candidates = {name: represent(split, space) for name, space in spaces.items()}
    if bank_split is None or bank_split.labels is None or split.labels is None:
        return InstanceRetrieval(spaces, candidates, None, None, None, 0)
    bank, classes = represent(bank_split, list(spaces.values())[-1]), len(bank_split.classes)
    bank_labels, labels = bank_split.labels.to(device), split.labels.to(device)
    return InstanceRetrieval(spaces, candidates, bank, bank_labels, labels, classes)


def _scaled(space: FeatureSpace, vectors: Tensor) -> Tensor:
    return vectors if space is PIXELS else F.normalize(vectors.float(), dim=1)


# RMSE of results over RMSE of noised images above which a network does not denoise. Measured with 8 rendered
# digits and dpm++ at t' = 16 to 256: the shipped DDPM 0.15; 0 for the noise 1.00; other noise for it 0.93; a
# network after 20 steps of training 0.84, after 50 steps 0.56
HARDLY_NEARER = 0.8


def summarize(
    snr: Tensor,
    retrieval: InstanceRetrieval,
    query_index: Tensor,
    levels: Sequence[int],
    measured: dict[str, Tensor],
    seed: int,
) -> Curves:
    """Means over the queries, t*, chance levels, and the class accuracy of the originals.

    Args:
        snr: of the schedule, (T,).
        retrieval: the one that measured.
        query_index: rows of the queries among the candidates, (Q,).
        levels: L noise levels.
        measured: (L, Q) by name, see `InstanceRetrieval`.
        seed: random seed of the bootstrap.
    """
    names = {"pixels": "mse", "noised": "noised_mse"}
    classes, chance, ceiling = None, 0.0, 0.0
    if retrieval.labels is not None:
        classes, chance = _means(measured["class"]), retrieval.class_chance
        originals = retrieval.candidates[retrieval.class_space][query_index]
        clean = retrieval.predict(originals.to(retrieval.labels.device))
        ceiling = float((clean == retrieval.labels[query_index]).cpu().double().mean())
    return Curves(
        levels=list(levels),
        psnr_db={name: _means(psnr(measured[key])) for name, key in names.items()},
        identity={name: _means(measured[name]) for name in retrieval.spaces},
        half=retrieval.crossings(levels, measured, seed),
        identity_chance=1 / len(retrieval.candidates["pixels"]),
        classes=classes,
        class_chance=chance,
        class_ceiling=ceiling,
        spaces={name: space.name for name, space in retrieval.spaces.items()},
        snr=snr,
    )


def _means(values: Tensor) -> list[float]:
    means: list[float] = values.cpu().double().mean(1).tolist()
    return means


def values_of(curves: Curves, measured: dict[str, Tensor], steps: Sequence[int]) -> dict[str, Any]:
    """The numbers: overall, and one row per level. `steps`: sampler steps at each level."""
    rows = []
    for i, level in enumerate(curves.levels):
        row: dict[str, Any] = {"t_prime": level, "snr": float(curves.snr[level - 1]), "steps": steps[i]}
        row |= {"mse": float(measured["mse"][i].mean())}
        row |= {"psnr_db": curves.psnr_db["pixels"][i], "noised_psnr_db": curves.psnr_db["noised"][i]}
        row |= {f"identity_{name}": shares[i] for name, shares in curves.identity.items()}
        if curves.classes is not None:
            row["class_kept"] = curves.classes[i]
        rows.append(row)
    values: dict[str, Any] = {"queries": measured["mse"].shape[1]}
    values |= {f"t_star_{name}": asdict(half) for name, half in curves.half.items()}
    for name, half in curves.half.items():
        values[f"t_star_{name}"]["snr"] = _snr_at(curves.snr, half.level)
    values["identity_chance"] = curves.identity_chance
    if curves.classes is not None:
        values |= {"class_chance": curves.class_chance, "class_ceiling": curves.class_ceiling}
        values |= {"class_space": curves.class_space, "class_half": curves.class_half}
    return values | {"levels": rows}


def _snr_at(snr: Tensor, level: float | None) -> float | None:
    """The signal-to-noise ratio at a t' between two steps, interpolated in its logarithm."""
    if level is None:
        return None
    return math.exp(np.interp(level, np.arange(1, len(snr) + 1), snr.log().numpy()))


def _crossing_note(half: Crossing, last: int, timesteps: int, denoises: bool) -> str:
    if half.level is None:
        missing = f"t* not reached by t' = {last}, nor in {half.not_reached:.1%} of the resamples"
        more = f"; add higher levels with --until {timesteps}"
        return missing + more if denoises and last < timesteps else missing
    share = f"; not reached in {half.not_reached:.1%} of the resamples" if half.not_reached else ""
    return f"{describe_half(half)}, 95 % of resampled queries{share}"


def error_ratio(curves: Curves, measured: dict[str, Tensor]) -> tuple[float, int]:
    """The smallest ratio over levels of the RMSE of the results to that of the noised images; its index.

    Only levels with more signal than noise count, or the first: at higher noise even noise is nearer, since
    results are clipped to the range of images.
    """
    shown = [i for i, level in enumerate(curves.levels) if curves.snr[level - 1] >= 1] or [0]
    ratios = {i: _rmse(measured["mse"][i]) / max(_rmse(measured["noised_mse"][i]), 1e-12) for i in shown}
    least = min(ratios, key=lambda i: ratios[i])
    return ratios[least], least


def _rmse(mse: Tensor) -> float:
    return float(mse.cpu().double().mean().sqrt())


def notes_of(curves: Curves, measured: dict[str, Tensor]) -> Iterator[str]:
    """Notes on t* and its interval, whether the network denoises at all, and on the classes."""
    ratio, least = error_ratio(curves, measured)
    denoises = ratio <= HARDLY_NEARER
    if not denoises:
        yield (
            "the results are hardly nearer to the originals than the noised images are, at best RMSE "
            f"{_rmse(measured['mse'][least]):.3g} against {_rmse(measured['noised_mse'][least]):.3g} at t' = "
            f"{curves.levels[least]}: the network does not denoise yet, and t* means nothing; train it longer"
        )
    for name, half in curves.half.items():
        what = "class" if name == "class" else f"top-1 retrieval in {_named(curves, name)}"
        yield f"{what}: {_crossing_note(half, curves.levels[-1], len(curves.snr), denoises)}"
        if name != "class" and curves.identity[name][0] <= 0.5:
            yield f"{what} is below 0.5 at the first level already; add lower levels"
    if curves.classes is not None:
        yield (
            f"class: the label is found by a kNN vote in {_named(curves, curves.class_space)}, no trained "
            f"classifier; t* is where its accuracy is {curves.class_half:.3f}, half-way from "
            f"{curves.classes[0]:.3f} at t' = {curves.levels[0]} to {curves.class_chance:.3f}, the share of "
            "the largest class"
        )
        if curves.classes[0] <= curves.class_chance:
            yield "class: it is not found at the first level either, so nothing is lost; add lower levels"


def _named(curves: Curves, space: str) -> str:
    name = curves.spaces[space]
    return name if name == space else f"{space} ({name})"


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
    spacing: Spacing | None = None,
    space: FeatureSpace | None = None,
    bank_split: Split | None = None,
    until: int = 0,
    tick: Tick,
) -> EvalResult:
    """Noise test images to each level, denoise them, and find t*, where top-1 retrieval falls to one half.

    A reconstruction is matched when its nearest neighbor in the whole split is its original: in pixels by
    Euclidean distance, in features by cosine. Its class is that of kNN in the features, or else in pixels; t*
    of the class is where its accuracy is half-way between that at the first level and chance. A query has the
    same noise at all levels.

    Args:
        method: one that denoises.
        split: the test images: queries are drawn from it, and all of it are candidates.
        levels: t', increasing.
        queries: number of images, drawn by `seed`; all where there are fewer.
        seed: random seed of the queries, the noise and the bootstrap.
        batch_size: in images.
        sampler: of the curves; the images of the figure take all steps of the reverse process.
        steps: sampler steps, fewer where t' is less; None: 20, or all for "ancestral".
        spacing: of the times that the sampler visits; the sampler's default when None.
        space: of the features; None: compare pixels only.
        bank_split: labeled images for the classes by kNN, of which 5,000 are taken; None: no classes.
        until: go on to higher levels, at most to this one, until every t* is reached with its interval.
        tick: called with the network evaluations (images times steps) done and in total; first, with images.

    Returns:
        "levels" has one row per level; "t_star_pixels", "t_star_features" and "t_star_class" are
        crossings with their interval.

    Raises:
        UserError: it does not denoise, images of another size, or numbers that do not fit it.
    """
    diffusion = require_ability(method, CanDenoise, "a sweep over noise levels")
    for part in (split, bank_split):
        if part is not None:
            check_size(method, part)
    _check(diffusion, levels, queries, steps, until)
    start = time.perf_counter()
    query_index = _draw_queries(split, queries, seed)
    if bank_split is not None and len(bank_split) > BANK:
        bank_split = bank_split.take(BANK, seed)
    retrieval = make_retrieval(split, space, bank_split, batch_size, tick, diffusion.device)
    most = [*levels, *higher_levels(levels[-1], until)]
    taken = len(query_index) * sum(steps_at(level, sampler, steps) for level in most) + sum(_shown(most))
    count = StepCounter(taken, tick)

    def measure(level: int) -> dict[str, Tensor]:
        reverse = Reverse(diffusion, sampler, steps_at(level, sampler, steps), spacing)
        return _measure(reverse, retrieval, split, query_index, level, seed, batch_size, count)

    levels, measured = _measure_levels(measure, retrieval, levels, until, seed)
    shown = read_rows(split.images, query_index[:1]).to(diffusion.device)
    rows = _rows(diffusion, shown, levels, seed, count)
    curves = summarize(diffusion.schedule.snr.cpu(), retrieval, query_index, levels, measured, seed)
    used = [steps_at(level, sampler, steps) for level in levels]
    calls = network_calls(levels, len(query_index), sampler, steps)
    way = {"sampler": sampler, "spacing": spacing or default_spacing(sampler)}
    values = {**way, **values_of(curves, measured, used), "network_calls": calls}
    if space is not None:
        values |= {"features": space.name, "features_digest": space.digest}
    values["seconds"] = round(time.perf_counter() - start, 3)
    drawn = f"{len(query_index)} of {len(split):,} {split.name} {split.part} images"
    title = f"Noised to t' and denoised: one image by all steps; below, {drawn} by {sampler}"
    how = f"curves: {sampler} with at most {max(used)} steps; rows of the figure: all ancestral steps"
    picture = draw_sweep(rows, curves, title)
    return EvalResult(
        values, {"noise levels": picture}, (how, *notes_of(curves, measured)), name="noise-levels",
        title="Reconstructions over noise levels",
        headline=("t_star_pixels.level", "t_star_features.level", "t_star_class.level", "queries"),
        units=UNITS,
    )  # fmt: skip


def higher_levels(last: int, until: int) -> list[int]:
    """Levels above `last` up to `until`, in equal ratios of at most 1.25."""
    if until <= last:
        return []
    count = math.ceil(math.log(until / last) / math.log(RATIO))
    return sorted({round(last * (until / last) ** (i / count)) for i in range(1, count + 1)} - {last})


def _measure_levels(
    measure: Callable[[int], dict[str, Tensor]],
    retrieval: InstanceRetrieval,
    levels: Sequence[int],
    until: int,
    seed: int,
) -> tuple[list[int], dict[str, Tensor]]:
    """The levels, with higher ones until every t* is reached with its interval; what was measured (L, Q)."""
    levels, by_level = list(levels), [measure(level) for level in levels]

    def stacked() -> dict[str, Tensor]:
        return {name: torch.stack([result[name] for result in by_level]) for name in by_level[0]}

    for level in higher_levels(levels[-1], until):
        crossings = retrieval.crossings(levels, stacked(), seed).values()
        if all(half.high is not None for half in crossings):
            break
        levels.append(level)
        by_level.append(measure(level))
    return levels, stacked()


def network_calls(
    levels: Sequence[int], queries: int, sampler: Sampler = "dpm++", steps: int | None = None
) -> int:
    """Images that go through the network in a sweep, its figure included."""
    calls = sum(calls_of(sampler, steps_at(level, sampler, steps)) for level in levels)
    return queries * calls + sum(_shown(levels))


def steps_at(level: int, sampler: Sampler, steps: int | None) -> int:
    """Sampler steps from t': at most `steps`, and at most t'."""
    if steps is None:
        return level if sampler == "ancestral" else min(FAST_STEPS, level)
    return min(steps, level)


def _check(diffusion: CanDenoise, levels: Sequence[int], queries: int, steps: int | None, until: int) -> None:
    if not levels or any(a >= b for a, b in pairwise(levels)):
        raise UserError(f"a sweep needs one or more increasing levels, not {list(levels)}")
    for level in (levels[0], levels[-1], until or levels[-1]):
        check_level(diffusion, level)
    if until and until < levels[-1]:
        raise UserError(f"a sweep until {until} must not begin above it, with {levels[-1]}; raise --until")
    if queries < 1 or (steps is not None and steps < 1):
        raise UserError(f"a sweep needs 1 or more queries and steps, not {queries} and {steps}")


def _draw_queries(split: Split, queries: int, seed: int) -> Tensor:
    """The rows that `split.take` takes, (Q,) int64 on the host."""
    return torch.randperm(len(split), generator=generator(seed, "limit"))[:queries]


def _shown(levels: Sequence[int]) -> list[int]:
    """At most 16 of the levels, evenly spaced, with the first and the last."""
    count = min(ROWS_SHOWN, len(levels))
    return [levels[i * (len(levels) - 1) // max(count - 1, 1)] for i in range(count)]


def _rows(diffusion: CanDenoise, image: Tensor, levels: Sequence[int], seed: int, count: StepCounter) -> Rows:
    """One image, uint8 (1, C, H, W), through all steps of the reverse process from each level."""
    reverse, rows, titles = Reverse(diffusion, "ancestral"), [], []
    for level in _shown(levels):
        x = to_model(image)
        trajectory = Snapshots(level, SNAPSHOTS, count)
        noised, restored = reverse(x, level, generators(seed, "eval", [0]), trajectory)
        states = [state for _, state in trajectory.states]
        blank = [torch.full_like(x, WHITE).cpu()] * (SNAPSHOTS - len(states))
        rows.append(torch.cat([x.cpu(), noised.cpu(), *states, *blank, restored.cpu()]))
        titles.append(f"t' = {level}, SNR {float(diffusion.schedule.snr[level - 1]):.2g}")
    return Rows(torch.stack(rows), titles)


def _measure(
    reverse: Reverse,
    retrieval: InstanceRetrieval,
    split: Split,
    query_index: Tensor,
    level: int,
    seed: int,
    batch_size: int,
    count: StepCounter,
) -> dict[str, Tensor]:
    """The measurements of all queries at one level, (Q,) each on the CPU."""
    parts = []
    for rows in chunks(len(query_index), batch_size):
        x = to_model(read_rows(split.images, query_index[rows]).to(reverse.diffusion.device))
        noise = generators(seed, "eval", range(rows.start, rows.stop))
        noised, restored = reverse(x, level, noise, count)
        parts.append(retrieval(x, noised, restored, query_index[rows]))
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
