"""`train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genssl.commands import _options
from genssl.commands._console import TrainingScreen, confirm_long, echo, show_values
from genssl.environment import arguments, is_launched_by_torchrun, launched_rank, restart_count
from genssl.errors import UserError
from genssl.run_info import progress_of

if TYPE_CHECKING:
    from genssl.config import Config
    from genssl.train.options import Options

SHIPPED = Path("shipped")  # what --config calls the settings of the weights that come with genssl
NEXT = {"vae": "genssl sample vae -n 64 --out vae.png", "ddpm": "genssl sample ddpm -n 64 --out ddpm.png"}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(train)


def train(
    method: Annotated[
        str | None, typer.Argument(help="vae, ddpm, simsiam, byol, barlow-twins, vicreg or dssl.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="svhn, svhn-extra, cifar10, synthetic, a path, or one of these with -remix."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Of the optimizer.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Train on so many images, shuffled by the seed.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="Diffusion steps of a DDPM.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    sample_every: Annotated[int | None, typer.Option(help="Epochs between pictures; 0: none.")] = None,
    knn_every: Annotated[int | None, typer.Option(help="Epochs between kNN accuracies; 0: none.")] = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Leave unreadable files out.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeatable.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Start from the settings of a run folder or config.json; shipped: those that ship."
        ),
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings, memory and time; then stop.")
    ] = False,
    tag: Annotated[str | None, typer.Option(help="Added to the run's name.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; checkpoints/NAME by default.")] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between saved states.")] = 60.0,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="End cleanly after so long.")] = None,
    compile: Annotated[Literal["auto", "on", "off"], typer.Option(help="One compiled graph.")] = "auto",
    remix: Annotated[
        bool, typer.Option("--remix", help="Pool the data's train and test parts and split them anew.")
    ] = False,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Continue the run of these settings if it was begun.")
    ] = False,
    gpus: Annotated[
        int, typer.Option(min=1, help="So many processes, a GPU each; with --device cpu, on the CPU.")
    ] = 1,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Start the processes again so often when one of them dies.")
    ] = 0,
    resident_limit: Annotated[
        float | None,
        typer.Option(
            min=0, help="GiB of images kept on the device; more are streamed. Half of what is free."
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write numbers and pictures for TensorBoard, too.")
    ] = False,
    yes: _options.Yes = False,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Train a method; everything it makes goes to one run folder."""
    from genssl.config import parse_settings
    from genssl.train.options import Options

    named = {
        "data": data, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "limit": limit, "image_size": image_size, "seed": seed, "precision": precision,
        "sample_every": sample_every, "skip_bad": skip_bad, "timesteps": timesteps,
        "knn_every": knn_every,
    }  # fmt: skip
    changes = {name: value for name, value in named.items() if value is not None}
    changes |= parse_settings(settings or [])
    how = Options(
        device=device, save_every=save_every, max_minutes=max_minutes, compile=compile, tag=tag, out=out,
        resident_limit=resident_limit, tensorboard=tensorboard, go_on=go_on,
    )  # fmt: skip
    launches = gpus > 1 and not is_launched_by_torchrun()
    if launches and dry_run:
        raise UserError("--dry-run measures one process; leave --gpus away")
    if resume is not None:
        if dry_run or remix or config is not None:
            raise UserError("a resumed run has its own settings; leave --dry-run, --config and --remix away")
        folder = _resumable(resume, method, changes, how)
        if launches:
            _launch(gpus, device, max_restarts)
        else:
            _resume(folder, changes, how, as_json)
        return
    settled = _settle(method, config, changes)
    if remix:
        settled = _remixed(settled)
    _check(settled, how)
    if launches:
        _launch(gpus, device, max_restarts)
        return
    if dry_run:
        _dry_run(settled, how, as_json)
        return
    if not (yes or as_json or _is_begun(settled, how)):
        confirm_long([settled], how)
    _start(settled, how, as_json)


def _is_begun(config: "Config", how: "Options") -> bool:
    from genssl import runs

    return how.go_on and runs.begun(config, how.tag, how.out) is not None


def _launch(gpus: int, device: str, max_restarts: int) -> None:
    from genssl.train.ddp import launch

    launch(arguments(), gpus, device, max_restarts)


def _remixed(config: "Config") -> "Config":
    from genssl.data.registry import remix_name

    return config.updated({"data": remix_name(config.data)})


def _settle(method: str | None, file: Path | None, changes: dict[str, Any]) -> "Config":
    from genssl import config as configs
    from genssl import files, paths

    if file is not None:
        if file == SHIPPED and not file.exists() and method is not None:
            file = paths.shipped_root() / configs.config_class(method).model_fields["method"].default
        file = file / "config.json" if file.is_dir() else file
        if not file.is_file():
            raise UserError(f"no such config file: {file}")
        saved = configs.read(files.read_text(file), str(file))
        if method is not None and configs.config_class(method) is not type(saved):
            raise UserError(f"{file} is the config of a {saved.method}, not of a {method}; name one of them")
        return saved.updated(changes)
    if method is None:
        raise UserError(f"which method? known: {', '.join(sorted(configs.methods()))}")
    return configs.make(method, changes)


def _check(config: "Config", how: "Options") -> None:
    """Refuse what cannot be started, before torch is imported: that takes seconds."""
    from genssl import run_info, runs
    from genssl.data.registry import require

    require(config.data)
    if how.out is None or (is_launched_by_torchrun() and launched_rank() > 0):
        return  # the first process may have made the folder by now
    goes_on = how.go_on or restart_count() > 0
    if not (goes_on and (how.out / run_info.CONFIG).exists()):
        runs.check_free(how.out)


def _start(config: "Config", how: "Options", as_json: bool) -> None:
    from genssl.train import run

    with TrainingScreen(quiet=as_json or launched_rank() > 0) as screen:
        folder = run.start(config, how, screen)
    _show_result(folder, as_json)


def _resumable(reference: str, method: str | None, changes: dict[str, Any], how: "Options") -> Path:
    """The folder of the run to resume, found and checked before torch is imported."""
    from genssl import runs
    from genssl.config import config_class, refuse_changes

    if method is not None:
        changes["method"] = config_class(method).model_fields["method"].default
    if how.tag is not None or how.out is not None:
        raise UserError("a resumed run keeps its folder; leave --tag and --out away")
    folder = runs.find_unfinished(reference)
    refuse_changes(runs.read_config(folder), changes)
    return folder


def _resume(folder: Path, changes: dict[str, Any], how: "Options", as_json: bool) -> None:
    from genssl.train import run

    with TrainingScreen(quiet=as_json or launched_rank() > 0) as screen:
        folder = run.resume(folder, changes, how, screen)
    _show_result(folder, as_json)


def _show_result(folder: Path, as_json: bool) -> None:
    import json

    from genssl import run_info

    if launched_rank() > 0:  # the first process says it
        return
    info = run_info.inspect(folder)
    if as_json:
        about = {"run": str(folder), "state": info.state, "epoch": info.epochs_trained}
        print(json.dumps({**about, **info.metrics}, indent=2))
        return
    epochs = progress_of(info.epochs_trained, info.config.epochs)
    show_values(f"{folder.name}, epoch {epochs}, {info.state}", info.metrics)
    echo(f"pictures, curves and weights: {folder}")
    echo(f"next: {NEXT.get(info.config.method, 'genssl knn-eval {method}').format(**vars(info.config))}")


def _dry_run(config: "Config", how: "Options", as_json: bool) -> None:
    import json

    from genssl.train.estimate import estimate
    from genssl.train.signals import format_seconds

    with TrainingScreen(quiet=as_json) as screen:
        cost = estimate(config, how, screen)
    if as_json:
        print(json.dumps({"config": config.model_dump(), "estimate": vars(cost)}, indent=2))
        return
    show_values(f"settings of {config.method} (change any with --set)", config.model_dump())
    show_values(
        "expected",
        {
            "parameters": cost.parameters,
            "images": cost.images,
            "steps": cost.steps,
            "device": f"{cost.device}, {cost.precision}",
            "memory": f"{cost.memory_bytes / 2**30:.2f} GiB",
            "speed": f"{cost.images_per_second:,.0f} images/s",
            "time": format_seconds(cost.seconds),
        },
    )
