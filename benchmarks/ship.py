"""Make a finished run the weights that come with genssl.

`python -m benchmarks.ship RUN [--name NAME]` copies what a reader needs into checkpoints/shipped/NAME, the
weights in half precision: that changes samples by less than a byte, and there are four networks to carry.
Where the run began with other weights (`--init`), the command that made those is kept beside its own.
"""

import argparse
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genssl import files, paths, run_info

KEPT = ("config.json", "history.jsonl", "*.png")
PLACES = {"--checkpoints", "--tag", "--out"}  # options that say where the run was written


def main() -> None:
    """Copy a run, its weights last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ship", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--name", help="of its folder in checkpoints/shipped; default: its method")
    parser.add_argument("--full", action="store_true", help="keep the weights in single precision")
    asked = parser.parse_args()
    info = run_info.inspect(asked.run)
    if not info.finished:
        raise SystemExit(f"{asked.run} is not finished")
    target = paths.shipped_root() / (asked.name or info.config.method)
    before = first_weights(info.config.init)  # which may be those that are replaced
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for pattern in KEPT:
        for file in asked.run.glob(pattern):
            shutil.copy(file, target / file.name)
    for sheet in target.glob("*-over-epochs.png"):
        # A third of the size, for pictures of 32 pixels that show how a training went
        Image.open(sheet).convert("RGB").quantize(256).save(sheet, optimize=True)
    about = json.loads((asked.run / "environment.json").read_text(encoding="utf-8"))
    about["command"] = command(about["command"], target.name)
    about |= {"init": before} if before else {}
    files.write_json(target / "environment.json", about)
    tensors, metadata = files.read_tensors(asked.run / run_info.MODEL)
    del metadata["sha256"]
    config = info.config.updated({"init": None})  # a path of the machine where it was trained
    files.write_text(target / run_info.CONFIG, config.to_json())
    metadata["config"] = config.model_dump_json()
    weights = tensors if asked.full else {name: halved(tensor) for name, tensor in tensors.items()}
    files.write_tensors(target / run_info.MODEL, weights, metadata)


def first_weights(init: str | None) -> dict[str, Any]:
    """How the weights that a run began with were made: command, epochs and digest; empty without any."""
    if init is None:
        return {}
    info = run_info.inspect(Path(init))
    about = files.read_record(Path(init) / run_info.ENVIRONMENT)
    return {"command": about["command"], "epochs": info.epoch, "weights_sha256": info.digest}


def halved(tensor: Tensor) -> Tensor:
    """A float32 tensor in half precision; others as they are."""
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def command(line: str, name: str) -> str:
    """The command line of a run, with the folder of shipped weights instead of paths of another machine."""
    words, remaining = shlex.split(line), []
    while words:
        word = words.pop(0)
        if word in PLACES:
            words.pop(0)
        elif word == "--init":
            remaining += [word, Path(words.pop(0)).name]
        elif word != "--yes":
            remaining.append(word)
    return shlex.join([*remaining, "--out", f"checkpoints/shipped/{name}"])


if __name__ == "__main__":
    main()
