"""`latent-profile`, `importance-ll`, `bits-per-dim`, `knn-eval`, `linear-eval`, `features`, `fidelity`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, progress
from genssl.commands._run import (
    LoadedRun,
    Part,
    SampleSource,
    default_samples,
    default_samples_reason,
    load_run,
    open_samples,
    origin,
    provenance,
    save_and_print,
    write_result,
)
from genssl.environment import command_line
from genssl.errors import UserError

if TYPE_CHECKING:
    from genssl.data.split import Split
    from genssl.eval.result import EvalResult


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(latent_profile)
    app.command()(importance_ll)
    app.command()(bits_per_dim)
    app.command()(knn_eval)
    app.command()(linear_eval)
    app.command()(features)
    app.command()(fidelity)


def latent_profile(
    context: typer.Context,
    run: _options.Run,
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: _options.Limit = None,
    out: _options.Out = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Draw the mean latent code of each class over training images."""
    subject = load_run(run, checkpoint, device)
    from genssl.eval import latent_profile as evaluation

    target = _outputs.target_of_run(subject.info.folder, _outputs.evaluation_name(context), out)
    split = subject.split(data, "train", limit, seed, skip_bad)
    with progress("encoding") as tick:
        outcome = evaluation.latent_profile(subject.method, split, batch_size=batch_size, tick=tick)
    save_and_print(subject, "latent-profile", outcome, target, as_json, split)


def importance_ll(
    context: typer.Context,
    run: _options.Run,
    k: Annotated[int, typer.Option("-k", min=1, help="Importance samples an image.")] = 100,
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: _options.Limit = None,
    out: _options.Out = None,
    seed: _options.Seed = 0,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Estimate log p(x) of test images under a VAE, in nats and bits/dim."""
    subject = load_run(run, checkpoint, device)
    from genssl.eval import importance_ll as evaluation

    target = _outputs.target_of_run(subject.info.folder, _outputs.evaluation_name(context), out)
    split = subject.split(data, "test", limit, seed, skip_bad)
    with progress("weighing samples") as tick:
        outcome = evaluation.importance_ll(subject.method, split, k, seed=seed, tick=tick)
    save_and_print(subject, "importance-ll", outcome, target, as_json, split)


def bits_per_dim(
    context: typer.Context,
    run: _options.Run,
    t_samples: Annotated[
        int | None, typer.Option(min=1, help="Times an image, stratified; all of them when not given.")
    ] = None,
    variance: Annotated[
        Literal["posterior", "large"], typer.Option(help="Of the reverse process.")
    ] = "posterior",
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: _options.Limit = None,
    out: _options.Out = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Measure the variational bound of a DDPM on test images, term by term."""
    subject = load_run(run, checkpoint, device)
    from genssl.eval import bits_per_dim as evaluation

    target = _outputs.target_of_run(subject.info.folder, _outputs.evaluation_name(context), out)
    split = subject.split(data, "test", limit, seed, skip_bad)
    with progress("bounding") as tick:
        outcome = evaluation.bits_per_dim(
            subject.method, split, t_samples=t_samples, seed=seed, batch_size=batch_size, tick=tick,
            variance=variance,
        )  # fmt: skip
    save_and_print(subject, "bits-per-dim", outcome, target, as_json, split)


FILE = ".safetensors"
TrainLimit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use so many of the train images, shuffled.")
]
TestLimit = Annotated[
    int | None, typer.Option("--test-limit", min=1, help="Use so many of the test images, shuffled.")
]


def knn_eval(
    context: typer.Context,
    run: _options.Run,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that vote.")] = 200,
    temperature: Annotated[float, typer.Option(help="A vote weighs exp(cosine / temperature).")] = 0.1,
    floors: Annotated[
        bool, typer.Option(help="Classify raw pixels and an untrained encoder's features, too.")
    ] = True,
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: TrainLimit = None,
    test_limit: TestLimit = None,
    out: _options.Out = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Classify test images by their nearest train images in the features of a run."""
    subject = load_run(run, checkpoint, device)
    from genssl.eval import knn_eval as evaluation

    target = _outputs.target_of_run(subject.info.folder, _outputs.evaluation_name(context), out)
    train, test = _splits(subject, data, limit, test_limit, seed, skip_bad)
    with progress("comparing") as tick:
        outcome = evaluation.knn_eval(
            subject.method, train, test, k=k, temperature=temperature, batch_size=batch_size, tick=tick,
            floors=floors,
        )  # fmt: skip
    save_and_print(subject, "knn-eval", outcome, target, as_json, test)


def linear_eval(
    context: typer.Context,
    run: _options.Run,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train images.")] = 100,
    lr: Annotated[float, typer.Option("--lr", help="The learning rate at the start.")] = 30.0,
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and mirror the images anew in each epoch; slow.")
    ] = False,
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: TrainLimit = None,
    test_limit: TestLimit = None,
    out: _options.Out = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Train a linear classifier on the frozen features of a run, and test it after each epoch."""
    import json

    if not 0 < lr < float("inf"):
        raise UserError(f"--lr must be above 0, not {lr:g}")
    subject = load_run(run, checkpoint, device)
    from genssl import files
    from genssl.eval import linear_eval as evaluation
    from genssl.metrics.linear_probe import ProbeSettings

    target = _outputs.target_of_run(subject.info.folder, _outputs.evaluation_name(context), out)
    train, test = _splits(subject, data, limit, test_limit, seed, skip_bad)
    with progress("classifying") as tick:
        outcome, probe = evaluation.linear_eval(
            subject.method, train, test, ProbeSettings(epochs=epochs, learning_rate=lr), augment=augment,
            seed=seed, batch_size=batch_size, tick=tick,
        )  # fmt: skip
    save_and_print(subject, "linear-eval", outcome, target, as_json, test)
    if target.with_numbers:
        lines = [json.dumps(record) + "\n" for record in evaluation.records(probe)]
        files.write_text(target.picture.with_suffix(".jsonl"), "".join(lines))


def features(
    context: typer.Context,
    run: _options.Run,
    part: Annotated[Part, typer.Option(help="Of which images.")] = "test",
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: _options.Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The .safetensors file; beside the run, in eval/, by default. A picture joins it."),
    ] = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Write the features of a run and the labels to a file, and draw them in two dimensions."""
    if out is not None and not out.is_dir() and out.suffix != FILE:
        raise UserError(f"--out {out} is no {FILE} file; name one such as {out.with_suffix(FILE)}")
    subject = load_run(run, checkpoint, device)
    from genssl import files
    from genssl.eval import features as evaluation

    picture = out if out is None or out.is_dir() else out.with_suffix(".png")
    target = _outputs.target_of_run(subject.info.folder, _outputs.evaluation_name(context), picture)
    file = target.picture.with_suffix(FILE)
    if not target.with_numbers:
        _outputs.claim(file)
    split = subject.split(data, part, limit, seed, skip_bad)
    with progress("encoding") as tick:
        outcome, tensors = evaluation.features(subject.method, split, batch_size=batch_size, tick=tick)
    about = {name: str(value) for name, value in provenance(subject, split).items()}
    about["command"] = command_line()
    files.write_tensors(file, tensors, {**about, **evaluation.metadata_of(split)})
    echo(f"features: {file}")
    save_and_print(subject, f"features-{part}", outcome, target, as_json, split)


def _splits(
    subject: LoadedRun,
    data: str | None,
    limit: int | None,
    test_limit: int | None,
    seed: int,
    skip_bad: bool,
) -> "tuple[Split, Split]":
    """The train and the test part, as many images of each as are wanted."""
    train = subject.split(data, "train", limit, seed, skip_bad)
    return train, subject.split(data, "test", test_limit, seed, skip_bad)


NAME = "fidelity"


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
    prior: _options.Prior = None,
    sampler: _options.Sampler = None,
    steps: _options.Steps = None,
    eta: _options.Eta = None,
    variance: _options.Variance = None,
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    out: _options.Out = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Measure how close samples are to real images, beside how close other real images are."""
    chosen = _options.given(prior=prior, sampler=sampler, steps=steps, eta=eta, variance=variance)
    if out is not None and not originals:
        raise UserError("--no-originals leaves nothing to draw; leave --out away, or --no-originals")
    source = open_samples(run, checkpoint, features, data, device, skip_bad)
    from genssl.eval import fidelity as evaluation
    from genssl.eval.fidelity import Settings

    target = _target(source, _outputs.evaluation_name(context), out)
    count = n or default_samples(source.device)
    real = source.real(part, 2 * count, seed)
    images, about = source.images(count, chosen, seed, batch_size)
    train = source.training_images() if originals else None
    settings = Settings(k, resamples, seed, batch_size)
    with progress("measuring") as tick:
        outcome = evaluation.fidelity(images, real, train, source.space, settings, tick)
    notes = (*outcome.notes, f"{len(images)} samples is {_who(source)}; -n takes another number")
    outcome = replace(
        outcome, values={**outcome.values, "sampling": about}, notes=outcome.notes if n else notes
    )
    _deliver(source, outcome, target, as_json, real)


def _who(source: SampleSource) -> str:
    if source.subject is None:
        return f"what {source.folder} holds, up to {default_samples(source.device)}"
    return default_samples_reason(source.device)


def _target(source: SampleSource, name: str, out: Path | None) -> _outputs.Target:
    """Of a run, or of a folder: by default beside that, where nothing counts as a sample."""
    if source.subject is not None:
        return _outputs.target_of_run(source.subject.info.folder, name, out)
    assert source.folder is not None
    folder = source.folder.resolve()
    return _outputs.target(folder.with_name(f"{folder.name}-{name}.png"), name, out)


def _deliver(
    source: SampleSource, outcome: "EvalResult", target: _outputs.Target, as_json: bool, real: "Split"
) -> None:
    if source.subject is not None:
        save_and_print(source.subject, NAME, outcome, target, as_json, real)
        return
    from genssl.runtime import describe

    assert source.folder is not None
    about = {"device": describe(source.device), **origin(real)}
    write_result(f"{NAME} {source.folder.resolve().name}", about, outcome, target, as_json)
