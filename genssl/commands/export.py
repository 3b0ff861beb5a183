"""`export`: a run's network for other tools; `push`: a run for other people."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo, show_lines, show_values
from genssl.commands._run import LoadedRun, load_run
from genssl.environment import command_line, digest
from genssl.errors import UserError

PIPELINE = "genssl.json"  # in the folder of a pipeline: where it is from, and the command that made it
SUFFIXES = {"torchvision": ".safetensors", "onnx": ".onnx"}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(export)
    app.command()(push)


def export(
    run: _options.Run,
    kind: Annotated[
        Literal["torchvision", "onnx", "diffusers"],
        typer.Option(
            "--format",
            help="torchvision: encoder weights for its ResNets; onnx: a network for inference; diffusers: a "
            "pipeline folder of a DDPM or flow.",
        ),
    ],
    part: Annotated[
        Literal["encoder", "decoder", "network"] | None,
        typer.Option(help="Network to export (onnx); default: the decoder of a VAE, else the only one."),
    ] = None,
    checkpoint: _options.Checkpoint = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File, or a folder for it; of a pipeline, its folder. "
            "Default: <run>-<part> in the current folder."
        ),
    ] = None,
    as_json: _options.Json = False,
) -> None:
    """Export a network of a run for torchvision, ONNX Runtime or diffusers."""
    if part is not None and kind != "onnx" and (kind, part) != ("torchvision", "encoder"):
        what = "encoders" if kind == "torchvision" else "whole pipelines"
        raise UserError(f"--format {kind} is for {what}; --part {part} goes with --format onnx")
    _check_out(kind, out)
    loaded = load_run(run, checkpoint, "cpu")
    match kind:
        case "torchvision":
            values = _torchvision(loaded, out)
        case "onnx":
            values = _onnx(loaded, part, out)
        case "diffusers":
            values = _diffusers(loaded, out)
    if as_json:
        print(json.dumps(values, indent=2))
        return
    show_values(f"export {loaded.info.name}", {n: v for n, v in values.items() if n != "load"})
    show_lines("", "load it with:", "", *values["load"].split("\n"))


def _torchvision(loaded: LoadedRun, out: Path | None) -> dict[str, Any]:
    from genssl import files
    from genssl.export import torchvision as evaluation

    state = evaluation.torchvision_state(loaded.method)
    file = _file(loaded, "torchvision", "torchvision", out)
    interface = evaluation.torchvision_interface(state)
    metadata = {"format": "torchvision", "command": command_line(), **_provenance(loaded)}
    files.write_tensors(file, state, {**metadata, **_flat(interface)})
    echo(f"torchvision: {file}")
    return _values(loaded, file) | interface | {"load": evaluation.torchvision_code(state, str(file))}


def _onnx(loaded: LoadedRun, part: str | None, out: Path | None) -> dict[str, Any]:
    from genssl import files
    from genssl.export import onnx as evaluation

    name, graph = evaluation.choose(loaded.method, part)
    file = _file(loaded, name, "onnx", out)
    evaluation.require_packages()
    echo("exporting and checking; that takes some seconds")
    metadata = {"command": command_line(), "command_sha256": digest(command_line()), **_provenance(loaded)}
    content = evaluation.to_onnx(graph, metadata)
    checked = evaluation.check(content, graph)
    files.write_bytes(file, content)
    echo(f"{name}: {file}")
    given = ", ".join(f'"{name}": {name}' for name in graph.inputs)
    code = f"onnxruntime.InferenceSession({str(file)!r}).run(None, {{{given}}})\n"
    return _values(loaded, file) | {"part": name} | checked | {"load": code}


def _diffusers(loaded: LoadedRun, out: Path | None) -> dict[str, Any]:
    from genssl import files
    from genssl.export import diffusers as evaluation

    contents = evaluation.diffusers_files(loaded.method)
    usual = Path(f"{loaded.info.name}-diffusers")
    folder = _outputs.unused_folder(usual, PIPELINE) if out is None else out
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    provenance = {"command": command_line(), **_provenance(loaded)}
    files.write_json(folder / PIPELINE, provenance)
    weights = folder / evaluation.WEIGHTS
    files.write_tensors(weights, evaluation.diffusers_state(loaded.method), {"format": "pt", **provenance})
    code = evaluation.loading_code(loaded.info.config, str(folder))
    readme = evaluation.diffusers_readme(loaded.info, folder.name)
    # The last is model_index.json, without which the folder does not load
    for name, content in ({"README.md": readme} | contents).items():
        if isinstance(content, str):
            files.write_text(folder / name, content)
        else:
            files.write_json(folder / name, content)
    echo(f"pipeline: {folder}")
    return _values(loaded, weights) | {"file": str(folder), "load": code}


def _file(loaded: LoadedRun, name: str, kind: str, out: Path | None) -> Path:
    """Where the file goes: `out`, in the folder `out`, or here, with a number if need be."""
    usual = Path(f"{loaded.info.name}-{name}{SUFFIXES[kind]}")
    if out is None:
        return _outputs.unused(usual)
    return _outputs.claim(out / usual if out.is_dir() else out)


def _check_out(kind: str, out: Path | None) -> None:
    if kind == "diffusers":
        if out is not None:
            _outputs.claim_folder_of(out, PIPELINE)
        return
    suffix = SUFFIXES[kind]
    if out is not None and not out.is_dir() and out.suffix != suffix:
        raise UserError(f"--out {out} is no {suffix} file; name one such as {out.with_suffix(suffix)}")


def _values(loaded: LoadedRun, file: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = {name: text for name, text in _provenance(loaded).items() if name != "config"}
    return {
        "file": str(file),
        "megabytes": file.stat().st_size / 1e6,
        **metadata,
        "epoch": loaded.info.epochs_trained,
    }


def _provenance(loaded: LoadedRun) -> dict[str, str]:
    """Where a file comes from, for its metadata."""
    info = loaded.info
    return {
        "run": info.name,
        "method": info.config.method,
        "data": info.config.data,
        "epoch": f"{info.epochs_trained:g}",
        "weights_sha256": info.digest,
        "config": info.config.model_dump_json(),
    }


def _flat(interface: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: text for side in interface.values() for name, text in side.items()}


def push(
    run: _options.Run,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Name of the model on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new model that only you see.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model card; push nothing.")] = False,
) -> None:
    """Put a run on the Hugging Face hub, with a model card; `hf:OWNER/NAME` names it from then on."""
    from genssl import hub, runs
    from genssl.export.card import model_card

    name = hub.name_of(name)
    folder = runs.find_folder(run)
    card = model_card(folder, name)
    if dry_run:
        print(card)
        return
    echo(f"pushing {folder} to {hub.PREFIX}{name}; that takes as long as the network needs")
    echo(f"{folder}: {hub.upload(folder, name, card, private=private)}")
