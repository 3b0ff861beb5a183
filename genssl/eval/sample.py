"""Draw images from a generative method."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genssl import figures
from genssl.errors import UserError
from genssl.eval.result import EvalResult, header_of
from genssl.metrics.sharpness import SHARPNESS, mean_sharpness
from genssl.models.ddpm import default_spacing
from genssl.models.method import CanDenoise, CanSample, Method
from genssl.pixels import to_bytes
from genssl.runtime import Tick, chunks, generators, measuring

SNAPSHOTS = 10  # of a trajectory
SHOWN = 20  # class names in a message
FOLLOWED = 8  # images whose trajectory is drawn
UNITS = {
    "nfe": "network calls per image, each of which evaluates it with and without its class under guidance",
    "seconds": "s",
    "sharpness": "squared gray levels",
}
FACTOR = 2.0  # between the sharpness of samples and of training images, above which there is a note
# Fewer samples get no note: of 16 rendered digits, 2.7 % of draws differ by more than the factor from all of
# them by chance; of 64 none of 5,000
ENOUGH = 16


ALL = "all"  # classes in turn
OF_SAMPLER = {"eta": "ddim", "variance": "ancestral"}  # options that the other samplers would ignore


def labels_of(method: Method, label: str, rows: range) -> Tensor:
    """The labels of the images `rows` of a sample, (len(rows),) int64.

    Args:
        method: one that is conditioned on classes.
        label: a class by its name or its number, or "all": image i is of class i modulo their number.
        rows: which images.

    Raises:
        UserError: it has no classes, or not this one.
    """
    if not method.classes:
        raise UserError(
            f"this {method.config.method} was trained without classes; train with --set conditional=true"
        )
    names = class_names(method)
    if label == ALL:
        return torch.tensor([i % method.classes for i in rows])
    if label not in names and not (label.isdecimal() and int(label) < method.classes):
        raise UserError(
            f"no class {label!r}; it has {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
        )
    return torch.full((len(rows),), names.index(label) if label in names else int(label))


def class_names(method: Method) -> tuple[str, ...]:
    """The names of the classes that a method is conditioned on, or their numbers."""
    return method.class_names or tuple(map(str, range(method.classes)))


def _with_labels(method: Method, options: Mapping[str, Any], rows: range) -> dict[str, Any]:
    """The options as `sample` of the method takes them: a class becomes the label of each image."""
    rest = {name: value for name, value in options.items() if name != "class_label"}
    if (label := options.get("class_label")) is None:
        return rest
    return {**rest, "labels": labels_of(method, label, rows)}


def sampler_of(method: Method, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """`sample` of the method, which must take the options.

    Raises:
        UserError: the method does not generate, or has no such option.
    """
    if not isinstance(method, CanSample):
        raise UserError(f"a {method.config.method} does not generate images; choose a generative run")
    parameters = inspect.signature(method.sample).parameters
    for name in options.keys() - {"class_label"}:
        if name not in parameters:
            raise UserError(f"a {method.config.method} has no --{name} to sample with; omit it")
    for name, sampler in OF_SAMPLER.items():
        chosen = options.get("sampler", parameters["sampler"].default if "sampler" in parameters else None)
        if name in options and chosen != sampler:
            raise UserError(f"--{name} is for --sampler {sampler}, and this is {chosen}; omit it")
    return method.sample


@measuring()
def draw_samples(
    method: Method,
    n: int,
    seed: int,
    batch_size: int,
    tick: Tick,
    options: Mapping[str, Any],
    present: Tensor | None = None,
    write: Callable[[int, Tensor], None] | None = None,
    drawn: int = 0,
    keep: int | None = None,
) -> Tensor:
    """Sample `n` images, uint8 (n, C, H, W) on the CPU. Image i depends on (seed, i) alone.

    Args:
        method: on its device.
        n: number of images.
        seed: random seed.
        batch_size: in images.
        tick: called with the images done and in total.
        options: of `sample` of the method.
        present: the first images, drawn before; the batches that they fill are not drawn again.
        write: called with the index of the first image of a batch and the batch, as soon as it is drawn.
        drawn: how many images were drawn before, where they are more than `present`.
        keep: return the first images alone, up to this many: the memory of the others is given back.

    Raises:
        UserError: the method does not generate, or not with these options.
    """
    sample = sampler_of(method, options)
    if n < 1:
        raise UserError(f"-n must be at least 1, not {n}")
    start = first_to_draw(n, batch_size, present, drawn)
    images = [] if present is None else [present[:start]]
    for rows in chunks(n, batch_size):
        if rows.start < start:
            continue
        indices = range(rows.start, rows.stop)
        noise = generators(seed, "sample", indices)
        arguments = _with_labels(method, options, indices)
        try:
            batch = to_bytes(sample(len(noise), noise, **arguments)).cpu()
        except ValueError as error:
            raise UserError(f"cannot sample this {method.config.method}: {error}") from error
        if keep is None or rows.start < keep:
            images.append(batch)
        if write is not None:
            write(rows.start, batch)
        tick(rows.stop, n)
    return torch.cat(images)[:keep]


def first_to_draw(n: int, batch_size: int, present: Tensor | None, drawn: int = 0) -> int:
    """The first image of the first batch that `present` does not fill, or of the last batch.

    Batches begin where they would in one go, so that not even the rounding differs; the last one is always
    drawn, since it shows the number of network evaluations.
    """
    count = max(drawn, 0 if present is None else len(present))
    return min(count, n - 1) // batch_size * batch_size


@contextmanager
def counting_calls(method: Method) -> Iterator[list[int]]:
    """Count the batches that go through `network` of the method, in a list of one number."""
    calls = [0]
    network = getattr(method, "network", None)
    if not isinstance(network, nn.Module):
        yield calls
        return

    def count(*_: object) -> None:
        calls[0] += 1

    handle = network.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def sample(
    method: Method,
    n: int,
    *,
    seed: int,
    batch_size: int,
    tick: Tick,
    options: Mapping[str, Any],
    present: Tensor | None = None,
    write: Callable[[int, Tensor], None] | None = None,
    drawn: int = 0,
    keep: int | None = None,
) -> tuple[EvalResult, Tensor]:
    """Sample `n` images: a grid with the sampling settings, and the images, uint8 (n, C, H, W).

    Args:
        method: on its device; one that generates.
        n: number of images.
        seed: random seed; image i depends on (seed, i) alone.
        batch_size: in images.
        tick: called with the images done and in total.
        options: of `sample` of the method, e.g. prior="mixture" or sampler="ddim".
        present, write, drawn, keep: as in `draw_samples`.
    """
    start = time.perf_counter()
    with counting_calls(method) as calls:
        images = draw_samples(method, n, seed, batch_size, tick, options, present, write, drawn, keep)
    seconds = time.perf_counter() - start
    first = first_to_draw(n, batch_size, present, drawn)
    values: dict[str, Any] = {"images": n, "seed": seed, **sampling_settings(method, options)}
    if first == 0:
        values["seconds"] = round(seconds, 3)
    if calls[0]:
        values["nfe"] = calls[0] // -(-(n - first) // batch_size)
    shown = f"{n} samples" if len(images) == n else f"the first {len(images):,} of {n:,} samples"
    header = header_of(method, f"{shown}, {_in_words(values)}")
    names = class_names(method) if options.get("class_label") == ALL else ()
    grid = figures.titled_grid(images, header, min(n, len(names)) or None, names)
    result = EvalResult(
        values, {"samples": grid}, name="sample", title="Samples",
        headline=("prior", "sampler", "nfe", "sharpness", "train_sharpness"), units=UNITS,
    )  # fmt: skip
    return result, images


def with_sharpness(result: EvalResult, images: Tensor, train_sharpness: float | None) -> EvalResult:
    """Add the mean sharpness, and a note where it is far from that of the training images.

    Args:
        result: of `sample`.
        images: the samples, uint8 (N, C, H, W).
        train_sharpness: mean sharpness of the training images; None: unknown, no comparison.
    """
    mean = mean_sharpness(images)
    if train_sharpness is None:
        return replace(result, values={**result.values, "sharpness": mean})
    values = {**result.values, "sharpness": mean, SHARPNESS: train_sharpness}
    note = _sharpness_note(mean, train_sharpness, fast=result.values.get("sampler") in {"dpm++", "ddim"})
    notes = result.notes if note is None or len(images) < ENOUGH else (*result.notes, note)
    return replace(result, values=values, notes=notes)


def _sharpness_note(mean: float, reference: float, *, fast: bool) -> str | None:
    beside = f"the samples' sharpness is {mean:,.0f}, that of the training images {reference:,.0f}"
    if mean > FACTOR * reference:
        ways = "train longer, or try `--sampler ancestral` or more `--steps`" if fast else "train longer"
        return f"{beside}: noise is left in them, as from an undertrained network; {ways}"
    if mean < reference / FACTOR:
        return f"{beside}: they are blurred; train longer, or take it as this method's limit"
    return None


def sampling_settings(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, and the prior, sampler, spacing, class and guidance where they are the method's defaults.

    Raises:
        UserError: as `sampler_of`.
    """
    parameters = inspect.signature(sampler_of(method, options)).parameters
    how = {name: parameters[name].default for name in ("prior", "sampler") if name in parameters}
    if "spacing" in parameters:
        how["spacing"] = default_spacing(options.get("sampler", how["sampler"]))
    if method.classes:
        # The mixture is over the latents of images without their class
        usual = "none" if options.get("prior") == "mixture" else "random"
        how["class"] = options.get("class_label", usual)
        if hasattr(method, "guidance"):
            how["guidance"] = method.guidance
    return how | {name: value for name, value in options.items() if name != "class_label"}


def _in_words(values: Mapping[str, Any]) -> str:
    """The sampling settings as text: "ddim, 50 network calls per image, eta 0.5, seed 0"."""
    calls = values.get("nfe")
    others = ["guidance", "eta", "variance"]
    if "spacing" in values and values["spacing"] != default_spacing(values["sampler"]):
        others.insert(0, "spacing")
    parts = [
        f"{values['prior']} prior" if "prior" in values else "",
        str(values.get("sampler", "")),
        f"{calls} network calls per image" if calls else "",
        f"class {values['class']}" if values.get("class") not in {None, ALL, "none", "random"} else "",
        *(f"{name} {values[name]}" for name in others if name in values),
        f"seed {values['seed']}",
    ]
    return ", ".join(filter(None, parts))


def require_steps(method: Method, options: Mapping[str, Any]) -> None:
    """Check that there is a trajectory.

    Raises:
        UserError: the method makes its images in one step.
    """
    if "callback" not in inspect.signature(sampler_of(method, options)).parameters:
        raise UserError(f"a {method.config.method} samples in one step; --trajectory needs a DDPM or a flow")


@measuring()
def trajectory(method: Method, *, seed: int, options: Mapping[str, Any]) -> EvalResult:
    """The denoising trajectories of the first images of `sample`, one per row; raises as `require_steps`."""
    require_steps(method, options)
    sample = sampler_of(method, options)
    states: list[Tensor] = []
    left: list[int] = []  # noising steps of a DDPM, steps of a flow

    def callback(t: int, x: Tensor) -> None:
        states.append(to_bytes(x).cpu())  # bytes: a thousand steps of eight images are 25 MB
        left.append(t + 1)

    followed = range(FOLLOWED)
    arguments = _with_labels(method, options, followed)
    with counting_calls(method) as calls:
        sample(FOLLOWED, generators(seed, "sample", followed), **arguments, callback=callback)
    indices = torch.linspace(0, len(states) - 1, min(SNAPSHOTS, len(states))).round().int().tolist()
    rows = torch.stack([states[i] for i in indices], 1).flatten(0, 1)
    how = _in_words({**sampling_settings(method, options), "seed": seed, "nfe": calls[0]})
    header = header_of(method, f"{FOLLOWED} samples on their way from noise, {how}")
    titles = [
        f"t' = {left[i]}" if isinstance(method, CanDenoise) else f"{left[i]} steps left" for i in indices
    ]
    return EvalResult({}, {"trajectory": figures.titled_grid(rows, header, len(indices), titles)})
