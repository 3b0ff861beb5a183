"""`latent-profile`, `importance-ll`, `bits-per-dim`, `knn-eval`, `linear-eval`, `features`, `fidelity`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, progress
from genssl.commands._run import (
    PIXELS_SIZE,
    LoadedRun,
    SampleSource,
    default_samples,
    default_samples_reason,
    feature_space,
    find_run,
    load_run,
    open_samples,
    origin,
    provenance,
    read_split,
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
    """Plot the mean latent code of each class over the training images."""
    loaded = load_run(run, checkpoint, device)
    from genssl.eval import latent_profile as evaluation

    target = _outputs.target_of_run(loaded.info.folder, _outputs.evaluation_name(context), out)
    split = loaded.split(data, "train", limit, seed, skip_bad)
    with progress("encoding") as tick:
        result = evaluation.latent_profile(loaded.method, split, batch_size=batch_size, tick=tick)
    save_and_print(loaded, result, target, as_json, split)


def importance_ll(
    context: typer.Context,
    run: _options.Run,
    k: Annotated[int, typer.Option("-k", min=1, help="Importance samples per image.")] = 100,
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
    loaded = load_run(run, checkpoint, device)
    from genssl.eval import importance_ll as evaluation

    target = _outputs.target_of_run(loaded.info.folder, _outputs.evaluation_name(context), out)
    split = loaded.split(data, "test", limit, seed, skip_bad)
    with progress("weighing samples") as tick:
        result = evaluation.importance_ll(loaded.method, split, k, seed=seed, tick=tick)
    save_and_print(loaded, result, target, as_json, split)


def bits_per_dim(
    context: typer.Context,
    run: _options.Run,
    t_samples: Annotated[
        int | None, typer.Option(min=1, help="Stratified timesteps per image; default: all.")
    ] = None,
    variance: Annotated[
        Literal["posterior", "large"], typer.Option(help="Variance of the reverse process.")
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
    """Measure the variational bound (VLB) of a DDPM on test images, term by term, in bits/dim."""
    loaded = load_run(run, checkpoint, device)
    from genssl.eval import bits_per_dim as evaluation

    target = _outputs.target_of_run(loaded.info.folder, _outputs.evaluation_name(context), out)
    split = loaded.split(data, "test", limit, seed, skip_bad)
    with progress("bounding") as tick:
        result = evaluation.bits_per_dim(
            loaded.method, split, t_samples=t_samples, seed=seed, batch_size=batch_size, tick=tick,
            variance=variance,
        )  # fmt: skip
    save_and_print(loaded, result, target, as_json, split)


FILE = ".safetensors"
TrainLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Use at most N train images, shuffled.")
]
TestLimit = Annotated[
    int | None, typer.Option("--test-limit", min=1, metavar="N", help="Use at most N test images, shuffled.")
]


def knn_eval(
    context: typer.Context,
    run: _options.Run,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbors.")] = 200,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the votes, exp(cosine / temperature).")
    ] = 0.1,
    baselines: Annotated[
        bool, typer.Option(help="Also classify raw pixels and the features of an untrained encoder.")
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
    """kNN accuracy of the features of a run: test images against the train images."""
    loaded = load_run(run, checkpoint, device)
    from genssl.eval import knn_eval as evaluation

    target = _outputs.target_of_run(loaded.info.folder, _outputs.evaluation_name(context), out)
    train, test = _splits(loaded, data, limit, test_limit, seed, skip_bad)
    with progress("comparing") as tick:
        result = evaluation.knn_eval(
            loaded.method, train, test, k=k, temperature=temperature, batch_size=batch_size, tick=tick,
            baselines=baselines,
        )  # fmt: skip
    save_and_print(loaded, result, target, as_json, test)


def linear_eval(
    context: typer.Context,
    run: _options.Run,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs.")] = 100,
    lr: Annotated[float, typer.Option("--lr", help="Initial learning rate.")] = 30.0,
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and flip the train images in each epoch; slow.")
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
    """Train a linear classifier on the frozen features of a run; test it after each epoch."""
    import json

    if not 0 < lr < float("inf"):
        raise UserError(f"--lr must be above 0, not {lr:g}")
    loaded = load_run(run, checkpoint, device)
    from genssl import files
    from genssl.eval import linear_eval as evaluation
    from genssl.metrics.linear_probe import ProbeSettings

    target = _outputs.target_of_run(loaded.info.folder, _outputs.evaluation_name(context), out)
    train, test = _splits(loaded, data, limit, test_limit, seed, skip_bad)
    with progress("classifying") as tick:
        result, probe = evaluation.linear_eval(
            loaded.method, train, test, ProbeSettings(epochs=epochs, learning_rate=lr), augment=augment,
            seed=seed, batch_size=batch_size, tick=tick,
        )  # fmt: skip
    save_and_print(loaded, result, target, as_json, test)
    if target.with_numbers:
        lines = [json.dumps(record) + "\n" for record in evaluation.records(probe)]
        files.write_text(target.picture.with_suffix(".jsonl"), "".join(lines))


def features(
    context: typer.Context,
    run: _options.Run,
    split: Annotated[_options.RunSplitName, typer.Option(help="Split to encode.")] = "test",
    checkpoint: _options.Checkpoint = None,
    data: _options.Data = None,
    skip_bad: _options.SkipBad = False,
    limit: _options.Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The .safetensors file, with a figure beside it; default: in eval/ of the run."),
    ] = None,
    seed: _options.Seed = 0,
    batch_size: _options.BatchSize = 256,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Write the features of a run and the labels to a file, and plot two principal components."""
    if out is not None and not out.is_dir() and out.suffix != FILE:
        raise UserError(f"--out {out} is no {FILE} file; name one such as {out.with_suffix(FILE)}")
    loaded = load_run(run, checkpoint, device)
    from genssl import files
    from genssl.eval import features as evaluation

    picture = out if out is None or out.is_dir() else out.with_suffix(".png")
    target = _outputs.target_of_run(loaded.info.folder, _outputs.evaluation_name(context), picture)
    file = target.picture.with_suffix(FILE)
    if not target.with_numbers:
        _outputs.claim(file)
    images = loaded.split(data, split, limit, seed, skip_bad)
    with progress("encoding") as tick:
        result, tensors = evaluation.features(loaded.method, images, batch_size=batch_size, tick=tick)
    details = {name: str(value) for name, value in provenance(loaded, images).items()}
    details["command"] = command_line()
    files.write_tensors(file, tensors, {**details, **evaluation.metadata_of(images)})
    echo(f"features: {file}")
    save_and_print(loaded, result, target, as_json, images)


def _splits(
    loaded: LoadedRun,
    data: str | None,
    limit: int | None,
    test_limit: int | None,
    seed: int,
    skip_bad: bool,
) -> "tuple[Split, Split]":
    """The train and the test split, limited and shuffled."""
    train = loaded.split(data, "train", limit, seed, skip_bad)
    return train, loaded.split(data, "test", test_limit, seed, skip_bad)


def fidelity(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="REF", help="A method, the name or path of a run, or a folder of samples."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Number of samples; default: 512 on a CPU, 10,000 on a GPU."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Feature extractor: a run, or pixels; default: the one that comes with genssl.",
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what the features notice of disturbed real images.")
    ] = False,
    split: Annotated[_options.RunSplitName, typer.Option(help="Split of the real images.")] = "test",
    k: Annotated[int, typer.Option("-k", min=1, help="k of precision, recall, density and coverage.")] = 5,
    resamples: Annotated[
        int, typer.Option(min=0, help="Random halves for the 95 % intervals; 0: no intervals.")
    ] = 100,
    memorization: Annotated[
        bool, typer.Option(help="Look for memorized training images; encodes all of them.")
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
    """Sample quality: FD, KD, precision, recall, density, coverage and memorization."""
    chosen = _options.given(prior=prior, sampler=sampler, steps=steps, eta=eta, variance=variance)
    if sensitivity:
        if split == "validation":
            raise UserError("--sensitivity takes --split train or test")
        _sensitivity(run, n, features, split, data, skip_bad, seed, batch_size, device, out, as_json)
        return
    if run is None:
        raise UserError("name a run or a folder of samples, or --sensitivity with --data")
    if out is not None and not memorization:
        raise UserError("--no-memorization leaves nothing to draw; leave --out away, or --no-memorization")
    source = open_samples(run, checkpoint, features, data, device, skip_bad)
    from genssl.eval import fidelity as evaluation
    from genssl.eval.fidelity import Settings

    target = _target(source, _outputs.evaluation_name(context), out)
    count = n or default_samples(source.device)
    real = source.real(split, 2 * count, seed)
    images, details = source.images(count, chosen, seed, batch_size)
    train = source.training_images()
    settings = Settings(k, resamples, seed, batch_size, memorization)
    with progress("measuring") as tick:
        result = evaluation.fidelity(images, real, train, source.space, settings, tick)
    result = replace(result, values={**result.values, "sampling": details})
    if n is None:
        note = f"{len(images)} samples is {_default_reason(source)}; -n takes another number"
        result = replace(result, notes=(*result.notes, note))
    _save_and_print(source, result, target, as_json, real)


def _sensitivity(
    run: str | None, n: int | None, features: str | None, split: _options.SplitName, data: str | None,
    skip_bad: bool, seed: int, batch_size: int, device: str, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """The table of disturbances, of real images of --data or of the data of a run."""
    if data is None:
        if run is None:
            raise UserError("--sensitivity needs real images; name them with --data, or a run for its data")
        data = find_run(run, None)[1].config.data
    from genssl.eval.sensitivity import sensitivity
    from genssl.runtime import choose_device, describe

    where = choose_device(device)
    space, size = feature_space(features, None, device)
    target = _outputs.target(Path("sensitivity.png"), "fidelity --sensitivity", out)
    real = read_split(data, split, size or PIXELS_SIZE, seed, skip_bad)
    real = real.take(min(2 * n, len(real)) if n else None, seed).to(where)
    with progress("measuring") as tick:
        result = sensitivity(real, space, batch_size, tick)
    write_result("features", {"device": describe(where), **origin(real)}, result, target, as_json)


def _default_reason(source: SampleSource) -> str:
    if source.loaded is None:
        return f"what {source.folder} holds, up to {default_samples(source.device)}"
    return default_samples_reason(source.device)


def _target(source: SampleSource, name: str, out: Path | None) -> _outputs.Target:
    """Of a run, or of a folder: by default beside that, where nothing counts as a sample."""
    if source.loaded is not None:
        return _outputs.target_of_run(source.loaded.info.folder, name, out)
    assert source.folder is not None
    folder = source.folder.resolve()
    return _outputs.target(folder.with_name(f"{folder.name}-{name}.png"), name, out)


def _save_and_print(
    source: SampleSource, result: "EvalResult", target: _outputs.Target, as_json: bool, real: "Split"
) -> None:
    if source.loaded is not None:
        save_and_print(source.loaded, result, target, as_json, real)
        return
    from genssl.runtime import describe

    assert source.folder is not None
    details = {"device": describe(source.device), **origin(real)}
    write_result(source.folder.resolve().name, details, result, target, as_json)
