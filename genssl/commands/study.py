"""`ablate`, `compare`."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import (
    TrainingScreen,
    confirm_long,
    format_value,
    progress,
    show_lines,
    show_rows,
    show_values,
    with_channels,
)
from genssl.commands._options import Common
from genssl.commands._run import default_samples, open_samples, save_and_print
from genssl.environment import command_line
from genssl.errors import UserError
from genssl.paths import LONGEST_STUDY

if TYPE_CHECKING:
    from genssl.eval.result import EvalResult
    from genssl.settings import Config
    from genssl.studies.results import Arm

# Options that change one setting: each value that they are given is an arm
NAMED = {
    "--timesteps": "timesteps",
    "--no-stopgrad": "stop_gradient",
    "--predictor": "predictor",
    "--no-predictor": "predictor",
    "--proj-dim": "projector_dim",
    "--naive": "naive",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(ablate)
    app.command()(compare)


def ablate(
    method: Annotated[
        str, typer.Argument(help="Method to train, e.g. vae; with --guidance also the name or path of a run.")
    ],
    timesteps: Annotated[
        list[int] | None, typer.Option(help="Number of diffusion steps; repeatable, one arm per value.")
    ] = None,
    no_stopgrad: Annotated[
        bool, typer.Option("--no-stopgrad", help="Add an arm without the stop-gradient.")
    ] = False,
    predictor: Annotated[
        list[str] | None,
        typer.Option(help="Predictor: mlp, identity or fixed; repeatable, one arm per value."),
    ] = None,
    no_predictor: Annotated[
        bool, typer.Option("--no-predictor", help="Same as --predictor identity.")
    ] = False,
    proj_dim: Annotated[
        list[int] | None, typer.Option(help="Output width of the projector; repeatable, one arm per value.")
    ] = None,
    naive: Annotated[
        bool, typer.Option("--naive", help="Add an arm that treats heavy views as standard ones (DSSL).")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other change; repeatable. Different keys change the same arm; several values per key "
            "make one arm per combination.",
        ),
    ] = None,
    guidance: Annotated[
        list[float] | None,
        typer.Option(
            min=-1,
            max=1000,
            help="Guidance w to sample a class-conditional run with, without training; repeatable. Measures "
            "quality, variety and class.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Samples per --guidance; default: 512 on a CPU, 10,000 on a GPU."),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", metavar="KEY=VALUE", help="Setting of all arms; repeatable."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of seeds per arm: seed, seed + 1, ...")
    ] = 1,
    data: _options.TrainingData = None,
    epochs: _options.Epochs = None,
    batch_size: _options.TrainingBatchSize = None,
    learning_rate: _options.LearningRate = None,
    limit: _options.TrainingLimit = None,
    holdout: _options.Holdout = None,
    knn_every: _options.KnnEvery = None,
    seed: _options.TrainingSeed = None,
    max_minutes: _options.MaxMinutes = None,
    yes: _options.Yes = False,
    device: _options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder, or a figure file; default: checkpoints/ablate-...")
    ] = None,
    as_json: _options.Json = False,
) -> None:
    """Train a method with and without a change, and compare. The same command resumes a stopped study."""
    from genssl import config as configs
    from genssl.data.registry import require
    from genssl.paths import runs_root
    from genssl.runs import run_name
    from genssl.studies import ablate as study
    from genssl.training.options import Options

    common = _options.given(
        data=data, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, limit=limit,
        seed=seed, knn_every=knn_every, holdout=holdout,
    )  # fmt: skip
    if guidance:
        arms_named = (timesteps, no_stopgrad, predictor, no_predictor, proj_dim, naive, settings, base)
        if any(arms_named) or common.keys() - {"data", "seed", "batch_size"} or seeds != 1:
            raise UserError(
                "--guidance trains nothing: it takes -n, --data, --seed, --batch-size, --device, --out"
            )
        evaluated = Common(
            data=data, seed=seed or 0, batch_size=batch_size or 256, device=device, out=out, as_json=as_json
        )
        _guidance(method, guidance, n, evaluated)
        return
    if n is not None:
        raise UserError("-n is for --guidance; the measurements of trained arms choose their own")
    common |= _parse_base(base)
    baseline = configs.make(method, common)
    changes: dict[str, list[Any]] = {
        "timesteps": timesteps or [],
        "stop_gradient": [False] if no_stopgrad else [],
        "predictor": [*(predictor or []), *(["identity"] if no_predictor else [])],
        "projector_dim": proj_dim or [],
        "naive": [True] if naive else [],
    }
    arms = _arms(baseline, changes, settings or [])
    changed = dict.fromkeys(name for arm in arms for name in arm.changes)
    name = "-".join(["ablate", run_name(baseline, None), *changed])
    require(baseline.data)
    target = _outputs.target_of_study(runs_root() / name[:LONGEST_STUDY], "ablate", out)
    options = Options(device=device, max_minutes=max_minutes)
    if "channels" not in common:
        # A study that is done needs no data
        done = (c for c in (3, 1) if not study.untrained(baseline.updated({"channels": c}), arms, seeds))
        known = next(done, None)
        baseline = baseline.updated({"channels": known}) if known else with_channels(baseline, as_json)
        arms = _arms(baseline, changes, settings or [])
    if not (yes or as_json):
        confirm_long(study.untrained(baseline, arms, seeds), options, "--base")
    with TrainingScreen(quiet=as_json) as screen:
        result = study.ablate(baseline, arms, options, screen, seeds)
    values = _write(result, target)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        rows = result.values["rows"]
        title = f"ablation of {baseline.method} on {baseline.data}"
        show_rows(title, _table({row["arm"]: row["numbers"] for row in rows}))
        if (ranking := result.values.get("ranking")) is not None:
            better = f"{ranking['better']} is better"
            show_rows(f"by {ranking['metric']} ({better}), mean ± deviation over seeds", _ranks(ranking))
        show_values("verdicts", {row["arm"]: row["verdict"] for row in rows}, result.notes)


def _guidance(reference: str, values: list[float], n: int | None, common: Common) -> None:
    """Sample a run with each w, and measure; see `guidance_sweep`."""
    if not all(map(math.isfinite, values)):
        raise UserError("--guidance takes numbers from -1 to 1000")
    source = open_samples(reference, None, common)
    if source.loaded is None:
        raise UserError(f"{reference} is a folder of samples; --guidance takes a run that generates them")
    from genssl.eval.fidelity import FidelitySettings
    from genssl.eval.guidance import BANK, guidance_sweep
    from genssl.eval.names import file_name

    count = n or default_samples(source.device)
    weights = "-".join(f"{w:g}".replace("-", "minus") for w in values)
    changed = _options.given(n=n, data=common.data, seed=common.seed or None, w=f"w{weights}")
    target = _outputs.target_of_run(source.loaded.info.folder, file_name("guidance", changed), common.out)
    real = source.real("test", count, common.seed)
    train = source.training_images().take(BANK, common.seed)
    settings = FidelitySettings(seed=common.seed, batch_size=common.batch_size)
    with progress("sampling") as tick:
        result = guidance_sweep(
            source.loaded.method, list(dict.fromkeys(values)), count, real, train, source.space, settings,
            tick,
        )  # fmt: skip
    save_and_print(source.loaded, result, target, common.as_json, real)


def _arms(baseline: "Config", changes: dict[str, list[Any]], settings: list[str]) -> "list[Arm]":
    from genssl.studies import ablate as study

    combinations = study.combinations(_options.parse_repeated_settings(settings))
    if not combinations and not any(changes.values()):
        raise UserError(_what_can_be_ablated(baseline))
    return study.arms_of(baseline, changes, *combinations)


def _parse_base(texts: list[str] | None) -> dict[str, Any]:

    try:
        return _options.parse_settings(texts or [])
    except UserError as error:
        raise UserError(str(error).replace("--set", "--base")) from None


def _what_can_be_ablated(baseline: "Config") -> str:
    from genssl.studies.ablate import own_settings

    kind = type(baseline)
    named = [option for option, setting in NAMED.items() if setting in kind.model_fields]
    method_settings = ", ".join(own_settings(kind))
    ways = [
        *named,
        f"--set KEY=VALUE (of a {baseline.method}'s settings: {method_settings}; or any other setting)",
    ]
    return f"nothing to change; ablate a {baseline.method} with {' or '.join(ways)}"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="REF REF ...", help="Methods, names of runs (also of ablations) or paths."),
    ],
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            min=1,
            max=200_000,
            help="Samples per generative run; default: 512 on a CPU, 10,000 on a GPU.",
        ),
    ] = None,
    no_fidelity: Annotated[
        bool, typer.Option("--no-fidelity", help="Skip the sample-quality metrics.")
    ] = False,
    device: _options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder, or a figure file; default: checkpoints/compare-...")
    ] = None,
    as_json: _options.Json = False,
) -> None:
    """Compare trained runs: settings, numbers, curves and sample quality."""
    from genssl.paths import runs_root
    from genssl.runs import find_several

    folders = find_several(runs)
    name = "-".join(["compare", *(folder.name for folder in folders)])
    target = _outputs.target_of_study(runs_root() / name[:LONGEST_STUDY], "compare", out)
    from genssl.runtime import choose_device
    from genssl.studies import compare as study
    from genssl.studies.compare import table

    with TrainingScreen(quiet=as_json) as screen:
        samples = None if no_fidelity else n or default_samples(choose_device(device))
        result = study.compare(folders, device, screen, samples)
    values = _write(result, target)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        rows = result.values["runs"]
        show_rows("what they are", [_identity(row) for row in rows])
        if result.values["differences"]:
            show_rows("settings that differ", result.values["differences"])
        show_rows("numbers", _table({row["name"]: row["numbers"] for row in rows}))
        if "fidelity" in result.values:
            show_rows("sample quality [95 % interval]", table(result.values["fidelity"]))
        show_lines(*(f"note: {note}" for note in result.notes))


def _identity(row: dict[str, Any]) -> dict[str, Any]:
    state = "collapsed" if row["collapsed"] else "" if row["finished"] else row["state"]
    names = ("name", "method", "data", "epoch", "seed")
    return {**{name: row[name] for name in names}, "state": state, "path": row["path"]}


def _write(result: "EvalResult", target: _outputs.Target) -> dict[str, Any]:
    """Write the figures, and the numbers if they have a file; returns the numbers."""
    known = {"command": command_line(), **result.values, "notes": list(result.notes)}
    values: dict[str, Any] = _outputs.finite(known)
    target.write(values, result.figures, {"command": command_line()})
    return values


def _table(numbers: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One line per number and one column per arm or run, so that many numbers fit on a screen."""
    from genssl.studies.results import FIRST, REMARKS

    present = dict.fromkeys(name for row in numbers.values() for name in row)
    names = [*(name for name in FIRST if name in present), *(name for name in present if name not in FIRST)]
    lines = {name: f"{name} ({REMARKS[name]})" if name in REMARKS else name for name in names}
    return [
        {"": line, **{arm: _cell(row.get(name)) for arm, row in numbers.items()}}
        for name, line in lines.items()
    ]


def _ranks(ranking: dict[str, Any]) -> list[dict[str, str]]:
    """One line per arm, the best above, with the number of its seeds."""
    lines = []
    for item in ranking["arms"]:
        ends = (item["low"], item["high"])
        span = f"{format_value(ends[0])} to {format_value(ends[1])}" if item["seeds"] > 1 else ""
        number = _cell(item) if item["seeds"] else "-"
        cells = {"arm": item["arm"], ranking["metric"]: number, "range": span, "seeds": str(item["seeds"])}
        lines.append({**cells, "": item["remark"]})
    return lines


def _cell(number: dict[str, Any] | float | None) -> str:
    if number is None:
        return "-"
    if not isinstance(number, dict):
        return format_value(number)
    spread = "" if number["std"] is None else f" ± {number['std']:.2g}"
    return format_value(number["mean"]) + spread
