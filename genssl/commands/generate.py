"""`sample`, `reconstruct`, `interpolate`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, progress
from genssl.commands._options import Common, Sampling, with_options
from genssl.commands._run import Evaluation, feature_space, find_run, open_evaluation
from genssl.environment import launched_rank
from genssl.errors import UserError

if TYPE_CHECKING:
    from genssl.data.split import Split
    from genssl.settings import Config

MOST_LEVELS = 10_000
MOST = 10_000  # images in a picture
SHOWN, QUERIES = 16, 256  # images reconstructed, and per noise level of a sweep, where none are asked for


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(sample)
    app.command()(reconstruct)
    app.command()(interpolate)


def parse_levels(text: str) -> list[int]:
    """Noise levels, rising: "16:64:16" is 16, 32, 48, 64, both ends included; "16,40" is 16, 40.

    Raises:
        UserError: the text is neither, or names no level above 0.
    """
    problem = UserError(f"cannot read the levels {text!r}; write first:last:step as 16:256:16, or 16,64,176")
    try:
        numbers = [int(part) for part in text.split(":" if ":" in text else ",")]
    except ValueError:
        raise problem from None
    if ":" not in text:
        levels: Sequence[int] = sorted(set(numbers))
    elif len(numbers) == 3 and numbers[2] > 0:
        levels = range(numbers[0], numbers[1] + 1, numbers[2])
    else:
        raise problem
    # Beyond the range of an index a range has no length
    if not levels or levels[0] < 1 or max(numbers) > sys.maxsize or len(levels) > MOST_LEVELS:
        raise problem
    return list(levels)


@with_options("skip_bad", "limit")
def sample(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    sampling: Sampling,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of samples.")] = 64,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Also draw the denoising trajectories of a few samples.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Use the newest run that was trained on these data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Figure file for the grid, or a folder for one PNG per image.")
    ] = None,
) -> None:
    """Sample images from a generative model."""
    find_run(run, common.checkpoint, data)  # before a folder is made
    samples = None
    is_folder = out is not None and (out.is_dir() or not out.suffix)
    if n > MOST and not is_folder:
        raise UserError(
            f"a picture shows up to {MOST:,} samples, not {n:,}; --out FOLDER writes each of them"
        )
    if out is not None and is_folder:
        samples = _outputs.claim_folder(out)
        out = samples.with_name(f"{samples.name}-grid.png")  # beside it: it holds nothing but samples
    else:
        _options.checked_picture(out)
    work = open_evaluation(context, run, replace(common, out=out), data)
    from genssl.eval import sample as evaluation
    from genssl.metrics.sharpness import SHARPNESS

    if trajectory:
        evaluation.require_steps(work.method, sampling.given())

    folder = None
    if samples is not None and launched_rank() == 0:
        folder = _outputs.SampleFolder(samples, _settings(work, sampling))
        folder.require_space(n)
        if folder.present:
            echo(f"{folder.present:,} images are in {samples} already; continuing with the others")
    with progress("sampling") as tick:
        result, images = evaluation.sample(
            work.method, n, seed=common.seed, batch_size=common.batch_size, tick=tick,
            options=sampling.given(), present=None if folder is None else folder.read(MOST),
            write=None if folder is None else folder.write, drawn=0 if folder is None else folder.present,
            keep=MOST,
        )  # fmt: skip
    if n > MOST:
        note = f"the sharpness is that of the first {MOST:,} samples"
        result = replace(result, notes=(*result.notes, note))
    result = evaluation.with_sharpness(result, images, work.loaded.info.metrics.get(SHARPNESS))
    if trajectory:
        way = evaluation.trajectory(work.method, seed=common.seed, options=sampling.given())
        result.figures.update(way.figures)
    if folder is not None:
        folder.remove_from(n)
        echo(f"{n} images: {samples}")
    work.finish(result)


def _settings(work: Evaluation, sampling: Sampling) -> dict[str, Any]:
    """What image i of a folder of samples depends on, besides i."""
    from genssl.eval.sample import sampling_settings

    info = work.loaded.info
    return {
        "run": info.name,
        "weights_sha256": info.digest,
        "seed": work.common.seed,
        "batch_size": work.common.batch_size,
        **sampling_settings(work.method, sampling.given()),
    }


@with_options()
def reconstruct(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Number of images to show; default: 16.")] = None,
    t_prime: Annotated[int | None, typer.Option(help="Noising steps before denoising (DDPM).")] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS", help="Noise levels at which to measure and find t* (DDPM); e.g. 16:256:16."
        ),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(min=1, help="Add higher levels, at most this one, until t* is reached (sweep)."),
    ] = None,
    queries: Annotated[
        int | None, typer.Option(min=1, help="Images per noise level (sweep); default: 256.")
    ] = None,
    sampler: Annotated[
        _options.DiffusionSampler | None,
        typer.Option(help="Reverse process; default: ancestral, and dpm++ for the curves of a sweep."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of sampler steps; in a sweep, at most the level.")
    ] = None,
    spacing: _options.Spacing = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Features of the sweep: a run's, or pixels alone; default: those that come with genssl.",
        ),
    ] = None,
) -> None:
    """Reconstruct test images, and measure the error."""
    config = find_run(run, common.checkpoint)[1].config
    _check_noise_options(config, t_prime, sweep)
    if sweep is None:
        _refuse(
            "reconstruction without --sweep", {"--until": until, "--queries": queries, "--features": features}
        )
    else:
        _refuse("sweep", {"-n": n})
    if not config.has_noise_levels:
        _refuse(config.method, {"--sampler": sampler, "--steps": steps, "--spacing": spacing})
    shown = n or SHOWN
    levels = None if sweep is None else parse_levels(sweep)
    if features not in {None, "pixels"}:
        find_run(features, None)
    work = open_evaluation(context, run, common)
    split = work.split("test")
    with progress("reconstructing") as tick:
        if levels is not None:
            from genssl.eval.noise_sweep import sweep as run_sweep

            space = (
                None if features == "pixels" else feature_space(features, config.image_size, common.device)[0]
            )
            result = run_sweep(
                work.method, split, levels, queries=queries or QUERIES, seed=common.seed,
                batch_size=common.batch_size, sampler=sampler or "dpm++", steps=steps, spacing=spacing,
                space=space, bank_split=_bank(work, split), until=until or 0, tick=tick,
            )  # fmt: skip
        elif t_prime is not None:
            from genssl.eval.reconstruct import reconstruct_from

            result = reconstruct_from(
                work.method, split, t_prime, shown, seed=common.seed, batch_size=common.batch_size,
                sampler=sampler or "ancestral", steps=steps, spacing=spacing, tick=tick,
            )  # fmt: skip
        else:
            from genssl.eval.reconstruct import reconstruct as evaluate

            result = evaluate(
                work.method, split, shown, seed=common.seed, batch_size=common.batch_size, tick=tick
            )
    work.finish(result, split)


def _check_noise_options(config: "Config", t_prime: int | None, sweep: str | None) -> None:
    name, noised = config.method, t_prime is not None or sweep is not None
    if t_prime is not None and sweep is not None:
        raise UserError("--t-prime is one noise level and --sweep is many; give one of them")
    if config.has_noise_levels and not noised:
        raise UserError(f"reconstruct {name} needs --t-prime 176, or --sweep 16:256:16")
    if noised and not config.has_noise_levels:
        raise UserError(f"--t-prime and --sweep are for a diffusion model, and this is a {name}; omit them")


def _bank(work: Evaluation, split: "Split") -> "Split | None":
    """The labeled training images, all of them; None where the test images have no labels."""
    asked = work.common
    return None if split.labels is None else work.loaded.split(asked.data, "train", skip_bad=asked.skip_bad)


@with_options("limit")
def interpolate(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    rows: Annotated[int, typer.Option(min=1, help="Number of paths.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Images per path, both ends included.")] = 10,
    path: Annotated[
        Literal["linear", "spherical"] | None, typer.Option(help="Shape of the path (VAE); default: linear.")
    ] = None,
    between: Annotated[
        Literal["prior", "test"] | None,
        typer.Option(help="End points (VAE): draws from the prior (default), or test images."),
    ] = None,
    method: Annotated[
        Literal["ddim", "noise"] | None,
        typer.Option(
            help="DDPM: ddim inverts both ends (default); noise noises both to t', mixes and denoises."
        ),
    ] = None,
    t_prime: Annotated[int | None, typer.Option(help="Noising steps of both ends (DDPM).")] = None,
    nfe: Annotated[
        int | None,
        typer.Option(
            min=1, help="Network evaluations (NFE) of ddim in each direction; default: 50, or t' if less."
        ),
    ] = None,
) -> None:
    """Interpolate between images."""
    config = find_run(run, common.checkpoint)[1].config
    if rows * steps > MOST:
        raise UserError(
            f"a picture shows up to {MOST:,} images, not {rows * steps:,}; take fewer rows or steps"
        )
    diffusion = config.has_noise_levels
    _refuse(
        config.method,
        {"--path": path, "--between": between}
        if diffusion
        else {"--method": method, "--t-prime": t_prime, "--nfe": nfe},
    )
    if method == "noise":
        _refuse("run interpolated by --method noise", {"--nfe": nfe})
    work = open_evaluation(context, run, common)
    split = work.split("test", 2 * rows) if diffusion or between == "test" else None
    from genssl.eval import interpolate as evaluation

    if diffusion:
        assert split is not None
        with progress("interpolating") as tick:
            result = evaluation.interpolate_through_noise(
                work.method, split, rows=rows, steps=steps, seed=common.seed, batch_size=common.batch_size,
                noise_method=method or "ddim", t_prime=t_prime, nfe=nfe, tick=tick,
            )  # fmt: skip
    else:
        result = evaluation.interpolate_latents(
            work.method, split, rows=rows, steps=steps, shape=path or "linear", seed=common.seed,
            device=work.loaded.device,
        )  # fmt: skip
    work.finish(result, split)


def _refuse(what: str, given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} is not for a {what}; omit it")
