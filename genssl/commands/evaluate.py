"""`latent-profile`, `importance-ll`, `bits-per-dim`, `knn-eval`, `linear-eval`, `features`, `fidelity`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, progress
from genssl.commands._options import Common, Sampling, with_options
from genssl.commands._run import (
    PIXELS_SIZE,
    SampleSource,
    default_samples,
    default_samples_reason,
    feature_space,
    find_run,
    open_evaluation,
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


@with_options()
def latent_profile(
    context: typer.Context,
    run: _options.Run,
    common: Common,
) -> None:
    """Plot the mean latent code of each class over the training images."""
    work = open_evaluation(context, run, common)
    from genssl.eval import latent_profile as evaluation

    split = work.split("train")
    with progress("encoding") as tick:
        result = evaluation.latent_profile(work.method, split, batch_size=common.batch_size, tick=tick)
    work.finish(result, split)


@with_options("batch_size")
def importance_ll(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    k: Annotated[int, typer.Option("-k", min=1, max=1_000_000, help="Importance samples per image.")] = 100,
) -> None:
    """Estimate log p(x) of test images under a VAE, in nats and bits/dim."""
    work = open_evaluation(context, run, common)
    from genssl.eval import importance_ll as evaluation

    split = work.split("test")
    with progress("weighing samples") as tick:
        result = evaluation.importance_ll(work.method, split, k, seed=common.seed, tick=tick)
    work.finish(result, split)


@with_options()
def bits_per_dim(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    t_samples: Annotated[
        int | None, typer.Option(min=1, help="Stratified timesteps per image (DDPM); default: all.")
    ] = None,
    variance: Annotated[
        Literal["posterior", "large"], typer.Option(help="Variance of the reverse process (DDPM).")
    ] = "posterior",
) -> None:
    """Measure bits/dim on test images: a DDPM's variational bound (VLB) by terms, or a flow's likelihood."""
    work = open_evaluation(context, run, common)
    from genssl.eval import bits_per_dim as evaluation

    split = work.split("test")
    with progress("bounding") as tick:
        result = evaluation.bits_per_dim(
            work.method, split, t_samples=t_samples, seed=common.seed, batch_size=common.batch_size,
            tick=tick, variance=variance,
        )  # fmt: skip
    work.finish(result, split)


FILE = ".safetensors"
TrainLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Use at most N train images, shuffled.")
]
TestLimit = Annotated[
    int | None, typer.Option("--test-limit", min=1, metavar="N", help="Use at most N test images, shuffled.")
]


@with_options()
def knn_eval(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k", min=1, help="Number of neighbors; default: 200, or all train images if fewer. Repeatable."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the votes, exp(cosine / temperature).")
    ] = 0.1,
    baselines: Annotated[
        bool, typer.Option(help="Also classify raw pixels and the features of an untrained encoder.")
    ] = True,
    limit: TrainLimit = None,
    test_limit: TestLimit = None,
) -> None:
    """kNN accuracy of the features of a run: test images against the train images."""
    work = open_evaluation(context, run, common)
    from genssl.eval import knn_eval as evaluation

    train, test = work.split("train", limit), work.split("test", test_limit)
    with progress("comparing") as tick:
        result = evaluation.knn_eval(
            work.method, train, test, k=k or None, temperature=temperature, batch_size=common.batch_size,
            tick=tick, baselines=baselines,
        )  # fmt: skip
    work.finish(result, test)


@with_options()
def linear_eval(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="Number of epochs.")] = 100,
    lr: Annotated[float, typer.Option("--lr", help="Initial learning rate.")] = 30.0,
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and flip the train images in each epoch; slow.")
    ] = False,
    limit: TrainLimit = None,
    test_limit: TestLimit = None,
) -> None:
    """Train a linear classifier on the frozen features of a run; test it after each epoch."""
    import json

    if not 0 < lr < float("inf"):
        raise UserError(f"--lr must be above 0, not {lr:g}")
    work = open_evaluation(context, run, common)
    from genssl import files
    from genssl.eval import linear_eval as evaluation
    from genssl.metrics.linear_probe import ProbeSettings

    train, test = work.split("train", limit), work.split("test", test_limit)
    with progress("classifying") as tick:
        result, probe = evaluation.linear_eval(
            work.method, train, test, ProbeSettings(epochs=epochs, learning_rate=lr), augment=augment,
            data=common.data, seed=common.seed, batch_size=common.batch_size, tick=tick,
        )  # fmt: skip
    work.finish(result, test)
    if work.target.with_numbers:
        lines = [json.dumps(record) + "\n" for record in evaluation.records(probe)]
        files.write_text(work.target.picture.with_suffix(".jsonl"), "".join(lines))


@with_options()
def features(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    split: Annotated[_options.RunSplitName, typer.Option(help="Split to encode.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="The .safetensors file, with a figure beside it; default: in eval/ of the run."),
    ] = None,
) -> None:
    """Write the features of a run and the labels to a file, and plot two principal components."""
    if out is not None and not out.is_dir() and out.suffix != FILE:
        raise UserError(f"--out {out} is no {FILE} file; name one such as {out.with_suffix(FILE)}")
    picture = out if out is None or out.is_dir() else out.with_suffix(".png")
    work = open_evaluation(context, run, replace(common, out=picture))
    from genssl import files
    from genssl.eval import features as evaluation

    file = work.target.picture.with_suffix(FILE)
    if not work.target.with_numbers:
        _outputs.claim(file)
    images = work.split(split)
    with progress("encoding") as tick:
        result, tensors = evaluation.features(work.method, images, batch_size=common.batch_size, tick=tick)
    details = {name: str(value) for name, value in provenance(work.loaded, images).items()}
    details["command"] = command_line()
    files.write_tensors(file, tensors, {**details, **evaluation.metadata_of(images)})
    echo(f"features: {file}")
    work.finish(result, images)


@with_options("limit", "class_label")
def fidelity(
    context: typer.Context,
    common: Common,
    sampling: Sampling,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="REF", help="A method, the name or path of a run, or a folder or archive of samples."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", min=1, max=200_000, help="Number of samples; default: 512 on a CPU, 10,000 on a GPU."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Feature extractor: a run, pixels, inception (of FID) or dinov2; "
            "default: the one that comes with genssl.",
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what the features notice of disturbed real images.")
    ] = False,
    split: Annotated[
        _options.RealSplitName, typer.Option(help="Split of the real images; all: train and test together.")
    ] = "test",
    k: Annotated[int, typer.Option("-k", min=1, help="k of precision, recall, density and coverage.")] = 5,
    resamples: Annotated[
        int, typer.Option(min=0, max=100_000, help="Random halves for the 95 % intervals; 0: no intervals.")
    ] = 100,
    memorization: Annotated[
        bool, typer.Option(help="Look for memorized training images; encodes all of them.")
    ] = True,
) -> None:
    """Sample quality: FD, KD, precision, recall, density, coverage and memorization."""
    if sensitivity:
        if split == "validation" or split == "all":  # noqa: PLR1714 (mypy narrows no set)
            raise UserError("--sensitivity takes --split train or test")
        _sensitivity(run, n, features, split, common)
        return
    if run is None:
        raise UserError("name a run or a folder of samples, or --sensitivity with --data")
    if common.out is not None and not memorization:
        raise UserError("--no-memorization leaves nothing to draw; omit --out, or --no-memorization")
    source = open_samples(run, features, common)
    from genssl.eval import fidelity as evaluation
    from genssl.eval.fidelity import FidelitySettings

    target = _target(source, _outputs.evaluation_name(context), common.out)
    count = n or default_samples(source.device)
    real = source.real(split, 2 * count, common.seed)
    images, details = source.images(count, sampling.given(), common.seed, common.batch_size)
    train = source.training_images()
    settings = FidelitySettings(k, resamples, common.seed, common.batch_size, memorization, source.device)
    with progress("measuring") as tick:
        result = evaluation.fidelity(images, real, train, source.space, settings, tick)
    result = replace(result, values={**result.values, "sampling": details})
    if n is None:
        note = f"{len(images)} samples is {_default_reason(source)}; -n takes another number"
        result = replace(result, notes=(*result.notes, note))
    _save_and_print(source, result, target, common.as_json, real)


def _sensitivity(
    run: str | None, n: int | None, features: str | None, split: _options.SplitName, common: Common
) -> None:
    """The table of disturbances, of real images of --data or of the data of a run."""
    data = common.data
    if data is None:
        if run is None:
            raise UserError("--sensitivity needs real images; name them with --data, or a run for its data")
        data = find_run(run, None)[1].config.data
    from genssl.data.loader import place
    from genssl.data.loading import load_undivided
    from genssl.eval.sensitivity import sensitivity
    from genssl.runtime import choose_device, describe

    where = choose_device(common.device)
    space, size = feature_space(features, None, common.device)
    target = _outputs.target(Path("sensitivity.png"), "sensitivity", common.out)
    real = None
    if split == "test" and run is None:
        real = load_undivided(data, image_size=size or PIXELS_SIZE, skip_bad=common.skip_bad)
    real = real or read_split(data, split, size or PIXELS_SIZE, common.seed, common.skip_bad)
    # Shuffled, whatever the number: the halves of images in the order of their classes are not alike
    real = place(real.take(len(real) if n is None else min(2 * n, len(real)), common.seed), where)
    with progress("measuring") as tick:
        result = sensitivity(real, space, common.batch_size, tick, where)
    details = {"device": describe(where), **origin(real)}
    write_result("features", details, result, target, common.as_json)


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
