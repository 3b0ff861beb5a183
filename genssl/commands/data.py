"""`data`."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, show_rows, show_values
from genssl.commands._run import read_split
from genssl.environment import command_line
from genssl.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from genssl.data.split import Split
    from genssl.settings import Config

DATA = "svhn, svhn-extra, cifar10, synthetic, a path, hf:OWNER/NAME, or NAME-remix."
data_app = typer.Typer(no_args_is_help=True, help="Data sets.")
cache_app = typer.Typer(no_args_is_help=True, help="The cache of converted data, features and downloads.")


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    data_app.add_typer(cache_app, name="cache")
    app.add_typer(data_app, name="data")


@data_app.command("list")
def data_list(as_json: _options.Json = False) -> None:
    """List the data sets, and which are downloaded."""
    from genssl.data.registry import REMIX_SUFFIX, catalog

    rows = [vars(entry) for entry in catalog()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    show_rows(
        "data sets (--data also takes a folder, .tar, .tar.gz, .zip, .npz, .npy, .parquet or hf:OWNER/NAME)",
        rows,
    )
    echo(f"{REMIX_SUFFIX} after any of them (svhn{REMIX_SUFFIX}): both splits pooled and split again")


@data_app.command("fetch")
def data_fetch(
    data: Annotated[str, typer.Argument(help=DATA, callback=_options.checked_data)],
    image_size: _options.ImageSize = 32,
    skip_bad: _options.SkipBad = False,
    zip_encoding: _options.ZipEncoding = None,
    fit: _options.Fit = "crop",
) -> None:
    """Download and convert a data set ahead of training."""
    from genssl.data.image_folder import DataWarning

    notes: list[str] = []
    for split in _options.SPLITS:
        with warnings.catch_warnings():
            # They are among the notes, also where the data are cached
            warnings.simplefilter("ignore", DataWarning)
            images = read_split(data, split, image_size, 0, skip_bad, fit=fit, zip_encoding=zip_encoding)
        echo(f"{images.name} {split}: {len(images):,} images, {len(images.classes)} classes")
        notes += [note for note in images.notes if note not in notes]
    from genssl.data.registry import SOURCES, base_name

    if base_name(data) not in SOURCES:
        for note in notes or ["nothing was left out"]:
            echo(f"  {note}")


@data_app.command("preview")
def data_preview(
    data: Annotated[str, typer.Argument(help=DATA, callback=_options.checked_data)],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 64,
    split: Annotated[_options.SplitName, typer.Option(help="Split to show.")] = "train",
    image_size: _options.ImageSize = 32,
    seed: _options.Seed = 0,
    views: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Also show the augmented views of this method.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the method; repeatable."),
    ] = None,
    skip_bad: _options.SkipBad = False,
    zip_encoding: _options.ZipEncoding = None,
    fit: _options.Fit = "crop",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Figure file; default: preview.png in the current folder.", callback=_options.checked_picture
        ),
    ] = None,
) -> None:
    """Draw a grid of images, or of their augmented views."""
    if settings and views is None:
        raise UserError("--set is for the settings of a method's views; name the method with --views")
    picture_path = _outputs.target(Path("preview.png"), "preview", out).picture
    config = _config(views, data, settings or []) if views else None
    from genssl import figures, files

    images = read_split(data, split, image_size, seed, skip_bad, fit=fit, zip_encoding=zip_encoding)
    shown = images.take(n, seed)
    header = f"{images.name} {split}: {len(shown)} of {len(images):,} images, random seed {seed}"
    if config is not None:
        picture = _views_picture(shown, config, seed, header)
    else:
        picture = figures.titled_grid(shown.images, header)
    files.write_picture(picture_path, picture, {"command": command_line()})
    echo(f"{images.name} {split}: {len(images):,} images of {len(images.classes)} classes; {picture_path}")


@data_app.command("export")
def data_export(
    data: Annotated[str, typer.Argument(help=DATA, callback=_options.checked_data)],
    out: Annotated[Path, typer.Option(help="New folder, for one PNG per image.")],
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="Number of images, shuffled; default: all.")
    ] = None,
    split: Annotated[_options.SplitName, typer.Option(help="Split to write.")] = "test",
    image_size: _options.ImageSize = 32,
    seed: _options.Seed = 0,
    skip_bad: _options.SkipBad = False,
    zip_encoding: _options.ZipEncoding = None,
    fit: _options.Fit = "crop",
) -> None:
    """Write real images as PNG files, for other evaluation tools (see `sample --out FOLDER`)."""
    folder = _outputs.claim_folder(out)
    images = read_split(data, split, image_size, seed, skip_bad, fit=fit, zip_encoding=zip_encoding)
    _outputs.write_each(images.take(n, seed).images, folder)


@cache_app.command("list")
def cache_list(as_json: _options.Json = False) -> None:
    """List what is in the cache folder, and its size."""
    from genssl.data import cache

    items = cache.items()
    rows = [{**vars(item), "path": str(item.path)} for item in items]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    kinds = sorted({item.kind for item in items})
    sizes = {kind: [item.bytes for item in items if item.kind == kind] for kind in kinds}
    if rows:
        show_rows(f"cache {cache.cache_folder()}", rows)
        totals = {kind: f"{len(of)} entries, {sum(of) / 1e6:,.1f} MB" for kind, of in sizes.items()}
        show_values("total", totals)
    else:
        echo(f"nothing in the cache {cache.cache_folder()}")


@cache_app.command("clear")
def cache_clear(
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Only what killed processes and earlier versions have left.")
    ] = False,
    downloads: Annotated[
        bool, typer.Option("--downloads", help="Also the downloaded files, which need the network again.")
    ] = False,
) -> None:
    """Remove converted data and features from the cache, which are made again when they are needed."""
    from genssl.data import cache

    kinds = {"leftover"} if leftovers else {"data", "features", "leftover"}
    removed = cache.clear(kinds | ({"download"} if downloads else set()))
    size = sum(item.bytes for item in removed) / 1e6
    echo(f"removed {len(removed)} entries ({size:,.1f} MB) from the cache {cache.cache_folder()}")


def _config(method: str, data: str, settings: list[str]) -> "Config":
    from genssl import config as configs

    # With the data, on which it depends whether images are flipped
    return configs.make(method, {"data": data, **_options.parse_settings(settings)})


def _views_picture(split: "Split", config: "Config", seed: int, header: str) -> "Image":
    """Rows of an image and its views, a few images per row."""
    import torch
    import torch.nn.functional as F

    from genssl import figures
    from genssl.data.augment.views import choose_views
    from genssl.pixels import to_model
    from genssl.runtime import generator

    choice = choose_views(config, split.classes)
    seen = choice(split.images, choice.draws(len(split), generator(seed, "views")))
    # Views of fewer pixels are shown as large as the images
    seen = tuple(F.interpolate(view, split.images.shape[2:]) for view in seen)
    echo(f"each row repeats: image, {', '.join(choice.names)}")
    cells = torch.stack([to_model(split.images), *seen], 1)  # (N, 1 + views, C, H, W)
    columns = cells.shape[1] * (4 if len(split) >= 4 else 1)
    header = f"{header}, with views of {config.method}"
    return figures.titled_grid(cells.flatten(0, 1), header, columns, ("image", *choice.names))
