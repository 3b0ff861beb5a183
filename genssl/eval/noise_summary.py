"""What a sweep over noise levels found, as curves, numbers and sentences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from genssl.data.split import Split
from genssl.eval.noise_judge import Judge
from genssl.eval.noise_pictures import Curves, describe_half
from genssl.metrics.recovery import HalfLevel, half_level, psnr

# RMSE of results over RMSE of noised images above which a network does not denoise. Measured with 8 rendered
# digits and dpm++ at t' = 16 to 256: the shipped DDPM 0.15; 0 for the noise 1.00; other noise for it 0.93; a
# network after 20 steps of training 0.84, after 50 steps 0.56
HARDLY_NEARER = 0.8


def summarise(
    snr: Tensor,
    judge: Judge,
    split: Split,
    own: Tensor,
    levels: Sequence[int],
    found: dict[str, Tensor],
    seed: int,
) -> Curves:
    """Means over the queries, t*, and what chance and the originals give.

    Args:
        snr: of the schedule, (T,).
        judge: who measured.
        split: the candidates.
        own: which of them are the queries, (Q,).
        levels: L of them.
        found: (L, Q) by name, see `Judge`.
        seed: of the bootstrap.
    """
    names = {"pixels": "mse", "noised": "noised_mse"}
    classes, chance, ceiling = None, 0.0, 0.0
    if "predicted" in found:
        assert split.labels is not None
        labels = split.labels[own].cpu()
        classes = _means(found["predicted"] == labels)
        chance = float(split.labels.bincount().max()) / len(split)
        clean = judge.predict(judge.candidates[judge.class_space][own])
        ceiling = float((clean.cpu() == labels).double().mean())
    return Curves(
        levels=list(levels),
        psnr_db={name: _means(psnr(found[key])) for name, key in names.items()},
        identity={name: _means(found[name]) for name in judge.spaces},
        half={name: half_level(levels, found[name], seed=seed) for name in judge.spaces},
        identity_chance=1 / len(split),
        classes=classes,
        class_chance=chance,
        class_ceiling=ceiling,
        class_space=judge.class_space,
        snr=snr,
    )


def _means(values: Tensor) -> list[float]:
    means: list[float] = values.double().mean(1).tolist()
    return means


def values_of(curves: Curves, found: dict[str, Tensor], steps: Sequence[int]) -> dict[str, Any]:
    """The numbers: of the whole, and a row a level. `steps`: of the sampler, a level."""
    rows = []
    for place, level in enumerate(curves.levels):
        row: dict[str, Any] = {"t_prime": level, "snr": float(curves.snr[level - 1]), "steps": steps[place]}
        row |= {"mse": float(found["mse"][place].mean())}
        row |= {"psnr_db": curves.psnr_db["pixels"][place], "noised_psnr_db": curves.psnr_db["noised"][place]}
        row |= {f"identity_{name}": shares[place] for name, shares in curves.identity.items()}
        if curves.classes is not None:
            row["class_kept"] = curves.classes[place]
        rows.append(row)
    values: dict[str, Any] = {"queries": found["mse"].shape[1]}
    values |= {f"t_star_{name}": asdict(half) for name, half in curves.half.items()}
    for name, half in curves.half.items():
        values[f"t_star_{name}"]["snr"] = _snr_at(curves.snr, half.level)
    values["identity_chance"] = curves.identity_chance
    if curves.classes is not None:
        space = {"class_space": curves.class_space}
        values |= {"class_chance": curves.class_chance, "class_ceiling": curves.class_ceiling, **space}
    return values | {"levels": rows}


def _snr_at(snr: Tensor, level: float | None) -> float | None:
    """The signal-to-noise ratio at a t' between two steps, straight in its logarithm."""
    if level is None:
        return None
    return math.exp(np.interp(level, np.arange(1, len(snr) + 1), snr.log().numpy()))


def _described(half: HalfLevel, last: int, denoises: bool) -> str:
    if half.level is None:
        missing = f"t* not reached by t' = {last}, nor in {half.not_reached:.1%} of the resamples"
        return f"{missing}; go on higher" if denoises else missing
    share = f"; not reached in {half.not_reached:.1%} of the resamples" if half.not_reached else ""
    return f"{describe_half(half)}, 95 % of resampled queries{share}"


def error_ratio(curves: Curves, found: dict[str, Tensor]) -> tuple[float, int]:
    """The least ratio, over noise levels, of the results' RMSE to that of the noised images; and its level.

    Only levels with more signal than noise count, or the first: in more noise even a result that is noise is
    nearer, since it is clipped to the range of images.
    """
    shown = [i for i, level in enumerate(curves.levels) if curves.snr[level - 1] >= 1] or [0]
    ratios = {i: _rmse(found["mse"][i]) / max(_rmse(found["noised_mse"][i]), 1e-12) for i in shown}
    least = min(ratios, key=lambda i: ratios[i])
    return ratios[least], least


def _rmse(mse: Tensor) -> float:
    return float(mse.double().mean().sqrt())


def notes_of(curves: Curves, found: dict[str, Tensor]) -> Iterator[str]:
    """What t* is and how sure, whether the network denoises at all, and how to read the rest."""
    ratio, least = error_ratio(curves, found)
    denoises = ratio <= HARDLY_NEARER
    if not denoises:
        yield (
            "the results are hardly nearer to the originals than the noised images are, at best RMSE "
            f"{_rmse(found['mse'][least]):.3g} beside {_rmse(found['noised_mse'][least]):.3g} at t' = "
            f"{curves.levels[least]}: the network does not denoise yet, and t* means nothing; train it longer"
        )
    for name, half in curves.half.items():
        yield f"identity in {name}: {_described(half, curves.levels[-1], denoises)}"
        if curves.identity[name][0] <= 0.5:
            yield f"identity in {name} is lost below the first level, t' = {curves.levels[0]}: start lower"
    if curves.classes is not None:
        yield f"class: the label is found by kNN in {curves.class_space}"
