"""How many network calls, and how many seconds, a sampler needs for samples of a given quality.

`python -m benchmarks.samplers [REF ...] [-n 512] [--only SAMPLER ...]` draws the same number of samples from
the same noise with every sampler of a run and growing numbers of steps, and measures the Frechet distance to
real test images in the default features, beside that of training images. `--guidance 0` asks the network once
per call, without guidance; `--spacing` takes other times than the sampler's default, and `--steps` other
numbers of steps. It writes docs/results/samplers.json after every row, and takes what is there already as
done.
"""

import argparse
import inspect
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from genssl import checkpoint, files, run_info, runs
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.eval.feature_cache import FeatureSpace, cached_features, extract_features
from genssl.eval.fidelity_features import default_features
from genssl.eval.sample import sample
from genssl.metrics.fidelity import frechet_distance, prdc
from genssl.models.ddpm import default_spacing
from genssl.models.sampling_times import Spacing
from genssl.runtime import choose_device, describe

RESULT = Path("docs/results/samplers.json")
STEPS = {
    "dpm++": (5, 10, 20, 40), "unipc": (5, 10, 20), "heun": (5, 10), "ddim": (10, 20, 50),
    "ancestral": (50,), "euler": (10, 20, 40),
}  # fmt: skip
BATCH = 256
NEIGHBORS = 5


def main() -> None:
    """Measure every row that is missing, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers", description=__doc__)
    parser.add_argument("references", nargs="*", default=["ddpm", "flow"], help="generative runs")
    parser.add_argument("-n", type=int, default=512, help="samples of each")
    parser.add_argument("--only", nargs="*", default=list(STEPS), help="samplers")
    parser.add_argument("--steps", type=int, nargs="*", help="numbers of steps; default: as in STEPS")
    parser.add_argument("--spacing", choices=get_args(Spacing), help="default: that of the sampler")
    parser.add_argument("--guidance", type=float, help="w; default: that of the method")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    device = choose_device(asked.device)
    space = default_features(device)
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    for reference in asked.references:
        folder = runs.find(reference)
        method, digest = checkpoint.load(folder, device), run_info.inspect(folder).digest
        w = getattr(method, "guidance", None) if asked.guidance is None else asked.guidance
        guidance = {"guidance": w} if method.classes else {}
        real, train = (
            load(method.config.data, part).take(asked.n, 0).to(device) for part in ("test", "train")
        )
        features = cached_features(space, real, BATCH, lambda *_: None)
        floor = frechet_distance(features, cached_features(space, train, BATCH, lambda *_: None))
        about = {"run": folder.name, "weights_sha256": digest, "n": asked.n, "device": describe(device)}
        for sampler, steps in plans(method.sample, asked.only, asked.steps):
            spacing = spacing_of(method.sample, sampler, asked.spacing)
            options = {"sampler": sampler, "steps": steps, **spacing, **guidance}
            other = spacing if spacing != spacing_of(method.sample, sampler, None) else {}
            name = " ".join([folder.name, sampler, str(steps), *other.values()])
            if any(row.items() >= (about | options).items() for row in rows):
                continue
            start = time.perf_counter()
            outcome, images = sample(
                method, asked.n, seed=0, batch_size=BATCH, tick=lambda *_: None, options=options
            )
            seconds = time.perf_counter() - start
            row: dict[str, Any] = {
                "calls": outcome.values["nfe"],
                "seconds": round(seconds, 2),
                "command": shlex.join(["python", "-m", "benchmarks.samplers", *sys.argv[1:]]),
                "train_fd": floor,
                "name": name,
            }
            rows.append({**about, **options, **row, **measured(features, images.to(device), space)})
            print({name: rows[-1][name] for name in ("run", "sampler", "calls", "seconds", "fd")}, flush=True)
            files.write_json(asked.out, content(rows))


def plans(draw: Any, samplers: Sequence[str], steps: Sequence[int] | None) -> list[tuple[str, int]]:
    """The samplers of a method with their numbers of steps, or with those asked for."""
    known = str(inspect.signature(draw).parameters["sampler"].annotation)
    return [(name, n) for name in samplers if repr(name) in known for n in steps or STEPS[name]]


def spacing_of(draw: Any, sampler: Any, asked: str | None) -> dict[str, str]:
    """The spacing of a sampler's times, as asked for or by default; nothing for a flow, which has none."""
    if "spacing" not in inspect.signature(draw).parameters:
        return {}
    return {"spacing": asked or default_spacing(sampler)}


def measured(real: Tensor, images: Tensor, space: FeatureSpace) -> dict[str, float]:
    """The Frechet distance, precision and recall of samples, uint8 (n, C, H, W)."""
    split = Split(images, None, (), "samples", "generated", "")
    features = extract_features(space.encode, split, BATCH, lambda *_: None)
    shares = prdc(real, features, NEIGHBORS)
    return {
        "fd": frechet_distance(real, features), "precision": shares.precision, "recall": shares.recall
    }  # fmt: skip


def content(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON: with what it was made, and the rows."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}


if __name__ == "__main__":
    main()
