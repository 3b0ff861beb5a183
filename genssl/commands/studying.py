"""`ablate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genssl.commands import options
from genssl.commands.progress import TrainingScreen
from genssl.commands.screen import readable, say, show_rows, show_values
from genssl.errors import UserError

if TYPE_CHECKING:
    from genssl.eval.outcome import Outcome
    from genssl.settings import Config

NAMED = {"--timesteps": "timesteps"}  # options that change one setting: each of their values is an arm

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(ablate)


def ablate(
    method: Annotated[str, typer.Argument(help="What to train, e.g. vae.")],
    timesteps: Annotated[
        list[int] | None, typer.Option(help="Diffusion steps; repeatable, one arm a value.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other change; repeatable, all are one arm."),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", metavar="KEY=VALUE", help="A setting of every arm; repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train each arm so often, with seed, seed + 1, ...")] = 1,
    data: Annotated[str | None, typer.Option(help="svhn, cifar10, synthetic or a path.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on so many images, shuffled by the seed.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="End each run after so long.")] = None,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="A folder, or a picture's name; checkpoints/ablate-... by default.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train a method with and without a change, and compare. The same command continues a stopped study."""
    from genssl import config as configs
    from genssl.studies import ablate as study
    from genssl.train.options import Options

    named = {"data": data, "epochs": epochs, "batch_size": batch_size, "limit": limit, "seed": seed}
    common = {name: value for name, value in named.items() if value is not None}
    baseline = configs.make(method, common | _parse(base, "--base"))
    changes = {"timesteps": timesteps or []}
    one_arm = _parse(settings, "--set")
    if not one_arm and not any(changes.values()):
        raise UserError(_what_can_be_ablated(baseline))
    arms = study.arms_of(baseline, changes, one_arm)
    picture = _picture_path(baseline, dict.fromkeys(name for arm in arms for name in arm.changes), out)
    with TrainingScreen(quiet=as_json) as screen:
        how = Options(device=device, max_minutes=max_minutes)
        outcome = study.ablate(baseline, arms, how, screen, seeds)
    _deliver(baseline, outcome, picture, as_json)


def _parse(texts: list[str] | None, option: str) -> dict[str, Any]:
    from genssl.settings import parse_settings

    try:
        return parse_settings(texts or [])
    except UserError as error:
        raise UserError(str(error).replace("--set", option)) from None


def _what_can_be_ablated(baseline: "Config") -> str:
    from genssl.studies.ablate import own_settings

    kind = type(baseline)
    named = [option for option, setting in NAMED.items() if setting in kind.model_fields]
    own = ", ".join(own_settings(kind))
    ways = [*named, f"--set KEY=VALUE (of a {baseline.method}'s own: {own}; or any other setting)"]
    return f"nothing to change; ablate a {baseline.method} with {' or '.join(ways)}"


def _picture_path(baseline: "Config", changed: dict[str, None], out: Path | None) -> Path:
    """Where the figure goes, known before anything is trained; the numbers go beside it."""
    from genssl import runs

    if out is None:
        name = "-".join(["ablate", runs.run_name(baseline, None), *changed])
        return runs.root() / name[:200] / "ablate.png"
    if out.suffix in PICTURES and not out.is_dir():
        return out
    if out.is_file():
        raise UserError(f"--out {out} is a file; give a folder, or a picture such as {out}.png")
    return out / "ablate.png"


def _deliver(baseline: "Config", outcome: "Outcome", picture: Path, as_json: bool) -> None:
    from genssl import files

    values = {**outcome.values, "notes": list(outcome.notes)}
    for figure in outcome.figures.values():
        files.write_picture(picture, figure)
    files.write_json(picture.with_suffix(".json"), values)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        rows = outcome.values["rows"]
        show_rows(f"ablation of {baseline.method} on {baseline.data}", _table(rows))
        show_values("verdicts", {row["arm"]: row["verdict"] for row in rows}, outcome.notes)
    say(f"figure: {picture}, numbers: {picture.with_suffix('.json')}")


def _table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One line a number and one column an arm, so that many numbers fit on a screen."""
    names = dict.fromkeys(name for row in rows for name in row["numbers"])
    return [{"": name, **{row["arm"]: _cell(row["numbers"].get(name)) for row in rows}} for name in names]


def _cell(number: dict[str, Any] | None) -> str:
    if number is None:
        return "-"
    spread = "" if number["std"] is None else f" ± {number['std']:.2g}"
    return readable(number["mean"]) + spread
