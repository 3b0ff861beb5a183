"""`sample`, `reconstruct`, `interpolate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import options
from genssl.commands.screen import say, ticking
from genssl.commands.subject import deliver, open_run

if TYPE_CHECKING:
    from torch import Tensor


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(sample)
    app.command()(reconstruct)
    app.command()(interpolate)


def sample(
    run: options.Run,
    n: Annotated[int, typer.Option("-n", help="How many images.")] = 64,
    prior: Annotated[
        Literal["normal", "mixture"],
        typer.Option(help="Of a VAE: N(0, I), or the mixture fitted to its latents."),
    ] = "normal",
    checkpoint: options.Checkpoint = None,
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

    subject = open_run(run, checkpoint, device)
    with ticking("sampling") as tick:
        outcome, images = evaluation.sample(
            subject.method, n, seed=seed, batch_size=batch_size, device=subject.device, tick=tick, prior=prior
        )
    if out is not None and (out.is_dir() or not out.suffix):
        _write_each(images, out)
        out = out.with_name(f"{out.name}-grid.png")  # beside the folder, which holds nothing but samples
    deliver(subject, "sample", outcome, out, as_json)


def _write_each(images: "Tensor", folder: Path) -> None:
    from genssl import figures, files

    for place, image in enumerate(images):
        files.write_picture(folder / f"{place:05d}.png", figures.one(image))
    say(f"{len(images)} images: {folder}")


def reconstruct(
    run: options.Run,
    n: Annotated[int, typer.Option("-n", min=1, help="How many pairs to show.")] = 32,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    limit: options.Limit = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Show test images beside their reconstructions, and measure the error."""
    from genssl.eval import reconstruct as evaluation

    subject = open_run(run, checkpoint, device)
    split = subject.split(data, "test", limit, seed)
    with ticking("reconstructing") as tick:
        outcome = evaluation.reconstruct(
            subject.method, split, n, seed=seed, batch_size=batch_size, tick=tick
        )
    deliver(subject, "reconstruct", outcome, out, as_json, split)


def interpolate(
    run: options.Run,
    rows: Annotated[int, typer.Option(help="How many paths.")] = 8,
    steps: Annotated[int, typer.Option(help="Images on a path, both ends included.")] = 10,
    path: Annotated[Literal["linear", "spherical"], typer.Option(help="The path's shape.")] = "linear",
    between: Annotated[
        Literal["prior", "test"], typer.Option(help="The ends: draws from the prior, or test images.")
    ] = "prior",
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Draw paths through the latent space."""
    from genssl.eval import interpolate as evaluation

    subject = open_run(run, checkpoint, device)
    split = subject.split(data, "test", 2 * rows, seed) if between == "test" else None
    outcome = evaluation.interpolate(
        subject.method, split, rows=rows, steps=steps, shape=path, seed=seed, device=subject.device
    )
    deliver(subject, "interpolate", outcome, out, as_json, split)
