"""`reconstruct`, `interpolate`: what they do depends on the method."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import options, outputs
from genssl.commands.screen import ticking
from genssl.commands.subject import Subject, deliver, find_run, open_run
from genssl.errors import UserError
from genssl.eval.levels import parse_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from genssl.eval.outcome import Outcome

Sampler = Literal["dpm++", "ddim", "ancestral"]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(reconstruct)
    app.command()(interpolate)


def reconstruct(
    context: typer.Context,
    run: options.Run,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images to show.")] = 16,
    t_prime: Annotated[
        int | None, typer.Option(help="Of a DDPM: noise the images by so many steps, and come back.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="LEVELS", help="Of a DDPM: find t*, where images are lost; e.g. 16:256:16."),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Images a level of the sweep.")] = 256,
    sampler: Annotated[
        Sampler | None, typer.Option(help="The way back; ancestral, and dpm++ for the sweep's curves.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Network calls of the sampler, at most.")] = None,
    features: Annotated[
        str | None, typer.Option(metavar="REF", help="Of the sweep: compare in this run's features, too.")
    ] = None,
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
    """Show test images beside their reconstructions, and measure the error."""
    noised = t_prime is not None or sweep is not None
    _check_choice(find_run(run, checkpoint)[1].config.method, noised, t_prime, sweep)
    levels = None if sweep is None else parse_levels(sweep)
    if features is not None:
        find_run(features, None)
    subject = open_run(run, checkpoint, device)
    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    split = subject.split(data, "test", limit, seed, skip_bad)
    with ticking("reconstructing") as tick:
        if levels is not None:
            from genssl.eval.noise_sweep import sweep as run_sweep

            outcome = run_sweep(
                subject.method, split, levels, queries=queries, seed=seed,
                batch_size=batch_size, sampler=sampler or "dpm++", steps=steps,
                encoder=_encoder(features, subject, device), tick=tick,
                bank_split=None if split.labels is None else subject.split(data, "train", skip_bad=skip_bad),
            )  # fmt: skip
        elif t_prime is not None:
            from genssl.eval.noise_levels import reconstruct_from

            outcome = reconstruct_from(
                subject.method, split, t_prime, n, seed=seed, batch_size=batch_size,
                sampler=sampler or "ancestral", steps=steps, tick=tick,
            )  # fmt: skip
        else:
            from genssl.eval.reconstruct import reconstruct as evaluate

            outcome = evaluate(subject.method, split, n, seed=seed, batch_size=batch_size, tick=tick)
    title = "reconstruct" if not noised else "noise-levels" if sweep else f"reconstruct-{t_prime}"
    deliver(subject, title, outcome, target, as_json, split)


def _check_choice(name: str, noised: bool, t_prime: int | None, sweep: str | None) -> None:
    if t_prime is not None and sweep is not None:
        raise UserError("--t-prime is one noise level and --sweep is many; give one of them")
    if name == "ddpm" and not noised:
        raise UserError("reconstruct ddpm needs --t-prime 176, or --sweep 16:256:16")
    if name != "ddpm" and noised:
        raise UserError(f"--t-prime and --sweep are for a ddpm, and this is a {name}; leave them away")


def _encoder(reference: str | None, subject: Subject, device: str) -> "Callable[[Tensor], Tensor] | None":
    if reference is None:
        return None
    other = open_run(reference, None, device)
    if other.info.config.image_size != subject.info.config.image_size:
        raise UserError(f"{reference} was trained on images of another size; choose another --features")
    return other.method.features


def interpolate(
    context: typer.Context,
    run: options.Run,
    rows: Annotated[int, typer.Option(min=1, help="How many paths.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Images on a path, both ends included.")] = 10,
    path: Annotated[
        Literal["linear", "spherical"] | None, typer.Option(help="Of a VAE: the path's shape; linear.")
    ] = None,
    between: Annotated[
        Literal["prior", "test"] | None, typer.Option(help="Of a VAE: draws from the prior, or test images.")
    ] = None,
    way: Annotated[
        Literal["ddim", "noise"] | None,
        typer.Option(help="Of a DDPM: invert by ddim, or noise both ends to t', mix and denoise."),
    ] = None,
    t_prime: Annotated[int | None, typer.Option(help="Of a DDPM: how far the ends are noised.")] = None,
    calls: Annotated[int, typer.Option(min=1, help="Of ddim: network calls each way.")] = 50,
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    skip_bad: options.SkipBad = False,
    out: options.Out = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Draw paths between images."""
    method = find_run(run, checkpoint)[1].config.method
    diffusion = method == "ddpm"
    if diffusion:
        _refuse(method, {"--path": path, "--between": between})
    else:
        _refuse(method, {"--way": way, "--t-prime": t_prime})
    subject = open_run(run, checkpoint, device)
    target = outputs.target_of_run(subject.info.folder, outputs.evaluation_name(context), out)
    split = subject.split(data, "test", 2 * rows, seed, skip_bad) if diffusion or between == "test" else None
    outcome: Outcome
    if diffusion:
        from genssl.eval import interpolate_ddpm

        assert split is not None
        with ticking("interpolating") as tick:
            outcome = interpolate_ddpm.interpolate(
                subject.method, split, rows=rows, steps=steps, seed=seed, batch_size=batch_size,
                way=way or "ddim", t_prime=t_prime, calls=calls, tick=tick,
            )  # fmt: skip
    else:
        from genssl.eval import interpolate as evaluation

        outcome = evaluation.interpolate(
            subject.method, split, rows=rows, steps=steps, shape=path or "linear", seed=seed,
            device=subject.device,
        )  # fmt: skip
    deliver(subject, "interpolate", outcome, target, as_json, split)


def _refuse(method: str, given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} is not for a {method}; leave it away")
