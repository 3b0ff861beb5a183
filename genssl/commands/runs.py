"""`runs`, `data`, `doctor`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, show_rows, show_values
from genssl.commands._run import PARTS, read_split, write_each
from genssl.environment import command_line
from genssl.errors import FAILED_RUN, UserError
from genssl.run_info import progress_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from genssl.config import Config
    from genssl.data.split import Split
    from genssl.run_info import RunInfo

DATA = "svhn, svhn-extra, cifar10, synthetic or a path, or one of them with -remix after it."
data_app = typer.Typer(no_args_is_help=True, help="What there is to train on.")
runs_app = typer.Typer(no_args_is_help=True, help="What was trained.")


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(data_app, name="data")
    app.add_typer(runs_app, name="runs")
    app.command()(doctor)


@data_app.command("list")
def data_list(as_json: _options.Json = False) -> None:
    """List the data sets, and which are ready."""
    from genssl.data.registry import REMIX_SUFFIX, catalogue

    rows = [vars(entry) for entry in catalogue()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    show_rows("data sets (--data also takes a folder, .tar, .tar.gz or .zip)", rows)
    echo(f"{REMIX_SUFFIX} after any of them (svhn{REMIX_SUFFIX}): both splits pooled and split again")


@data_app.command("fetch")
def data_fetch(
    data: Annotated[str, typer.Argument(help=DATA, callback=_options.checked_data)],
    image_size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = 32,
    skip_bad: _options.SkipBad = False,
) -> None:
    """Fetch and convert a data set now, so that training starts at once."""
    for part in PARTS:
        split = read_split(data, part, image_size, skip_bad=skip_bad)
        echo(f"{split.name} {part}: {len(split):,} images, {len(split.classes)} classes")


@data_app.command("preview")
def data_preview(
    data: Annotated[str, typer.Argument(help=DATA, callback=_options.checked_data)],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    part: Annotated[Literal["train", "test"], typer.Option(help="Of which split.")] = "train",
    image_size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = 32,
    seed: _options.Seed = 0,
    views: Annotated[
        str | None, typer.Option(metavar="METHOD", help="What this method's network sees of each image.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable."),
    ] = None,
    skip_bad: _options.SkipBad = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The picture; preview.png here by default.", callback=_options.checked_picture),
    ] = None,
) -> None:
    """Draw a contact sheet of a data set, or of a method's random views of it."""
    if settings and views is None:
        raise UserError("--set is for the settings of a method's views; name the method with --views")
    picture_path = _outputs.target(Path("preview.png"), "preview", out).picture
    config = _config(views, settings or []) if views else None
    from genssl import figures, files

    split = read_split(data, part, image_size, seed, skip_bad)
    shown = split.take(n, seed)
    header = f"{split.name} {part}: {len(shown)} of {len(split):,} images, random seed {seed}"
    if config is not None:
        picture = _views_picture(shown, config, seed, header)
    else:
        picture = figures.titled_grid(shown.images, header)
    files.write_picture(picture_path, picture, {"command": command_line()})
    echo(f"{split.name} {part}: {len(split):,} images of {len(split.classes)} classes; {picture_path}")


@data_app.command("export")
def data_export(
    data: Annotated[str, typer.Argument(help=DATA, callback=_options.checked_data)],
    out: Annotated[Path, typer.Option(help="A new folder: one PNG an image.")],
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many, shuffled; all when not given.")
    ] = None,
    part: Annotated[Literal["train", "test"], typer.Option(help="Of which split.")] = "test",
    image_size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = 32,
    seed: _options.Seed = 0,
    skip_bad: _options.SkipBad = False,
) -> None:
    """Write real images one by one, as other tools take them: beside those of `sample --out FOLDER`."""
    folder = _outputs.claim_folder(out)
    split = read_split(data, part, image_size, seed, skip_bad)
    write_each(split.take(n, seed).images, folder)


def _config(method: str, settings: list[str]) -> "Config":
    from genssl import config as configs
    from genssl.config import parse_settings

    return configs.make(method, parse_settings(settings))


def _views_picture(split: "Split", config: "Config", seed: int, header: str) -> "Image":
    """Rows of an image and its views, a few images a row."""
    import torch

    from genssl import figures
    from genssl.data.augment.views import choose_views
    from genssl.pixels import to_model
    from genssl.runtime import generator

    choice = choose_views(config, split.classes)
    seen = choice(split.images, choice.draws(len(split), generator(seed, "views")))
    echo(f"each row repeats: image, {', '.join(choice.names)}")
    cells = torch.stack([to_model(split.images), *seen], 1)  # (N, 1 + views, 3, H, W)
    columns = cells.shape[1] * (4 if len(split) >= 4 else 1)
    header = f"{header}, with views of {config.method}"
    return figures.titled_grid(cells.flatten(0, 1), header, columns, ("image", *choice.names))


@runs_app.command("list")
def runs_list(as_json: _options.Json = False) -> None:
    """List the runs in checkpoints/, newest last."""
    from genssl import paths, runs

    rows = [_row(info) for info in runs.known()]
    known = {row["run"] for row in rows}
    odd = [name for name in runs.folders() if name not in known]
    rows += [{**_row(None), "run": name, "state": "no weights yet, or damaged"} for name in odd]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        show_rows(f"runs in {paths.runs_root()}/", rows)
    else:
        echo(f"no runs in {paths.runs_root()}/ yet; `genssl train vae --data synthetic` makes one")


def _row(info: "RunInfo | None") -> dict[str, object]:
    return {
        "run": info and info.name,
        "method": info and info.config.method,
        "data": info and info.config.data,
        "epoch": info and progress_of(info.epochs_trained, info.config.epochs),
        "state": info and info.state,
        "loss": info and info.metrics.get("loss"),
    }


@runs_app.command("show")
def runs_show(run: _options.Run, as_json: _options.Json = False) -> None:
    """Show a run's settings, numbers and origin."""
    from genssl import files, run_info, runs

    info = run_info.inspect(runs.find(run))
    origin = info.folder / run_info.ENVIRONMENT
    about = {
        "run": str(info.folder),
        "epoch": info.epochs_trained,
        "epochs": info.config.epochs,
        "state": info.state,
        "finished": info.state == "finished",
        "weights_sha256": info.digest,
        "settings": info.config.model_dump(),
        "numbers": info.metrics,
        "origin": files.read_json(origin) if origin.exists() else {},
    }
    if as_json:
        print(json.dumps(about, indent=2))
    else:
        show_values(info.name, about)


@runs_app.command("verify")
def runs_verify(run: _options.Run) -> None:
    """Check every tensor of a run against its SHA-256."""
    from genssl import run_info, runs

    path = runs.find(run)
    problems = run_info.verify(path)
    if problems:
        raise UserError("; ".join(problems), FAILED_RUN)
    echo(f"{path} is sound")


def doctor(
    with_torch: Annotated[
        bool, typer.Option("--torch", help="Import torch, and show the device that it would train on.")
    ] = False,
    as_json: _options.Json = False,
) -> None:
    """Show what to paste into a bug report."""
    from genssl.eval.doctor import collect

    about = collect(with_torch=with_torch)
    if as_json:
        print(json.dumps(about, indent=2))
    else:
        show_values("genssl doctor", about)
