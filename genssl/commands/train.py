"""`train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genssl.commands import _options
from genssl.commands._console import TrainingScreen, confirm_long, echo, show_values, with_channels
from genssl.environment import arguments, is_launched_by_torchrun, launched_rank, restart_count
from genssl.errors import UserError
from genssl.run_info import progress_of

if TYPE_CHECKING:
    from genssl.settings import Config
    from genssl.training.options import Options

SHIPPED = Path("shipped")  # the value of --config for the settings of the shipped weights


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(train)


def train(
    method: Annotated[
        str | None,
        typer.Argument(
            help="vae, ddpm, flow, simsiam, simclr, moco, byol, barlow-twins, vicreg, dssl or classifier."
        ),
    ] = None,
    data: _options.TrainingData = None,
    epochs: _options.Epochs = None,
    batch_size: _options.TrainingBatchSize = None,
    learning_rate: _options.LearningRate = None,
    limit: _options.TrainingLimit = None,
    holdout: _options.Holdout = None,
    image_size: Annotated[int | None, typer.Option(help="Image size, in pixels per side.")] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            help="Image channels: 1 (gray), 3 (color), or auto: 1 where all training images are gray; "
            "default: auto, or those of --config."
        ),
    ] = None,
    timesteps: Annotated[int | None, typer.Option(help="Number of diffusion steps (DDPM).")] = None,
    seed: _options.TrainingSeed = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    sample_every: Annotated[
        int | None, typer.Option(help="Epochs between pictures and held-out losses; 0: none.")
    ] = None,
    knn_every: _options.KnnEvery = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Skip unreadable files.")] = None,
    zip_encoding: _options.ZipEncoding = None,
    fit: _options.TrainingFit = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeatable.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings to start from: a run folder, a config.json, or `shipped` (the shipped weights)."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Resume an interrupted run; with --epochs N, prolong a finished one."
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="REF", help="Start from the weights of this run or model file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings, memory and time; do not train.")
    ] = False,
    tag: Annotated[str | None, typer.Option(help="Suffix of the run name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: checkpoints/NAME.")] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 60.0,
    max_minutes: _options.MaxMinutes = None,
    compile: Annotated[Literal["auto", "on", "off"], typer.Option(help="Use torch.compile.")] = "auto",
    remix: Annotated[
        bool, typer.Option("--remix", help="Pool the train and test splits and split them again.")
    ] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Resume the run with these settings, if there is one.")
    ] = False,
    gpus: Annotated[
        int,
        typer.Option(min=1, help="Number of GPUs (one process each); with --device cpu, of CPU processes."),
    ] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Restart the processes up to N times when one of them dies."),
    ] = 0,
    resident_limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Stream a train split larger than N GiB; default: half of the free device memory.",
        ),
    ] = None,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Also log to tensorboard, wandb, csv (a file) or mlflow; repeatable."
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="The same as --logger tensorboard.")
    ] = False,
    yes: _options.Yes = False,
    device: _options.Device = "auto",
    as_json: _options.Json = False,
) -> None:
    """Train a method. All files go to one run folder."""
    from genssl.runs import check_tag
    from genssl.training.options import Options, checked_loggers

    named = {
        "data": data, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "limit": limit, "image_size": image_size, "seed": seed, "precision": precision,
        "sample_every": sample_every, "skip_bad": skip_bad, "zip_encoding": zip_encoding,
        "timesteps": timesteps, "knn_every": knn_every, "holdout": holdout,
        "fit": fit, "channels": None if channels == "auto" else channels,
    }  # fmt: skip
    changes = {name: value for name, value in named.items() if value is not None}
    changes |= _options.parse_settings(settings or [])
    options = Options(
        device=device, save_every=save_every, max_minutes=max_minutes, compile=compile, tag=tag, out=out,
        resident_limit=resident_limit, auto_resume=auto_resume,
        loggers=checked_loggers([*(logger or ()), *(["tensorboard"] if tensorboard else [])]),
    )  # fmt: skip
    check_tag(tag)
    is_launcher = gpus > 1 and not is_launched_by_torchrun()
    if is_launcher and dry_run:
        raise UserError("--dry-run measures one process; omit --gpus")
    if resume is not None:
        if dry_run or remix or config is not None or init is not None:
            raise UserError(
                "a resumed run has its own settings; omit --dry-run, --config, --init and --remix"
            )
        folder = _resumable(resume, method, changes, options)
        if is_launcher:
            _launch(gpus, device, max_restarts)
        else:
            _resume(folder, changes, options, as_json)
        return
    resolved = _resolve(method, config, changes)
    if init is not None:
        resolved = _with_init(resolved, init)
    if remix:
        resolved = _with_remix(resolved)
    check(resolved, options)
    if is_launcher:
        _launch(gpus, device, max_restarts)
        return
    if "channels" not in changes and (channels == "auto" or config is None):
        resolved = with_channels(resolved, as_json)
    if dry_run:
        _dry_run(resolved, options, as_json)
        return
    if not (yes or as_json or _is_begun(resolved, options)):
        confirm_long([resolved], options)
    _start(resolved, options, as_json)


def _is_begun(config: "Config", options: "Options") -> bool:
    from genssl import runs

    return options.auto_resume and runs.begun(config, options.tag, options.out) is not None


def _launch(gpus: int, device: str, max_restarts: int) -> None:
    from genssl.training.ddp import launch

    launch(arguments(), gpus, device, max_restarts)


def _with_init(config: "Config", reference: str) -> "Config":
    from genssl import checkpoint, run_info, runs

    path = runs.find(reference)
    info = run_info.inspect(path)
    checkpoint.check_start(config, info.config, path)
    echo(f"starting from {path} (epoch {info.epochs_trained:g})")
    return config.updated({"init": str(path.resolve())})


def _with_remix(config: "Config") -> "Config":
    from genssl.data.registry import remix_name

    return config.updated({"data": remix_name(config.data)})


def _resolve(method: str | None, file: Path | None, changes: dict[str, Any]) -> "Config":
    from genssl import config as configs
    from genssl import paths, run_info
    from genssl.settings import FROM_DATA

    if file is not None:
        if file == SHIPPED and not file.exists() and method is not None:
            file = paths.shipped_root() / configs.config_class(method).model_fields["method"].default
        file = file / "config.json" if file.is_dir() else file
        if not file.exists():
            raise UserError(f"no such config file: {file}")
        saved = run_info.read_config(file)
        if method is not None and configs.config_class(method) is not type(saved):
            raise UserError(f"{file} is the config of a {saved.method}, not of a {method}; name one of them")
        if changes.get("data", saved.data) != saved.data:
            # Other data have their own number of classes
            changes = dict.fromkeys(FROM_DATA & saved.model_dump().keys()) | changes
        return saved.updated(changes)
    if method is None:
        raise UserError(f"which method? known: {', '.join(sorted(configs.methods()))}")
    return configs.make(method, changes)


def check(config: "Config", options: "Options") -> None:
    """Check the data and the run folder before torch is imported, which takes seconds."""
    from genssl import files, paths, run_info, runs
    from genssl.data.registry import require

    require(config.data)
    files.require_writable(options.out or paths.runs_root() / "run")
    if options.out is None or (is_launched_by_torchrun() and launched_rank() > 0):
        return  # the main process may have made the folder already
    continues = options.auto_resume or restart_count() > 0
    if not (continues and (options.out / run_info.CONFIG).exists()):
        runs.check_free(options.out)


def _start(config: "Config", options: "Options", as_json: bool) -> None:
    from genssl.training import run

    with TrainingScreen(quiet=as_json or launched_rank() > 0) as screen:
        folder = run.start(config, options, screen)
    _show_result(folder, as_json)


def _resumable(reference: str, method: str | None, changes: dict[str, Any], options: "Options") -> Path:
    """Find and check the run to resume, before torch is imported."""
    from genssl import runs
    from genssl.config import config_class
    from genssl.training.options import resumed

    if method is not None:
        changes["method"] = config_class(method).model_fields["method"].default
    if options.tag is not None or options.out is not None:
        raise UserError("a resumed run keeps its folder; omit --tag and --out")
    folder = runs.find_unfinished(reference)
    resumed(runs.read_config(folder), changes)
    return folder


def _resume(folder: Path, changes: dict[str, Any], options: "Options", as_json: bool) -> None:
    from genssl.training import run

    with TrainingScreen(quiet=as_json or launched_rank() > 0) as screen:
        folder = run.resume(folder, changes, options, screen)
    _show_result(folder, as_json)


def _show_result(folder: Path, as_json: bool) -> None:
    import json
    import shlex

    from genssl import paths, run_info
    from genssl.config import EncoderConfig

    if launched_rank() > 0:  # the main process prints it
        return
    info = run_info.inspect(folder)
    if as_json:
        record = {"run": str(folder), "state": info.state, "epoch": info.epochs_trained}
        print(json.dumps({**record, **info.metrics}, indent=2))
        return
    epochs = progress_of(info.epochs_trained, info.config.epochs)
    show_values(f"{folder.name}, epoch {epochs}, {info.state}", info.metrics)
    echo(f"pictures, curves and weights: {folder}")
    # By its name or path: a method's name may mean another run
    run = folder.name if folder.parent == paths.runs_root() else shlex.quote(str(folder))
    is_encoder = isinstance(info.config, EncoderConfig)
    echo(f"next: genssl knn-eval {run}" if is_encoder else f"next: genssl sample {run}")


def _dry_run(config: "Config", options: "Options", as_json: bool) -> None:
    import json

    from genssl.run_info import parameters_text
    from genssl.training.estimate import estimate
    from genssl.training.signals import format_seconds

    with TrainingScreen(quiet=as_json) as screen:
        cost = estimate(config, options, screen)
    if as_json:
        print(json.dumps({"config": config.model_dump(), "estimate": vars(cost)}, indent=2))
        return
    show_values(f"settings of {config.method} (change any with --set)", config.model_dump())
    show_values(
        "expected",
        {
            "parameters": parameters_text(cost.parameters, cost.all_parameters),
            "images": cost.images,
            "steps": cost.steps,
            "device": f"{cost.device}, {cost.precision}",
            "memory": f"{cost.memory_bytes / 2**30:.2f} GiB",
            "speed": f"{cost.images_per_second:,.0f} images/s",
            "time": format_seconds(cost.seconds),
        },
    )
