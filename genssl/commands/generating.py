"""`sample`."""

from pathlib import Path
from typing import Annotated

import typer

from genssl.commands import options, outputs
from genssl.commands.pictures import write_each
from genssl.commands.screen import ticking
from genssl.commands.subject import deliver, find_run, open_run


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(sample)


def sample(
    context: typer.Context,
    run: options.Run,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    prior: options.Prior = None,
    sampler: options.Sampler = None,
    steps: options.Steps = None,
    eta: options.Eta = None,
    variance: options.Variance = None,
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
    chosen = options.given(prior=prior, sampler=sampler, steps=steps, eta=eta, variance=variance)
    find_run(run, checkpoint, data)  # before a folder is made
    folder = None
    if out is not None and (out.is_dir() or not out.suffix):
        folder = outputs.claim_folder(out)
        out = folder.with_name(f"{folder.name}-grid.png")  # beside it: it holds nothing but samples
    else:
        options.checked_picture(out)
    subject = open_run(run, checkpoint, device, data)
    from genssl.eval import sample as evaluation
    from genssl.metrics.sharpness import SHARPNESS

    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    with ticking("sampling") as tick:
        outcome, images = evaluation.sample(
            subject.method, n, seed=seed, batch_size=batch_size, tick=tick, options=chosen
        )
    outcome = evaluation.with_sharpness(outcome, images, subject.info.metrics.get(SHARPNESS))
    if trajectory:
        way = evaluation.trajectory(subject.method, seed=seed, options=chosen)
        outcome.figures.update(way.figures)
    if folder is not None:
        write_each(images, folder)
    deliver(subject, "sample", outcome, target, as_json)
