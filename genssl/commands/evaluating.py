"""`latent-profile`, `importance-ll`, `bits-per-dim`.

As in all commands, torch is imported after the run was found: what is wrong is said at once.
"""

from typing import Annotated, Literal

import typer

from genssl.commands import options, outputs
from genssl.commands.screen import ticking
from genssl.commands.subject import deliver, open_run


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(latent_profile)
    app.command()(importance_ll)
    app.command()(bits_per_dim)


def latent_profile(
    context: typer.Context,
    run: options.Run,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    limit: options.Limit = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Draw the mean latent code of each class over training images."""
    subject = open_run(run, checkpoint, device)
    from genssl.eval import latent_profile as evaluation

    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    split = subject.split(data, "train", limit, seed, skip_bad)
    with ticking("encoding") as tick:
        outcome = evaluation.latent_profile(subject.method, split, batch_size=batch_size, tick=tick)
    deliver(subject, "latent-profile", outcome, target, as_json, split)


def importance_ll(
    context: typer.Context,
    run: options.Run,
    k: Annotated[int, typer.Option("-k", min=1, help="Importance samples an image.")] = 100,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    limit: options.Limit = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Estimate log p(x) of test images under a VAE, in nats and bits/dim."""
    subject = open_run(run, checkpoint, device)
    from genssl.eval import importance_ll as evaluation

    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    split = subject.split(data, "test", limit, seed, skip_bad)
    with ticking("weighing samples") as tick:
        outcome = evaluation.importance_ll(subject.method, split, k, seed=seed, tick=tick)
    deliver(subject, "importance-ll", outcome, target, as_json, split)


def bits_per_dim(
    context: typer.Context,
    run: options.Run,
    t_samples: Annotated[
        int | None, typer.Option(min=1, help="Times an image, stratified; all of them when not given.")
    ] = None,
    variance: Annotated[
        Literal["posterior", "large"], typer.Option(help="Of the reverse process.")
    ] = "posterior",
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    limit: options.Limit = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure the variational bound of a DDPM on test images, term by term."""
    subject = open_run(run, checkpoint, device)
    from genssl.eval import bits_per_dim as evaluation

    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    split = subject.split(data, "test", limit, seed, skip_bad)
    with ticking("bounding") as tick:
        outcome = evaluation.bits_per_dim(
            subject.method, split, t_samples=t_samples, seed=seed, batch_size=batch_size, tick=tick,
            variance=variance,
        )  # fmt: skip
    deliver(subject, "bits-per-dim", outcome, target, as_json, split)
