"""Which U-Net learns most from rendered digits in the same time on a CPU.

`python -m benchmarks.networks --minutes 60 [--only NAME ...]` trains each candidate for as many epochs as fit
into the minutes, by its measured pace, so that a falling learning rate ends with the run; draws 512 samples,
and writes their Frechet distance and the share that is read (not with `--unread`, for which no readers are
trained) to docs/results/networks.json, after every candidate. `--speed` measures a training step of the
networks in turn instead, and writes docs/results/networks-speed.json. Run nothing beside it, and choose the
threads by OMP_NUM_THREADS.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.readable import READERS, shares, trained
from benchmarks.samplers import measured
from benchmarks.timing import all_in_turn
from genssl import checkpoint, files
from genssl import config as configs
from genssl.data.loading import load
from genssl.eval.feature_cache import cached_features
from genssl.eval.fidelity_features import default_features
from genssl.eval.sample import ALL, sample
from genssl.models.build import build
from genssl.models.ddpm import default_spacing
from genssl.models.guidance import GUIDANCE
from genssl.models.method import count_parameters
from genssl.runtime import autocast, choose_precision, describe, generator
from genssl.training import run
from genssl.training.estimate import pace
from genssl.training.options import Options

RESULT = Path("docs/results/networks.json")
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {"data": "synthetic", "conditional": True, "sample_every": 0}
V: dict[str, Any] = {"prediction": "v", "loss": "mse"}
RECIPE: dict[str, Any] = {"learning_rate": 8e-4, "schedule": "cosine", "warmup_epochs": 0.5}
MIDDLE: dict[str, Any] = {"beta_schedule": "cosine", "timestep_sampling": "logit_normal"}
# Networks under one recipe, and recipes for one network
CANDIDATES: dict[str, dict[str, Any]] = {
    "tiny, epsilon": {"network": "tiny", **RECIPE},
    "tiny, v": {"network": "tiny", **RECIPE, **V},
    "compact, epsilon": {"network": "compact"},
    "compact, v": {"network": "compact", **V},
    "compact, v, cosine": {"network": "compact", **V, "beta_schedule": "cosine"},
    "compact, v, cosine, logit-normal": {"network": "compact", **V, **MIDDLE},
    "tiny, v, cosine, logit-normal": {"network": "tiny", **RECIPE, **V, **MIDDLE},
    "compact, v, min-SNR": {"network": "compact", **V, "weighting": "min_snr"},
    "compact, v, rate 4e-4": {"network": "compact", **V, "learning_rate": 4e-4},
    "compact, v, batch 32": {"network": "compact", **V, "batch_size": 32},
}
SAMPLES, BATCH = 512, 256
SPEED = Path("docs/results/networks-speed.json")
STEPS_OF: dict[str, dict[str, Any]] = {
    "tiny": {"network": "tiny"},
    "compact": {"network": "compact"},
    "compact, conditional": {"network": "compact", "conditional": True, "num_classes": 10},
}
STEPS, ROUNDS = 4, 9


def main() -> None:
    """Train and measure every candidate that is missing in the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of each training")
    parser.add_argument("--epochs", type=int, help="instead of --minutes, for networks of one speed")
    parser.add_argument("--only", nargs="*", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--unread", action="store_true")
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    if asked.speed:
        speed()
        return
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    length: dict[str, Any] = {"epochs": asked.epochs} if asked.epochs else {"minutes": asked.minutes}
    # Samples of other times or another guidance are not compared with these
    sampling = {"guidance": GUIDANCE, "spacing": default_spacing("dpm++")}
    readers = () if asked.unread else READERS
    networks = {reader.name: trained(reader, load("synthetic", "train"), 4) for reader in readers}
    for name in asked.only:
        if any(row.items() >= ({"candidate": name} | length | sampling).items() for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = candidate(CANDIDATES[name], asked.epochs, asked.minutes, Path(folder) / "run", networks)
        rows.append({"candidate": name, **length, **sampling, **row})
        print(json.dumps(rows[-1]), flush=True)
        command = shlex.join(["python", "-m", "benchmarks.networks", *sys.argv[1:]])
        about = {"device": describe(CPU), "threads": torch.get_num_threads(), "torch": torch.__version__}
        files.write_json(asked.out, {"command": command, **about, "rows": rows})


def candidate(
    settings: dict[str, Any],
    epochs: int | None,
    minutes: float,
    folder: Path,
    networks: dict[str, nn.Module],
) -> dict[str, Any]:
    """Train with these settings for so many epochs, or about as many minutes, and measure."""
    config = configs.make("ddpm", COMMON | settings)
    options = Options(device="cpu", out=folder)
    if epochs is None:
        speed = pace(config, options)
        epochs = max(1, int(60 * minutes * speed.images_per_second / speed.images))
    start = time.perf_counter()
    run.start(config.updated({"epochs": epochs}), options)
    seconds = time.perf_counter() - start
    method = checkpoint.load(folder, CPU)
    arguments: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "tick": lambda *_: None}
    _, images = sample(method, SAMPLES, options={"class_label": ALL}, **arguments)
    real = load("synthetic", "test").take(SAMPLES, 0)
    space = default_features(CPU)
    features = cached_features(space, real, BATCH, lambda *_: None)
    shares_read = shares(networks, images) if networks else {}
    read = {name: share["0.8"]["share"] for name, share in shares_read.items()}
    about = {"parameters": count_parameters(method)[1], "epochs": epochs, "seconds": round(seconds, 1)}
    return {**settings, **about, **measured(features, images, space), "read": read}


def speed() -> None:
    """Images per second of training steps, in turn, and the ratio of each round to the first network."""
    rates = all_in_turn({name: step_rate(changes) for name, changes in STEPS_OF.items()}, ROUNDS)
    first = rates["tiny"]
    rows = [
        {
            "network": name,
            "images_per_second": statistics.median(measured_rates),
            "over_tiny": statistics.median(a / b for a, b in zip(measured_rates, first, strict=True)),
            "over_compact": statistics.median(
                a / b for a, b in zip(measured_rates, rates["compact"], strict=True)
            ),
            "parameters": count_parameters(build(configs.make("ddpm", {"data": "synthetic", **changes})))[0],
        }
        for (name, measured_rates), changes in zip(rates.items(), STEPS_OF.values(), strict=True)
    ]
    about = {"device": describe(CPU), "threads": torch.get_num_threads(), "torch": torch.__version__}
    command = "python -m benchmarks.networks --speed"
    files.write_json(SPEED, {"command": command, **about, "batch_size": 64, "rounds": ROUNDS, "rows": rows})
    print(json.dumps(rows, indent=1))


def step_rate(changes: dict[str, Any]) -> Callable[[], float]:
    """Images per second over a few training steps of a DDPM, each time it is called."""
    config = configs.make("ddpm", {"data": "synthetic", **changes})
    method = build(config).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-4, fused=True)
    precision = choose_precision("auto", CPU)
    draw = generator(0, "benchmark")
    images = torch.rand(config.batch_size, 3, 32, 32, generator=draw) * 2 - 1

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            draws = method.draws(len(images), draw)
            draws["labels"] = torch.zeros(len(images), dtype=torch.int64)
            with autocast(CPU, precision):
                loss = method.loss((images,), draws)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return STEPS * len(images) / (time.perf_counter() - start)

    return measure


if __name__ == "__main__":
    main()
