"""Which encoder learns most from CIFAR-10 in the same time on a CPU.

`python -m benchmarks.encoders --data ARCHIVE --minutes 6 [--only NAME ...]` trains SimSiam with each
candidate on as many images as fit into the minutes, by its measured pace, so that the learning rate has
fallen to zero at the end, of all images but 5,000. The kNN accuracy of those 5,000 among the others, by the
encoder's features, goes to docs/results/encoders.json, after every candidate. The test split is not looked
at. Run nothing beside it, and choose the threads by OMP_NUM_THREADS.
"""

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genssl import config as configs
from genssl import files
from genssl.data.augment.views import choose_views
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.data.subset import train_validation_split
from genssl.features import extract
from genssl.metrics.knn import knn_predict
from genssl.models.method import Method
from genssl.models.resnet import Encoder
from genssl.models.simsiam import SimSiam
from genssl.runtime import describe
from genssl.settings import Config
from genssl.training.loop import Training

RESULT = Path("docs/results/encoders.json")
CPU = torch.device("cpu")
HELD_OUT_SHARE = 0.1
WARM_STEPS, TIMED_STEPS, CHUNK = 3, 12, 256
HEADS: dict[str, Any] = {"projector_dim": 512, "projector_hidden": 512, "predictor_hidden": 128}
SMALL: dict[str, Any] = {"width": 16, "blocks": (2, 2, 2, 2)}
FOUR: dict[str, Any] = {"width": 16, "blocks": (1, 1, 1, 1), "stem_stride": 2}
THREE: dict[str, Any] = {"width": 24, "blocks": (1, 1, 1), "stem_stride": 2}
COMPACT: dict[str, Any] = {**THREE, "width": 32}
# The encoder, and what differs of the recipe of encoder=small with narrow heads
CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (SMALL, {}),
    "16, 4 stages of a block": (FOUR, {}),
    "24, 3 stages of a block": (THREE, {}),
    "24, views of 20 pixels": (THREE, {"view_size": 20}),
    "24, views of 20 pixels, batch 128": (THREE, {"view_size": 20, "batch_size": 128}),
    "32, views of 20 pixels": (COMPACT, {"view_size": 20}),
    "32, views of 16 pixels": (COMPACT, {"view_size": 16}),  # the winner: encoder=compact
}


def main() -> None:
    """Train and measure every candidate that is missing in the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoders", description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10, or an archive of it")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each training")
    parser.add_argument("--only", nargs="*", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    done = {(row["candidate"], row["minutes"]) for row in rows}
    train, held_out = train_validation_split(load(asked.data, "train"), HELD_OUT_SHARE, 0)
    for name in asked.only:
        if (name, asked.minutes) in done:
            continue
        row = candidate(*CANDIDATES[name], asked.minutes, train, held_out)
        rows.append({"candidate": name, "minutes": asked.minutes, **row})
        print(json.dumps(rows[-1]), flush=True)
        command = shlex.join(["python", "-m", "benchmarks.encoders", *sys.argv[1:]])
        about = {"device": describe(CPU), "threads": torch.get_num_threads(), "torch": torch.__version__}
        files.write_json(asked.out, {"command": command, **about, "held_out": len(held_out), "rows": rows})


def candidate(
    encoder: dict[str, Any], changes: dict[str, Any], minutes: float, train: Split, held_out: Split
) -> dict[str, Any]:
    """Train this encoder for about as many minutes, and measure it."""
    settings = {"encoder": "small", **HEADS, **changes}
    config = configs.make("simsiam", settings)
    affordable = 60 * minutes * pace(training_of(encoder, config, train))
    # Whole epochs of as many images as that leaves, so that the schedule ends with the run
    epochs = max(1, math.ceil(affordable / len(train)))
    config = config.updated({"epochs": epochs})
    training = training_of(encoder, config, train.take(int(affordable / epochs)))
    start = time.perf_counter()
    losses = [step.losses["loss"] for step in training.steps()]
    seconds, images = time.perf_counter() - start, len(losses) * training.batch_size
    return {
        "settings": {**encoder, **HEADS, **changes},
        "parameters": sum(p.numel() for p in cast(SimSiam, training.method).encoder.parameters()),
        "images": images,
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "loss": float(torch.stack(losses[-100:]).mean()),
        "knn_accuracy": accuracy(training.method, train, held_out),
    }


def training_of(encoder: dict[str, Any], config: Config, train: Split) -> Training:
    """A training of SimSiam with this encoder, from its first weights."""
    torch.manual_seed(config.seed)
    assert isinstance(config, configs.SimSiamConfig)
    sizes = (config.projector_hidden, config.projector_dim)
    method = SimSiam(Encoder(**encoder), sizes, **SimSiam.settings_of(config))
    method.config = config
    method = method.to(memory_format=torch.channels_last)
    return Training(method, choose_views(config, train.classes), train, config)


def pace(training: Training) -> float:
    """Images per second over a few steps."""
    steps = training.steps()
    for _ in range(WARM_STEPS):
        next(steps)
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        next(steps)
    return TIMED_STEPS * training.batch_size / (time.perf_counter() - start)


@torch.no_grad()
def accuracy(method: Method, train: Split, held_out: Split) -> float:
    """The kNN accuracy of the held-out images among the others, k = 200."""
    method.eval()
    bank, queries = (extract(method.features, split.images, CHUNK) for split in (train, held_out))
    predicted = knn_predict(bank, cast(Tensor, train.labels), queries, len(train.classes))
    return float((predicted == cast(Tensor, held_out.labels)).float().mean())


if __name__ == "__main__":
    main()
