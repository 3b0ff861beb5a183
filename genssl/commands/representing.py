"""`knn-eval`, `linear-eval`, `features`: how good a representation is, and the representation itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genssl.commands import options, outputs
from genssl.commands.screen import say, ticking
from genssl.commands.subject import Part, Subject, deliver, open_run, provenance
from genssl.errors import UserError
from genssl.invocation import command_line

if TYPE_CHECKING:
    from genssl.data.split import Split

FILE = ".safetensors"

TrainLimit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use so many of the train images, shuffled.")
]
TestLimit = Annotated[
    int | None, typer.Option("--test-limit", min=1, help="Use so many of the test images, shuffled.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(knn_eval)
    app.command()(linear_eval)
    app.command()(features)


def knn_eval(
    context: typer.Context,
    run: options.Run,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that vote.")] = 200,
    temperature: Annotated[float, typer.Option(help="A vote weighs exp(cosine / temperature).")] = 0.1,
    floors: Annotated[
        bool, typer.Option(help="Classify raw pixels and an untrained encoder's features, too.")
    ] = True,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    limit: TrainLimit = None,
    test_limit: TestLimit = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Classify test images by their nearest train images in the features of a run."""
    subject = open_run(run, checkpoint, device)
    from genssl.eval import knn_eval as evaluation

    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    train, test = _splits(subject, data, limit, test_limit, seed, skip_bad)
    with ticking("comparing") as tick:
        outcome = evaluation.knn_eval(
            subject.method, train, test, k=k, temperature=temperature, batch_size=batch_size, tick=tick,
            floors=floors,
        )  # fmt: skip
    deliver(subject, "knn-eval", outcome, target, as_json, test)


def linear_eval(
    context: typer.Context,
    run: options.Run,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train images.")] = 100,
    lr: Annotated[float, typer.Option("--lr", help="The learning rate at the start.")] = 30.0,
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and mirror the images anew in each epoch; slow.")
    ] = False,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    limit: TrainLimit = None,
    test_limit: TestLimit = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Train a linear classifier on the frozen features of a run, and test it after each epoch."""
    import json

    if not 0 < lr < float("inf"):
        raise UserError(f"--lr must be above 0, not {lr:g}")
    subject = open_run(run, checkpoint, device)
    from genssl import files
    from genssl.eval import linear_eval as evaluation
    from genssl.eval.probe import ProbeSettings

    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    train, test = _splits(subject, data, limit, test_limit, seed, skip_bad)
    with ticking("classifying") as tick:
        outcome, probe = evaluation.linear_eval(
            subject.method, train, test, ProbeSettings(epochs=epochs, learning_rate=lr), augment=augment,
            seed=seed, batch_size=batch_size, tick=tick,
        )  # fmt: skip
    deliver(subject, "linear-eval", outcome, target, as_json, test)
    if target.with_numbers:
        lines = [json.dumps(record) + "\n" for record in evaluation.records(probe)]
        files.write_text(target.picture.with_suffix(".jsonl"), "".join(lines))


def features(
    context: typer.Context,
    run: options.Run,
    part: Annotated[Part, typer.Option(help="Of which images.")] = "test",
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    limit: options.Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The .safetensors file; beside the run, in eval/, by default. A picture joins it."),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Write the features of a run and the labels to a file, and draw them in two dimensions."""
    if out is not None and not out.is_dir() and out.suffix != FILE:
        raise UserError(f"--out {out} is no {FILE} file; name one such as {out.with_suffix(FILE)}")
    subject = open_run(run, checkpoint, device)
    from genssl import files
    from genssl.eval import features as evaluation

    picture = out if out is None or out.is_dir() else out.with_suffix(".png")
    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), picture)
    file = target.picture.with_suffix(FILE)
    if not target.with_numbers:
        outputs.claim(file)
    split = subject.split(data, part, limit, seed, skip_bad)
    with ticking("encoding") as tick:
        outcome, tensors = evaluation.features(subject.method, split, batch_size=batch_size, tick=tick)
    about = {name: str(value) for name, value in provenance(subject, split).items()}
    about["command"] = command_line()
    files.write_tensors(file, tensors, {**about, **evaluation.metadata_of(split)})
    say(f"features: {file}")
    deliver(subject, f"features-{part}", outcome, target, as_json, split)


def _splits(
    subject: Subject,
    data: str | None,
    limit: int | None,
    test_limit: int | None,
    seed: int,
    skip_bad: bool,
) -> "tuple[Split, Split]":
    """The train and the test part, as many images of each as are wanted."""
    train = subject.split(data, "train", limit, seed, skip_bad)
    return train, subject.split(data, "test", test_limit, seed, skip_bad)
