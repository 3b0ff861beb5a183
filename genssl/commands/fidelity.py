"""`fidelity`: how close generated images are to real ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import options
from genssl.commands.samples import Source, open_source
from genssl.commands.screen import say, show_values, ticking
from genssl.commands.subject import Part, deliver, finite

if TYPE_CHECKING:
    from genssl.data.split import Split
    from genssl.eval.outcome import Outcome

NAME = "fidelity"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fidelity)


def fidelity(
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
    k: Annotated[int, typer.Option("-k", help="Neighbours that an image's ball reaches to.")] = 5,
    resamples: Annotated[int, typer.Option(min=0, help="Halves drawn for the intervals; 0: none.")] = 100,
    originals: Annotated[
        bool, typer.Option(help="Look for the samples among the training images; all of them are encoded.")
    ] = True,
    prior: Annotated[Literal["normal", "mixture"] | None, typer.Option(help="Of a VAE.")] = None,
    sampler: Annotated[
        Literal["dpm++", "ddim", "ancestral"] | None, typer.Option(help="Of a DDPM; dpm++ by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network calls of a DDPM's sampler.")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of ddim: 0 none, 1 ancestral.")] = None,
    variance: Annotated[
        Literal["posterior", "large"] | None, typer.Option(help="Of the ancestral sampler's steps.")
    ] = None,
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
    from genssl.eval import fidelity as evaluation
    from genssl.eval.fidelity_numbers import Settings

    named = {"prior": prior, "sampler": sampler, "steps": steps, "eta": eta, "variance": variance}
    chosen = {name: value for name, value in named.items() if value is not None}
    source = open_source(run, checkpoint, features, data, device, skip_bad)
    count = n or source.usual_number()
    real = source.real(part, 2 * count, seed)
    images, about = source.images(count, chosen, seed, batch_size)
    train = source.training_images() if originals else None
    settings = Settings(k, resamples, seed, batch_size)
    with ticking("measuring") as tick:
        outcome = evaluation.fidelity(images, real, train, source.space, settings, tick)
    notes = (*outcome.notes, f"{len(images)} samples is what {_who(source)}; -n takes another number")
    outcome = replace(
        outcome, values={**outcome.values, "sampling": about}, notes=outcome.notes if n else notes
    )
    if source.subject is not None:
        deliver(source.subject, NAME, outcome, out, as_json, real)
    else:
        _deliver(source, outcome, out, as_json, real)


def _who(source: Source) -> str:
    if source.subject is None:
        return f"{source.folder} holds, up to {source.usual_number()}"
    return f"a {'GPU' if source.device.type == 'cuda' else 'CPU'} can bear"


def _deliver(source: Source, outcome: "Outcome", out: Path | None, as_json: bool, real: "Split") -> None:
    """As `deliver`, of a folder's images; by default beside the folder, where nothing counts as a sample."""
    from genssl import files
    from genssl.runtime import describe

    assert source.folder is not None
    folder = source.folder.resolve()
    picture = out or folder.with_name(f"{folder.name}-{NAME}.png")
    if picture.is_dir():
        picture /= f"{NAME}.png"
    about = {"data": real.name, "part": real.part, "data_digest": real.digest}
    values = finite(
        {"device": describe(source.device), **about, **outcome.values, "notes": list(outcome.notes)}
    )
    for title, figure in outcome.figures.items():
        files.write_picture(picture, figure)
        say(f"{title}: {picture}")
    files.write_json(picture.with_suffix(".json"), values)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        show_values(f"{NAME} {folder.name}", outcome.values, outcome.notes)
