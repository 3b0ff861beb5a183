"""`sample`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import options
from genssl.commands.screen import say, ticking
from genssl.commands.subject import deliver, open_run
from genssl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(sample)


def sample(
    run: options.Run,
    n: Annotated[int, typer.Option("-n", help="How many images.")] = 64,
    prior: Annotated[
        Literal["normal", "mixture"] | None,
        typer.Option(help="Of a VAE: N(0, I), or the mixture fitted to its latents."),
    ] = None,
    sampler: Annotated[
        Literal["dpm++", "ddim", "ancestral"] | None, typer.Option(help="Of a DDPM; dpm++ by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network calls of a DDPM's sampler.")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of ddim: 0 none, 1 ancestral.")] = None,
    variance: Annotated[
        Literal["posterior", "large"] | None, typer.Option(help="Of the ancestral sampler's steps.")
    ] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Draw images on their way from noise, too.")
    ] = False,
    checkpoint: options.Checkpoint = None,
    data: Annotated[
        str | None, typer.Option(help="Take the newest run that was trained on these data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A picture for the grid, or a folder for one PNG an image.")
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Draw images from a generative model."""
    from genssl.eval import sample as evaluation

    named = {"prior": prior, "sampler": sampler, "steps": steps, "eta": eta, "variance": variance}
    chosen = {name: value for name, value in named.items() if value is not None}
    folder = _empty_folder(out)
    subject = open_run(run, checkpoint, device, data)
    with ticking("sampling") as tick:
        outcome, images = evaluation.sample(
            subject.method, n, seed=seed, batch_size=batch_size, tick=tick, options=chosen
        )
    if trajectory:
        way = evaluation.trajectory(subject.method, seed=seed, options=chosen)
        outcome.figures.update(way.figures)
    if folder is not None:
        _write_each(images, folder)
        out = folder.with_name(f"{folder.name}-grid.png")  # beside it: it holds nothing but samples
    deliver(subject, "sample", outcome, out, as_json)


def _empty_folder(out: Path | None) -> Path | None:
    """`out` where it names a folder, made and empty: leftovers would be counted as samples."""
    if out is None or (out.suffix and not out.is_dir()):
        return None
    folder = out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{out} is not empty; choose a new folder for the samples")
    return folder


def _write_each(images: "Tensor", folder: Path) -> None:
    from genssl import figures

    for place, image in enumerate(images):
        figures.one(image).save(folder / f"{place:05d}.png")  # no flush to disk for each of thousands
    say(f"{len(images)} images: {folder}")
