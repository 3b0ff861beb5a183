"""Inpainting: a part of each test image filled anew, several times (Lugmayr et al. 2022)."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.reconstruct import StepCounter
from genssl.eval.result import EvalResult, check_size, header_of, require_ability
from genssl.eval.sample import ALL, class_names, counting_calls, labels_of
from genssl.metrics.reconstruction import mean_squared_error, psnr
from genssl.models.method import CanInpaint, Method
from genssl.models.samplers import JUMP_LENGTH, RESAMPLINGS, jump_path
from genssl.pixels import to_model
from genssl.runtime import Tick, chunks, generator, measuring

WHITE = 128  # gray level from which a pixel of a mask is white
TRUE_LABEL, NO_CLASS = "true label", "none"
UNITS = dict.fromkeys(("psnr_inside_db", "psnr_inside_best_db", "psnr_outside_db"), "dB") | {
    "nfe": "network calls per completion, each of which evaluates it twice under guidance",
    "std_inside": "pixel range [-1, 1]",
    "seconds": "s",
}
NOT_THE_ORIGINAL = (
    "a completion need not be the original: inside the mask, PSNR says how well the rest of an image tells "
    "what is there, and std_inside how much the completions of an image differ"
)


def read_mask(name: str, size: int) -> Tensor:
    """The pixels to fill, bool (size, size).

    Args:
        name: "box", the center half of both sides; "left", the left half; or a PNG, white where to fill.
        size: of the images, in pixels per side.

    Raises:
        UserError: no such file, no PNG, another size, or a mask that leaves nothing to fill or nothing known.
    """
    mask = torch.zeros(size, size, dtype=torch.bool)
    if name == "box":
        mask[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    elif name == "left":
        mask[:, : size // 2] = True
    else:
        mask = torch.from_numpy(_read_levels(Path(name), size) >= WHITE)
    if not mask.any():
        raise UserError(f"the mask {name} is all black, and white pixels are filled; paint some white")
    if mask.all():
        raise UserError(f"the mask {name} is all white and leaves no pixel to go by; use `genssl sample`")
    return mask


def _read_levels(path: Path, size: int) -> np.ndarray:
    """The gray levels of a PNG, uint8 (size, size)."""
    if not path.is_file():
        raise UserError(f"no mask {str(path)!r}; give box, left, or a PNG with white where to fill")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != (size, size):
                width, height = image.size
                raise UserError(f"the mask {path} has {width}x{height} pixels, and the images {size}x{size}")
            return np.array(image.convert("L"))
    except (
        UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError,
    ) as error:  # fmt: skip
        raise UserError(f"cannot read the mask {path} as a PNG ({error}); write it again") from error


@measuring()
def inpaint(
    method: Method,
    split: Split,
    mask: Tensor,
    *,
    mask_name: str,
    n: int,
    completions: int,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
    tick: Tick,
) -> EvalResult:
    """`completions` of each of `n` images, drawn by `seed`; completion j of image i depends on (seed, i, j).

    The figure has a row per image: the original, masked, the completions.

    Args:
        method: one that inpaints.
        split: where the images come from.
        mask: bool (H, W), true where to fill.
        mask_name: as the user calls it.
        n: images.
        completions: of each.
        seed: random seed.
        batch_size: in completions.
        options: "class_label", and keywords of `inpaint` of the method.
        tick: called with the steps and jumps, of all completions, that are done, and their number.

    Raises:
        UserError: it does not inpaint, images of another size, or options that do not fit it.
    """
    model = require_ability(method, CanInpaint, "inpaint")
    check_size(method, split)
    start = time.perf_counter()
    chosen = split.take(n, seed).to(method.device)
    originals, mask = to_model(chosen.images), mask.to(method.device)
    labels, label_name = _labels(method, chosen, options.get("class_label"), completions)
    how = _how(method, model, options, labels)
    repeated = originals.repeat_interleave(completions, 0)
    filled, nfe = _complete(method, model, repeated, mask, labels, how, completions, seed, batch_size, tick)
    filled = filled.clamp(-1, 1).view(len(chosen), completions, *originals.shape[1:])
    values = {
        "images": len(chosen),
        "completions": completions,
        "mask": mask_name,
        "filled_share": float(mask.float().mean()),
        "class": label_name,
        **how,
        "nfe": nfe,
        **_measures(originals, filled, mask),
        "seconds": round(time.perf_counter() - start, 3),
    }
    names = class_names(method) if options.get("class_label") == ALL else ()
    picture = _draw(originals, filled, mask, _header(method, chosen, values), names)
    return EvalResult(
        values, {"inpaintings": picture}, (NOT_THE_ORIGINAL,), name="inpaint", title="Inpainting",
        headline=("mask", "psnr_inside_db", "known_pixels_exact", "nfe"), units=UNITS,
    )  # fmt: skip


def _labels(method: Method, images: Split, label: str | None, completions: int) -> tuple[Tensor | None, str]:
    """The class of each completion, (n completions,) int64, and in words; None: the network is given none.

    Where no class is asked for, it is the image's own, if the data have the classes of the network.
    """
    if label is not None:
        return labels_of(method, label, range(completions)).repeat(len(images)), label
    names = method.class_names or images.classes
    if images.labels is None or images.classes != names or len(images.classes) != method.classes:
        return None, NO_CLASS
    # On the host, which looks at them before each batch
    return images.labels.cpu().repeat_interleave(completions), TRUE_LABEL


def _how(
    method: Method, model: CanInpaint, options: Mapping[str, Any], labels: Tensor | None
) -> dict[str, Any]:
    """The keywords of `inpaint`, also where they are the defaults."""
    how: dict[str, Any] = {
        "steps": model.inpaint_steps,
        "jump_length": JUMP_LENGTH,
        "resamplings": RESAMPLINGS,
    }
    if labels is not None:
        how["guidance"] = getattr(method, "guidance", None)
    return how | {name: value for name, value in options.items() if name != "class_label"}


def _complete(
    method: Method,
    model: CanInpaint,
    images: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    how: Mapping[str, Any],
    completions: int,
    seed: int,
    batch_size: int,
    tick: Tick,
) -> tuple[Tensor, int]:
    """A completion of each of `images`, which are repeated so often, and the network calls of each."""
    batches = list(chunks(len(images), batch_size))
    filled = []
    try:
        path = jump_path(how["steps"], how["jump_length"], how["resamplings"])
        count = StepCounter((len(path) - 1) * len(images), tick)
        with counting_calls(method) as calls:
            for rows in batches:
                noise = [
                    generator(seed, "eval", *divmod(k, completions)) for k in range(rows.start, rows.stop)
                ]
                shown = None if labels is None else labels[rows]
                filled.append(model.inpaint(images[rows], mask, noise, labels=shown, callback=count, **how))
    except ValueError as error:
        raise UserError(f"cannot inpaint with this {method.config.method}: {error}") from error
    return torch.cat(filled), calls[0] // len(batches)


def _measures(originals: Tensor, filled: Tensor, mask: Tensor) -> dict[str, Any]:
    """Errors of completions (n, k, C, H, W) inside the mask, and whether they are the originals outside."""
    repeated = originals[:, None].expand_as(filled)
    inside = psnr(mean_squared_error(*(x[..., mask].flatten(0, 1) for x in (filled, repeated))))
    exact = torch.equal(filled[..., ~mask], repeated[..., ~mask])
    outside = mean_squared_error(*(x[..., ~mask].flatten(0, 1) for x in (filled, repeated)))
    return {
        "known_pixels_exact": exact,
        **({} if exact else {"psnr_outside_db": float(psnr(outside).mean())}),
        "psnr_inside_db": float(inside.mean()),
        "psnr_inside_best_db": float(inside.view(filled.shape[:2]).amax(1).mean()),
        "std_inside": float(filled[..., mask].var(1).mean().sqrt()) if filled.shape[1] > 1 else None,
    }


def _header(method: Method, images: Split, values: Mapping[str, Any]) -> str:
    known = "known pixels kept exactly" if values["known_pixels_exact"] else "known pixels changed"
    named = "" if values["class"] == NO_CLASS else f", class: {values['class']}"
    return header_of(
        method,
        f"{len(images)} {images.name} {images.part} images, mask {Path(values['mask']).name}, "
        f"{values['completions']} completions by {values['nfe']} network calls each{named}; {known}, "
        f"PSNR {values['psnr_inside_db']:.1f} dB inside the mask",
    )


def _draw(originals: Tensor, filled: Tensor, mask: Tensor, header: str, names: Sequence[str]) -> Image.Image:
    """A row per image: the original, the same with the mask in gray, its completions (n, k, C, H, W)."""
    masked = torch.where(mask, torch.zeros_like(originals), originals)
    rows = torch.cat([originals[:, None], masked[:, None], filled], 1)
    count = filled.shape[1]
    titles = [names[j % len(names)] if names else f"completion {j + 1}" for j in range(count)]
    return figures.titled_grid(rows.flatten(0, 1), header, 2 + count, ["original", "masked", *titles])
