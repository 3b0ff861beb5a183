"""`fidelity`: how close generated images are to real ones."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genssl.commands import options, outputs
from genssl.commands.samples import Source, bearable, open_source, usual_number
from genssl.commands.screen import ticking
from genssl.commands.subject import Part, deliver, origin, write_outcome

if TYPE_CHECKING:
    from genssl.data.split import Split
    from genssl.eval.outcome import Outcome

NAME = "fidelity"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fidelity)


def fidelity(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(metavar="REF", help="A method, a run's name or path, or a folder of samples."),
    ],
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="Samples; 512 on a CPU, 10,000 on a GPU by default.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Of which run, or pixels; the newest self-supervised run."),
    ] = None,
    part: Annotated[Part, typer.Option(help="Which real images are compared with.")] = "test",
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that an image's ball reaches to.")] = 5,
    resamples: Annotated[int, typer.Option(min=0, help="Halves drawn for the intervals; 0: none.")] = 100,
    originals: Annotated[
        bool, typer.Option(help="Look for the samples among the training images; all of them are encoded.")
    ] = True,
    prior: options.Prior = None,
    sampler: options.Sampler = None,
    steps: options.Steps = None,
    eta: options.Eta = None,
    variance: options.Variance = None,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure how close samples are to real images, beside how close other real images are."""
    chosen = options.given(prior=prior, sampler=sampler, steps=steps, eta=eta, variance=variance)
    source = open_source(run, checkpoint, features, data, device, skip_bad)
    from genssl.eval import fidelity as evaluation
    from genssl.eval.fidelity_numbers import Settings

    target = _target(source, outputs.evaluation_name(context), out)
    count = n or usual_number(source.device)
    real = source.real(part, 2 * count, seed)
    images, about = source.images(count, chosen, seed, batch_size)
    train = source.training_images() if originals else None
    settings = Settings(k, resamples, seed, batch_size)
    with ticking("measuring") as tick:
        outcome = evaluation.fidelity(images, real, train, source.space, settings, tick)
    notes = (*outcome.notes, f"{len(images)} samples is {_who(source)}; -n takes another number")
    outcome = replace(
        outcome, values={**outcome.values, "sampling": about}, notes=outcome.notes if n else notes
    )
    _deliver(source, outcome, target, as_json, real)


def _who(source: Source) -> str:
    if source.subject is None:
        return f"what {source.folder} holds, up to {usual_number(source.device)}"
    return bearable(source.device)


def _target(source: Source, name: str, out: Path | None) -> outputs.Target:
    """Of a run, or of a folder: by default beside that, where nothing counts as a sample."""
    if source.subject is not None:
        return outputs.target_of_run(source.subject.info.folder, name, out)
    assert source.folder is not None
    folder = source.folder.resolve()
    return outputs.target(folder.with_name(f"{folder.name}-{name}.png"), name, out)


def _deliver(
    source: Source, outcome: "Outcome", target: outputs.Target, as_json: bool, real: "Split"
) -> None:
    if source.subject is not None:
        deliver(source.subject, NAME, outcome, target, as_json, real)
        return
    from genssl.runtime import describe

    assert source.folder is not None
    about = {"device": describe(source.device), **origin(real)}
    write_outcome(f"{NAME} {source.folder.resolve().name}", about, outcome, target, as_json)
